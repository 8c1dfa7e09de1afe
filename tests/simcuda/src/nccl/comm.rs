//! Communicators: how a rank joins, what state it is in, and how its work waits for other ranks.
//!
//! In: the unique id's name and a place among the ranks. Out: a handle, and a thread that joins and then takes in what the hub
//! sends, until the connection ends. Whoever waits does so here, so that an abort, a broken peer and an ended context reach all.

use super::{
    hub,
    refusal::Refusal,
    wire::{Collective, Hello, Kind, Message, Name},
};
use crate::{
    context::{self, Context},
    fault,
    handles::Handles,
    lock::{lock, wait_a_little},
    settings::settings,
};
use cudarc::driver::sys::CUcontext;
use nccl_rs::sys::{self, ResultCode};
use std::{
    collections::{HashMap, VecDeque},
    net::Shutdown,
    os::unix::net::UnixStream,
    sync::{Arc, Condvar, Mutex, OnceLock},
    thread,
    time::{Duration, Instant},
};

/// The communicators that are alive.
static COMMS: Handles<Comm> = Handles::new(9);

/// How long a hub is looked for that does not listen (yet).
const MOST_CONNECTING: Duration = Duration::from_secs(5);
/// How long an abort waits for work that is on a stream just now.
const MOST_ABORTING: Duration = Duration::from_secs(10);

/// One rank's end.
pub(super) struct Comm {
    pub(super) context: Arc<Context>,
    /// What makes `context` current.
    pub(super) context_address: usize,
    pub(super) blocking: bool,
    /// Where the hub is, and who this is; a part of a split learns it late.
    seat: OnceLock<Seat>,
    connection: OnceLock<UnixStream>,
    /// Held while a message is written.
    writing: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A place among the ranks that meet at a name.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    pub(super) name: Name,
    pub(super) rank: u64,
    pub(super) world: u64,
}

#[derive(Default)]
pub(super) struct State {
    stage: Stage,
    /// The asynchronous error.
    refusal: Option<Refusal>,
    aborted: bool,
    /// Some rank has left in good order.
    farewell: bool,
    /// What has arrived for work to take.
    pub(super) outcomes: HashMap<u64, Vec<u8>>,
    pub(super) letters: HashMap<u64, VecDeque<Vec<u8>>>,
    pub(super) receipts: HashMap<u64, u64>,
    /// Operations that are not over.
    pending: usize,
    /// Pieces of work that are on a stream just now.
    running: usize,
    /// Collectives that were called.
    collectives: u64,
}

impl State {
    /// Sets the asynchronous error, unless there is one.
    fn refuse(&mut self, refusal: Refusal) {
        if self.refusal.is_none() {
            refusal.keep();
            self.refusal = Some(refusal);
        }
    }
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Joining,
    Ready,
    /// A non-blocking call goes on.
    Busy,
    Finalising,
    Finalised,
}

/// Why work on a stream does not get what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The communicator was aborted, or the context is gone: nobody looks at the result.
    Ended,
    /// The communicator broke: what the result is, nobody knows.
    Broken,
}

/// The communicator of a handle.
pub(super) fn find(handle: sys::Comm) -> Result<Arc<Comm>, Refusal> {
    COMMS.find(handle).ok_or_else(|| Refusal::argument("not a communicator, or no longer one"))
}

/// Ends a handle.
pub(super) fn remove(handle: sys::Comm) -> Result<Arc<Comm>, Refusal> {
    COMMS.remove(handle).ok_or_else(|| Refusal::argument("not a communicator, or no longer one"))
}

/// Begins to join as `seat` says, on the GPU that is current for this thread.
pub(super) fn join(seat: Seat, blocking: bool) -> Result<(sys::Comm, Arc<Comm>), Refusal> {
    let context = context::current().map_err(|code| {
        Refusal::new(ResultCode::UNHANDLED_CUDA_ERROR, format!("no current context: {code:?}"))
    })?;
    let (handle, comm) = Comm::add(context, context::current_handle().addr(), blocking);
    comm.take_seat(seat)?;
    Ok((handle, comm))
}

impl Comm {
    fn add(context: Arc<Context>, context_address: usize, blocking: bool) -> (sys::Comm, Arc<Self>) {
        COMMS.add(|_| {
            Arc::new(Self {
                context,
                context_address,
                blocking,
                seat: OnceLock::new(),
                connection: OnceLock::new(),
                writing: Mutex::new(()),
                state: Mutex::default(),
                changed: Condvar::new(),
            })
        })
    }

    /// Joins with a thread of its own, which then receives.
    fn take_seat(self: &Arc<Self>, seat: Seat) -> Result<(), Refusal> {
        let seat = self.seat.get_or_init(|| seat).clone();
        let theirs = Arc::clone(self);
        named(move || theirs.receive(&seat))
    }

    fn receive(&self, seat: &Seat) {
        if fault::value("nccl-init-hang") == Some(seat.rank) {
            self.hang();
        }
        let connection = match self.connect(&seat.name) {
            Ok(Some(connection)) => connection,
            Ok(None) => return,
            Err(refusal) => return self.fail(refusal),
        };
        let (rank, world) = (seat.rank, seat.world);
        let (version, gpu) = (u64::from(settings().nccl_version), self.context.gpu.number as u64);
        self.say(Message::Hello(Hello { rank, world, version, gpu }));
        while let Ok(message) = Message::read(connection) {
            self.take(message);
        }
        let mut state = lock(&self.state);
        let quiet = state.aborted
            || state.stage == Stage::Finalised
            || (state.farewell && state.pending == 0 && state.stage == Stage::Ready);
        if !quiet {
            let words = format!("rank {rank}: the connection to the other ranks ended");
            state.refuse(Refusal::new(ResultCode::REMOTE_ERROR, words));
        }
        self.changed.notify_all();
    }

    /// The connection to the hub; none once nobody wants it any more.
    fn connect(&self, name: &Name) -> Result<Option<&UnixStream>, Refusal> {
        let began = Instant::now();
        let connection = loop {
            match name.connect() {
                Ok(connection) => break connection,
                Err(error) if began.elapsed() > MOST_CONNECTING => {
                    return Err(Refusal::new(
                        ResultCode::SYSTEM_ERROR,
                        format!("connecting to the rank that made the unique id: {error}"),
                    ));
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
            if self.ended(&lock(&self.state)) {
                return Ok(None);
            }
        };
        let connection = self.connection.get_or_init(|| connection);
        if self.ended(&lock(&self.state)) {
            let _ = connection.shutdown(Shutdown::Both);
            return Ok(None);
        }
        Ok(Some(connection))
    }

    fn take(&self, message: Message) {
        let mut state = lock(&self.state);
        match message {
            Message::Welcome => state.stage = Stage::Ready,
            Message::Outcome { number, bytes } => {
                state.outcomes.insert(number, bytes);
            }
            Message::Letter { peer, bytes } => state.letters.entry(peer).or_default().push_back(bytes),
            Message::Receipt { peer } => *state.receipts.entry(peer).or_default() += 1,
            Message::Left => state.farewell = true,
            Message::AllLeft => state.stage = Stage::Finalised,
            Message::Broken { code, words } => state.refuse(Refusal::new(code, words)),
            // Ranks say these, hubs do not.
            Message::Hello(_) | Message::Part { .. } | Message::Leaving => {}
        }
        self.changed.notify_all();
    }

    /// Sends to the hub. Where that is gone the communicator is broken.
    pub(super) fn say(&self, message: Message) {
        let writing = lock(&self.writing);
        let said = self.connection.get().map(|connection| message.write(connection));
        drop(writing);
        if !matches!(said, Some(Ok(()))) {
            self.fail(Refusal::new(ResultCode::REMOTE_ERROR, "the other ranks cannot be reached"));
        }
    }

    /// Sets the asynchronous error, unless there is one.
    pub(super) fn fail(&self, refusal: Refusal) {
        lock(&self.state).refuse(refusal);
        self.changed.notify_all();
    }

    /// This rank and how many there are.
    pub(super) fn seat(&self) -> Result<&Seat, Refusal> {
        self.seat.get().ok_or_else(|| Refusal::argument("the communicator is not initialised yet"))
    }

    /// What `ncclCommGetAsyncError` says.
    pub(super) fn progress(&self) -> ResultCode {
        let state = lock(&self.state);
        match (&state.refusal, state.stage) {
            (Some(refusal), _) => refusal.code,
            (None, Stage::Ready | Stage::Finalised) => ResultCode::SUCCESS,
            (None, Stage::Joining | Stage::Busy | Stage::Finalising) => ResultCode::IN_PROGRESS,
        }
    }

    /// Whether calls can be made.
    pub(super) fn ready(&self) -> Result<(), Refusal> {
        let state = lock(&self.state);
        match (&state.refusal, state.stage) {
            (Some(refusal), _) => Err(refusal.clone()),
            (None, Stage::Ready) => Ok(()),
            (None, Stage::Finalised) => Err(Refusal::argument("the communicator was finalised")),
            (None, Stage::Joining | Stage::Busy | Stage::Finalising) => Err(Refusal::argument(
                "the communicator is used before the previous call returned ncclSuccess",
            )),
        }
    }

    /// What a call that goes on in the background returns: at once if non-blocking, at its end if blocking.
    pub(super) fn answer(&self) -> Result<ResultCode, Refusal> {
        if !self.blocking {
            return Ok(ResultCode::IN_PROGRESS);
        }
        let settled = |state: &mut State| {
            (state.refusal.is_some() || matches!(state.stage, Stage::Ready | Stage::Finalised)).then_some(())
        };
        let waited = self.wait_for(settled);
        if let Some(refusal) = &lock(&self.state).refusal {
            return Err(refusal.clone());
        }
        match waited {
            Ok(()) => Ok(ResultCode::SUCCESS),
            Err(_) => Err(Refusal::new(ResultCode::INTERNAL_ERROR, "the communicator was aborted")),
        }
    }

    /// A call begins to go on in the background.
    pub(super) fn busy(&self) {
        lock(&self.state).stage = Stage::Busy;
    }

    /// It is done.
    pub(super) fn idle(&self) {
        let mut state = lock(&self.state);
        if state.stage == Stage::Busy {
            state.stage = Stage::Ready;
        }
        self.changed.notify_all();
    }

    /// The number of the next collective.
    pub(super) fn next_collective(&self) -> u64 {
        let mut state = lock(&self.state);
        state.collectives += 1;
        state.collectives
    }

    fn ended(&self, state: &State) -> bool {
        state.aborted || self.context.ended()
    }

    /// Waits until `take` finds what it looks for, or cannot any more.
    pub(super) fn wait_for<T>(&self, mut take: impl FnMut(&mut State) -> Option<T>) -> Result<T, Stop> {
        let mut state = lock(&self.state);
        loop {
            if let Some(found) = take(&mut state) {
                return Ok(found);
            }
            if self.ended(&state) {
                return Err(Stop::Ended);
            }
            if state.refusal.is_some() {
                return Err(Stop::Broken);
            }
            state = wait_a_little(&self.changed, state);
        }
    }

    /// Waits for the end.
    pub(super) fn hang(&self) {
        let mut state = lock(&self.state);
        while !self.ended(&state) {
            state = wait_a_little(&self.changed, state);
        }
    }

    /// Whether work on a stream may still begin.
    pub(super) fn check(&self) -> Result<(), Stop> {
        let state = lock(&self.state);
        if self.ended(&state) {
            Err(Stop::Ended)
        } else if state.refusal.is_some() {
            Err(Stop::Broken)
        } else {
            Ok(())
        }
    }

    /// `ncclCommAbort`, after which no work of this communicator touches memory.
    pub(super) fn abort(&self) {
        let mut state = lock(&self.state);
        state.aborted = true;
        self.changed.notify_all();
        if let Some(connection) = self.connection.get() {
            let _ = connection.shutdown(Shutdown::Both);
        }
        let began = Instant::now();
        while state.running > 0 && began.elapsed() < MOST_ABORTING {
            state = wait_a_little(&self.changed, state);
        }
    }

    /// `ncclCommFinalize`.
    pub(super) fn finalise(self: &Arc<Self>) -> Result<ResultCode, Refusal> {
        self.ready()?;
        lock(&self.state).stage = Stage::Finalising;
        self.when_idle(|comm| comm.say(Message::Leaving))?;
        self.answer()
    }

    /// `ncclCommDestroy`.
    pub(super) fn destroy(self: &Arc<Self>) -> Result<ResultCode, Refusal> {
        let stage = lock(&self.state).stage;
        match stage {
            Stage::Joining => self.abort(),
            Stage::Ready | Stage::Busy => self.when_idle(|comm| {
                comm.say(Message::Leaving);
                comm.abort();
            })?,
            Stage::Finalising | Stage::Finalised => self.abort(),
        }
        Ok(ResultCode::SUCCESS)
    }

    /// Does something once all operations are over: at once, or later.
    fn when_idle(self: &Arc<Self>, act: impl FnOnce(&Self) + Send + 'static) -> Result<(), Refusal> {
        if lock(&self.state).pending == 0 {
            act(self);
            return Ok(());
        }
        let theirs = Arc::clone(self);
        named(move || {
            if theirs.wait_for(|state| (state.pending == 0).then_some(())).is_ok() {
                act(&theirs);
            }
        })
    }

    /// `ncclCommSplit`. Null for ranks without a colour.
    pub(super) fn split(
        self: &Arc<Self>,
        color: i32,
        key: i32,
        blocking: bool,
    ) -> Result<sys::Comm, Refusal> {
        self.ready()?;
        self.busy();
        let number = self.next_collective();
        let added =
            (color >= 0).then(|| Self::add(Arc::clone(&self.context), self.context_address, blocking));
        let (handle, part) =
            added.map_or((std::ptr::null_mut(), None), |(handle, part)| (handle, Some(part)));
        let theirs = Arc::clone(self);
        named(move || {
            let done = theirs.divide(number, color, key, part.as_ref());
            if let (Err(refusal), Some(part)) = (done, part) {
                part.fail(refusal);
            }
            theirs.idle();
        })?;
        Ok(handle)
    }

    /// Tells colour and key, hears those of all, and seats this rank's part.
    fn divide(&self, number: u64, color: i32, key: i32, part: Option<&Arc<Self>>) -> Result<(), Refusal> {
        let collective = Collective { kind: Kind::Split, data_type: 0, reduction: 0, root: 0, elements: 1 };
        let bytes = [color.to_ne_bytes(), key.to_ne_bytes()].concat();
        self.say(Message::Part { number, collective, bytes });
        let outcome = self.wait_for(|state| state.outcomes.remove(&number)).map_err(|_| {
            Refusal::new(ResultCode::REMOTE_ERROR, "the communicator that was to be split is broken")
        })?;
        let Some(part) = part else { return Ok(()) };
        let number_at = |bytes: &[u8; 8], at: usize| {
            i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let told = outcome.as_chunks::<8>().0.iter().zip(0_u64..);
        let mut together: Vec<(i32, u64)> = told
            .filter(|(bytes, _)| number_at(bytes, 0) == color)
            .map(|(bytes, rank)| (number_at(bytes, 4), rank))
            .collect();
        together.sort_unstable();
        let own = self.seat()?;
        let rank =
            together.iter().zip(0..).find(|((_, rank), _)| *rank == own.rank).map_or(0, |(_, place)| place);
        let name = own.name.of_part(number, color);
        if rank == 0 {
            hub::start(name.clone())
                .map_err(|error| Refusal::new(ResultCode::SYSTEM_ERROR, format!("listening: {error}")))?;
        }
        part.take_seat(Seat { name, rank, world: together.len() as u64 })?;
        let joined = |state: &mut State| (state.stage != Stage::Joining).then_some(());
        while part.wait_for_a_while(joined) {
            if self.check() == Err(Stop::Ended) {
                return Err(Refusal::new(
                    ResultCode::INTERNAL_ERROR,
                    "the communicator split from was aborted",
                ));
            }
        }
        Ok(())
    }

    /// Waits a little; whether `found` may still come.
    fn wait_for_a_while(&self, found: impl FnOnce(&mut State) -> Option<()>) -> bool {
        let mut state = lock(&self.state);
        let goes_on = found(&mut state).is_none() && !self.ended(&state) && state.refusal.is_none();
        if goes_on {
            drop(wait_a_little(&self.changed, state));
        }
        goes_on
    }

    /// Does something with this rank's GPU current for the thread, as NCCL does.
    pub(super) fn with_context<T>(&self, act: impl FnOnce() -> T) -> T {
        let before = context::current_handle();
        let own: CUcontext = std::ptr::without_provenance_mut(self.context_address);
        // A context that is gone stays not current, and `act` sees that.
        let _ = context::set_current(own);
        let done = act();
        let _ = context::set_current(before);
        done
    }
}

/// Counts an operation as pending for as long as it lives.
pub(super) struct Pending(Arc<Comm>);

impl Pending {
    pub(super) fn new(comm: &Arc<Comm>) -> Self {
        lock(&comm.state).pending += 1;
        Self(Arc::clone(comm))
    }

    pub(super) fn comm(&self) -> &Arc<Comm> {
        &self.0
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.0.state).pending -= 1;
        self.0.changed.notify_all();
    }
}

/// Counts work as running for as long as it lives.
pub(super) struct Running<'c>(&'c Comm);

impl<'c> Running<'c> {
    pub(super) fn new(comm: &'c Comm) -> Self {
        lock(&comm.state).running += 1;
        Self(comm)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).running -= 1;
        self.0.changed.notify_all();
    }
}

/// Runs something on a thread of its own.
pub(super) fn named(run: impl FnOnce() + Send + 'static) -> Result<(), Refusal> {
    let spawned = thread::Builder::new().name("simcuda-nccl".to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| Refusal::new(ResultCode::SYSTEM_ERROR, format!("no thread: {error}")))
}
