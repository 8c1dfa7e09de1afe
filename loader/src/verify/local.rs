//! A rank's own bytes against the bytes that its boxes have in the files.

use super::{Mismatch, Verification, Verified, VerifyError, padding, piece_on_device, strips, sums::Wrong};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, ScheduledPiece},
    source::{Source, SourceError},
};
use shardwright_planner::checkpoint::ByteRange;

/// Bytes of a file that are read at a time.
const STEP: u64 = 4 << 20;

/// Verifies what one rank has loaded without the others: it has just the bytes that its boxes have in the files. That the
/// boxes of all ranks make up the tensors is then taken from the plan.
///
/// # Errors
/// [`VerifyError`] when the bytes cannot be read; a mismatch is no error here.
pub fn verify_alone(this: &Verification<'_>) -> Result<Verified, VerifyError> {
    let mut verified = Verified::default();
    for tensor in &this.schedule.tensors {
        let (expected, found) = own_sums(this, tensor)?;
        verified.bytes += found.bytes();
        if expected == found {
            verified.tensors += 1;
            continue;
        }
        let ranks = vec![this.schedule.rank];
        verified.mismatches.push(Mismatch { tensor: tensor.name.clone(), ranks, expected, found });
    }
    Ok(verified)
}

/// Finds the ranks whose own bytes are wrong, for tensors that are. Every rank calls it with the same tensors.
pub(super) fn blame(
    this: &Verification<'_>,
    wrong: &[Wrong],
    communicator: &mut dyn Communicator,
) -> Result<Vec<Mismatch>, VerifyError> {
    let world = communicator.world_size() as usize;
    // One number for each tensor and rank: whether that rank's own bytes differ.
    let mut differs = vec![0u64; wrong.len() * world];
    for (place, mismatch) in wrong.iter().enumerate() {
        let own = this.schedule.tensors.iter().find(|tensor| tensor.id == mismatch.id);
        if let Some(tensor) = own {
            let (expected, found) = own_sums(this, tensor)?;
            differs[place * world + communicator.rank() as usize] = u64::from(expected != found);
        }
    }
    if !differs.is_empty() {
        communicator.all_reduce(&mut differs, Reduce::Sum)?;
    }
    Ok(wrong
        .iter()
        .enumerate()
        .map(|(place, mismatch)| Mismatch {
            tensor: this.catalog.tensors()[mismatch.id].name.clone(),
            ranks: (0u32..)
                .zip(&differs[place * world..][..world])
                .filter(|(_, differs)| **differs > 0)
                .map(|(rank, _)| rank)
                .collect(),
            expected: mismatch.compared.expected,
            found: mismatch.compared.found,
        })
        .collect())
}

/// The fingerprints of all boxes that the rank holds of a tensor: from the file, and from its memory.
fn own_sums(
    this: &Verification<'_>,
    tensor: &PlacedTensor,
) -> Result<(Fingerprint, Fingerprint), VerifyError> {
    let (mut expected, mut found) = (Fingerprint::default(), Fingerprint::default());
    for piece in &tensor.pieces {
        expected.merge(piece_in_file(this.source, tensor, piece)?);
        found.merge(piece_on_device(this.memory, tensor, piece)?);
    }
    let (zeros, lies_there) = padding(this.memory, tensor)?;
    expected.merge(zeros);
    found.merge(lies_there);
    Ok((expected, found))
}

/// The fingerprint of a piece, from the file.
fn piece_in_file(
    source: &dyn Source,
    tensor: &PlacedTensor,
    piece: &ScheduledPiece,
) -> Result<Fingerprint, SourceError> {
    let seed = seed_of(&tensor.name);
    let mut sum = Fingerprint::default();
    let mut scratch = Vec::new();
    for strip in strips(tensor, piece) {
        for run in 0..strip.runs {
            let mut at = strip.in_tensor + run * strip.in_tensor_stride;
            let stop = at + strip.run_bytes;
            while at < stop {
                let end = (at + STEP).min(stop);
                let start = tensor.file_start;
                let range = ByteRange::new(start + at, start + end, u64::MAX);
                if let Some(range) = range {
                    sum.add(seed, at, source.bytes(tensor.file, range, &mut scratch)?);
                }
                at = end;
            }
        }
    }
    Ok(sum)
}
