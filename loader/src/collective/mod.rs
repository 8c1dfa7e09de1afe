//! How ranks agree: the seam between the loader and whatever carries messages between ranks.
//!
//! In come arrays of numbers from every rank; out goes, on every rank, their sum, minimum or maximum. Beside the calls
//! stands a rank's [`Lifeline`]: how it says that it gets on, and hears that another does not.

mod board;
mod error;
mod local;
mod over;
mod tcp;

pub use board::Lifeline;
pub use error::CollectiveError;
pub use local::{LocalCommunicator, local_group};
pub use over::{Group, GroupCommunicator};
pub use tcp::TcpCommunicator;

pub(crate) use error::{one_line, seconds, without_help};
pub(crate) use tcp::PROTOCOL;

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
/// All ranks make the same calls in the same order. A rank waits for another as long as that one gets on, which it shows by
/// coming or by [`Lifeline::beat`], and no longer than the group's patience without a sign. The first failure of any rank,
/// with its reason, is what the calls of all ranks end with from then on.
///
/// A communicator that is dropped has left the group: that is no failure in itself, but a call that needs the rank fails. One
/// that is dropped by a panic makes the group fail. A rank that cannot go on says so with [`abort`](Self::abort).
pub trait Communicator: Send {
    /// This rank.
    fn rank(&self) -> u32;

    /// Ranks in the group.
    fn world_size(&self) -> u32;

    /// Combines `values` with those of all ranks, in place; all give the same number of values.
    ///
    /// # Errors
    /// [`CollectiveError`] names the rank that failed first.
    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError>;

    /// This rank's line to the others for the time between calls.
    fn lifeline(&self) -> Lifeline;

    /// Tells all ranks that this one cannot go on, and why.
    fn abort(&mut self, reason: &str) {
        self.lifeline().fail(self.rank(), reason);
    }
}

/// Waits until all ranks of `control` have come to combine `values` over something else, which would wait for those that still load
/// without a word.
///
/// # Errors
/// [`CollectiveError::OutOfStep`], on all ranks, when they do not bring as many values.
pub(crate) fn meet(control: &mut dyn Communicator, values: &[u64]) -> Result<(), CollectiveError> {
    let own = [values.len() as u64, !(values.len() as u64)];
    let mut largest = own;
    control.all_reduce(&mut largest, Reduce::Max)?;
    if largest == own { Ok(()) } else { Err(CollectiveError::OutOfStep { rank: control.rank() }) }
}
