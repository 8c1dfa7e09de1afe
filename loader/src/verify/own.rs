//! What lies in a rank's memory: the fingerprints of all its boxes and paddings, computed once, on the device.

use super::{Verification, VerifyError};
use crate::{
    device::{Strip, Sum},
    fingerprint::{Fingerprint, seed_of},
    schedule::{PlacedTensor, ScheduledPiece},
};

/// Bytes whose fingerprints a device is asked for at a time: enough to keep a GPU busy, little enough to be seen getting on.
const BATCH_BYTES: u64 = 1 << 30;

/// The fingerprints of one tensor of the rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnSums {
    /// Of each of its pieces.
    pub(super) pieces: Vec<Fingerprint>,
    /// Of its padding, which is zero: what lies there.
    pub(super) padding: Fingerprint,
}

impl OwnSums {
    /// Of all that the rank holds of the tensor.
    pub(super) fn whole(&self) -> Fingerprint {
        self.pieces.iter().fold(self.padding, |mut sum, piece| {
            sum.merge(*piece);
            sum
        })
    }
}

/// All fingerprints of the rank, in the order of its schedule; `None` for tensors that are not verified.
pub(super) fn sums(this: &Verification<'_>, chosen: &[bool]) -> Result<Vec<Option<OwnSums>>, VerifyError> {
    let verified = |tensor: &PlacedTensor| chosen.get(tensor.id).copied().unwrap_or(false);
    let mut found = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let tensors = &this.schedule.tensors;
    for sum in tensors.iter().filter(|tensor| verified(tensor)).flat_map(of_tensor) {
        bytes += sum.bytes();
        batch.push(sum);
        if bytes >= BATCH_BYTES {
            found.extend(this.memory.fingerprints(&batch)?);
            (this.step)()?;
            batch.clear();
            bytes = 0;
        }
    }
    found.extend(this.memory.fingerprints(&batch)?);

    let mut found = found.into_iter();
    let mut own = |tensor: &PlacedTensor| OwnSums {
        pieces: found.by_ref().take(tensor.pieces.len()).collect(),
        padding: tensor.padding.and_then(|_| found.next()).unwrap_or_default(),
    };
    Ok(tensors.iter().map(|tensor| verified(tensor).then(|| own(tensor))).collect())
}

/// The sums of a tensor: its pieces, then its padding, where it has one.
fn of_tensor(tensor: &PlacedTensor) -> impl Iterator<Item = Sum> {
    let seed = seed_of(&tensor.name);
    let pieces = tensor.pieces.iter().map(move |piece| Sum { seed, strips: strips(tensor, piece) });
    pieces.chain(padding_strip(tensor).map(|strip| Sum { seed, strips: vec![strip] }))
}

/// Where the bytes of a piece lie in the rank's memory and in the whole tensor.
pub(super) fn strips(tensor: &PlacedTensor, piece: &ScheduledPiece) -> Vec<Strip> {
    let strip = |rows: &crate::schedule::Rows| Strip {
        at: rows.to,
        at_stride: rows.to_stride,
        in_tensor: rows.from - tensor.file_start,
        in_tensor_stride: rows.from_stride,
        run_bytes: rows.run_bytes,
        runs: rows.runs,
    };
    piece.rows.iter().map(strip).collect()
}

/// Where a tensor's padding lies. Its coordinates are those of the slice, for it has none in the tensor.
pub(super) fn padding_strip(tensor: &PlacedTensor) -> Option<Strip> {
    tensor.padding.map(|padding| Strip {
        at: padding.at,
        at_stride: padding.stride,
        in_tensor: padding.at - tensor.offset,
        in_tensor_stride: padding.stride,
        run_bytes: padding.run_bytes,
        runs: padding.runs,
    })
}
