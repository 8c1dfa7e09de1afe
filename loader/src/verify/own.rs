//! What lies in a rank's memory: the fingerprints of all its boxes and paddings.

use super::{Arrived, Batch, Verification, VerifyError};
use crate::{
    device::{Strip, Sum},
    fingerprint::Fingerprint,
    schedule::{PlacedTensor, Rows, ScheduledPiece},
};

/// Bytes whose fingerprints a device is asked for at a time: enough to keep a GPU busy, little enough to be seen getting on.
const CALL_BYTES: u64 = 1 << 30;

/// The fingerprints of one tensor of the rank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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

    /// Of the pieces that the rank answers for in sums over ranks, without padding.
    pub(super) fn answered(&self, tensor: PlacedTensor<'_>) -> Fingerprint {
        let answered = tensor.pieces().iter().zip(&self.pieces).filter(|(piece, _)| piece.replica == 0);
        answered.fold(Fingerprint::default(), |mut sum, (_, piece)| {
            sum.merge(*piece);
            sum
        })
    }
}

/// Fills in what lies in the rank's memory of the batch's tensors.
pub(super) fn sum_up(
    this: &Verification<'_>,
    batch: &mut Batch<'_>,
    arrived: &Arrived<'_>,
) -> Result<(), VerifyError> {
    let (mut found, mut call, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (seed, tensor) in batch.tensors.iter().filter_map(|tensor| Some((tensor.seed, tensor.held?.1))) {
        let pieces = tensor.pieces().iter().map(|piece| Sum { seed, strips: strips(tensor, piece) });
        let pieces = pieces.filter(|_| matches!(arrived, Arrived::OnDevice));
        // Padding is on no way: nobody summed it up.
        let padding = padding_strip(tensor).map(|strip| Sum { seed, strips: vec![strip] });
        for sum in pieces.chain(padding) {
            bytes += sum.bytes();
            call.push(sum);
            if bytes >= CALL_BYTES {
                found.extend(this.memory.fingerprints(&call)?);
                (this.step)()?;
                call.clear();
                bytes = 0;
            }
        }
    }
    found.extend(this.memory.fingerprints(&call)?);

    let mut found = found.into_iter();
    for tensor in &mut batch.tensors {
        let Some((place, held)) = tensor.held else { continue };
        let pieces = match arrived {
            Arrived::OnDevice => found.by_ref().take(held.pieces().len()).collect(),
            Arrived::Summed(sums) => {
                let sum = |number| sums.get(&(place, number)).copied().unwrap_or_default();
                (0..held.pieces().len()).map(sum).collect()
            }
        };
        let padding = held.form.padding.and_then(|_| found.next()).unwrap_or_default();
        tensor.own = Some(OwnSums { pieces, padding });
    }
    Ok(())
}

/// Where the bytes of a piece lie in the rank's memory and in the whole tensor.
pub(super) fn strips<'a>(tensor: PlacedTensor<'a>, piece: &'a ScheduledPiece) -> Vec<Strip> {
    let strip = |rows: Rows| Strip {
        at: rows.to,
        at_stride: rows.to_stride,
        in_tensor: rows.from,
        in_tensor_stride: rows.from_stride,
        run_bytes: rows.run_bytes,
        runs: rows.runs,
    };
    tensor.rows(piece).map(strip).collect()
}

/// Where a tensor's padding lies. Its coordinates are those of the slice, for it has none in the tensor.
pub(super) fn padding_strip(tensor: PlacedTensor<'_>) -> Option<Strip> {
    tensor.form.padding.map(|padding| Strip {
        at: tensor.offset + padding.at,
        at_stride: padding.stride,
        in_tensor: padding.at,
        in_tensor_stride: padding.stride,
        run_bytes: padding.run_bytes,
        runs: padding.runs,
    })
}
