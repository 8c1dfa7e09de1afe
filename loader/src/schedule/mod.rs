//! What is copied where, in which order.
//!
//! In come a plan and the catalog of its checkpoint; out go a [`Schedule`] for each rank, which says where each tensor lies in the
//! rank's memory and which rows of the tensor go there; [`Batches`], the order in which all ranks load and verify; and a [`Pass`],
//! in which the ranks of one process read the files once. It reads no byte and knows no device.

mod batches;
mod copies;
mod pass;
mod rows;

pub use batches::Batches;
pub use copies::{Padding, PlacedTensor, Schedule, ScheduleError, ScheduledPiece, SliceForm, TensorForm};
pub use pass::{Answers, Pass, PassTensor, Place, Span, Unit};
pub use rows::Rows;
