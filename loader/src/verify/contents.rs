//! Whether processes read the same checkpoint.
//!
//! Each rank sums up the part of the files that it reads, and where that is what it holds, other weights under the same headers
//! would pass for right. So each process sums up the same sample of all tensors, and these sums are compared first. That finds
//! another checkpoint, not a byte that rots on one host: only a manifest does.

use super::{Verification, VerifyError};
use crate::{
    fingerprint::{Fingerprint, seed_of},
    tensors::Wanted,
};
use std::ops::ControlFlow;

/// Most tensors of the sample: it is read beside the weights, and is to take no time of its own.
const MOST_TENSORS: usize = 256;

/// Bytes of each.
const RUN_BYTES: u64 = 4096;

/// The sum of the sample, as this process reads it.
pub(super) fn sample(this: &Verification<'_>) -> Result<Fingerprint, VerifyError> {
    let entries = this.catalog.tensors();
    // The order of hashes has no rhythm, which the names of layers have.
    let mut chosen: Vec<(u64, usize)> =
        entries.iter().enumerate().map(|(id, tensor)| (seed_of(&tensor.name), id)).collect();
    chosen.sort_unstable();
    chosen.truncate(MOST_TENSORS);
    chosen.sort_by_key(|(_, id)| (entries[*id].file, entries[*id].bytes));
    let mut sampled = chosen.iter();
    let mut next = || {
        let (seed, id) = *sampled.next()?;
        let len = this.tensors.len_of(id);
        let start = seed % len.div_ceil(RUN_BYTES).max(1) * RUN_BYTES;
        let bytes = start..len.min(start + RUN_BYTES);
        // Others read it too, and nothing beside it.
        Some(Wanted { tensor: id, bytes, tag: seed, shared: true })
    };
    let (mut sum, mut stopped) = (Fingerprint::default(), Ok(()));
    this.tensors.stream(&mut next, &mut |wanted, at, piece| {
        sum.add(wanted.tag, at, piece);
        stopped = (this.step)();
        if stopped.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    stopped.map(|()| sum)
}
