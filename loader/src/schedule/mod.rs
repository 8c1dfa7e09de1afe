//! A rank's slices as an ordered list of copies.
//!
//! In come a plan, the catalog of its checkpoint and a rank; out goes a [`Schedule`]: where each tensor lies in the rank's
//! memory, and which rows of which file go there, in the order of the files; and the same by [`Window`]s of that memory. It reads no byte and knows no device.

mod copies;
mod rows;
mod windows;

pub use copies::{Padding, PlacedTensor, Schedule, ScheduleError, ScheduledPiece};
pub use rows::Rows;
pub use windows::{Fill, Window};
