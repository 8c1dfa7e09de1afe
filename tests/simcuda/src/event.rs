//! Events: marks that a stream sets when it gets there.

use crate::{
    Answer,
    context::{self, Context},
    device::Gpu,
    handles::Handles,
    lock::{lock, wait_a_little},
    stream,
};
use cudarc::driver::sys::{CUevent, CUresult, CUstream};
use std::{
    sync::{Arc, Condvar, Mutex},
    time::Instant,
};

/// Something that happens once.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    at: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Mark {
    /// It happened now.
    pub(crate) fn set(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.changed.notify_all();
    }

    /// When it happened, if it did.
    fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }

    /// Waits for it, or for the end of `context`.
    pub(crate) fn wait(&self, context: &Context) {
        let mut at = lock(&self.at);
        while at.is_none() && !context.ended() {
            at = wait_a_little(&self.changed, at);
        }
    }
}

struct Event {
    context: Arc<Context>,
    timed: bool,
    /// The mark of its last record.
    mark: Mutex<Option<Arc<Mark>>>,
}

static EVENTS: Handles<Event> = Handles::new(3);

/// A new event of the current context.
pub(crate) fn create(timed: bool) -> Answer<CUevent> {
    let context = context::current()?;
    Ok(EVENTS.add(|_| Arc::new(Event { context, timed, mark: Mutex::new(None) })).0)
}

fn find(handle: CUevent) -> Answer<Arc<Event>> {
    context::current()?;
    let event = EVENTS.find(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    event.context.check()?;
    Ok(event)
}

/// `cuEventDestroy`. Waits that were queued for it still end.
pub(crate) fn destroy(handle: CUevent) -> Answer {
    let event = EVENTS.remove(handle).ok_or(CUresult::CUDA_ERROR_INVALID_HANDLE)?;
    event.context.check()
}

/// Lets `stream`, of the same context, set the event when it gets there.
pub(crate) fn record(handle: CUevent, stream: CUstream) -> Answer {
    let (event, stream) = (find(handle)?, stream::find(stream)?);
    if !Arc::ptr_eq(&event.context, &stream.context) {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    let mark = Arc::new(Mark::default());
    stream.set(Arc::clone(&mark))?;
    *lock(&event.mark) = Some(mark);
    Ok(())
}

/// Lets `stream`, of any context, wait for the event's last record; for nothing if there is none.
pub(crate) fn make_wait(stream: CUstream, handle: CUevent) -> Answer {
    let (event, stream) = (find(handle)?, stream::find(stream)?);
    let mark = lock(&event.mark).clone();
    match mark {
        Some(mark) => stream.await_mark(mark),
        None => Ok(()),
    }
}

/// Whether what was recorded last has happened, or nothing was recorded.
pub(crate) fn query(handle: CUevent) -> Answer {
    let event = find(handle)?;
    let mark = lock(&event.mark).clone();
    match mark {
        Some(mark) if mark.at().is_none() => Err(CUresult::CUDA_ERROR_NOT_READY),
        // The failure of work before it comes first.
        _ => event.context.check(),
    }
}

/// Waits for the same.
pub(crate) fn synchronise(handle: CUevent) -> Answer {
    let event = find(handle)?;
    let mark = lock(&event.mark).clone();
    if let Some(mark) = mark {
        mark.wait(&event.context);
    }
    event.context.check()
}

/// The time between two.
pub(crate) fn milliseconds_between(start: CUevent, end: CUevent) -> Answer<f32> {
    let (start, end) = (find(start)?, find(end)?);
    if !start.timed || !end.timed {
        return Err(CUresult::CUDA_ERROR_INVALID_HANDLE);
    }
    let at = |event: &Event| match &*lock(&event.mark) {
        None => Err(CUresult::CUDA_ERROR_INVALID_HANDLE),
        Some(mark) => mark.at().ok_or(CUresult::CUDA_ERROR_NOT_READY),
    };
    let (start, end) = (at(&start)?, at(&end)?);
    let seconds = match end.checked_duration_since(start) {
        Some(later) => later.as_secs_f32(),
        None => -(start - end).as_secs_f32(),
    };
    Ok(seconds * 1e3)
}

/// Ends the events of a context that ends, and says how many there were.
pub(crate) fn end_all(context: &Arc<Context>) -> usize {
    EVENTS.remove_all(|event| Arc::ptr_eq(&event.context, context)).len()
}

/// How many of `gpu` are alive.
pub(crate) fn alive_on(gpu: &Gpu) -> usize {
    EVENTS.all(|event| event.context.gpu == gpu).len()
}
