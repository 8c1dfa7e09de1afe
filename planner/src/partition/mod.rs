//! The partition algebra: who holds which box of a tensor. Pure arithmetic; it knows no model, no file and no GPU.
//!
//! A module is decided once in *logical* coordinates, `[expert, out, in]` ([`LogicalPartition`]), and projected onto each of its
//! stored tensors by how that tensor's dimensions map onto the logical ones ([`Storage`]). What comes out is a
//! [`Partition`] in the stored tensor's own coordinates, from which every rank's [`Slice`] follows.
//!
//! A split is along one dimension, which is tiled by [`Segment`]s; each segment is dealt to the ranks of an axis of the
//! mesh in contiguous runs of whole units ([`deal`]).

mod deal;
mod segment;
mod slice;
mod storage;
mod tensor_box;

pub use deal::{Hand, Indivisible, Remainder, Run, Shares, deal};
pub use segment::{Segment, SegmentError};
pub(crate) use segment::{gcd, lcm};
pub use slice::{Assigned, Axis, Partition, PartitionError, Piece, Slice, Split};
pub use storage::{Logical, LogicalPartition, Storage, StoredDimension};
pub use tensor_box::TensorBox;

#[cfg(test)]
mod properties;
