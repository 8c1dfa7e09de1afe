//! Ways from one GPU to the other things of a node.

use super::{
    schema::EdgeKind,
    vertex::{Edge, Vertex, VertexKind},
};
use petgraph::{
    graph::{EdgeIndex, NodeIndex, UnGraph},
    visit::EdgeRef,
};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

/// A way from one thing to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Of its narrowest part, in one direction.
    pub bytes_per_second: u64,
    /// What the narrowest part is; of several as narrow the one farthest from the start.
    pub kind: EdgeKind,
    /// Of all its parts together.
    pub latency_ns: u64,
}

impl Path {
    /// This path, then another.
    pub(super) fn then(self, next: Self) -> Self {
        let narrowest = if next.bytes_per_second <= self.bytes_per_second { next } else { self };
        Self { latency_ns: self.latency_ns.saturating_add(next.latency_ns), ..narrowest }
    }

    /// The greater, the better: wider, then of less latency.
    pub fn order(&self) -> (u64, Reverse<u64>) {
        (self.bytes_per_second, Reverse(self.latency_ns))
    }
}

/// The best way from one GPU to every thing of its node.
#[derive(Debug, Clone)]
pub(super) struct Reach {
    paths: Vec<Option<Path>>,
    /// Of each way its parts, from the start.
    routes: Vec<Vec<(EdgeIndex, NodeIndex)>>,
}

impl Reach {
    /// The best way to the thing at `to`; `None` to the start itself and to what cannot be reached.
    pub(super) fn path(&self, to: usize) -> Option<Path> {
        self.paths[to]
    }

    /// The parts of that way from the start: each connection, and where it begins.
    pub(super) fn route(&self, to: usize) -> &[(EdgeIndex, NodeIndex)] {
        &self.routes[to]
    }
}

/// The best ways from the GPU `from`: the widest, and of those the ones of least latency. `width` is how much of a connection
/// is to be had in the direction away from a vertex; nothing leads over what has 0.
pub(super) fn reach(
    graph: &UnGraph<Vertex, Edge>,
    from: NodeIndex,
    width: impl Fn(EdgeIndex, NodeIndex) -> u64,
) -> Reach {
    let widths = widest(graph, from, &width);
    let mut found =
        Reach { paths: vec![None; graph.node_count()], routes: vec![Vec::new(); graph.node_count()] };
    // Whoever asks, asks for GPUs and the ways out: for what is no hub, and for what nodes share.
    let asked = |at: usize| {
        let vertex = &graph[NodeIndex::new(at)];
        !matches!(vertex.kind, VertexKind::Hub(_)) || vertex.spans > 1 || is_door(graph, NodeIndex::new(at))
    };
    // What is equally far away over equally wide connections is found in one search.
    let mut of_width: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (to, &width) in widths.iter().enumerate() {
        if width > 0 && to != from.index() && asked(to) {
            of_width.entry(width).or_default().push(to);
        }
    }
    for (least, targets) in of_width {
        let before = nearest(graph, from, |edge, at| width(edge, at) >= least);
        for to in targets {
            let mut route = Vec::new();
            let mut at = NodeIndex::new(to);
            while let Some((edge, from)) = before[at.index()] {
                route.push((edge, from));
                at = from;
            }
            route.reverse();
            let parts = route.iter().map(|&(edge, at)| Path {
                bytes_per_second: width(edge, at),
                kind: graph[edge].kind,
                latency_ns: graph[edge].latency_ns,
            });
            found.paths[to] = parts.reduce(Path::then);
            found.routes[to] = route;
        }
    }
    found
}

/// Whether the way out of the node begins at a thing: the network or a shared hub is next to it.
fn is_door(graph: &UnGraph<Vertex, Edge>, vertex: NodeIndex) -> bool {
    graph.neighbors(vertex).any(|next| graph[next].kind == VertexKind::Network || graph[next].spans > 1)
}

/// Whether paths may lead over a thing.
fn forwards(vertex: &Vertex) -> bool {
    matches!(vertex.kind, VertexKind::Hub(_) | VertexKind::Nic)
}

/// How wide the widest way to each thing is; 0 where none leads.
fn widest(
    graph: &UnGraph<Vertex, Edge>,
    from: NodeIndex,
    width: impl Fn(EdgeIndex, NodeIndex) -> u64,
) -> Vec<u64> {
    let mut best = vec![0; graph.node_count()];
    let mut settled = vec![false; graph.node_count()];
    let mut reached = BinaryHeap::from([(u64::MAX, Reverse(from))]);
    while let Some((so_far, Reverse(at))) = reached.pop() {
        if std::mem::replace(&mut settled[at.index()], true) {
            continue;
        }
        best[at.index()] = so_far;
        if at != from && !forwards(&graph[at]) {
            continue;
        }
        for edge in graph.edges(at) {
            let narrower = so_far.min(width(edge.id(), at));
            if narrower > 0 && !settled[edge.target().index()] {
                reached.push((narrower, Reverse(edge.target())));
            }
        }
    }
    best
}

/// The way of least latency to each thing over connections that are `wide` enough: over which connection, and from where.
fn nearest(
    graph: &UnGraph<Vertex, Edge>,
    from: NodeIndex,
    wide: impl Fn(EdgeIndex, NodeIndex) -> bool,
) -> Vec<Option<(EdgeIndex, NodeIndex)>> {
    let mut before = vec![None; graph.node_count()];
    let mut settled = vec![false; graph.node_count()];
    let mut reached = BinaryHeap::from([Reverse((0u64, from, None))]);
    while let Some(Reverse((latency, at, over))) = reached.pop() {
        if std::mem::replace(&mut settled[at.index()], true) {
            continue;
        }
        before[at.index()] = over;
        if at != from && !forwards(&graph[at]) {
            continue;
        }
        for edge in graph.edges(at) {
            if wide(edge.id(), at) && !settled[edge.target().index()] {
                let latency = latency.saturating_add(edge.weight().latency_ns);
                reached.push(Reverse((latency, edge.target(), Some((edge.id(), at)))));
            }
        }
    }
    before
}
