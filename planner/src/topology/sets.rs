//! How well the GPUs of a set reach each other all at once: rings, and cuts in halves.
//!
//! The bandwidth of an all-reduce is that of its rings (Patarasuk and Yuan 2009): every GPU sends to the next all the time, so
//! a ring is as fast as its narrowest connection, shared by as many of its hops as lead over it in one direction. Over NVLink
//! and xGMI further rings run on what the first leave free, in both directions, as NCCL does.

use super::{
    graph::{Node, Topology},
    paths::{Path, Reach, reach},
    schema::EdgeKind,
    vertex::{Edge, VertexKind},
};
use petgraph::{
    algo::ford_fulkerson,
    graph::{DiGraph, EdgeIndex, NodeIndex},
    visit::EdgeRef,
};
use std::{collections::HashMap, rc::Rc};

/// Most partial rings that are tried before the best so far is taken; enough to be exact for up to eight GPUs.
const MOST_TRIED: usize = 20_000;

/// The same for more than eight, where nothing is exact anyway.
const MOST_TRIED_OF_MANY: usize = 2_000;

/// Most rings side by side; no GPU has more links.
const MOST_RINGS: usize = 64;

/// Largest set of a node of which every cut in halves is tried.
const MOST_FOR_ALL_CUTS: usize = 10;

/// The fastest rings found through a set of GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// What each GPU sends to the next, all rings together: the bus bandwidth of an all-reduce.
    pub bytes_per_second: u64,
    /// What its narrowest part is.
    pub kind: EdgeKind,
    /// The longest hop from one GPU to the next.
    pub hop_latency_ns: u64,
    /// All hops of a ring together.
    pub latency_ns: u64,
    /// The GPUs in the order of the first ring, by their places in [`Topology::gpus`].
    pub order: Vec<usize>,
}

/// What crosses the worst cut of a set of GPUs in two halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bisection {
    /// In one direction.
    pub bytes_per_second: u64,
    /// Whether every cut in halves was tried; of larger sets, those along the ring or between nodes are.
    pub exact: bool,
}

/// The GPUs of a set that are in one node, by their numbers there.
struct Part {
    node: usize,
    gpus: Vec<usize>,
}

impl Topology {
    /// The fastest rings through `gpus`, places in [`Topology::gpus`]; each is counted once. `None` for fewer than two.
    pub fn ring(&self, gpus: &[usize]) -> Option<Ring> {
        let parts = self.parts(gpus);
        if parts.iter().map(|part| part.gpus.len()).sum::<usize>() < 2 {
            return None;
        }
        let per_node = self.gpus_per_node();
        // The nodes are alike: what was found for a set of one holds in all.
        let mut known: HashMap<&[usize], Option<Ring>> = HashMap::new();
        let (mut rings, mut order) = (Vec::new(), Vec::new());
        for part in &parts {
            let found = known.entry(&part.gpus).or_insert_with(|| ring_in_node(&self.node, &part.gpus));
            let local = found.as_ref().map_or(&part.gpus, |ring| &ring.order);
            order.extend(local.iter().map(|gpu| part.node * per_node + gpu));
            rings.extend(found.clone());
        }
        if parts.len() > 1 {
            let (bytes_per_second, kind) = self.between_nodes(&parts);
            let ends = order.windows(2).filter(|ends| ends[0] / per_node != ends[1] / per_node);
            let hops = ends.filter_map(|ends| self.widest_path(ends[0], ends[1])).map(|path| path.latency_ns);
            let (longest, all) =
                hops.fold((0, 0u64), |(longest, all), hop| (hop.max(longest), all.saturating_add(hop)));
            rings.push(Ring {
                bytes_per_second,
                kind,
                hop_latency_ns: longest,
                latency_ns: all,
                order: Vec::new(),
            });
        }
        rings.into_iter().reduce(slower).map(|ring| Ring { order, ..ring })
    }

    /// What crosses the worst cut of `gpus` in two halves, which differ by one GPU, or one node, at most. `None` for fewer than
    /// two GPUs.
    pub fn bisection(&self, gpus: &[usize]) -> Option<Bisection> {
        let parts = self.parts(gpus);
        match parts.as_slice() {
            [] => None,
            [one] => bisection_in_node(&self.node, &one.gpus),
            several => {
                let middle = several.len() / 2;
                let (first, second) = several.split_at(middle);
                let leaves = |half: &[Part]| self.widest_egress(half, several);
                Some(Bisection { bytes_per_second: leaves(first).min(leaves(second)), exact: false })
            }
        }
    }

    fn parts(&self, gpus: &[usize]) -> Vec<Part> {
        let per_node = self.gpus_per_node();
        let mut places = gpus.to_vec();
        places.sort_unstable();
        places.dedup();
        places
            .chunk_by(|a, b| a / per_node == b / per_node)
            .map(|of_node| Part {
                node: of_node[0] / per_node,
                gpus: of_node.iter().map(|gpu| gpu % per_node).collect(),
            })
            .collect()
    }

    /// What rings carry between nodes: parts that share a hub are joined over it first, then over what more nodes share.
    fn between_nodes<'a>(&self, parts: &'a [Part]) -> (u64, EdgeKind) {
        let mut blocks: Vec<Vec<&'a Part>> = parts.iter().map(|part| vec![part]).collect();
        let mut narrowest = (u64::MAX, EdgeKind::Network);
        let mut known = HashMap::new();
        for outside in &self.node.outside {
            let span = |block: &Vec<&'a Part>| block[0].node / outside.spans as usize;
            let mut joined: Vec<Vec<&'a Part>> = Vec::new();
            for together in blocks.chunk_by(|a, b| span(a) == span(b)) {
                let leaves =
                    |block: &Vec<&'a Part>| self.egress_of(block.iter().copied(), outside.vertex, &mut known);
                let least = together.iter().map(leaves).min().unwrap_or(0);
                // What some cannot reach joins nobody: the next thing that they share does.
                if together.len() > 1 && least > 0 {
                    if least < narrowest.0 {
                        narrowest = (least, self.kind_of_outside(outside.vertex));
                    }
                    joined.push(together.iter().flatten().copied().collect());
                } else {
                    joined.extend_from_slice(together);
                }
            }
            blocks = joined;
        }
        narrowest
    }

    /// What leads to the network, or to a hub that nodes share.
    fn kind_of_outside(&self, vertex: NodeIndex) -> EdgeKind {
        match self.node.graph[vertex].kind {
            VertexKind::Hub(hub) => hub.edge(),
            _ => EdgeKind::Network,
        }
    }

    /// What `half` can send to the rest of `all`, over the widest thing that they share.
    fn widest_egress(&self, half: &[Part], all: &[Part]) -> u64 {
        let shared = self.node.outside.iter().filter(|outside| {
            let span = outside.spans as usize;
            all.iter().all(|part| part.node / span == all[0].node / span)
        });
        let mut known = HashMap::new();
        shared.map(|outside| self.egress_of(half, outside.vertex, &mut known)).max().unwrap_or(0)
    }

    /// What parts can send out of their nodes to the vertex `to`, together. Nodes are alike: what is `known` of a set of GPUs
    /// of one holds in all.
    fn egress_of<'a>(
        &self,
        parts: impl IntoIterator<Item = &'a Part>,
        to: NodeIndex,
        known: &mut HashMap<(NodeIndex, &'a [usize]), u64>,
    ) -> u64 {
        let flows = parts.into_iter().map(|part| {
            let flow = known.entry((to, part.gpus.as_slice()));
            *flow.or_insert_with(|| egress(&self.node, &part.gpus, to))
        });
        flows.fold(0, u64::saturating_add)
    }
}

/// The narrower of two rings that are run through as one.
fn slower(a: Ring, b: Ring) -> Ring {
    let (hop, all) = (a.hop_latency_ns.max(b.hop_latency_ns), a.latency_ns.saturating_add(b.latency_ns));
    let narrower = if b.bytes_per_second < a.bytes_per_second { b } else { a };
    Ring { hop_latency_ns: hop, latency_ns: all, ..narrower }
}

/// A connection in one direction: its number twice, and one more in the direction away from its second end.
fn directed(node: &Node, edge: EdgeIndex, from: NodeIndex) -> usize {
    let (first, _) = node.graph.edge_endpoints(edge).unwrap_or_default();
    edge.index() * 2 + usize::from(first != from)
}

/// The fastest rings through GPUs of one node: over whatever is widest, or over NVLink and xGMI alone.
pub(super) fn ring_in_node(node: &Node, gpus: &[usize]) -> Option<Ring> {
    let of = |reaches: &[Reach]| gpus.iter().map(|&gpu| reaches[gpu].clone()).collect();
    let any = series(node, gpus, of(&node.reach));
    // The widest path may be PCIe where each link of a fabric is narrower, and all of them together are not.
    let fabric = series(node, gpus, of(&node.fabric));
    match (any, fabric) {
        (Some(any), Some(fabric)) if fabric.bytes_per_second > any.bytes_per_second => Some(fabric),
        (any, fabric) => any.or(fabric),
    }
}

/// Rings one after the other on what those before left free, the first over the paths of `reaches`; as long as they run over
/// NVLink or xGMI.
fn series(node: &Node, gpus: &[usize], mut reaches: Vec<Reach>) -> Option<Ring> {
    let mut free: Vec<u64> =
        node.graph.edge_weights().flat_map(|edge| [edge.bytes_per_second(); 2]).collect();
    let mut all: Option<Ring> = None;
    let mut last: Option<Cycle> = None;
    for _ in 0..MOST_RINGS {
        let search = Search::new(node, gpus, &reaches, &free);
        // The way back of a ring is free where the way there was; only then is something else looked for.
        let back = last.as_ref().and_then(|last| search.back(last)).filter(|back| back.width > 0);
        let wide_enough =
            back.as_ref().zip(last.as_ref()).is_some_and(|(back, last)| back.width >= last.width);
        let next = if wide_enough { back } else { search.run() };
        let Some(next) = next else { break };
        match &mut all {
            Some(ring) => ring.bytes_per_second = ring.bytes_per_second.saturating_add(next.width),
            None => {
                all = Some(Ring {
                    bytes_per_second: next.width,
                    kind: next.kind,
                    hop_latency_ns: next.hops.iter().copied().max().unwrap_or(0),
                    latency_ns: next.hops.iter().fold(0, |all: u64, hop| all.saturating_add(*hop)),
                    order: next.order.iter().map(|&at| gpus[at]).collect(),
                });
            }
        }
        if !next.kind.is_gpu_fabric() {
            break;
        }
        for &used in &next.used {
            free[used] = free[used].saturating_sub(next.width);
        }
        reaches = gpus
            .iter()
            .map(|&gpu| {
                reach(&node.graph, NodeIndex::new(gpu), |edge, from| {
                    let fabric = node.graph[edge].kind.is_gpu_fabric();
                    if fabric { free[directed(node, edge, from)] } else { 0 }
                })
            })
            .collect();
        last = Some(next);
    }
    all
}

/// The search for the widest ring: one after the other, nearest first, giving up where it cannot become wider than the best.
struct Search<'a> {
    node: &'a Node,
    gpus: &'a [usize],
    /// From each GPU of the set to each other: the path, and its parts as directed connections.
    legs: Vec<Option<(Path, Rc<[usize]>)>>,
    /// From each GPU of the set the others, the best reached first.
    nearest: Vec<Vec<usize>>,
    free: &'a [u64],
    load: Vec<u64>,
    order: Vec<usize>,
    visited: Vec<bool>,
    best: Option<(u64, Vec<usize>)>,
    /// No ring is wider.
    bound: u64,
    tried: usize,
}

struct Cycle {
    width: u64,
    kind: EdgeKind,
    hops: Vec<u64>,
    /// Places in the set.
    order: Vec<usize>,
    /// The directed connections, as often as they are used.
    used: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(node: &'a Node, gpus: &'a [usize], reaches: &[Reach], free: &'a [u64]) -> Self {
        let legs: Vec<_> = reaches
            .iter()
            .flat_map(|reach| gpus.iter().map(move |&to| (reach, to)))
            .map(|(reach, to)| {
                let parts = reach.route(to).iter().map(|&(edge, from)| directed(node, edge, from));
                reach.path(to).map(|path| (path, parts.collect()))
            })
            .collect();
        let order = |from: usize, to: usize| {
            legs[from * gpus.len() + to].as_ref().map(|(path, _)| std::cmp::Reverse(path.order()))
        };
        let nearest: Vec<Vec<usize>> = (0..gpus.len())
            .map(|from| {
                let mut others: Vec<usize> =
                    (0..gpus.len()).filter(|&to| to != from && order(from, to).is_some()).collect();
                others.sort_by_key(|&to| order(from, to));
                others
            })
            .collect();
        let widest = |from: usize| {
            let first = nearest[from].first();
            let leg = first.and_then(|&to| legs[from * gpus.len() + to].as_ref());
            leg.map_or(0, |(path, _)| path.bytes_per_second)
        };
        let bound = (0..gpus.len()).map(widest).min().unwrap_or(0);
        let load = vec![0; free.len()];
        let visited = vec![false; gpus.len()];
        Self {
            node,
            gpus,
            legs,
            nearest,
            free,
            load,
            order: Vec::new(),
            visited,
            best: None,
            bound,
            tried: 0,
        }
    }

    fn run(mut self) -> Option<Cycle> {
        if self.gpus.len() < 2 || self.bound == 0 {
            return None;
        }
        self.order.push(0);
        self.visited[0] = true;
        self.extend(u64::MAX);
        let (_, order) = self.best.take()?;
        self.cycle(order)
    }

    /// The ring that runs the other way round, where there is such a way.
    fn back(&self, cycle: &Cycle) -> Option<Cycle> {
        self.cycle(cycle.order.iter().rev().copied().collect())
    }

    /// The ring through the GPUs of the set in this order.
    fn cycle(&self, order: Vec<usize>) -> Option<Cycle> {
        let n = order.len();
        let legs: Option<Vec<_>> =
            (0..n).map(|at| self.legs[order[at] * n + order[(at + 1) % n]].as_ref()).collect();
        let legs = legs?;
        let used: Vec<usize> = legs.iter().flat_map(|(_, parts)| parts.iter().copied()).collect();
        let mut load = vec![0u64; self.free.len()];
        for &part in &used {
            load[part] += 1;
        }
        let share = |part: &usize| self.free[*part] / load[*part];
        let narrowest = used.iter().copied().min_by_key(share)?;
        Some(Cycle {
            width: share(&narrowest),
            kind: self.node.graph[EdgeIndex::new(narrowest / 2)].kind,
            hops: legs.iter().map(|(path, _)| path.latency_ns).collect(),
            order,
            used,
        })
    }

    /// Whether nothing wider is left to find, or the search has gone on long enough.
    fn is_done(&self) -> bool {
        let most = if self.gpus.len() > 8 { MOST_TRIED_OF_MANY } else { MOST_TRIED };
        self.tried >= most || self.best.as_ref().is_some_and(|(width, _)| *width >= self.bound)
    }

    /// Goes on from the last GPU to each that is left, or closes the ring. `width` is that of the ring so far.
    fn extend(&mut self, width: u64) {
        self.tried += 1;
        let n = self.gpus.len();
        let Some(&from) = self.order.last() else { return };
        let next = if self.order.len() == n { vec![0] } else { self.nearest[from].clone() };
        for to in next {
            if self.visited[to] && self.order.len() < n {
                continue;
            }
            let Some((_, parts)) = self.legs[from * n + to].clone() else { continue };
            let mut narrower = width;
            for &part in parts.iter() {
                self.load[part] += 1;
                narrower = narrower.min(self.free[part] / self.load[part]);
            }
            if narrower > self.best.as_ref().map_or(0, |(width, _)| *width) {
                if self.order.len() == n {
                    self.best = Some((narrower, self.order.clone()));
                } else {
                    self.order.push(to);
                    self.visited[to] = true;
                    self.extend(narrower);
                    self.visited[to] = false;
                    self.order.pop();
                }
            }
            for &part in parts.iter() {
                self.load[part] -= 1;
            }
            if self.is_done() {
                return;
            }
        }
    }
}

/// What GPUs of one node can send out of it to the vertex `to` together. Each uses the network cards that it reaches best: the
/// fastest, and of those the nearest.
fn egress(node: &Node, gpus: &[usize], to: NodeIndex) -> u64 {
    let doors: Vec<NodeIndex> = node.graph.neighbors(to).collect();
    let best = |gpu: usize| {
        let way = |door: NodeIndex| {
            let last = node.graph.edges_connecting(door, to).map(|edge| *edge.weight());
            let last = last.max_by_key(Edge::bytes_per_second)?;
            let path = node.reach[gpu].path(door.index())?;
            Some(path.then(Path {
                bytes_per_second: last.bytes_per_second(),
                kind: last.kind,
                latency_ns: last.latency_ns,
            }))
        };
        let reached: Vec<_> = doors.iter().filter_map(|&door| Some((way(door)?, door))).collect();
        let most = reached.iter().map(|(path, _)| path.order()).max();
        reached.into_iter().filter(move |(path, _)| Some(path.order()) == most).map(|(_, door)| door)
    };
    let open: Vec<NodeIndex> = gpus.iter().flat_map(|&gpu| best(gpu)).collect();
    // A door that is a GPU of the set needs no way to it.
    let usable = |door: NodeIndex| open.contains(&door) || gpus.contains(&door.index());
    let is_shut = |vertex: NodeIndex| doors.contains(&vertex) && vertex != to && !usable(vertex);
    flow(node, gpus, &[to], is_shut)
}

/// What `from` can send to `to` all together, not over GPUs outside of both, nor over what is `shut`.
fn flow(node: &Node, from: &[usize], to: &[NodeIndex], shut: impl Fn(NodeIndex) -> bool) -> u64 {
    let mut network: DiGraph<(), u128> = DiGraph::new();
    for _ in node.graph.node_indices() {
        network.add_node(());
    }
    let (source, sink) = (network.add_node(()), network.add_node(()));
    let passes = |vertex: NodeIndex| {
        let other_gpu =
            vertex.index() < node.gpus && !from.contains(&vertex.index()) && !to.contains(&vertex);
        !other_gpu && !shut(vertex)
    };
    for edge in node.graph.edge_references() {
        if passes(edge.source()) && passes(edge.target()) {
            let width = u128::from(edge.weight().bytes_per_second());
            network.add_edge(edge.source(), edge.target(), width);
            network.add_edge(edge.target(), edge.source(), width);
        }
    }
    // More than any GPU has, and not so much that sums overflow.
    const UNBOUNDED: u128 = 1 << 80;
    for &gpu in from {
        network.add_edge(source, NodeIndex::new(gpu), UNBOUNDED);
    }
    for &end in to {
        network.add_edge(end, sink, UNBOUNDED);
    }
    u64::try_from(ford_fulkerson(&network, source, sink).0).unwrap_or(u64::MAX)
}

fn bisection_in_node(node: &Node, gpus: &[usize]) -> Option<Bisection> {
    let n = gpus.len();
    if n < 2 {
        return None;
    }
    let across = |half: &[usize]| {
        let rest: Vec<NodeIndex> =
            gpus.iter().filter(|gpu| !half.contains(gpu)).map(|&gpu| NodeIndex::new(gpu)).collect();
        // Nobody leaves the node to come back.
        flow(node, half, &rest, |vertex| node.graph[vertex].kind == VertexKind::Network)
    };
    let exact = n <= MOST_FOR_ALL_CUTS;
    let cuts: Vec<Vec<usize>> = if exact {
        // The first GPU is always in the first half of equal ones: the cut is the same from either side.
        let halves =
            (0u32..1 << n).filter(|cut| cut.count_ones() as usize == n / 2 && (n % 2 == 1 || cut & 1 == 1));
        halves.map(|cut| (0..n).filter(|at| cut >> at & 1 == 1).map(|at| gpus[at]).collect()).collect()
    } else {
        let order = ring_in_node(node, gpus)?.order;
        (0..n.div_ceil(2))
            .map(|start| order.iter().cycle().skip(start).take(n / 2).copied().collect())
            .collect()
    };
    let least = cuts.iter().map(|half| across(half)).min()?;
    Some(Bisection { bytes_per_second: least, exact })
}
