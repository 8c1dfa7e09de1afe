//! What a plan costs: bytes on each GPU and the collectives each layer needs.
//!
//! In comes a plan; out go numbers. It decides nothing.

mod cache;
mod collectives;
mod fit;
mod memory;

pub use cache::{Cache, LayerCache, Shared};
pub(crate) use collectives::activation_bytes;
pub use collectives::{Collective, collectives};
pub use fit::{FitError, check_fit};
pub use memory::{MemoryUse, TENSOR_ALIGNMENT, memory_per_rank, placed_bytes};
