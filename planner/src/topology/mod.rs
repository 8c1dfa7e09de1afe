//! The machine: GPUs, what connects them, and how fast.
//!
//! In comes a YAML text, from a file or built in; out goes a [`Topology`], in which every name is known and every figure
//! possible. A petgraph graph of one node stands behind it; clusters are nodes of one kind around a network. It knows no
//! model and no rank. The schema is described in `topologies/README.md`.

mod builtin;
mod error;
mod graph;
mod quantity;
mod schema;

pub use builtin::{builtin, builtins};
pub use error::TopologyError;
pub use graph::{Gpu, Topology};
pub use quantity::{Bandwidth, Bytes, QuantityError};
pub use schema::{EdgeKind, HubKind, MAX_GPUS};

/// What a topology may ask of the machine that it is used on (`detected` in its text). The caller finds it out: this crate
/// reads no environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// As many devices as ranks are planned.
    pub devices: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}
