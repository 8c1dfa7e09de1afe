//! From a document to a topology: every name looked up, every figure checked.

use super::{
    HostFacts,
    error::{TopologyError, TopologyProblem},
    gpus::{known_gpu, known_gpus},
    graph::{Gpu, GpuKind, Node, Outside, Topology},
    names::{Names, dealt},
    paths::reach,
    quantity::{Bandwidth, Latency},
    schema::{
        Count, Document, EdgeKind, Hub, Link, MAX_COUNT, MAX_EDGES, MAX_GPUS, MAX_GPUS_PER_NODE, MAX_PARTS,
        Memory, Nic,
    },
    vertex::{Edge, Vertex, VertexKind},
};
use crate::{nearest::nearest, yaml};
use petgraph::{
    algo::{Cycle, toposort},
    graph::{DiGraph, EdgeIndex, NodeIndex, UnGraph},
};
use std::collections::BTreeMap;

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
        let in_text = |problem: TopologyProblem| problem.of(text, origin);
        let mut document: Document = yaml::from_str(text).map_err(|error| in_text(error.into()))?;
        document.nodes = nodes.unwrap_or(document.nodes);
        Self::of(document, host).map_err(in_text)
    }

    /// The machine that `document` describes.
    pub(super) fn of(document: Document, host: Option<HostFacts>) -> Result<Self, TopologyProblem> {
        let per_node = gpus_per_node(&document, host)?;
        for (count, what) in [
            (document.hubs.iter().map(|hub| hub.name.len()).sum(), "hubs"),
            (document.nics.iter().map(|nic| nic.name.len()).sum(), "network cards"),
            (document.links.len(), "links"),
        ] {
            if count > MAX_PARTS {
                return Err(TopologyProblem::TooMany { count, what });
            }
        }
        let (kinds, kind_of) = kinds(&document, per_node, host)?;
        let node = Builder::new(&document, per_node)?.node()?;
        check_connected(&node, document.nodes)?;
        let gpus = (0..document.nodes)
            .flat_map(|node| (0..per_node).map(move |index| (node, index)))
            .map(|(node, index)| Gpu {
                name: match document.nodes {
                    1 => format!("gpu{index}"),
                    _ => format!("node{node}/gpu{index}"),
                },
                node,
                index,
                kind: kind_of[index as usize],
            })
            .collect();
        Ok(Self {
            name: document.topology,
            about: document.about,
            kinds,
            shared_memory: document.gpu.0.iter().any(|kind| kind.shared_memory),
            nodes: document.nodes,
            gpus,
            node,
            network: document.network.map(|network| network.kind),
        })
    }
}

fn gpus_per_node(document: &Document, host: Option<HostFacts>) -> Result<u32, TopologyProblem> {
    let nodes = document.nodes;
    let gpus = match (document.gpus, host) {
        (Count::Number(gpus), _) => gpus,
        (Count::Detected, Some(host)) => host.devices,
        (Count::Detected, None) => return Err(TopologyProblem::NotDetected { key: "gpus" }),
    };
    let all = nodes.saturating_mul(gpus);
    if all == 0 || gpus > MAX_GPUS_PER_NODE || all > MAX_GPUS {
        return Err(TopologyProblem::Size { nodes, gpus });
    }
    Ok(gpus)
}

/// The kinds of GPUs, and for each GPU of a node which of them it is.
fn kinds(
    document: &Document,
    per_node: u32,
    host: Option<HostFacts>,
) -> Result<(Vec<GpuKind>, Vec<usize>), TopologyProblem> {
    let written = &document.gpu.0;
    let mut of_gpu = vec![None; per_node as usize];
    let mut kinds = Vec::new();
    for (number, kind) in written.iter().enumerate() {
        let members: Vec<u32> = match &kind.gpus {
            Some(gpus) => gpus.iter().collect(),
            None if written.len() == 1 => (0..per_node).collect(),
            None => return Err(TopologyProblem::KindOfGpu { gpu: 0 }),
        };
        for gpu in members {
            let unknown = || TopologyProblem::UnknownName { name: format!("gpu{gpu}"), nearest: None };
            let kind = of_gpu.get_mut(gpu as usize).ok_or_else(unknown)?;
            if kind.replace(number).is_some() {
                return Err(TopologyProblem::KindOfGpu { gpu });
            }
        }
        let known = known_gpu(&kind.kind);
        let memory_bytes = match (kind.memory, known, host) {
            (Some(Memory::Size(bytes)), _, _) => bytes.bytes(),
            (Some(Memory::Detected), _, Some(host)) => host.memory_bytes,
            (Some(Memory::Detected), _, None) => {
                return Err(TopologyProblem::NotDetected { key: "memory" });
            }
            (None, Some(known), _) => known.memory.bytes(),
            (None, None, _) => {
                let nearest = nearest(&kind.kind, known_gpus().iter().map(|known| known.kind.as_str()));
                return Err(TopologyProblem::UnknownGpu { kind: kind.kind.clone(), nearest });
            }
        };
        let mut flops = known.map(|known| known.flops.clone()).unwrap_or_default();
        flops.extend(&kind.flops);
        kinds.push(GpuKind {
            kind: kind.kind.clone(),
            memory_bytes,
            memory_bandwidth: kind.memory_bandwidth.or(known.map(|known| known.memory_bandwidth)),
            flops,
        });
    }
    let of_gpu = (0..).zip(of_gpu).map(|(gpu, kind)| kind.ok_or(TopologyProblem::KindOfGpu { gpu }));
    Ok((kinds, of_gpu.collect::<Result<_, _>>()?))
}

fn check_connected(node: &Node, nodes: u32) -> Result<(), TopologyProblem> {
    for from in 0..node.gpus {
        for to in (0..node.gpus).filter(|&to| to != from) {
            if node.reach[from].path(to).is_none() {
                let name = |gpu| node.graph[NodeIndex::new(gpu)].name.clone();
                return Err(TopologyProblem::Unconnected { from: name(from), to: name(to) });
            }
        }
        let leaves = node
            .outside
            .iter()
            .any(|outside| outside.spans >= nodes && node.reach[from].path(outside.vertex.index()).is_some());
        if nodes > 1 && !leaves {
            return Err(TopologyProblem::NoNetwork { nodes });
        }
    }
    Ok(())
}

/// The graph of a node while it is made.
struct Builder<'a> {
    document: &'a Document,
    gpus: u32,
    graph: UnGraph<Vertex, Edge>,
    names: BTreeMap<String, NodeIndex>,
}

impl<'a> Builder<'a> {
    /// All things, not yet connected.
    fn new(document: &'a Document, gpus: u32) -> Result<Self, TopologyProblem> {
        let mut builder = Self { document, gpus, graph: UnGraph::new_undirected(), names: BTreeMap::new() };
        for gpu in 0..gpus {
            builder.add(&format!("gpu{gpu}"), VertexKind::Gpu, None, 1)?;
        }
        for hub in &document.hubs {
            if hub.spans == 0 {
                return Err(TopologyProblem::SpansNothing { hub: hub.name.text().to_owned() });
            }
            for (name, numa) in hub.name.iter().zip(numa_nodes(hub)?) {
                builder.add(&name, VertexKind::Hub(hub.kind), numa, hub.spans)?;
            }
        }
        for nic in &document.nics {
            for name in nic.name.iter() {
                builder.add(&name, VertexKind::Nic, None, 1)?;
            }
        }
        Ok(builder)
    }

    fn node(mut self) -> Result<Node, TopologyProblem> {
        let document = self.document;
        for hub in &document.hubs {
            self.connect_gpus(hub)?;
        }
        for hub in &document.hubs {
            self.connect_hub(hub)?;
        }
        for nic in &document.nics {
            self.connect_nic(nic)?;
        }
        for link in &document.links {
            self.connect(link)?;
        }
        let network = self.connect_network()?;
        self.check_no_cycle()?;
        let mut outside: Vec<Outside> = self
            .graph
            .node_indices()
            .map(|vertex| Outside { vertex, spans: self.graph[vertex].spans })
            .filter(|outside| outside.spans > 1)
            .collect();
        outside.sort_by_key(|outside| outside.spans);
        if let Some(two) = outside.windows(2).find(|two| !two[1].spans.is_multiple_of(two[0].spans)) {
            return Err(TopologyProblem::Spans { smaller: two[0].spans, larger: two[1].spans });
        }
        outside.extend(network.map(|vertex| Outside { vertex, spans: u32::MAX }));
        let Self { graph, gpus, .. } = self;
        let width = |edge: EdgeIndex, _: NodeIndex| graph[edge].bytes_per_second();
        let of_fabric = |edge: EdgeIndex, from: NodeIndex| match graph[edge].kind.is_gpu_fabric() {
            true => width(edge, from),
            false => 0,
        };
        let from_all = |width: &dyn Fn(EdgeIndex, NodeIndex) -> u64| {
            (0..gpus as usize).map(|gpu| reach(&graph, NodeIndex::new(gpu), width)).collect()
        };
        let (all, fabric) = (from_all(&width), from_all(&of_fabric));
        Ok(Node { graph, gpus: gpus as usize, outside, reach: all, fabric })
    }

    fn add(
        &mut self,
        name: &str,
        kind: VertexKind,
        numa: Option<u32>,
        spans: u32,
    ) -> Result<NodeIndex, TopologyProblem> {
        let vertex = self.graph.add_node(Vertex { name: name.to_owned(), kind, numa, spans });
        match self.names.insert(name.to_owned(), vertex) {
            Some(_) => Err(TopologyProblem::NameTwice { name: name.to_owned() }),
            None => Ok(vertex),
        }
    }

    fn find(&self, name: &str) -> Result<NodeIndex, TopologyProblem> {
        self.names.get(name).copied().ok_or_else(|| TopologyProblem::UnknownName {
            name: name.to_owned(),
            nearest: nearest(name, self.names.keys().map(String::as_str)),
        })
    }

    fn join(&mut self, from: &str, to: &str, edge: Edge) -> Result<(), TopologyProblem> {
        let ends = (self.find(from)?, self.find(to)?);
        if ends.0 == ends.1 {
            return Err(TopologyProblem::SelfLink { name: from.to_owned() });
        }
        self.graph.add_edge(ends.0, ends.1, edge);
        match self.graph.edge_count() {
            count if count > MAX_EDGES => Err(TopologyProblem::TooManyConnections),
            _ => Ok(()),
        }
    }

    /// Joins things to those that they are dealt to.
    fn join_dealt(
        &mut self,
        of: &Names,
        to: &Names,
        what: &'static str,
        edge: Edge,
    ) -> Result<(), TopologyProblem> {
        for (of, to) in dealt_names(of, to, what)? {
            self.join(&of, &to, edge)?;
        }
        Ok(())
    }

    fn connect_gpus(&mut self, hub: &Hub) -> Result<(), TopologyProblem> {
        let Some(gpus) = &hub.gpus else { return Ok(()) };
        let name = hub.name.text();
        let bandwidth = hub.bandwidth.ok_or_else(|| TopologyProblem::NoBandwidth { hub: name.to_owned() })?;
        let edge = edge(hub.kind.edge(), hub.count, bandwidth, hub.latency, name)?;
        let hubs: Vec<String> = hub.name.iter().collect();
        let members: Vec<u32> = gpus.iter().collect();
        for (gpu, to) in deal(members.len(), &hub.name, "GPUs")? {
            // A hub of a machine whose devices are as many as are asked for serves those there are.
            let there = self.document.gpus != Count::Detected || members[gpu] < self.gpus;
            if there {
                self.join(&format!("gpu{}", members[gpu]), &hubs[to], edge)?;
            }
        }
        Ok(())
    }

    fn connect_hub(&mut self, hub: &Hub) -> Result<(), TopologyProblem> {
        let Some(on) = &hub.on else { return Ok(()) };
        let name = hub.name.text();
        let bandwidth = hub.uplink.or(hub.bandwidth);
        let bandwidth = bandwidth.ok_or_else(|| TopologyProblem::NoBandwidth { hub: name.to_owned() })?;
        let edge = edge(hub.kind.edge(), 1, bandwidth, hub.latency, name)?;
        self.join_dealt(&hub.name, on, "hubs", edge)
    }

    fn connect_nic(&mut self, nic: &Nic) -> Result<(), TopologyProblem> {
        let edge = edge(EdgeKind::Pcie, 1, nic.pcie.unwrap_or(nic.bandwidth), None, nic.name.text())?;
        self.join_dealt(&nic.name, &nic.on, "network cards", edge)
    }

    fn connect(&mut self, link: &Link) -> Result<(), TopologyProblem> {
        let Link { kind, between, among, count, bandwidth, latency } = link;
        match (between, among) {
            (Some([from, to]), None) => {
                let name = format!("{} and {}", from.text(), to.text());
                let edge = edge(*kind, *count, *bandwidth, *latency, &name)?;
                self.join_dealt(from, to, "ends", edge)?;
            }
            (None, Some(among)) => {
                let edge = edge(*kind, *count, *bandwidth, *latency, among.text())?;
                let names: Vec<String> = among.iter().collect();
                for (at, from) in names.iter().enumerate() {
                    for to in &names[at + 1..] {
                        self.join(from, to, edge)?;
                    }
                }
            }
            _ => return Err(TopologyProblem::LinkEnds { kind: kind.to_string() }),
        }
        Ok(())
    }

    fn connect_network(&mut self) -> Result<Option<NodeIndex>, TopologyProblem> {
        let Some(network) = &self.document.network else { return Ok(None) };
        let of_nic = |nic: &Nic| {
            let bandwidth = nic.bandwidth;
            nic.name.iter().map(move |name| (name, bandwidth)).collect::<Vec<_>>()
        };
        let nics: BTreeMap<String, Bandwidth> = self.document.nics.iter().flat_map(of_nic).collect();
        let mut doors: BTreeMap<String, Bandwidth> = BTreeMap::new();
        match (network.via.is_empty(), network.bandwidth) {
            (true, None) => doors = nics,
            (true, Some(_)) => {
                return Err(TopologyProblem::NetworkWithout {
                    missing: "hubs in `via`, for its `bandwidth`",
                });
            }
            (false, bandwidth) => {
                let count = network.via.iter().map(Names::len).sum();
                if count > MAX_PARTS {
                    return Err(TopologyProblem::TooMany { count, what: "ways to the network" });
                }
                for name in network.via.iter().flat_map(Names::iter) {
                    // A network card has a bandwidth of its own.
                    let missing = "a `bandwidth` for hubs that are no network cards";
                    let bandwidth = nics.get(&name).copied().or(bandwidth);
                    let bandwidth = bandwidth.ok_or(TopologyProblem::NetworkWithout { missing })?;
                    if doors.insert(name.clone(), bandwidth).is_some() {
                        return Err(TopologyProblem::NameTwice { name });
                    }
                }
            }
        }
        if doors.is_empty() {
            return Err(TopologyProblem::NetworkWithout {
                missing: "network cards (`nics`), or `via` some hubs",
            });
        }
        let vertex = self.add("network", VertexKind::Network, None, 1)?;
        for (name, bandwidth) in doors {
            let edge = edge(EdgeKind::Network, 1, bandwidth, network.latency, "network")?;
            self.join(&name, "network", edge)?;
        }
        Ok(Some(vertex))
    }

    /// What hubs are `on` leads up to a root.
    fn check_no_cycle(&self) -> Result<(), TopologyProblem> {
        let mut above: DiGraph<(), ()> = DiGraph::new();
        for _ in self.graph.node_indices() {
            above.add_node(());
        }
        for hub in &self.document.hubs {
            let Some(on) = &hub.on else { continue };
            for (of, to) in dealt_names(&hub.name, on, "hubs")? {
                above.add_edge(self.find(&of)?, self.find(&to)?, ());
            }
        }
        let on_cycle = |cycle: Cycle<NodeIndex>| self.graph[cycle.node_id()].name.clone();
        toposort(&above, None).map(drop).map_err(|cycle| TopologyProblem::Cycle { name: on_cycle(cycle) })
    }
}

/// The NUMA node of each hub of a run.
fn numa_nodes(hub: &Hub) -> Result<Vec<Option<u32>>, TopologyProblem> {
    let mut of_hubs = vec![None; hub.name.len()];
    let Some(numa) = &hub.numa else { return Ok(of_hubs) };
    let numbers: Vec<u32> = numa.iter().collect();
    for (number, of) in deal(numa.len(), &hub.name, "NUMA nodes")? {
        of_hubs[of].get_or_insert(numbers[number]);
    }
    Ok(of_hubs)
}

fn edge(
    kind: EdgeKind,
    count: u32,
    bandwidth: Bandwidth,
    latency: Option<Latency>,
    name: &str,
) -> Result<Edge, TopologyProblem> {
    if count == 0 || count > MAX_COUNT {
        return Err(TopologyProblem::Connections { name: name.to_owned(), count });
    }
    let latency_ns = latency.map_or(kind.usual_latency(), Latency::nanoseconds);
    Ok(Edge { kind, count, each: bandwidth.bytes_per_second(), latency_ns })
}

/// Things with those that they are dealt to, by name.
fn dealt_names(of: &Names, to: &Names, what: &'static str) -> Result<Vec<(String, String)>, TopologyProblem> {
    let (ofs, tos): (Vec<String>, Vec<String>) = (of.iter().collect(), to.iter().collect());
    let dealt = deal(ofs.len(), to, what)?;
    Ok(dealt.into_iter().map(|(of, to)| (ofs[of].clone(), tos[to].clone())).collect())
}

fn deal(of: usize, to: &Names, what: &'static str) -> Result<Vec<(usize, usize)>, TopologyProblem> {
    let wrong = || TopologyProblem::NotDealt { of: what, to: to.text().to_owned(), dealt: (of, to.len()) };
    dealt(of, to.len()).ok_or_else(wrong)
}
