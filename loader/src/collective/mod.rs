//! How ranks agree: the seam between the loader and whatever carries messages between ranks.
//!
//! In come arrays of numbers from every rank; out goes, on every rank, their sum, minimum or maximum.

mod local;

pub use local::{LocalCommunicator, local_group};

use std::time::Duration;

/// How the values of all ranks are combined, element by element. Sums wrap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Sum mod 2^64.
    Sum,
    /// Smallest.
    Min,
    /// Largest.
    Max,
}

impl Reduce {
    /// Combines `from` into `into`.
    pub fn apply(self, into: &mut [u64], from: &[u64]) {
        for (into, &from) in into.iter_mut().zip(from) {
            *into = match self {
                Self::Sum => into.wrapping_add(from),
                Self::Min => (*into).min(from),
                Self::Max => (*into).max(from),
            };
        }
    }
}

/// One rank's end of a group of ranks.
///
/// All ranks make the same calls in the same order. Every wait is bounded. A rank that is dropped, or that aborts, makes the
/// calls of all others fail instead of leaving them waiting.
pub trait Communicator: Send {
    /// This rank.
    fn rank(&self) -> u32;

    /// Ranks in the group.
    fn world_size(&self) -> u32;

    /// Combines `values` with those of all ranks, in place; all give the same number of values.
    ///
    /// # Errors
    /// [`CollectiveError`] names the rank that failed, where it is known.
    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError>;

    /// Tells all ranks that this one cannot go on.
    fn abort(&mut self);
}

/// Why ranks could not agree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A rank failed or ended.
    #[error("rank {rank} failed or ended before the others")]
    PeerLost {
        /// Which.
        rank: u32,
    },
    /// Not all ranks came in time.
    #[error("rank {rank} waited {waited:?} for the other ranks")]
    TimedOut {
        /// Who waited.
        rank: u32,
        /// How long.
        waited: Duration,
    },
    /// Ranks made different calls.
    #[error("rank {rank} made another call than the ranks before it")]
    OutOfStep {
        /// Who differs.
        rank: u32,
    },
}
