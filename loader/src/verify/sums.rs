//! The sum over ranks against the fingerprint of the file.

use super::{Verification, VerifyError, padding, piece_on_device};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::{Fingerprint, seed_of},
};
use shardwright_planner::checkpoint::ByteRange;

/// Bytes of a file that are fingerprinted at a time.
const STEP: u64 = 4 << 20;

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
    pub(super) device_bytes: u64,
}

/// Sums what the ranks hold, each element once, and what the files say, each byte once, and compares.
pub(super) fn compare(
    this: &Verification<'_>,
    communicator: &mut dyn Communicator,
) -> Result<Sums, VerifyError> {
    let count = this.catalog.tensors().len();
    let mut found = vec![Fingerprint::default(); count];
    let mut device_bytes = 0;
    let mut expected = share_of_files(this, communicator.rank(), communicator.world_size())?;
    for tensor in &this.schedule.tensors {
        for piece in tensor.pieces.iter().filter(|piece| piece.replica == 0) {
            let sum = piece_on_device(this.memory, tensor, piece)?;
            device_bytes += sum.bytes();
            found[tensor.id].merge(sum);
        }
        let (zeros, lies_there) = padding(this.memory, tensor)?;
        expected[tensor.id].merge(zeros);
        found[tensor.id].merge(lies_there);
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
    Ok(Sums { compared, mismatches, device_bytes })
}

/// The fingerprints of this rank's share of the files: of all tensors' bytes laid one after the other, one run in as many as
/// there are ranks. The shares depend on the files alone.
fn share_of_files(this: &Verification<'_>, rank: u32, world: u32) -> Result<Vec<Fingerprint>, VerifyError> {
    let total = u128::from(this.catalog.tensor_bytes());
    let border = |rank: u32| u64::try_from(total * u128::from(rank) / u128::from(world)).unwrap_or(u64::MAX);
    let (first, last) = (border(rank), border(rank + 1));

    let mut sums = vec![Fingerprint::default(); this.catalog.tensors().len()];
    let mut order: Vec<usize> = (0..sums.len()).collect();
    order.sort_by_key(|&id| (this.catalog.tensors()[id].file, this.catalog.tensors()[id].bytes));
    let mut scratch = Vec::new();
    // Where the tensor begins among all tensors' bytes.
    let mut before = 0u64;
    for id in order {
        let tensor = &this.catalog.tensors()[id];
        let seed = seed_of(&tensor.name);
        let start = first.saturating_sub(before).min(tensor.bytes.len());
        let stop = last.saturating_sub(before).min(tensor.bytes.len());
        before += tensor.bytes.len();
        let mut at = start;
        while at < stop {
            let end = (at + STEP).min(stop);
            let base = tensor.bytes.start();
            let Some(range) = ByteRange::new(base + at, base + end, tensor.bytes.stop()) else { break };
            let bytes = this.source.bytes(tensor.file, range, &mut scratch)?;
            sums[id].add(seed, at, bytes);
            at = end;
        }
    }
    Ok(sums)
}
