//! How weights are stored: plain, or quantised in one of the layouts that checkpoints come in.
//!
//! In come a module and what `quantization_config` declares; out goes a [`Stored`]: the module's logical matrices and how
//! each of its tensors lies in them. A module is decided once, in logical coordinates; no rule and no role knows of
//! quantisation. It does not know what a module is for, and opens no weight data.

mod declared;
mod error;
mod layout;
mod packing;
mod scales;
mod weight;

pub use declared::Quantisation;
pub use error::QuantisationError;
pub use layout::{Orientation, Stored, stored};
