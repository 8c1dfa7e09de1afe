//! The things of a node and the connections between them.

use super::schema::{EdgeKind, HubKind};

/// A thing in a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vertex {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: VertexKind,
    /// The operating system's number of its NUMA node, where the file says so.
    pub numa: Option<u32>,
    /// How many nodes in a row share it.
    pub spans: u32,
}

/// What a thing in a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VertexKind {
    /// A GPU.
    Gpu,
    /// A hub.
    Hub(HubKind),
    /// A network card.
    Nic,
    /// What connects nodes.
    Network,
}

/// A connection between two things of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edge {
    /// What it is.
    pub kind: EdgeKind,
    /// How many side by side.
    pub count: u32,
    /// Of one, in one direction.
    pub each: u64,
    /// How long the first byte takes.
    pub latency_ns: u64,
}

impl Edge {
    /// Bytes per second of all side by side, in one direction.
    pub fn bytes_per_second(&self) -> u64 {
        self.each.saturating_mul(u64::from(self.count))
    }
}
