//! What has arrived so far, between the threads that read and those that stand for ranks.

use super::LoadError;
use crate::{
    fingerprint::Fingerprint,
    schedule::{Batches, Pass, Place, Schedule},
    verify::PieceSums,
};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// How often whoever waits looks whether there is any use in it.
const TICK: Duration = Duration::from_millis(50);

/// Sums that are kept at most, some MB, while verification falls behind. There are as many for a batch as its tensors have pieces on all
/// ranks of the process.
const MOST_SUMS: usize = 1 << 14;

/// What has arrived so far.
pub(super) struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Units of each batch that are still to come.
    left: Vec<usize>,
    /// What was summed up on its way and not taken yet: of each schedule the sums of pieces, by their tensors' places.
    own: Vec<PieceSums>,
    /// How many batches of each schedule were taken.
    taken: Vec<usize>,
    /// What was summed up of the files and not taken yet, by the tensors' numbers in the catalog.
    expected: HashMap<usize, Fingerprint>,
    /// Whether nothing more comes.
    stopped: bool,
}

impl State {
    fn has_room(&self, batch: usize) -> bool {
        let sums: usize = self.own.iter().map(PieceSums::len).sum();
        sums < MOST_SUMS || self.taken.iter().all(|&taken| batch <= taken)
    }
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
    pub(super) fn new(pass: &Pass<'_>, schedules: &[Schedule], batches: &Batches) -> Self {
        let mut left = vec![0; batches.count()];
        pass.units.iter().for_each(|unit| left[unit.batch] += 1);
        let own = vec![PieceSums::new(); schedules.len()];
        let taken = vec![0; schedules.len()];
        let state = State { left, own, taken, expected: HashMap::new(), stopped: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Takes note of a unit of batch `batch` that is on its way to all devices.
    pub(super) fn arrived(&self, batch: usize, sums: UnitSums) {
        let mut state = self.lock();
        for ((place, piece), sum) in sums.own {
            state.own[place.seat()].entry((place.tensor as usize, piece)).or_default().merge(sum);
        }
        for (id, sum) in sums.expected {
            state.expected.entry(id).or_default().merge(sum);
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

    /// Waits until there is room for the sums of a unit of batch `batch`, or nothing more comes. Who verifies never waits for what waits
    /// here: a unit of the batch whose turn it is always has room. `step` is asked now and then whether to go on.
    pub(super) fn wait_for_room(
        &self,
        batch: usize,
        step: &dyn Fn() -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let mut state = self.lock();
        while !state.stopped && !state.has_room(batch) {
            state = self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            step()?;
            state = self.lock();
        }
        Ok(())
    }

    /// Takes the sums of what has arrived for schedule `seat`, which are complete for batches that were waited for: of its tensors
    /// in `places`.
    pub(super) fn take_own(&self, seat: usize, places: Range<usize>) -> PieceSums {
        let mut state = self.lock();
        state.taken[seat] += 1;
        let own = &mut state.own[seat];
        let mut taken = own.split_off(&(places.start, 0));
        own.append(&mut taken.split_off(&(places.end, 0)));
        drop(state);
        self.changed.notify_all();
        taken
    }

    /// Takes the sums of the files of batches that were waited for.
    pub(super) fn take_expected(&self, ids: impl Iterator<Item = usize>) -> HashMap<usize, Fingerprint> {
        let mut state = self.lock();
        ids.filter_map(|id| state.expected.remove_entry(&id)).collect()
    }

    /// A thread that panicked left sums that are too small, which verification finds.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// One rank with two batches, of which the first has brought more sums than are kept.
    fn crowded() -> Arrivals {
        let own = (0..MOST_SUMS + 1).map(|piece| ((0, piece), Fingerprint::default())).collect();
        let state = State {
            left: vec![0, 1],
            own: vec![own],
            taken: vec![0],
            expected: HashMap::new(),
            stopped: false,
        };
        Arrivals { state: Mutex::new(state), changed: Condvar::new() }
    }

    #[test]
    fn later_batches_wait_until_verification_has_caught_up() {
        let arrivals = crowded();
        // The one whose turn it is waits for nobody.
        arrivals.wait_for_room(0, &|| Ok(())).unwrap();
        let (say, hear) = mpsc::channel();
        std::thread::scope(|scope| {
            let arrivals = &arrivals;
            scope.spawn(move || {
                arrivals.wait_for_room(1, &|| Ok(())).unwrap();
                say.send(()).unwrap();
            });
            assert!(hear.recv_timeout(2 * TICK).is_err());
            assert_eq!(arrivals.take_own(0, 0..1).len(), MOST_SUMS + 1);
            hear.recv_timeout(Duration::from_secs(20)).unwrap();
        });
    }

    #[test]
    fn who_waits_for_room_ends_with_the_load() {
        let arrivals = crowded();
        let interrupted = || Err(LoadError::Interrupted { rank: 3 });
        assert!(matches!(arrivals.wait_for_room(1, &interrupted), Err(LoadError::Interrupted { rank: 3 })));
        arrivals.stop();
        arrivals.wait_for_room(1, &interrupted).unwrap();
    }
}
