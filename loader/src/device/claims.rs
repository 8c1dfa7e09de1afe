//! Who may touch which bytes of a memory now.

use std::{
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

/// The runs of a memory that threads use at the moment. A run that is written overlaps no other.
#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Mutex<Vec<Claim>>,
    given_back: Condvar,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    bytes: Range<u64>,
    write: bool,
}

impl Claim {
    fn excludes(&self, other: &Self) -> bool {
        (self.write || other.write)
            && self.bytes.start < other.bytes.end
            && other.bytes.start < self.bytes.end
    }
}

/// A run that is this thread's until it is dropped.
#[derive(Debug)]
pub(super) struct Claimed<'a> {
    claims: &'a Claims,
    claim: Claim,
}

impl Claims {
    /// Waits until nobody uses `bytes` in a way that goes ill with this one: several may read, one alone may write.
    pub(super) fn take(&self, bytes: Range<u64>, write: bool) -> Claimed<'_> {
        let claim = Claim { bytes, write };
        let mut taken = self.lock();
        while taken.iter().any(|other| other.excludes(&claim)) {
            taken = self.given_back.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        taken.push(claim.clone());
        Claimed { claims: self, claim }
    }

    /// The list; a thread that panicked left it whole, for it changes by single pushes and removals.
    fn lock(&self) -> MutexGuard<'_, Vec<Claim>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        let mut taken = self.claims.lock();
        if let Some(place) = taken.iter().position(|claim| *claim == self.claim) {
            taken.swap_remove(place);
        }
        drop(taken);
        self.claims.given_back.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn nobody_writes_where_another_is() {
        let claims = Claims::default();
        // How many use each byte: readers count 1, a writer 1000.
        let users: Vec<AtomicU32> = (0..64).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..8usize {
                let (claims, users) = (&claims, &users);
                scope.spawn(move || {
                    for round in 0..500usize {
                        let start = (thread * 31 + round * 7) % 48;
                        let bytes = start..start + 1 + round % 16;
                        let claimed = bytes.start as u64..bytes.end as u64;
                        let write = (thread + round).is_multiple_of(3);
                        let weight = if write { 1000 } else { 1 };
                        let _mine = claims.take(claimed, write);
                        for user in &users[bytes.clone()] {
                            let before = user.fetch_add(weight, Ordering::SeqCst);
                            assert!(before == 0 || (!write && before < 1000));
                        }
                        for user in &users[bytes] {
                            user.fetch_sub(weight, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert!(claims.lock().is_empty());
    }
}
