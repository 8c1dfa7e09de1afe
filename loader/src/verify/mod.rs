//! Proving that what lies on the devices is what lies in the files.
//!
//! In come a rank's schedule, its memory, the source and the communicator; out goes, on every rank alike, how many tensors
//! were verified or which are wrong and on which ranks. The expected fingerprints are summed over shares of the *files*
//! that know nothing of the plan's boxes, so a wrong box is found as surely as a wrong byte.

mod expected;
mod local;
mod own;
mod replicas;
mod sample;
mod sums;

pub use local::verify_alone;
pub use sample::Extent;

use crate::{
    collective::{CollectiveError, Communicator, Reduce},
    device::{DeviceError, DeviceMemory},
    fingerprint::Fingerprint,
    schedule::Schedule,
    source::{Source, SourceError},
};
use shardwright_planner::{
    checkpoint::Catalog,
    plan::{Plan, PlanError},
};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Tensors whose fingerprints were compared and are those of the files.
    pub tensors: u64,
    /// Tensors that were not compared, because a sample was asked for.
    pub left_out: u64,
    /// Bytes that the fingerprints were computed over on this rank's device.
    pub bytes: u64,
    /// The tensors that are wrong; the same on all ranks.
    pub mismatches: Vec<Mismatch>,
}

/// A tensor that is not what the files say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its name.
    pub tensor: String,
    /// The ranks whose own bytes differ from the file's. Empty when every rank has just what its boxes say, but the boxes do
    /// not make up the tensor.
    pub ranks: Vec<u32>,
    /// The file's fingerprint.
    pub expected: Fingerprint,
    /// The sum over the ranks.
    pub found: Fingerprint,
}

/// Why it could not be verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Ranks have different plans.
    #[error("rank {rank} has another plan than some other rank: its digest is {digest}")]
    OtherPlan {
        /// This rank.
        rank: u32,
        /// Its plan's digest.
        digest: String,
    },
    /// Ranks were asked to verify different tensors.
    #[error("rank {rank} was asked to verify other tensors than some other rank: {}", if *full { "all" } else { "a sample" })]
    OtherExtent {
        /// This rank.
        rank: u32,
        /// Whether it was asked to verify all.
        full: bool,
    },
    /// The ranks could not agree.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The files could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// What one rank brings to verification.
pub struct Verification<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Its checkpoint.
    pub catalog: &'a Catalog,
    /// The rank's schedule.
    pub schedule: &'a Schedule,
    /// The rank's memory, loaded.
    pub memory: &'a dyn DeviceMemory,
    /// The checkpoint's bytes.
    pub source: &'a dyn Source,
    /// Which tensors.
    pub extent: Extent,
    /// Called again and again between pieces of work of some MiB; an error ends verification with it.
    pub step: &'a dyn Fn() -> Result<(), VerifyError>,
}

/// Verifies what all ranks of the plan have loaded. Every rank calls it; every rank learns the same mismatches.
///
/// # Errors
/// [`VerifyError`] when the ranks cannot agree or the bytes cannot be read; a mismatch is no error here.
pub fn verify(this: &Verification<'_>, communicator: &mut dyn Communicator) -> Result<Verified, VerifyError> {
    agree_on_plan(this.plan, this.extent, communicator)?;
    let chosen = sample::chosen(this)?;
    let own = own::sums(this, &chosen)?;
    let sums = sums::compare(this, &chosen, &own, communicator)?;
    let mut wrong = sums.mismatches;
    for tensor in replicas::compare(this, &own, communicator)? {
        // Replicas that differ while the sum is right: a rank that does not answer in the sum is wrong.
        if !wrong.iter().any(|mismatch| mismatch.id == tensor) {
            wrong.push(sums.compared.get(tensor).copied().unwrap_or_default().named(tensor));
        }
    }
    wrong.sort_by_key(|mismatch| mismatch.id);
    let mismatches = local::blame(this, &own, &wrong, communicator)?;
    let compared = sums.tensors;
    Ok(Verified {
        tensors: compared - mismatches.len() as u64,
        left_out: this.catalog.tensors().len() as u64 - compared,
        bytes: sums.device_bytes,
        mismatches,
    })
}

/// Checks that all ranks have the same plan, before anything is compared that depends on it.
fn agree_on_plan(
    plan: &Plan,
    extent: Extent,
    communicator: &mut dyn Communicator,
) -> Result<(), VerifyError> {
    let digest = plan.digest()?;
    // A digest is hexadecimal text; eight letters a number.
    let mut words: Vec<u64> = digest
        .as_bytes()
        .chunks(8)
        .map(|letters| letters.iter().fold(0, |word, &letter| word << 8 | u64::from(letter)))
        .collect();
    words.push(u64::from(extent == Extent::Full));
    let (mut least, mut most) = (words.clone(), words);
    communicator.all_reduce(&mut least, Reduce::Min)?;
    communicator.all_reduce(&mut most, Reduce::Max)?;
    let rank = communicator.rank();
    let (of_extent, of_plan) = (least.pop() == most.pop(), least == most);
    match (of_plan, of_extent) {
        (false, _) => Err(VerifyError::OtherPlan { rank, digest }),
        (true, false) => Err(VerifyError::OtherExtent { rank, full: extent == Extent::Full }),
        (true, true) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
