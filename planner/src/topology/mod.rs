//! The machine: GPUs, what connects them, and how fast.
//!
//! In comes a YAML text, from a file or built in, or what a tool printed ([`import`]); out goes a [`Topology`], in which every
//! name is known and every figure possible. A petgraph graph of one node stands behind it; clusters are nodes of one kind that
//! share a network, or hubs that span several. It answers how well two GPUs reach each other ([`Path`]), and how well a set
//! does ([`Ring`], [`Bisection`]). It knows no model and no rank. The schema is described in `topologies/README.md`.

mod assemble;
mod error;
mod gpus;
mod graph;
pub mod import;
mod joined;
mod library;
mod names;
mod paths;
mod pcie;
mod quantity;
mod schema;
mod sets;
#[cfg(test)]
mod tests;
mod vertex;

pub use error::{TopologyError, TopologyProblem};
pub use gpus::{GpuLinks, KnownGpu, gpu_named, gpu_of_pci, known_gpu, known_gpus};
pub use graph::{Gpu, GpuKind, Topology};
pub use joined::joined;
pub use library::{builtin, builtins};
pub use names::runs;
pub use paths::Path;
pub use pcie::{pcie_bytes_per_second, pcie_rate};
pub use quantity::{Bandwidth, Bytes, FlopRate, Latency, QuantityError};
pub use schema::{EdgeKind, HubKind, MAX_GPUS, NumberKind, json_schema};
pub use sets::{Bisection, Ring};
pub use vertex::{Edge, Vertex, VertexKind};

/// What a topology may ask of the machine that it is used on (`detected` in its text). The caller finds it out: this crate
/// reads no environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// As many devices as ranks are planned.
    pub devices: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
}
