//! What should lie in a rank's memory: fingerprints of the files, and of zeros.

use super::{Verification, VerifyError, own};
use crate::{
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, ScheduledPiece},
    source::read_run,
};
use shardwright_planner::checkpoint::ByteRange;
use std::ops::ControlFlow;

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
    let Some(range) = ByteRange::new(start + bytes.start, start + bytes.end, u64::MAX) else { return Ok(()) };
    let mut stopped = Ok(());
    read_run(this.source, file, range, &mut |at, piece| {
        sum.add(seed, at - start, piece);
        stopped = (this.step)();
        if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    stopped
}
