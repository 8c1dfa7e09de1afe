//! What should lie in a rank's memory: fingerprints of the files, and of zeros.

use super::{Verification, VerifyError, own};
use crate::{
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, ScheduledPiece},
};
use std::ops::ControlFlow;

/// The fingerprint of a piece, from the file.
pub(super) fn piece(
    this: &Verification<'_>,
    tensor: PlacedTensor<'_>,
    piece: &ScheduledPiece,
) -> Result<Fingerprint, VerifyError> {
    let mut sum = Fingerprint::default();
    for strip in own::strips(tensor, piece) {
        for run in 0..strip.runs {
            let at = strip.in_tensor + run * strip.in_tensor_stride;
            add_bytes(this, &mut sum, tensor, at..at + strip.run_bytes)?;
        }
    }
    Ok(sum)
}

/// The fingerprint that a tensor's padding has when it is zero.
pub(super) fn padding(tensor: PlacedTensor<'_>, seed: u64) -> Fingerprint {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut sum = Fingerprint::default();
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

/// Adds these bytes of the tensor.
fn add_bytes(
    this: &Verification<'_>,
    sum: &mut Fingerprint,
    tensor: PlacedTensor<'_>,
    bytes: std::ops::Range<u64>,
) -> Result<(), VerifyError> {
    let (mut stopped, seed) = (Ok(()), seed_of(&this.catalog.tensors()[tensor.id].name));
    this.tensors.read_run(tensor.id, bytes, &mut |at, piece| {
        sum.add(seed, at, piece);
        stopped = (this.step)();
        if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    stopped
}
