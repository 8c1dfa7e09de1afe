//! Proving that what lies on the devices is what lies in the files.
//!
//! In come a rank's schedule, its memory, the source and the communicator; out goes, on every rank alike, how many tensors
//! were verified or which are wrong and on which ranks. The expected fingerprints are summed over shares of the *files*
//! that know nothing of the plan's boxes, so a wrong box is found as surely as a wrong byte.

mod local;
mod replicas;
mod sums;

pub use local::verify_alone;

use crate::{
    collective::{CollectiveError, Communicator, Reduce},
    device::{DeviceError, DeviceMemory, Strip},
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, Schedule, ScheduledPiece},
    source::{Source, SourceError},
};
use shardwright_planner::{
    checkpoint::Catalog,
    plan::{Plan, PlanError, TensorGroup},
};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Tensors whose fingerprints were compared.
    pub tensors: u64,
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
    /// The ranks could not agree.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
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
}

/// Verifies what all ranks of the plan have loaded. Every rank calls it; every rank learns the same mismatches.
///
/// # Errors
/// [`VerifyError`] when the ranks cannot agree or the bytes cannot be read; a mismatch is no error here.
pub fn verify(this: &Verification<'_>, communicator: &mut dyn Communicator) -> Result<Verified, VerifyError> {
    agree_on_plan(this.plan, communicator)?;
    let sums = sums::compare(this, communicator)?;
    let mut wrong = sums.mismatches;
    for tensor in replicas::compare(this, communicator)? {
        // Replicas that differ while the sum is right: a rank that does not answer in the sum is wrong.
        if !wrong.iter().any(|mismatch| mismatch.id == tensor) {
            wrong.push(sums.compared.get(tensor).copied().unwrap_or_default().named(tensor));
        }
    }
    wrong.sort_by_key(|mismatch| mismatch.id);
    let mismatches = local::blame(this, &wrong, communicator)?;
    let mut tensors: u64 = this.plan.tensors.iter().map(TensorGroup::count).sum();
    tensors -= mismatches.len() as u64;
    Ok(Verified { tensors, bytes: sums.device_bytes, mismatches })
}

/// Checks that all ranks have the same plan, before anything is compared that depends on it.
fn agree_on_plan(plan: &Plan, communicator: &mut dyn Communicator) -> Result<(), VerifyError> {
    let digest = plan.digest()?;
    // A digest is hexadecimal text; eight letters a number.
    let words: Vec<u64> = digest
        .as_bytes()
        .chunks(8)
        .map(|letters| letters.iter().fold(0, |word, &letter| word << 8 | u64::from(letter)))
        .collect();
    let (mut least, mut most) = (words.clone(), words);
    communicator.all_reduce(&mut least, Reduce::Min)?;
    communicator.all_reduce(&mut most, Reduce::Max)?;
    if least != most {
        return Err(VerifyError::OtherPlan { rank: communicator.rank(), digest });
    }
    Ok(())
}

/// Where the bytes of a piece lie in the rank's memory and in the whole tensor.
fn strips(tensor: &PlacedTensor, piece: &ScheduledPiece) -> Vec<Strip> {
    piece
        .rows
        .iter()
        .map(|rows| Strip {
            at: rows.to,
            at_stride: rows.to_stride,
            in_tensor: rows.from - tensor.file_start,
            in_tensor_stride: rows.from_stride,
            run_bytes: rows.run_bytes,
            runs: rows.runs,
        })
        .collect()
}

/// The fingerprints of a tensor's padding: what zeros have, and what lies in the rank's memory. Both are of the slice's own
/// coordinates, for the padding has none in the tensor.
fn padding(
    memory: &dyn DeviceMemory,
    tensor: &PlacedTensor,
) -> Result<(Fingerprint, Fingerprint), DeviceError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let (mut expected, seed) = (Fingerprint::default(), seed_of(&tensor.name));
    let Some(padding) = tensor.padding else { return Ok((expected, expected)) };
    let strip = Strip {
        at: padding.at,
        at_stride: padding.stride,
        in_tensor: padding.at - tensor.offset,
        in_tensor_stride: padding.stride,
        run_bytes: padding.run_bytes,
        runs: padding.runs,
    };
    for run in 0..strip.runs {
        let begin = strip.in_tensor + run * strip.in_tensor_stride;
        for done in (0..strip.run_bytes).step_by(ZEROS.len()) {
            let bytes =
                usize::try_from(strip.run_bytes - done).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            expected.add(seed, begin + done, &ZEROS[..bytes]);
        }
    }
    Ok((expected, memory.fingerprint(seed, &[strip])?))
}

/// The fingerprint of a piece, from the rank's memory.
fn piece_on_device(
    memory: &dyn DeviceMemory,
    tensor: &PlacedTensor,
    piece: &ScheduledPiece,
) -> Result<Fingerprint, DeviceError> {
    memory.fingerprint(seed_of(&tensor.name), &strips(tensor, piece))
}

#[cfg(test)]
mod tests;
