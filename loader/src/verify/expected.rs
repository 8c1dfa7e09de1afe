//! What should lie in the ranks' memory: fingerprints of the files, and of zeros.

use super::{Verification, VerifyError, own};
use crate::{
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, ScheduledPiece},
};
use shardwright_planner::checkpoint::ByteRange;

/// Bytes of a file that are read at a time.
const STEP: u64 = 4 << 20;

/// The fingerprints of a rank's share of the files, by the tensors' numbers in the catalog: of the bytes of all tensors that
/// `chosen` has, laid one after the other, one run in as many as there are ranks. The shares depend on the files alone.
pub(super) fn share_of_files(
    this: &Verification<'_>,
    chosen: &[bool],
    rank: u32,
    world: u32,
) -> Result<Vec<Fingerprint>, VerifyError> {
    let tensors = this.catalog.tensors();
    let mut order: Vec<usize> = (0..tensors.len()).filter(|&id| chosen.get(id) == Some(&true)).collect();
    order.sort_by_key(|&id| (tensors[id].file, tensors[id].bytes));
    let total: u128 = order.iter().map(|&id| u128::from(tensors[id].bytes.len())).sum();
    let border = |rank: u32| u64::try_from(total * u128::from(rank) / u128::from(world)).unwrap_or(u64::MAX);
    let (first, last) = (border(rank), border(rank + 1));

    let mut sums = vec![Fingerprint::default(); tensors.len()];
    // Where the tensor begins among all tensors' bytes.
    let mut before = 0u64;
    for id in order {
        let tensor = &tensors[id];
        let start = first.saturating_sub(before).min(tensor.bytes.len());
        let stop = last.saturating_sub(before).min(tensor.bytes.len());
        before += tensor.bytes.len();
        let place = (tensor.file, tensor.bytes.start());
        add_file_bytes(this, &mut sums[id], seed_of(&tensor.name), place, start..stop)?;
    }
    Ok(sums)
}

/// The fingerprint of a piece, from the file.
pub(super) fn piece(
    this: &Verification<'_>,
    tensor: &PlacedTensor,
    piece: &ScheduledPiece,
) -> Result<Fingerprint, VerifyError> {
    let mut sum = Fingerprint::default();
    for strip in own::strips(tensor, piece) {
        for run in 0..strip.runs {
            let at = strip.in_tensor + run * strip.in_tensor_stride;
            let place = (tensor.file, tensor.file_start);
            add_file_bytes(this, &mut sum, seed_of(&tensor.name), place, at..at + strip.run_bytes)?;
        }
    }
    Ok(sum)
}

/// The fingerprint that a tensor's padding has when it is zero.
pub(super) fn padding(tensor: &PlacedTensor) -> Fingerprint {
    const ZEROS: [u8; 4096] = [0; 4096];
    let (mut sum, seed) = (Fingerprint::default(), seed_of(&tensor.name));
    let Some(strip) = own::padding_strip(tensor) else { return sum };
    for run in 0..strip.runs {
        let begin = strip.in_tensor + run * strip.in_tensor_stride;
        for done in (0..strip.run_bytes).step_by(ZEROS.len()) {
            let bytes =
                usize::try_from(strip.run_bytes - done).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            sum.add(seed, begin + done, &ZEROS[..bytes]);
        }
    }
    sum
}

/// Adds the bytes `bytes` of the tensor that begins at `place` (number of the file, first byte in it).
fn add_file_bytes(
    this: &Verification<'_>,
    sum: &mut Fingerprint,
    seed: u64,
    (file, start): (usize, u64),
    bytes: std::ops::Range<u64>,
) -> Result<(), VerifyError> {
    let (mut at, mut scratch) = (bytes.start, Vec::new());
    while at < bytes.end {
        let end = (at + STEP).min(bytes.end);
        let Some(range) = ByteRange::new(start + at, start + end, u64::MAX) else { break };
        sum.add(seed, at, this.source.bytes(file, range, &mut scratch)?);
        at = end;
        (this.step)()?;
    }
    Ok(())
}
