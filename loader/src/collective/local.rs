//! Ranks that are threads of one process.

use super::{CollectiveError, Communicator, Reduce};
use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// One end of a group of threads; made by [`local_group`].
#[derive(Debug)]
pub struct LocalCommunicator {
    rank: u32,
    world: u32,
    patience: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many calls are complete.
    generation: u64,
    /// How many ranks have come to the present call.
    arrived: u32,
    /// What they brought, combined.
    values: Vec<u64>,
    reduce: Option<Reduce>,
    /// What the last complete call gave.
    result: Arc<Vec<u64>>,
    /// The first rank that left.
    lost: Option<u32>,
    /// The first rank that made another call.
    out_of_step: Option<u32>,
}

/// A group of `world` ranks, each of which waits at most `patience` for the others.
pub fn local_group(world: u32, patience: Duration) -> Vec<LocalCommunicator> {
    let shared = Arc::new(Shared::default());
    (0..world).map(|rank| LocalCommunicator { rank, world, patience, shared: Arc::clone(&shared) }).collect()
}

impl LocalCommunicator {
    /// The state; a rank that panicked while it held the lock left it whole, for it only changes by single assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self, state: &State) -> Option<CollectiveError> {
        let out_of_step = state.out_of_step.map(|rank| CollectiveError::OutOfStep { rank });
        out_of_step.or_else(|| state.lost.map(|rank| CollectiveError::PeerLost { rank }))
    }
}

impl Communicator for LocalCommunicator {
    fn rank(&self) -> u32 {
        self.rank
    }

    fn world_size(&self) -> u32 {
        self.world
    }

    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        let mut state = self.lock();
        if let Some(failure) = self.failure(&state) {
            return Err(failure);
        }
        if state.arrived == 0 {
            state.values = values.to_vec();
            state.reduce = Some(reduce);
        } else if state.values.len() != values.len() || state.reduce != Some(reduce) {
            state.out_of_step = Some(self.rank);
            self.shared.changed.notify_all();
            return Err(CollectiveError::OutOfStep { rank: self.rank });
        } else {
            reduce.apply(&mut state.values, values);
        }
        state.arrived += 1;
        let call = state.generation;
        if state.arrived == self.world {
            state.result = Arc::new(std::mem::take(&mut state.values));
            state.arrived = 0;
            state.generation += 1;
            self.shared.changed.notify_all();
        }
        let deadline = Instant::now() + self.patience;
        while state.generation == call {
            if let Some(failure) = self.failure(&state) {
                return Err(failure);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CollectiveError::TimedOut { rank: self.rank, waited: self.patience });
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let result = Arc::clone(&state.result);
        drop(state);
        values.copy_from_slice(&result);
        Ok(())
    }

    fn abort(&mut self) {
        let mut state = self.lock();
        state.lost.get_or_insert(self.rank);
        self.shared.changed.notify_all();
    }
}

/// A rank that is gone cannot come to another call: whoever waits for it must know.
impl Drop for LocalCommunicator {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` on every rank of a group in threads.
    fn on_all<T: Send>(world: u32, body: impl Fn(LocalCommunicator) -> T + Sync) -> Vec<T> {
        let body = &body;
        std::thread::scope(|scope| {
            let ranks: Vec<_> = local_group(world, Duration::from_secs(10))
                .into_iter()
                .map(|communicator| scope.spawn(move || body(communicator)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_what_all_brought() {
        let results = on_all(5, |mut communicator| {
            let mut seen = Vec::new();
            for round in 0..200u64 {
                for reduce in [Reduce::Sum, Reduce::Min, Reduce::Max] {
                    let mut values = [u64::from(communicator.rank()) + round, u64::MAX];
                    communicator.all_reduce(&mut values, reduce).unwrap();
                    seen.push(values);
                }
            }
            // Nobody leaves while others may still wait.
            communicator.all_reduce(&mut [], Reduce::Sum).unwrap();
            seen
        });
        for seen in results {
            for (round, values) in (0u64..).zip(seen.chunks(3)) {
                assert_eq!(values[0], [10 + 5 * round, u64::MAX.wrapping_mul(5)]);
                assert_eq!([values[1][0], values[2][0]], [round, round + 4]);
            }
        }
    }

    #[test]
    fn a_rank_that_leaves_fails_the_others() {
        let results = on_all(3, |mut communicator| {
            if communicator.rank() == 1 {
                return Ok(());
            }
            communicator.all_reduce(&mut [1], Reduce::Sum)
        });
        assert_eq!(results[0], Err(CollectiveError::PeerLost { rank: 1 }));
        assert!(results[1].is_ok() && results[2].is_err());
    }

    #[test]
    fn different_calls_are_out_of_step() {
        let results = on_all(2, |mut communicator| {
            let mut values = vec![0; 1 + communicator.rank() as usize];
            communicator.all_reduce(&mut values, Reduce::Sum)
        });
        assert!(results.iter().all(|result| matches!(result, Err(CollectiveError::OutOfStep { .. }))));
    }

    #[test]
    fn waiting_has_an_end() {
        let mut group = local_group(2, Duration::from_millis(20));
        let outcome = group[0].all_reduce(&mut [1], Reduce::Sum);
        assert!(matches!(outcome, Err(CollectiveError::TimedOut { rank: 0, .. })));
    }
}
