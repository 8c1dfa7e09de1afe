//! How much is in flight.

use super::queue::Queue;
use std::io;

/// Most memory that all queues of a process have together.
const MOST_BYTES: usize = 40 << 20;

/// Most threads that a queue is kept for.
const MOST_THREADS: usize = 512;

/// Most bytes of a read.
const MOST_SLOT_BYTES: usize = 16 << 20;

/// How much is read at a time, and how much is asked for ahead of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectOptions {
    /// How many threads read at once.
    pub threads: usize,
    /// Most bytes of one read.
    pub slot_bytes: usize,
    /// How many reads of `slot_bytes` a thread has in flight; of shorter ones there are more, within the same memory.
    pub depth: usize,
}

impl DirectOptions {
    /// Options for `threads` threads. A quarter of that in flight kept a disk of a few GB/s about as busy; the rest is for whoever
    /// takes the bytes to be late now and then.
    pub fn for_threads(threads: usize) -> Self {
        Self { threads, slot_bytes: 1 << 20, depth: 8 }
    }

    /// Bytes of memory for all threads together.
    pub fn memory_bytes(self) -> usize {
        self.threads.saturating_mul(self.slot_bytes).saturating_mul(self.depth)
    }

    /// The same, with reads of whole units and no more memory than there should be: first fewer of them, then shorter ones.
    pub(super) fn fitted(self, unit: usize) -> Self {
        let threads = self.threads.clamp(1, MOST_THREADS);
        let share = MOST_BYTES / threads;
        let slot_bytes = self.slot_bytes.min(MOST_SLOT_BYTES).min(share / 2) / unit * unit;
        let slot_bytes = slot_bytes.max(unit);
        Self { threads, slot_bytes, depth: self.depth.min(share / slot_bytes).max(1) }
    }

    /// A queue for one thread.
    pub(super) fn queue(self, unit: usize) -> io::Result<Queue> {
        Queue::new(self.slot_bytes * self.depth, unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_for_the_memory_is_bounded() {
        for unit in [4096, 65536] {
            for threads in [0, 1, 2, 7, 64, 511, usize::MAX] {
                for slot_bytes in [0, 1, 4097, 1 << 20, usize::MAX] {
                    for depth in [0, 1, 8, usize::MAX] {
                        let fitted = DirectOptions { threads, slot_bytes, depth }.fitted(unit);
                        assert!(fitted.memory_bytes() <= MOST_BYTES && fitted.memory_bytes() > 0);
                        assert!(fitted.slot_bytes.is_multiple_of(unit));
                    }
                }
            }
        }
    }

    #[test]
    fn what_fits_is_left_as_it_was_asked_for() {
        let asked = DirectOptions::for_threads(4);
        assert_eq!(asked.fitted(4096), asked);
    }
}
