//! Fitting the assumptions to what was measured.
//!
//! In come measured points ([`Measurement`]s, read from a file) with the facts of model and machine that they are of, and
//! [`Assumptions`](crate::serving::Assumptions); out go assumptions that predict them better, and how far off both are. It knows no checkpoint and no topology.

mod document;
mod fit;

pub use document::{CalibrationError, Measurement, measurements};
pub use fit::{Fitted, Kind, Point, PointErrors, fit};
