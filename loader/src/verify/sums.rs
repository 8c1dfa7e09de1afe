//! The sum over ranks against the fingerprint of the file.

use super::{Batch, VerifyError, expected::padding};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
};

/// A tensor whose sum over ranks is not that of the file, or that was found wrong otherwise.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wrong {
    /// Its number in the catalog.
    pub(super) id: usize,
    pub(super) compared: Compared,
}

/// A tensor's two fingerprints.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Compared {
    pub(super) expected: Fingerprint,
    pub(super) found: Fingerprint,
}

impl Compared {
    pub(super) fn named(self, id: usize) -> Wrong {
        Wrong { id, compared: self }
    }
}

/// Sums what the ranks hold, each element once, and what the files say, each byte once, and compares. Gives both
/// of every tensor of the batch, the same on every rank.
pub(super) fn compare(
    batch: &Batch<'_>,
    communicator: &mut dyn Communicator,
) -> Result<Vec<Compared>, VerifyError> {
    let count = batch.tensors.len();
    let (mut found, mut expected) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for tensor in &batch.tensors {
        let (mut has, mut wants) = (Fingerprint::default(), tensor.expected);
        if let Some((held, own)) = tensor.own() {
            has = own.answered(held);
            has.merge(own.padding);
            wants.merge(padding(held, tensor.seed));
        }
        found.push(has);
        expected.push(wants);
    }
    let mut limbs: Vec<u64> = found.iter().chain(&expected).flat_map(|sum| sum.to_limbs()).collect();
    if limbs.is_empty() {
        return Ok(Vec::new());
    }
    communicator.all_reduce(&mut limbs, Reduce::Sum)?;
    let limbs = limbs.as_chunks::<{ Fingerprint::LIMBS }>().0;
    let sums: Vec<Fingerprint> = limbs.iter().map(|&limbs| Fingerprint::from_limbs(limbs)).collect();
    let (found, expected) = sums.split_at(count);
    Ok(expected.iter().zip(found).map(|(&expected, &found)| Compared { expected, found }).collect())
}
