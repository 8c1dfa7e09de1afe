//! A rank's own bytes against the bytes that its boxes have in the files.

use super::{Batch, Mismatch, Verification, Verified, VerifyError, expected, sums::Wrong};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
    schedule::PlacedTensor,
};

/// Compares what one rank has without the others: the expected values are those of its own boxes.
pub(super) fn compare(this: &Verification<'_>, batch: &Batch<'_>, verified: &mut Verified) {
    for tensor in &batch.tensors {
        let Some((held, own)) = tensor.own() else { continue };
        let (mut expected, found) = (tensor.expected, own.whole());
        expected.merge(expected::padding(held, tensor.seed));
        if expected == found {
            verified.tensors += 1;
            continue;
        }
        let (tensor, ranks) = (this.catalog.tensors()[tensor.id].name.to_string(), vec![this.schedule.rank]);
        verified.mismatches.push(Mismatch { tensor, ranks, expected, found });
    }
}

/// Finds the ranks whose own bytes are wrong, for tensors of the batch that are. Every rank calls it with the same tensors.
pub(super) fn blame(
    this: &Verification<'_>,
    batch: &Batch<'_>,
    wrong: &[Wrong],
    communicator: &mut dyn Communicator,
) -> Result<Vec<Mismatch>, VerifyError> {
    let world = communicator.world_size() as usize;
    // One number for each tensor and rank: whether that rank's own bytes differ.
    let mut differs = vec![0u64; wrong.len() * world];
    for (place, mismatch) in wrong.iter().enumerate() {
        let tensor = batch.tensors.iter().find(|tensor| tensor.id == mismatch.id);
        if let Some((tensor, (held, own))) = tensor.and_then(|tensor| Some((tensor, tensor.own()?))) {
            let differ = expected_of(this, held, tensor.seed)? != own.whole();
            differs[place * world + communicator.rank() as usize] = u64::from(differ);
        }
    }
    if !differs.is_empty() {
        communicator.all_reduce(&mut differs, Reduce::Sum)?;
    }
    Ok(wrong
        .iter()
        .enumerate()
        .map(|(place, mismatch)| Mismatch {
            tensor: this.catalog.tensors()[mismatch.id].name.to_string(),
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

/// The fingerprint of all boxes that the rank holds of a tensor, from the file.
fn expected_of(
    this: &Verification<'_>,
    tensor: PlacedTensor<'_>,
    seed: u64,
) -> Result<Fingerprint, VerifyError> {
    let mut sum = expected::padding(tensor, seed);
    for piece in tensor.pieces() {
        sum.merge(expected::piece(this, tensor, piece)?);
    }
    Ok(sum)
}
