//! What the ranks of a group share within one process: who has come, who has failed, and who gets on.

use super::{CollectiveError, Reduce};
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How often whoever waits looks around and says that it still does.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The common knowledge of a group.
#[derive(Debug)]
pub(crate) struct Board {
    /// One counter a rank: it changes as long as the rank gets on.
    beats: Box<[AtomicU64]>,
    /// The first failure; there is no second.
    failure: OnceLock<CollectiveError>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// How many calls are complete.
    pub(crate) generation: u64,
    /// Which ranks have come to the present call.
    pub(crate) here: Vec<bool>,
    /// Which ranks will come to no further call.
    pub(crate) left: Vec<bool>,
    /// What those who came have brought, combined.
    pub(crate) values: Vec<u64>,
    pub(crate) reduce: Option<Reduce>,
    /// What the last complete call gave.
    pub(crate) result: Arc<Vec<u64>>,
}

impl Board {
    pub(crate) fn new(world: u32) -> Arc<Self> {
        let state = State {
            here: (0..world).map(|_| false).collect(),
            left: (0..world).map(|_| false).collect(),
            ..State::default()
        };
        Arc::new(Self {
            beats: (0..world).map(|_| AtomicU64::new(0)).collect(),
            failure: OnceLock::new(),
            state: Mutex::new(state),
            changed: Condvar::new(),
        })
    }

    /// The state. A rank that panics while it holds the lock has left it whole: it only changes by single assignments, and
    /// the rank's communicator says that it failed.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's failure, where there is one.
    pub(crate) fn failure(&self) -> Option<CollectiveError> {
        self.failure.get().cloned()
    }

    /// Makes `failure` the group's, unless it has one already; gives the group's.
    pub(crate) fn fail(&self, failure: CollectiveError) -> CollectiveError {
        let first = self.failure.get_or_init(|| failure).clone();
        self.wake();
        first
    }

    /// Wakes all who wait. Under the lock, so that nobody can look and then miss it.
    fn wake(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Changes the state and wakes all who wait.
    pub(crate) fn change(&self, state: MutexGuard<'_, State>, by: impl FnOnce(&mut State)) {
        let mut state = state;
        by(&mut state);
        self.changed.notify_all();
    }

    /// Says that `rank` gets on.
    pub(crate) fn beat(&self, rank: u32) {
        if let Some(beats) = self.beats.get(rank as usize) {
            beats.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often `rank` has said so.
    pub(crate) fn beats(&self, rank: u32) -> u64 {
        self.beats.get(rank as usize).map_or(0, |beats| beats.load(Ordering::Relaxed))
    }

    /// Says that `rank` comes to no further call.
    pub(crate) fn leave(&self, rank: u32) {
        self.change(self.lock(), |state| {
            if let Some(left) = state.left.get_mut(rank as usize) {
                *left = true;
            }
        });
    }

    /// Waits for the end of the call `generation`, in which `rank` has done its part.
    ///
    /// `awaited` says whose part is still missing. One of them that has left, or whose beats have not changed for `patience`,
    /// is the group's failure. Meanwhile `rank` itself beats, and `each_tick` is called without the lock.
    pub(crate) fn wait(
        &self,
        rank: u32,
        generation: u64,
        patience: Duration,
        awaited: impl Fn(&State, usize) -> bool,
        each_tick: &mut dyn FnMut(),
    ) -> Result<Arc<Vec<u64>>, CollectiveError> {
        let tick = (patience / 8).clamp(Duration::from_millis(1), TICK);
        let mut watch = Watch::new(self, patience, tick);
        let mut state = self.lock();
        while state.generation == generation {
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            let missing =
                (0u32..).zip(&state.left).find(|(at, left)| **left && awaited(&state, *at as usize));
            if let Some((gone, _)) = missing {
                drop(state);
                return Err(self.fail(CollectiveError::ended(gone)));
            }
            let stalled = watch.look(self, |at| awaited(&state, at));
            if let Some(stalled) = stalled {
                drop(state);
                return Err(self.fail(CollectiveError::Stalled { rank: stalled, quiet: patience }));
            }
            let waited = self.changed.wait_timeout(state, tick);
            let (guard, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() {
                drop(state);
                self.beat(rank);
                each_tick();
                state = self.lock();
            }
        }
        Ok(Arc::clone(&state.result))
    }
}

/// What one who waits has seen of the others' beats.
struct Watch {
    patience: Duration,
    tick: Duration,
    looked: Instant,
    /// For each rank: its beats, and how long they have been the same.
    seen: Vec<(u64, Duration)>,
}

impl Watch {
    fn new(board: &Board, patience: Duration, tick: Duration) -> Self {
        let seen = board.beats.iter().map(|beats| (beats.load(Ordering::Relaxed), Duration::ZERO)).collect();
        Self { patience, tick, looked: Instant::now(), seen }
    }

    /// Looks at everybody's beats; names one that is awaited and has been quiet for too long.
    fn look(&mut self, board: &Board, awaited: impl Fn(usize) -> bool) -> Option<u32> {
        let since = self.looked.elapsed();
        if since < self.tick {
            return None;
        }
        self.looked = Instant::now();
        // Whoever did not run itself for a while (it was stopped, the machine slept) cannot blame others for that time.
        let since = since.min(self.tick * 4);
        let mut stalled = None;
        for ((rank, beats), (seen, quiet)) in (0u32..).zip(&board.beats).zip(&mut self.seen) {
            let now = beats.load(Ordering::Relaxed);
            if now != *seen {
                (*seen, *quiet) = (now, Duration::ZERO);
                continue;
            }
            *quiet = quiet.saturating_add(since);
            if *quiet >= self.patience && stalled.is_none() && awaited(rank as usize) {
                stalled = Some(rank);
            }
        }
        stalled
    }
}

/// A rank's line to the others while it works by itself, outside any call. Cheap to clone, and for any thread.
#[derive(Debug, Clone)]
pub struct Lifeline {
    board: Arc<Board>,
    rank: u32,
}

impl Lifeline {
    pub(crate) fn new(board: Arc<Board>, rank: u32) -> Self {
        Self { board, rank }
    }

    /// Says that this rank gets on; whoever waits for it goes on waiting. It costs one atomic addition.
    pub fn beat(&self) {
        self.board.beat(self.rank);
    }

    /// Says, without waiting, whether the group has failed: then there is no use in going on.
    pub fn failure(&self) -> Option<CollectiveError> {
        self.board.failure()
    }

    /// Makes the whole group fail because `rank` did, unless it has failed already. The reason is shown on one line.
    pub fn fail(&self, rank: u32, reason: &str) {
        self.fail_with(CollectiveError::lost(rank, reason));
    }

    /// Makes `failure` the group's, unless it has one already; gives the group's.
    pub(crate) fn fail_with(&self, failure: CollectiveError) -> CollectiveError {
        self.board.fail(failure)
    }
}
