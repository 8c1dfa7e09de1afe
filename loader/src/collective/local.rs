//! Ranks that are threads of one process.

use super::{
    CollectiveError, Communicator, Lifeline, Reduce,
    board::{Board, State},
};
use std::{sync::Arc, time::Duration};

/// One end of a group of threads; made by [`local_group`].
#[derive(Debug)]
pub struct LocalCommunicator {
    rank: u32,
    world: u32,
    patience: Duration,
    board: Arc<Board>,
}

/// A group of `world` ranks. One that others wait for is given up when it has shown no sign of life for `patience`.
pub fn local_group(world: u32, patience: Duration) -> Vec<LocalCommunicator> {
    let board = Board::new(world);
    (0..world).map(|rank| LocalCommunicator { rank, world, patience, board: Arc::clone(&board) }).collect()
}

impl LocalCommunicator {
    /// What the group shares.
    pub(crate) fn board(&self) -> Arc<Board> {
        Arc::clone(&self.board)
    }

    /// The call, with something to do at every tick of a wait.
    pub(crate) fn reduce(
        &mut self,
        values: &mut [u64],
        reduce: Reduce,
        each_tick: &mut dyn FnMut(),
    ) -> Result<(), CollectiveError> {
        let call = self.arrive(values, reduce)?;
        let awaited = |state: &State, rank: usize| !state.here.get(rank).is_some_and(|here| *here);
        let result = self.board.wait(self.rank, call, self.patience, awaited, each_tick)?;
        values.copy_from_slice(&result);
        Ok(())
    }

    /// Adds this rank's part to the present call; gives the number of the call.
    fn arrive(&self, values: &[u64], reduce: Reduce) -> Result<u64, CollectiveError> {
        let mut state = self.board.lock();
        if let Some(failure) = self.board.failure() {
            return Err(failure);
        }
        if !state.here.contains(&true) {
            state.values = values.to_vec();
            state.reduce = Some(reduce);
        } else if state.values.len() != values.len() || state.reduce != Some(reduce) {
            drop(state);
            return Err(self.board.fail(CollectiveError::OutOfStep { rank: self.rank }));
        } else {
            reduce.apply(&mut state.values, values);
        }
        if let Some(here) = state.here.get_mut(self.rank as usize) {
            *here = true;
        }
        let call = state.generation;
        if !state.here.contains(&false) {
            self.board.change(state, |state| {
                state.result = Arc::new(std::mem::take(&mut state.values));
                state.here.fill(false);
                state.generation += 1;
            });
        }
        Ok(call)
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
        self.reduce(values, reduce, &mut || ())
    }

    fn lifeline(&self) -> Lifeline {
        Lifeline::new(Arc::clone(&self.board), self.rank)
    }
}

/// A rank that is gone cannot come to another call: whoever waits for it must know.
impl Drop for LocalCommunicator {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort("it panicked; this is a defect of shardwright");
        }
        self.board.leave(self.rank);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Runs `body` on every rank of a group in threads.
    fn on_all<T: Send>(
        world: u32,
        patience: Duration,
        body: impl Fn(LocalCommunicator) -> T + Sync,
    ) -> Vec<T> {
        let body = &body;
        std::thread::scope(|scope| {
            let ranks: Vec<_> = local_group(world, patience)
                .into_iter()
                .map(|communicator| scope.spawn(move || body(communicator)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn every_rank_gets_what_all_brought() {
        let results = on_all(5, PATIENCE, |mut communicator| {
            let mut seen = Vec::new();
            for round in 0..200u64 {
                for reduce in [Reduce::Sum, Reduce::Min, Reduce::Max] {
                    let mut values = [u64::from(communicator.rank()) + round, u64::MAX];
                    communicator.all_reduce(&mut values, reduce).unwrap();
                    seen.push(values);
                }
            }
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
    fn a_rank_that_leaves_fails_those_who_need_it() {
        let results = on_all(3, PATIENCE, |mut communicator| {
            if communicator.rank() == 1 {
                return Ok(());
            }
            communicator.all_reduce(&mut [1], Reduce::Sum)
        });
        for rank in [0, 2] {
            assert_eq!(results[rank], Err(CollectiveError::ended(1)));
        }
    }

    #[test]
    fn a_rank_that_is_done_is_no_failure_for_those_who_work() {
        let mut group = local_group(2, PATIENCE);
        drop(group.remove(0));
        assert_eq!(group[0].lifeline().failure(), None);
        assert_eq!(group[0].all_reduce(&mut [1], Reduce::Sum), Err(CollectiveError::ended(0)));
        assert_eq!(group[0].lifeline().failure(), Some(CollectiveError::ended(0)));
    }

    #[test]
    fn different_calls_are_out_of_step() {
        let results = on_all(2, PATIENCE, |mut communicator| {
            let mut values = vec![0; 1 + communicator.rank() as usize];
            communicator.all_reduce(&mut values, Reduce::Sum)
        });
        assert!(matches!(results[0], Err(CollectiveError::OutOfStep { .. })));
        assert_eq!(results[0], results[1]);
    }

    #[test]
    fn the_first_failure_is_what_all_ranks_report() {
        let results = on_all(4, PATIENCE, |mut communicator| {
            let lifeline = communicator.lifeline();
            if communicator.rank() == 2 {
                communicator.abort("cuda:2 cannot give 80 GiB");
            }
            let outcome = communicator.all_reduce(&mut [1], Reduce::Sum);
            lifeline.fail(communicator.rank(), "too late to count");
            (outcome, lifeline.failure())
        });
        let first = CollectiveError::lost(2, "cuda:2 cannot give 80 GiB");
        for (outcome, failure) in results {
            assert_eq!((outcome, failure), (Err(first.clone()), Some(first.clone())));
        }
    }

    #[test]
    fn a_rank_that_works_hears_of_a_failure_at_once() {
        let mut group = local_group(2, PATIENCE);
        let works = group[1].lifeline();
        assert_eq!(works.failure(), None);
        group[0].abort("no such file");
        assert_eq!(works.failure().unwrap().to_string(), "rank 0 failed: no such file");
    }

    #[test]
    fn a_rank_that_panics_fails_the_others() {
        let mut group = local_group(2, PATIENCE);
        let panics = group.remove(1);
        let thread = std::thread::spawn(move || {
            let _rank = panics;
            panic!("on purpose");
        });
        assert!(thread.join().is_err());
        let outcome = group[0].all_reduce(&mut [1], Reduce::Sum);
        assert!(outcome.unwrap_err().to_string().starts_with("rank 1 failed: it panicked"));
    }

    #[test]
    fn a_rank_that_makes_no_progress_is_named() {
        let patience = Duration::from_millis(60);
        let mut group = local_group(3, patience);
        let hangs = group.remove(1);
        let outcomes = std::thread::scope(|scope| {
            let ranks: Vec<_> = group
                .iter_mut()
                .map(|rank| scope.spawn(move || rank.all_reduce(&mut [1], Reduce::Sum)))
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
        });
        let stalled = CollectiveError::Stalled { rank: 1, quiet: patience };
        assert_eq!(outcomes, [Err(stalled.clone()), Err(stalled.clone())]);
        assert_eq!(hangs.lifeline().failure(), Some(stalled));
    }

    #[test]
    fn a_slow_rank_that_gets_on_is_waited_for() {
        let patience = Duration::from_millis(300);
        let results = on_all(3, patience, |mut communicator| {
            if communicator.rank() == 2 {
                let begin = Instant::now();
                while begin.elapsed() < patience * 4 {
                    communicator.lifeline().beat();
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            let mut values = [1];
            communicator.all_reduce(&mut values, Reduce::Sum).map(|()| values[0])
        });
        assert_eq!(results, [Ok(3), Ok(3), Ok(3)]);
    }
}
