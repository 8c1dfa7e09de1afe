//! What a node consists of, as people see it: what is plugged into what, and what joins GPUs past that.

use shardwright_planner::topology::{Edge, EdgeKind, HubKind, Topology, Vertex, VertexKind, joined};
use std::collections::{BTreeMap, BTreeSet};

/// A node taken apart. Things are named by their places in [`Topology::vertices`]; GPUs come first.
pub(super) struct Parts<'a> {
    pub(super) things: Vec<&'a Vertex>,
    pub(super) gpus: usize,
    /// What each thing is plugged into.
    pub(super) plug: Vec<Option<Plug>>,
    /// What is plugged into each thing, in the order of the file.
    pub(super) plugged: Vec<Vec<usize>>,
    /// Hubs that are plugged into nothing: sockets and NUMA nodes mostly.
    pub(super) roots: Vec<usize>,
    /// What joins GPUs past the hubs that they are plugged into.
    pub(super) fabrics: Vec<Fabric>,
    /// Links between roots.
    pub(super) sockets: Vec<(usize, usize, Edge)>,
    /// What is plugged into the network, and how.
    pub(super) doors: Vec<(usize, Edge)>,
    /// Whatever fits nowhere above.
    pub(super) others: Vec<(usize, usize, Edge)>,
}

/// How a thing is plugged into a hub.
#[derive(Debug, Clone)]
pub(super) struct Plug {
    pub(super) into: usize,
    /// Never empty; several where two kinds of links lead to the same hub.
    pub(super) edges: Vec<Edge>,
}

/// GPUs that are joined past the hubs they are plugged into.
pub(super) struct Fabric {
    /// Ascending.
    pub(super) gpus: Vec<usize>,
    pub(super) shape: Shape,
}

pub(super) enum Shape {
    /// Over hubs that are alike; `spans` is how many nodes share them.
    Switched { hubs: Vec<usize>, edge: Edge, spans: u32 },
    /// Directly, each with each, all alike; three or more.
    EveryPair(Edge),
    /// Directly, in some other way.
    Links(Vec<(usize, usize, Edge)>),
}

impl<'a> Parts<'a> {
    pub(super) fn of(machine: &'a Topology) -> Self {
        let things: Vec<&Vertex> = machine.vertices().collect();
        let mut parts = Self {
            gpus: machine.gpus_per_node(),
            plug: vec![None; things.len()],
            plugged: vec![Vec::new(); things.len()],
            things,
            roots: Vec::new(),
            fabrics: Vec::new(),
            sockets: Vec::new(),
            doors: Vec::new(),
            others: Vec::new(),
        };
        let mut direct = Vec::new();
        let mut switched: BTreeMap<usize, Vec<(usize, Edge)>> = BTreeMap::new();
        for (from, to, edge) in machine.edges() {
            let (low, high) = if parts.level(from) > parts.level(to) { (to, from) } else { (from, to) };
            match (parts.things[low].kind, parts.things[high].kind) {
                (VertexKind::Gpu, VertexKind::Gpu) => direct.push((low, high, edge)),
                (_, VertexKind::Network) => parts.doors.push((low, edge)),
                (VertexKind::Gpu, VertexKind::Hub(HubKind::Nvswitch)) => {
                    switched.entry(high).or_default().push((low, edge));
                }
                (VertexKind::Hub(_), VertexKind::Hub(_)) if edge.kind == EdgeKind::Socket => {
                    parts.sockets.push((from, to, edge));
                }
                (_, VertexKind::Hub(_)) => parts.plug_in(low, high, edge),
                _ => parts.others.push((from, to, edge)),
            }
        }
        parts.roots = (parts.gpus..parts.things.len())
            .filter(|&at| parts.plug[at].is_none() && parts.is_plain_hub(at))
            .collect();
        parts.sockets.retain(|&(from, to, edge)| {
            let between_roots = parts.roots.contains(&from) && parts.roots.contains(&to);
            if !between_roots {
                parts.others.push((from, to, edge));
            }
            between_roots
        });
        parts.fabrics = parts.fabrics_of(switched, &direct);
        parts
    }

    /// Lower things are plugged into higher ones.
    fn level(&self, at: usize) -> u32 {
        match self.things[at].kind {
            VertexKind::Gpu => 0,
            VertexKind::Nic => 1,
            VertexKind::Hub(HubKind::PcieSwitch) => 2,
            VertexKind::Hub(HubKind::HostBridge) => 3,
            VertexKind::Hub(HubKind::NumaNode) => 4,
            VertexKind::Hub(HubKind::Memory) => 5,
            VertexKind::Hub(HubKind::Nvswitch) => 6,
            VertexKind::Network => 7,
        }
    }

    fn is_plain_hub(&self, at: usize) -> bool {
        matches!(self.things[at].kind, VertexKind::Hub(kind) if kind != HubKind::Nvswitch)
    }

    fn plug_in(&mut self, low: usize, high: usize, edge: Edge) {
        let is_above = |mut at: usize, below: usize| {
            while let Some(plug) = &self.plug[at] {
                if plug.into == below {
                    return true;
                }
                at = plug.into;
            }
            at == below
        };
        let may_be = self.is_plain_hub(high) && !is_above(high, low);
        match &mut self.plug[low] {
            Some(plug) if plug.into == high => plug.edges.push(edge),
            None if may_be => {
                self.plug[low] = Some(Plug { into: high, edges: vec![edge] });
                self.plugged[high].push(low);
            }
            _ => self.others.push((low, high, edge)),
        }
    }

    fn fabrics_of(
        &self,
        switched: BTreeMap<usize, Vec<(usize, Edge)>>,
        direct: &[(usize, usize, Edge)],
    ) -> Vec<Fabric> {
        let mut fabrics: Vec<Fabric> = Vec::new();
        for (hub, plugged) in switched {
            // GPUs of one hub mostly are plugged in alike; those that are not are a fabric of their own.
            let mut alike: Vec<(Edge, Vec<usize>)> = Vec::new();
            for (gpu, edge) in plugged {
                match alike.iter_mut().find(|(known, _)| *known == edge) {
                    Some((_, gpus)) => gpus.push(gpu),
                    None => alike.push((edge, vec![gpu])),
                }
            }
            for (edge, mut gpus) in alike {
                gpus.sort_unstable();
                let spans = self.things[hub].spans;
                let twin = fabrics.iter_mut().find_map(|fabric| match &mut fabric.shape {
                    Shape::Switched { hubs, edge: known, spans: width }
                        if (*known, *width) == (edge, spans) && fabric.gpus == gpus =>
                    {
                        Some(hubs)
                    }
                    _ => None,
                });
                match twin {
                    Some(hubs) => hubs.push(hub),
                    None => {
                        fabrics
                            .push(Fabric { gpus, shape: Shape::Switched { hubs: vec![hub], edge, spans } });
                    }
                }
            }
        }
        fabrics.extend(joined(self.gpus, direct.iter().map(|&(a, b, _)| (a, b))).into_iter().map(|gpus| {
            let links: Vec<_> = direct.iter().filter(|(from, _, _)| gpus.contains(from)).copied().collect();
            Fabric { shape: shape(links), gpus }
        }));
        fabrics
    }

    /// The hubs that are plugged into `at`.
    pub(super) fn hubs_on(&self, at: usize) -> impl Iterator<Item = usize> {
        self.plugged[at].iter().copied().filter(|&below| self.is_plain_hub(below))
    }

    /// GPUs that are plugged into no hub but switches of their fabric.
    pub(super) fn loose(&self) -> Vec<usize> {
        (0..self.gpus).filter(|&gpu| self.plug[gpu].is_none()).collect()
    }

    /// What leads out of the node, by how fast: as many of each as there are.
    pub(super) fn doors_by_rate(&self) -> Vec<(usize, Edge)> {
        let mut by_rate: Vec<(usize, Edge)> = Vec::new();
        for (_, edge) in &self.doors {
            match by_rate.iter_mut().find(|(_, known)| known == edge) {
                Some((count, _)) => *count += 1,
                None => by_rate.push((1, *edge)),
            }
        }
        by_rate
    }

    /// How the roots are linked, if each is with each and all alike; of three or more.
    pub(super) fn sockets_alike(&self) -> Option<Edge> {
        each_with_each(&self.sockets)
    }
}

/// What the links are, if they join three or more things, each with each once, and are all alike.
fn each_with_each(links: &[(usize, usize, Edge)]) -> Option<Edge> {
    let pairs: BTreeSet<(usize, usize)> = links.iter().map(|&(a, b, _)| (a.min(b), a.max(b))).collect();
    let linked = pairs.iter().flat_map(|&(a, b)| [a, b]).collect::<BTreeSet<usize>>().len();
    let all = linked > 2 && pairs.len() == linked * (linked - 1) / 2 && pairs.len() == links.len();
    let first = links.first()?.2;
    (all && links.iter().all(|(_, _, edge)| *edge == first)).then_some(first)
}

fn shape(links: Vec<(usize, usize, Edge)>) -> Shape {
    match each_with_each(&links) {
        Some(edge) => Shape::EveryPair(edge),
        None => Shape::Links(links),
    }
}
