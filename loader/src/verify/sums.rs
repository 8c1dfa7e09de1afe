//! The sum over ranks against the fingerprint of the file.

use super::{Verification, VerifyError, expected, own::OwnSums};
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

/// What the comparison of sums gave; the same on every rank but for `device_bytes`.
pub(super) struct Sums {
    /// By the tensors' numbers in the catalog.
    pub(super) compared: Vec<Compared>,
    pub(super) mismatches: Vec<Wrong>,
    /// How many tensors were compared.
    pub(super) tensors: u64,
    pub(super) device_bytes: u64,
}

/// Sums what the ranks hold, each element once, and what the files say, each byte once, and compares.
pub(super) fn compare(
    this: &Verification<'_>,
    chosen: &[bool],
    own: &[Option<OwnSums>],
    communicator: &mut dyn Communicator,
) -> Result<Sums, VerifyError> {
    let count = this.catalog.tensors().len();
    let mut found = vec![Fingerprint::default(); count];
    let mut device_bytes = 0;
    let mut expected =
        expected::share_of_files(this, chosen, communicator.rank(), communicator.world_size())?;
    for (tensor, own) in this.schedule.tensors.iter().zip(own) {
        let Some(own) = own else { continue };
        let answers = tensor.pieces.iter().zip(&own.pieces).filter(|(piece, _)| piece.replica == 0);
        for (_, sum) in answers {
            device_bytes += sum.bytes();
            found[tensor.id].merge(*sum);
        }
        expected[tensor.id].merge(expected::padding(tensor));
        found[tensor.id].merge(own.padding);
    }

    let mut limbs: Vec<u64> = found.iter().chain(&expected).flat_map(|sum| sum.to_limbs()).collect();
    communicator.all_reduce(&mut limbs, Reduce::Sum)?;
    let sums: Vec<Fingerprint> = limbs
        .as_chunks::<{ Fingerprint::LIMBS }>()
        .0
        .iter()
        .map(|&limbs| Fingerprint::from_limbs(limbs))
        .collect();
    let (found, expected) = sums.split_at(count);
    let compared: Vec<Compared> =
        expected.iter().zip(found).map(|(&expected, &found)| Compared { expected, found }).collect();
    let mismatches = compared
        .iter()
        .enumerate()
        .filter(|(_, compared)| compared.expected != compared.found)
        .map(|(id, compared)| compared.named(id))
        .collect();
    let tensors = chosen.iter().filter(|chosen| **chosen).count() as u64;
    Ok(Sums { compared, mismatches, tensors, device_bytes })
}
