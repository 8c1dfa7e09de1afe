//! The graph of a node, and what follows from it for GPUs of the whole machine.

use super::{
    joined::joined,
    names::runs,
    paths::{Path, Reach},
    quantity::{Bandwidth, FlopRate},
    schema::{HubKind, NumberKind},
    vertex::{Edge, Vertex, VertexKind},
};
use petgraph::{
    graph::{NodeIndex, UnGraph},
    visit::EdgeRef,
};
use std::collections::BTreeMap;

/// A machine: nodes of one kind, each with GPUs and what connects them.
#[derive(Debug)]
pub struct Topology {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) kinds: Vec<GpuKind>,
    pub(super) shared_memory: bool,
    pub(super) nodes: u32,
    pub(super) gpus: Vec<Gpu>,
    pub(super) node: Node,
    pub(super) network: Option<String>,
}

/// What a GPU of some kind has.
#[derive(Debug, Clone, PartialEq)]
pub struct GpuKind {
    /// Its name.
    pub kind: String,
    /// Bytes of memory of each GPU, or of the memory that all GPUs of a node share.
    pub memory_bytes: u64,
    /// How fast a GPU reads its own memory, where that is known.
    pub memory_bandwidth: Option<Bandwidth>,
    /// Dense operations per second by type of number, where they are known.
    pub flops: BTreeMap<NumberKind, FlopRate>,
}

/// A GPU of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// `gpu3`, or `node1/gpu3` where there are several nodes.
    pub name: String,
    /// Which node it is in.
    pub node: u32,
    /// Its number in the node: its place in the order of PCI addresses, as `nvidia-smi` numbers GPUs.
    pub index: u32,
    /// Which of [`Topology::kinds`] it is.
    pub kind: usize,
}

/// One node: its GPUs first, then its hubs, its network cards, and the network if there is one.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) graph: UnGraph<Vertex, Edge>,
    pub(super) gpus: usize,
    /// What leads out of the node: hubs that several nodes share, then the network.
    pub(super) outside: Vec<Outside>,
    /// From each GPU of the node to all vertices.
    pub(super) reach: Vec<Reach>,
    /// The same over NVLink and xGMI alone.
    pub(super) fabric: Vec<Reach>,
}

/// A vertex over which GPUs of several nodes reach each other.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    pub(super) vertex: NodeIndex,
    /// How many nodes in a row share it.
    pub(super) spans: u32,
}

impl Topology {
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
        self.node.gpus
    }

    /// The kinds of its GPUs. Never empty.
    pub fn kinds(&self) -> &[GpuKind] {
        &self.kinds
    }

    /// What the GPU at `gpu` in [`Topology::gpus`] is.
    pub fn kind_of(&self, gpu: usize) -> &GpuKind {
        &self.kinds[self.gpus[gpu].kind]
    }

    /// The kinds for people: `8 H100 SXM5 80GB`, or `2 RTX 4090 and 1 RTX 3090`, of one node.
    pub fn kinds_in_words(&self) -> String {
        let of_node = &self.gpus[..self.gpus_per_node()];
        let words: Vec<String> = (0..self.kinds.len())
            .map(|kind| (of_node.iter().filter(|gpu| gpu.kind == kind).count(), &self.kinds[kind].kind))
            .map(|(count, kind)| format!("{count} {kind}"))
            .collect();
        words.join(" and ")
    }

    /// Bytes of memory of the smallest GPU, or of the memory that all GPUs of a node share.
    pub fn least_memory_bytes(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.memory_bytes).min().unwrap_or(0)
    }

    /// The name of the memory that `gpu` shares with the others of its node, if it does.
    pub fn shared_pool(&self, gpu: &Gpu) -> Option<String> {
        self.shared_memory.then(|| match self.nodes {
            1 => "shared memory".to_owned(),
            _ => format!("shared memory of node{}", gpu.node),
        })
    }

    /// What connects nodes, for people, where there is anything.
    pub fn network(&self) -> Option<&str> {
        self.network.as_deref()
    }

    /// The things of a node: its GPUs first, then its hubs, its network cards, and the network.
    pub fn vertices(&self) -> impl Iterator<Item = &Vertex> {
        self.node.graph.node_weights()
    }

    /// Every connection of a node, as places in [`Topology::vertices`], in the order of the file.
    pub fn edges(&self) -> impl Iterator<Item = (usize, usize, Edge)> {
        self.node
            .graph
            .edge_references()
            .map(|edge| (edge.source().index(), edge.target().index(), *edge.weight()))
    }

    /// The widest path between two GPUs by their place in [`Topology::gpus`], and of those the one of least latency. GPUs
    /// forward nothing: paths lead over hubs only. `None` for a GPU and itself.
    pub fn widest_path(&self, a: usize, b: usize) -> Option<Path> {
        let per_node = self.gpus_per_node();
        let ((node_a, a), (node_b, b)) = ((a / per_node, a % per_node), (b / per_node, b % per_node));
        if node_a == node_b {
            return self.node.reach[a].path(b);
        }
        let shared = self.node.outside.iter().filter(|outside| {
            let span = outside.spans as usize;
            node_a / span == node_b / span
        });
        let paths = shared.filter_map(|outside| {
            let out = |gpu: usize| self.node.reach[gpu].path(outside.vertex.index());
            Some(out(a)?.then(out(b)?))
        });
        paths.max_by_key(Path::order)
    }

    /// GPUs that reach each other over NVLink or xGMI alone, by their places in [`Topology::gpus`]; only those of two or more.
    pub fn fabric_domains(&self) -> Vec<Vec<usize>> {
        let per_node = self.gpus_per_node();
        // Things of all nodes, those of a node beside each other: its GPUs, then the hubs of fabrics. A shared hub is that of the
        // first node that has it.
        let is_hub = |vertex: &NodeIndex| self.node.graph[*vertex].kind == VertexKind::Hub(HubKind::Nvswitch);
        let hubs: Vec<NodeIndex> = self.node.graph.node_indices().filter(is_hub).collect();
        let vertices = per_node + hubs.len();
        // A link may lead to a hub of another kind, which joins nothing.
        let place = |node: usize, end: NodeIndex| {
            let span = self.node.graph[end].spans as usize;
            let hub = || hubs.binary_search(&end).ok().map(|hub| per_node + hub);
            let thing = if end.index() < per_node { Some(end.index()) } else { hub() };
            thing.map(|thing| node / span * span * vertices + thing)
        };
        let edges = || self.node.graph.edge_references().filter(|edge| edge.weight().kind.is_gpu_fabric());
        let links = (0..self.nodes as usize).flat_map(|node| {
            edges().filter_map(move |edge| Some((place(node, edge.source())?, place(node, edge.target())?)))
        });
        let gpu = |thing: &usize| {
            let number = thing % vertices;
            (number < per_node).then_some(thing / vertices * per_node + number)
        };
        let sets = joined(vertices * self.nodes as usize, links);
        let mut domains: Vec<Vec<usize>> =
            sets.iter().map(|set| set.iter().filter_map(gpu).collect()).collect();
        domains.retain(|domain| domain.len() > 1);
        domains.sort();
        domains
    }

    /// Numbers of nodes in a row that share something over which their GPUs reach each other, the smallest first; the last is
    /// all nodes.
    pub fn blocks_of_nodes(&self) -> Vec<usize> {
        let all = self.nodes as usize;
        let mut blocks: Vec<usize> =
            self.node.outside.iter().map(|outside| (outside.spans as usize).min(all)).collect();
        blocks.push(all);
        blocks.dedup();
        blocks
    }

    /// Bytes per second that no ring through GPUs of a node exceeds: what the best connected GPU has, over NVLink or xGMI all
    /// its connections together, else over its widest.
    pub fn ring_bound(&self) -> u64 {
        let of_gpu = |gpu: usize| {
            let edges = || self.node.graph.edges(NodeIndex::new(gpu)).map(|edge| *edge.weight());
            let fabric = edges().filter(|edge| edge.kind.is_gpu_fabric());
            let fabric = fabric.map(|edge| edge.bytes_per_second()).fold(0, u64::saturating_add);
            edges().map(|edge| edge.bytes_per_second()).max().unwrap_or(0).max(fabric)
        };
        (0..self.node.gpus).map(of_gpu).max().unwrap_or(0)
    }

    /// GPUs by their places in [`Topology::gpus`], short: `gpu0-3,6`, or `node1/gpu0-7`.
    pub fn names_of(&self, gpus: &[usize]) -> String {
        let mut places = gpus.to_vec();
        places.sort_unstable();
        let per_node = self.gpus_per_node();
        let nodes: Vec<String> = places
            .chunk_by(|a, b| a / per_node == b / per_node)
            .map(|of_node| {
                let numbers: Vec<u32> = of_node.iter().map(|&gpu| self.gpus[gpu].index).collect();
                match self.nodes {
                    1 => format!("gpu{}", runs(&numbers)),
                    _ => format!("node{}/gpu{}", of_node[0] / per_node, runs(&numbers)),
                }
            })
            .collect();
        nodes.join(" ")
    }
}
