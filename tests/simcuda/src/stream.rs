//! Streams: queues of work, each with a thread that runs it, in order and later.
//!
//! In: pieces of work, by [`enqueue`]. Out: whether they are done. Before each piece the thread waits a random while
//! (`SIMCUDA_DELAY_US`), so that whoever takes back a buffer too early is seen. A piece that fails breaks its context; what is
//! queued behind it then is passed over, but events behind it still come.
//!
//! The null stream of a context waits for all that was put into its blocking streams before, and they for it.

use crate::{
    Answer,
    context::{self, Context},
    device::Gpu,
    event::Mark,
    handles::Handles,
    lock::{lock, wait_a_little},
    settings::settings,
};
use cudarc::driver::sys::{CUresult, CUstream};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Duration,
};

/// A stream.
pub(crate) struct Stream {
    pub(crate) context: Arc<Context>,
    /// Whether it and the null stream wait for each other.
    blocking: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    tasks: VecDeque<Task>,
    submitted: u64,
    finished: u64,
    closed: bool,
}

/// What runs on the stream's thread.
type Work = Box<dyn FnOnce(&Context) -> Answer + Send>;

enum Task {
    Work(Work),
    /// Sets a mark, whatever became of the work before.
    Set(Arc<Mark>),
    /// Waits for one.
    Await(Arc<Mark>),
    /// Waits until a stream has finished so many tasks.
    After(Arc<Stream>, u64),
}

static STREAMS: Handles<Stream> = Handles::new(2);

/// `CU_STREAM_LEGACY`: the null stream by another name.
const LEGACY: usize = 1;

impl Stream {
    /// A stream with its thread, which ends when the stream is closed and empty.
    pub(crate) fn start(context: Arc<Context>, blocking: bool) -> Arc<Self> {
        let queue = Queue { tasks: VecDeque::new(), submitted: 0, finished: 0, closed: false };
        let stream = Arc::new(Self { context, blocking, queue: Mutex::new(queue), changed: Condvar::new() });
        let theirs = Arc::clone(&stream);
        let thread = thread::Builder::new().name("simcuda-stream".into()).spawn(move || theirs.run());
        if let Err(error) = thread {
            panic!("simcuda: no thread for a stream: {error}");
        }
        stream
    }

    fn run(&self) {
        let mut chance = Chance::new(std::ptr::from_ref(self).addr() as u64);
        while let Some(task) = self.next() {
            let mark = self.perform(task, &mut chance);
            let mut queue = lock(&self.queue);
            queue.finished += 1;
            // At once with it: who saw the event finds the stream done.
            if let Some(mark) = mark {
                mark.set();
            }
            drop(queue);
            self.changed.notify_all();
        }
    }

    fn next(&self) -> Option<Task> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            if queue.closed {
                return None;
            }
            queue = self.changed.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Performs a task, but leaves the setting of a mark to the caller.
    fn perform(&self, task: Task, chance: &mut Chance) -> Option<Arc<Mark>> {
        match task {
            Task::Set(mark) => return Some(mark),
            _ if self.context.ended() => {}
            Task::Await(mark) => mark.wait(&self.context),
            Task::After(other, count) => other.wait_for(count, &self.context),
            Task::Work(work) => {
                thread::sleep(chance.duration(settings().longest_delay));
                let ended = catch_unwind(AssertUnwindSafe(|| work(&self.context)));
                if let Err(code) = ended.unwrap_or(Err(CUresult::CUDA_ERROR_UNKNOWN)) {
                    self.context.fail(code);
                }
            }
        }
        None
    }

    /// Waits until `count` tasks are finished or `context` ends.
    fn wait_for(&self, count: u64, context: &Context) {
        let mut queue = lock(&self.queue);
        while queue.finished < count && !context.ended() {
            queue = wait_a_little(&self.changed, queue);
        }
    }

    fn push(self: &Arc<Self>, task: Task) -> Answer<u64> {
        self.context.check()?;
        for (other, count) in self.waits_for() {
            self.push_alone(Task::After(other, count));
        }
        Ok(self.push_alone(task))
    }

    fn push_alone(&self, task: Task) -> u64 {
        let mut queue = lock(&self.queue);
        queue.tasks.push_back(task);
        queue.submitted += 1;
        self.changed.notify_all();
        queue.submitted
    }

    /// What of other streams comes before a task that is pushed now, because of what a null stream is.
    fn waits_for(self: &Arc<Self>) -> Vec<(Arc<Self>, u64)> {
        if !self.blocking {
            return Vec::new();
        }
        let mut others = match self.context.default_stream_if_used() {
            Some(default) if Arc::ptr_eq(self, &default) => {
                let blocking = |stream: &Self| stream.blocking && Arc::ptr_eq(&stream.context, &self.context);
                STREAMS.all(blocking)
            }
            Some(default) => vec![default],
            None => Vec::new(),
        }
        .into_iter()
        .map(|stream| {
            let queue = lock(&stream.queue);
            let pending = (queue.finished < queue.submitted).then_some(queue.submitted);
            drop(queue);
            (stream, pending)
        })
        .filter_map(|(stream, pending)| Some((stream, pending?)))
        .collect::<Vec<_>>();
        others.retain(|(stream, _)| !Arc::ptr_eq(stream, self));
        others
    }

    /// Appends `work`, which runs later, on the stream's own thread; gives a number for [`Self::wait`]. An error breaks the stream's
    /// context: it is what all later calls return. Work that waits for others asks [`Context::ended`] now and then, and gives up
    /// once it is true.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        work: impl FnOnce(&Context) -> Answer + Send + 'static,
    ) -> Answer<u64> {
        self.push(Task::Work(Box::new(work)))
    }

    /// Appends the setting of a mark.
    pub(crate) fn set(self: &Arc<Self>, mark: Arc<Mark>) -> Answer {
        self.push(Task::Set(mark)).map(drop)
    }

    /// Appends waiting for a mark.
    pub(crate) fn await_mark(self: &Arc<Self>, mark: Arc<Mark>) -> Answer {
        self.push(Task::Await(mark)).map(drop)
    }

    /// Waits until the work of this number and all before is done.
    pub(crate) fn wait(&self, number: u64) -> Answer {
        self.wait_for(number, &self.context);
        self.context.check()
    }

    /// Waits until all is done that is there now.
    pub(crate) fn synchronise(&self) -> Answer {
        let submitted = lock(&self.queue).submitted;
        self.wait(submitted)
    }

    /// Whether all is done.
    pub(crate) fn query(&self) -> Answer {
        self.context.check()?;
        if self.is_done() { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
    }

    fn is_done(&self) -> bool {
        let queue = lock(&self.queue);
        queue.finished == queue.submitted
    }

    /// Lets it finish what it has and end; doesn't wait for that.
    pub(crate) fn close(&self) {
        lock(&self.queue).closed = true;
        self.changed.notify_all();
    }
}

/// A new stream of the current context.
pub(crate) fn create(non_blocking: bool) -> Answer<CUstream> {
    let context = context::current()?;
    Ok(STREAMS.add(|_| Stream::start(context, !non_blocking)).0)
}

/// The stream of a handle; null is that of the current context, and there must be one in any case.
pub(crate) fn find(handle: CUstream) -> Answer<Arc<Stream>> {
    let current = context::current()?;
    if handle.is_null() || handle.addr() == LEGACY {
        return Ok(current.default_stream());
    }
    let stream = STREAMS.find(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    stream.context.check()?;
    Ok(stream)
}

/// `cuStreamDestroy`. A stream of a broken context ends too, but the call fails.
pub(crate) fn destroy(handle: CUstream) -> Answer {
    let stream = STREAMS.remove(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    stream.close();
    let mut closing = lock(&stream.context.closing);
    closing.retain(|stream| !stream.is_done());
    if !stream.is_done() {
        closing.push(Arc::clone(&stream));
    }
    drop(closing);
    stream.context.check()
}

/// Waits for all work of a context.
pub(crate) fn synchronise_all(context: &Arc<Context>) -> Answer {
    let mut streams = STREAMS.all(|stream| Arc::ptr_eq(&stream.context, context));
    streams.extend(context.default_stream_if_used());
    streams.append(&mut lock(&context.closing));
    for stream in streams {
        stream.synchronise()?;
    }
    context.check()
}

/// Ends the streams of a context that ends, and says how many there were.
pub(crate) fn end_all(context: &Arc<Context>) -> usize {
    let streams = STREAMS.remove_all(|stream| Arc::ptr_eq(&stream.context, context));
    for stream in &streams {
        stream.close();
    }
    streams.len()
}

/// How many of `gpu` are alive, null streams aside.
pub(crate) fn alive_on(gpu: &Gpu) -> usize {
    STREAMS.all(|stream| stream.context.gpu == gpu).len()
}

/// Random delays (xorshift).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn duration(&mut self, longest: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let part = (self.0 >> 40) as f64 / (1 << 24) as f64;
        longest.mul_f64(part)
    }
}
