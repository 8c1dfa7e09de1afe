//! What has arrived so far, between the threads that read and those that stand for ranks.

use super::LoadError;
use crate::{
    fingerprint::Fingerprint,
    schedule::{Batches, Pass, Place, Schedule},
};
use std::{
    collections::HashMap,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often whoever waits looks whether there is any use in it.
const TICK: Duration = Duration::from_millis(50);

/// What has arrived so far.
pub(super) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Units of each batch that are still to come.
    left: Vec<usize>,
    /// What was summed up on its way: of each schedule's tensors the sum of each piece.
    own: Vec<Vec<Vec<Fingerprint>>>,
    /// What was summed up of the files, by the tensors' numbers in the catalog.
    expected: Vec<Fingerprint>,
    /// Whether nothing more comes.
    stopped: bool,
}

/// Sums of what one unit brought.
#[derive(Default)]
pub(super) struct UnitSums {
    /// Of pieces in ranks' memory: each by its tensor's place and its number there.
    pub(super) own: HashMap<(Place, usize), Fingerprint>,
    /// Of files, by the tensors' numbers in the catalog.
    pub(super) expected: HashMap<usize, Fingerprint>,
}

impl Arrivals {
    pub(super) fn new(pass: &Pass<'_>, schedules: &[Schedule], batches: &Batches, tensors: usize) -> Self {
        let mut left = vec![0; batches.count()];
        pass.units.iter().for_each(|unit| left[unit.batch] += 1);
        let sums = |pieces: usize| vec![Fingerprint::default(); pieces];
        let of =
            |schedule: &Schedule| schedule.tensors.iter().map(|tensor| sums(tensor.pieces.len())).collect();
        let own = schedules.iter().map(of).collect();
        let state = State { left, own, expected: vec![Fingerprint::default(); tensors], stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Takes note of a unit of batch `batch` that is on its way to all devices.
    pub(super) fn arrived(&self, batch: usize, sums: UnitSums) {
        let mut state = self.lock();
        for ((place, piece), sum) in sums.own {
            state.own[place.seat][place.tensor][piece].merge(sum);
        }
        for (id, sum) in sums.expected {
            state.expected[id].merge(sum);
        }
        state.left[batch] -= 1;
        if state.left[batch] == 0 {
            self.changed.notify_all();
        }
    }

    /// Says that nothing more comes.
    pub(super) fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.lock().stopped
    }

    /// Whether all units are on their way.
    pub(super) fn are_complete(&self) -> bool {
        self.lock().left.iter().all(|left| *left == 0)
    }

    /// Waits until all of batch `batch` is on its way; false when it will not be. `check` is asked now and then whether to go on.
    pub(super) fn wait(
        &self,
        batch: usize,
        check: &dyn Fn() -> Result<(), LoadError>,
    ) -> Result<bool, LoadError> {
        let mut state = self.lock();
        while state.left[batch] > 0 {
            if state.stopped {
                return Ok(false);
            }
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            check()?;
            state = self.lock();
        }
        Ok(true)
    }

    /// Takes the sums of what has arrived for schedule `seat`, which are complete for batches that were waited for: of its tensors
    /// in `places`.
    pub(super) fn take_own(
        &self,
        seat: usize,
        places: impl Iterator<Item = usize>,
    ) -> HashMap<usize, Vec<Fingerprint>> {
        let own = &mut self.lock().own[seat];
        places.map(|place| (place, std::mem::take(&mut own[place]))).collect()
    }

    /// The sums of the files so far.
    pub(super) fn expected(&self, ids: impl Iterator<Item = usize>) -> Vec<(usize, Fingerprint)> {
        let state = self.lock();
        ids.map(|id| (id, state.expected[id])).collect()
    }

    /// A thread that panicked left sums that are too small, which verification finds.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
