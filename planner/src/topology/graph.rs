//! The graph of a node, and what follows from it for every pair of GPUs.

use super::{
    HostFacts,
    error::TopologyError,
    quantity::Bandwidth,
    schema::{Count, Document, EdgeKind, Link, MAX_GPUS, MAX_GPUS_PER_NODE, MAX_PARTS, Memory},
};
use crate::yaml;
use petgraph::{
    graph::{NodeIndex, UnGraph},
    visit::EdgeRef,
};
use std::collections::{BTreeMap, BinaryHeap};

/// A machine: nodes of one kind, each with GPUs and what connects them.
#[derive(Debug)]
pub struct Topology {
    name: String,
    about: String,
    kind: String,
    shared_memory: bool,
    memory_bytes: u64,
    memory_bandwidth: Option<Bandwidth>,
    nodes: u32,
    gpus: Vec<Gpu>,
    /// One node: its GPUs first, then its hubs, then the network if there is one.
    graph: UnGraph<String, Edge>,
    /// Widest path between the GPUs of a node, `from * gpus_per_node + to`.
    within: Vec<Path>,
    /// Widest path from each GPU of a node to the network.
    outward: Vec<Option<Path>>,
}

/// A GPU of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `gpu3`, or `node1/gpu3` where there are several nodes.
    pub name: String,
    /// Which node it is in.
    pub node: u32,
    /// Its number in the node.
    pub index: u32,
    /// What kind it is.
    pub kind: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Edge {
    kind: EdgeKind,
    bandwidth: u64,
}

/// The widest way from one GPU to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Path {
    /// Bytes per second of the narrowest edge.
    bandwidth: u64,
    /// The kind of that edge.
    kind: EdgeKind,
}

impl Topology {
    /// Parses `text`; `origin` is the file or the built-in's name, for messages. `nodes` replaces the number of nodes.
    ///
    /// # Errors
    /// [`TopologyError`] names the origin, and the place, the name or the figures.
    pub fn parse(
        text: &str,
        origin: &str,
        nodes: Option<u32>,
        host: Option<HostFacts>,
    ) -> Result<Self, TopologyError> {
        let mut document: Document = yaml::from_str(text).map_err(|error| TopologyError::Malformed {
            origin: origin.to_owned(),
            line: error.line,
            column: error.column,
            reason: error.message,
        })?;
        document.nodes = nodes.unwrap_or(document.nodes);
        Builder { origin, host, document }.build()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line about it, for people.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// All GPUs, node by node.
    pub fn gpus(&self) -> &[Gpu] {
        &self.gpus
    }

    /// How many nodes.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// GPUs of each node.
    pub fn gpus_per_node(&self) -> usize {
        self.outward.len()
    }

    /// What kind the GPUs are.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Bytes of memory of each GPU, or of the memory that all GPUs of a node share.
    pub fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// How fast a GPU reads its own memory, where the file says so.
    pub fn memory_bandwidth(&self) -> Option<Bandwidth> {
        self.memory_bandwidth
    }

    /// The name of the memory that `gpu` shares with the others of its node, if it does.
    pub fn shared_pool(&self, gpu: &Gpu) -> Option<String> {
        self.shared_memory.then(|| match self.nodes {
            1 => "shared memory".to_owned(),
            _ => format!("shared memory of node{}", gpu.node),
        })
    }

    /// Bytes per second, in one direction, of the widest path between two GPUs by their place in [`Topology::gpus`], and the
    /// kind of its narrowest edge. GPUs forward nothing: paths lead over hubs only. `None` for a GPU and itself.
    pub fn widest_path(&self, a: usize, b: usize) -> Option<(u64, EdgeKind)> {
        let per_node = self.gpus_per_node();
        if a == b {
            return None;
        }
        if a / per_node == b / per_node {
            let path = self.within[a % per_node * per_node + b % per_node];
            return Some((path.bandwidth, path.kind));
        }
        let path = self.outward[a % per_node]?.min(self.outward[b % per_node]?);
        Some((path.bandwidth, path.kind))
    }

    /// Every connection of a node, as `(from, to, kind, bytes per second)`.
    pub fn edges(&self) -> impl Iterator<Item = (&str, &str, EdgeKind, u64)> {
        self.graph.edge_references().map(|edge| {
            let (from, to) = (&self.graph[edge.source()], &self.graph[edge.target()]);
            (from.as_str(), to.as_str(), edge.weight().kind, edge.weight().bandwidth)
        })
    }
}

/// Turns a document into a topology, checking it.
struct Builder<'a> {
    origin: &'a str,
    host: Option<HostFacts>,
    document: Document,
}

impl Builder<'_> {
    fn build(self) -> Result<Topology, TopologyError> {
        let document = &self.document;
        let (per_node, memory_bytes) = (self.gpus_per_node()?, self.memory_bytes()?);
        for (count, what) in [(document.hubs.len(), "hubs"), (document.links.len(), "links")] {
            if count > MAX_PARTS {
                return Err(TopologyError::TooMany { origin: self.origin(), count, what });
            }
        }
        let (graph, network) = self.graph(per_node)?;
        let (mut within, mut outward) = (Vec::new(), Vec::new());
        for from in 0..per_node as usize {
            let paths = widest_paths(&graph, from, per_node as usize, network);
            for to in 0..per_node as usize {
                let unconnected = || TopologyError::Unconnected {
                    origin: self.origin(),
                    from: graph[NodeIndex::new(from)].clone(),
                    to: graph[NodeIndex::new(to)].clone(),
                };
                let itself = Path { bandwidth: u64::MAX, kind: EdgeKind::Memory };
                within.push(if from == to { itself } else { paths[to].ok_or_else(unconnected)? });
            }
            outward.push(network.and_then(|network| paths[network.index()]));
        }
        if document.nodes > 1 && outward.iter().any(Option::is_none) {
            return Err(TopologyError::NoNetwork { origin: self.origin(), nodes: document.nodes });
        }
        let gpus = (0..document.nodes)
            .flat_map(|node| (0..per_node).map(move |index| (node, index)))
            .map(|(node, index)| Gpu {
                name: if document.nodes == 1 {
                    format!("gpu{index}")
                } else {
                    format!("node{node}/gpu{index}")
                },
                node,
                index,
                kind: document.gpu.kind.clone(),
            })
            .collect();
        let Document { topology, about, gpu, nodes, .. } = self.document;
        Ok(Topology {
            name: topology,
            about,
            kind: gpu.kind,
            shared_memory: gpu.shared_memory,
            memory_bytes,
            memory_bandwidth: gpu.memory_bandwidth,
            nodes,
            gpus,
            graph,
            within,
            outward,
        })
    }

    fn origin(&self) -> String {
        self.origin.to_owned()
    }

    fn gpus_per_node(&self) -> Result<u32, TopologyError> {
        let nodes = self.document.nodes;
        let gpus = match (self.document.gpus, self.host) {
            (Count::Number(gpus), _) => gpus,
            (Count::Word(_), Some(host)) => host.devices,
            (Count::Word(_), None) => {
                return Err(TopologyError::NotDetected { origin: self.origin(), key: "gpus" });
            }
        };
        let all = nodes.saturating_mul(gpus);
        if all == 0 || gpus > MAX_GPUS_PER_NODE || all > MAX_GPUS {
            return Err(TopologyError::Size { origin: self.origin(), nodes, gpus });
        }
        Ok(gpus)
    }

    fn memory_bytes(&self) -> Result<u64, TopologyError> {
        match (self.document.gpu.memory, self.host) {
            (Memory::Size(bytes), _) => Ok(bytes.bytes()),
            (Memory::Detected, Some(host)) => Ok(host.memory_bytes),
            (Memory::Detected, None) => {
                Err(TopologyError::NotDetected { origin: self.origin(), key: "memory" })
            }
        }
    }

    /// The graph of one node, and its network vertex.
    fn graph(&self, gpus: u32) -> Result<(UnGraph<String, Edge>, Option<NodeIndex>), TopologyError> {
        let mut graph = UnGraph::new_undirected();
        let mut names: BTreeMap<String, NodeIndex> = BTreeMap::new();
        let hubs = self.document.hubs.iter().map(|hub| hub.name.clone());
        for name in (0..gpus).map(|gpu| format!("gpu{gpu}")).chain(hubs) {
            let vertex = graph.add_node(name.clone());
            if names.insert(name.clone(), vertex).is_some() {
                return Err(TopologyError::NameTwice { origin: self.origin(), name });
            }
        }
        let find = |name: &str| names.get(name).copied().ok_or_else(|| self.unknown(name, &names));
        for hub in &self.document.hubs {
            let (members, bandwidth) = match (&hub.gpus, hub.bandwidth) {
                (Some(gpus), Some(bandwidth)) => (&gpus.numbers, bandwidth.bytes_per_second()),
                (None, None) => continue,
                _ => {
                    return Err(TopologyError::HalfConnected {
                        origin: self.origin(),
                        hub: hub.name.clone(),
                    });
                }
            };
            let edge = Edge { kind: hub.kind.edge(), bandwidth };
            for member in members {
                // A hub of a machine whose devices are as many as are asked for serves those there are.
                if matches!(self.document.gpus, Count::Word(_)) && *member >= gpus {
                    continue;
                }
                graph.add_edge(find(&format!("gpu{member}"))?, find(&hub.name)?, edge);
            }
        }
        for Link { kind, between: [from, to], bandwidth } in &self.document.links {
            if from == to {
                return Err(TopologyError::SelfLink { origin: self.origin(), name: from.clone() });
            }
            let edge = Edge { kind: *kind, bandwidth: bandwidth.bytes_per_second() };
            graph.add_edge(find(from)?, find(to)?, edge);
        }
        let mut network = None;
        if let Some(outside) = &self.document.network {
            let vertex = graph.add_node("network".to_owned());
            let edge = Edge { kind: EdgeKind::Network, bandwidth: outside.bandwidth.bytes_per_second() };
            for hub in &outside.via {
                graph.add_edge(find(hub)?, vertex, edge);
            }
            network = Some(vertex);
        }
        Ok((graph, network))
    }

    fn unknown(&self, name: &str, names: &BTreeMap<String, NodeIndex>) -> TopologyError {
        let nearest = names.keys().map(|known| (distance(name, known), known)).min();
        TopologyError::UnknownName {
            origin: self.origin(),
            name: name.to_owned(),
            nearest: nearest.filter(|(distance, _)| *distance <= 3).map(|(_, known)| known.clone()),
        }
    }
}

/// The widest path from GPU `from` to every vertex. GPUs, which are the first `gpus` vertices, and the network, which leads
/// out of the node, end paths but forward nothing.
fn widest_paths(
    graph: &UnGraph<String, Edge>,
    from: usize,
    gpus: usize,
    network: Option<NodeIndex>,
) -> Vec<Option<Path>> {
    let mut best: Vec<Option<Path>> = vec![None; graph.node_count()];
    let mut reached = BinaryHeap::new();
    reached.push((Path { bandwidth: u64::MAX, kind: EdgeKind::Memory }, from));
    while let Some((path, at)) = reached.pop() {
        if best[at].is_some() || (at == from && path.bandwidth != u64::MAX) {
            continue;
        }
        if at != from {
            best[at] = Some(path);
            if at < gpus || network == Some(NodeIndex::new(at)) {
                continue;
            }
        }
        for edge in graph.edges(NodeIndex::new(at)) {
            let Edge { kind, bandwidth } = *edge.weight();
            let next = edge.target().index();
            if next != from && best[next].is_none() {
                let narrower = Path { bandwidth, kind };
                reached.push((if bandwidth <= path.bandwidth { narrower } else { path }, next));
            }
        }
    }
    best
}

/// How many letters must be changed, added or left out to make one name of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(from != *to)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
