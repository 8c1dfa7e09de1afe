//! Tensors of a rank that are to lie in memory that somebody else has, such as an engine's parameters.

use crate::{
    device::{Keeper, LentPiece, LentPieces},
    schedule::Schedule,
};
use shardwright_planner::{
    checkpoint::{Catalog, Dtype},
    quote::quote,
};
use std::{any::Any, collections::BTreeMap, sync::Arc};

/// Memory for some tensors of a rank, by their names in the checkpoint. Their slices are loaded into it, and all others into memory of
/// the loader's own.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    tensors: BTreeMap<String, LentTensor>,
    /// What keeps it all alive.
    keeper: Keeper,
}

/// Memory for a tensor's slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LentTensor {
    /// Its first byte: an address in this process, or a device pointer of the GPU's primary context.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// What it is made for; `None` for bytes of whatever dtype.
    pub dtype: Option<Dtype>,
}

/// Memory that was lent and does not suit the rank.
#[derive(Debug, thiserror::Error)]
pub enum LentError {
    /// A slice and the memory for it differ in length.
    #[error("rank {rank} holds {bytes} bytes of {}, and the memory for it has {found}", quote(name))]
    Size {
        /// The rank.
        rank: u32,
        /// The tensor.
        name: String,
        /// Bytes of the slice, padding included.
        bytes: u64,
        /// Bytes of the memory.
        found: u64,
    },
    /// Memory for elements of another dtype.
    #[error("{} is loaded as {dtype}, and the memory for it is made for {found}", quote(name))]
    Dtype {
        /// The tensor.
        name: String,
        /// Its dtype, as it is loaded.
        dtype: Dtype,
        /// What the memory is made for.
        found: Dtype,
    },
    /// Memory for something that the rank does not hold.
    #[error("there is memory for {}, of which rank {rank} holds nothing", quote(name))]
    NotHeld {
        /// The rank.
        rank: u32,
        /// The tensor.
        name: String,
    },
}

impl Lent {
    /// Memory for these tensors. `keeper` is kept until the rank's memory is dropped.
    ///
    /// # Safety
    /// For as long as `keeper` lives, each of these is memory of the device that the rank loads into, that nobody else touches, and
    /// that may be read in whole words of 8 bytes. None overlap.
    pub unsafe fn new(tensors: BTreeMap<String, LentTensor>, keeper: Arc<dyn Any + Send + Sync>) -> Self {
        Self { tensors, keeper: Some(keeper) }
    }

    /// Whether nothing was lent.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The rank's memory, of which these are pieces.
    ///
    /// # Errors
    /// [`LentError`] where they are none of it.
    pub(super) fn pieces(&self, schedule: &Schedule, catalog: &Catalog) -> Result<LentPieces, LentError> {
        let rank = schedule.rank;
        let mut left: BTreeMap<&str, LentTensor> =
            self.tensors.iter().map(|(name, &lent)| (name.as_str(), lent)).collect();
        let mut all = Vec::with_capacity(schedule.len());
        for tensor in schedule.tensors() {
            let (name, held) = (catalog.own_name(tensor.id, rank), tensor.held());
            let lent = left.remove(name);
            if let Some(lent) = lent {
                let name = || name.to_owned();
                if let Some(found) = lent.dtype.filter(|&found| found != held.dtype) {
                    return Err(LentError::Dtype { name: name(), dtype: held.dtype, found });
                }
                if lent.bytes != held.bytes {
                    return Err(LentError::Size { rank, name: name(), bytes: held.bytes, found: lent.bytes });
                }
            }
            let (address, is_padded) = (lent.map(|lent| lent.address), tensor.form.padding.is_some());
            all.push(LentPiece { at: tensor.offset, bytes: held.bytes, address, is_padded });
        }
        match left.into_keys().next() {
            Some(name) => Err(LentError::NotHeld { rank, name: name.to_owned() }),
            // SAFETY: who made this answers for the memory; the rank's memory keeps the keeper.
            None => Ok(unsafe { LentPieces::new(all, schedule.memory_bytes, self.keeper.clone()) }),
        }
    }
}
