//! Ranks that agree over what connects them already, such as an engine's process group.
//!
//! That group's calls wait for ranks that may never come, and know nothing of what a rank loads meanwhile. So the ranks keep the way of
//! agreeing that they came with, the *control*: they meet there before each call, which waits with patience for ranks that get on, and
//! after it, which tells that all were alive when it ended.

use super::{CollectiveError, Communicator, Lifeline, Reduce, meet};
use std::sync::Arc;

/// What connects all ranks already.
pub trait Group: Send + Sync {
    /// Combines `values` with those of all ranks, in place. Every rank calls it, in the same order.
    ///
    /// # Errors
    /// What is to be said of a group that could not.
    fn all_reduce(&self, values: &mut [u64], reduce: Reduce) -> Result<(), String>;
}

/// One rank's end of a group that agrees over another.
pub struct GroupCommunicator {
    control: Box<dyn Communicator>,
    group: Arc<dyn Group>,
}

impl GroupCommunicator {
    /// Lets the ranks of `control` agree over `group`, which has the same ranks.
    pub fn new(control: Box<dyn Communicator>, group: Arc<dyn Group>) -> Self {
        Self { control, group }
    }
}

impl Communicator for GroupCommunicator {
    fn rank(&self) -> u32 {
        self.control.rank()
    }

    fn world_size(&self) -> u32 {
        self.control.world_size()
    }

    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        meet(self.control.as_mut(), values)?;
        if let Err(reason) = self.group.all_reduce(values, reduce) {
            let failure = CollectiveError::lost(self.rank(), &reason);
            return Err(self.control.lifeline().fail_with(failure));
        }
        self.control.all_reduce(&mut [], Reduce::Sum)
    }

    fn lifeline(&self) -> Lifeline {
        self.control.lifeline()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::local_group;
    use std::{
        sync::{Barrier, Mutex},
        time::Duration,
    };

    /// A group of threads, which counts its calls and fails on one of them.
    struct Threads {
        values: Mutex<Vec<u64>>,
        calls: Mutex<usize>,
        barrier: Barrier,
        fails_at: usize,
    }

    impl Group for Threads {
        fn all_reduce(&self, values: &mut [u64], reduce: Reduce) -> Result<(), String> {
            self.barrier.wait();
            let mut calls = self.calls.lock().unwrap();
            if *calls == self.fails_at {
                return Err("the connection broke".to_owned());
            }
            *calls += 1;
            let mut all = self.values.lock().unwrap();
            if all.is_empty() {
                all.extend_from_slice(values);
            } else {
                reduce.apply(&mut all, values);
            }
            drop((all, calls));
            self.barrier.wait();
            values.copy_from_slice(&self.values.lock().unwrap());
            if self.barrier.wait().is_leader() {
                self.values.lock().unwrap().clear();
            }
            self.barrier.wait();
            Ok(())
        }
    }

    fn with_two<T: Send>(fails_at: usize, with: impl Fn(GroupCommunicator) -> T + Sync) -> Vec<T> {
        let (values, calls, barrier) = (Mutex::default(), Mutex::default(), Barrier::new(2));
        let group: Arc<dyn Group> = Arc::new(Threads { values, calls, barrier, fails_at });
        std::thread::scope(|scope| {
            let (with, group) = (&with, &group);
            let one =
                |end| scope.spawn(move || with(GroupCommunicator::new(Box::new(end), Arc::clone(group))));
            let threads: Vec<_> = local_group(2, Duration::from_secs(20)).into_iter().map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn the_group_combines_what_the_ranks_bring() {
        let found = with_two(usize::MAX, |mut end| {
            let mut values = [u64::from(end.rank()) + 1, u64::MAX];
            end.all_reduce(&mut values, Reduce::Sum).unwrap();
            let mut least = [u64::from(end.rank())];
            end.all_reduce(&mut least, Reduce::Min).unwrap();
            (values, least)
        });
        assert_eq!(found, [([3, u64::MAX - 1], [0]); 2]);
    }

    #[test]
    fn a_group_that_breaks_ends_all_ranks_with_one_reason() {
        let found = with_two(0, |mut end| end.all_reduce(&mut [1], Reduce::Sum).unwrap_err().to_string());
        assert!(found[0].ends_with("failed: the connection broke") && found[0] == found[1], "{found:?}");
    }

    #[test]
    fn ranks_out_of_step_never_reach_the_group() {
        let found = with_two(usize::MAX, |mut end| {
            let mut values = vec![0; end.rank() as usize + 1];
            end.all_reduce(&mut values, Reduce::Sum).is_err()
        });
        assert_eq!(found, [true; 2]);
    }
}
