//! A rank's own bytes against the bytes that its boxes have in the files.

use super::{
    Mismatch, Verification, Verified, VerifyError, expected,
    own::{self, OwnSums},
    sample,
    sums::Wrong,
};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
    schedule::PlacedTensor,
};

/// Verifies what one rank has loaded without the others: it has just the bytes that its boxes have in the files. That the
/// boxes of all ranks make up the tensors is then taken from the plan.
///
/// # Errors
/// [`VerifyError`] when the bytes cannot be read; a mismatch is no error here.
pub fn verify_alone(this: &Verification<'_>) -> Result<Verified, VerifyError> {
    let mut verified = Verified::default();
    for (tensor, own) in this.schedule.tensors.iter().zip(own::sums(this, &sample::chosen(this)?)?) {
        let Some(own) = own else {
            verified.left_out += 1;
            continue;
        };
        let (expected, found) = (expected_of(this, tensor)?, own.whole());
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
    own: &[Option<OwnSums>],
    wrong: &[Wrong],
    communicator: &mut dyn Communicator,
) -> Result<Vec<Mismatch>, VerifyError> {
    let world = communicator.world_size() as usize;
    // One number for each tensor and rank: whether that rank's own bytes differ.
    let mut differs = vec![0u64; wrong.len() * world];
    for (place, mismatch) in wrong.iter().enumerate() {
        let mut held = this.schedule.tensors.iter().zip(own);
        if let Some((tensor, Some(own))) = held.find(|(tensor, _)| tensor.id == mismatch.id) {
            let differ = expected_of(this, tensor)? != own.whole();
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

/// The fingerprint of all boxes that the rank holds of a tensor, from the file.
fn expected_of(this: &Verification<'_>, tensor: &PlacedTensor) -> Result<Fingerprint, VerifyError> {
    let mut sum = expected::padding(tensor);
    for piece in &tensor.pieces {
        sum.merge(expected::piece(this, tensor, piece)?);
    }
    Ok(sum)
}
