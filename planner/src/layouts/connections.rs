//! From a topology and a placement to how the ranks of groups reach each other.

use crate::{
    mesh::Mesh,
    placement::{Placement, PlacementError, place},
    serving::{Group, Machine},
    topology::{EdgeKind, HubKind, NumberKind, Topology, VertexKind, known_gpu},
};
use std::collections::{BTreeMap, HashMap};

/// The first generation of GPUs whose NVSwitches add up on the way (NVLink SHARP): Hopper.
const FIRST_IN_SWITCH: u32 = 90;

/// What sets of GPUs are connected by, each found out once.
pub(super) struct Connections<'a> {
    topology: &'a Topology,
    /// By the places of the GPUs from the first node of the set on.
    known: HashMap<Vec<usize>, Option<Group>>,
}

/// What a topology does not say, and times need.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topology {topology} does not say the {what} of {kind}")]
pub(super) struct Unknown {
    /// The topology.
    pub topology: String,
    /// What it does not say.
    pub what: &'static str,
    /// Of which kind of GPU.
    pub kind: String,
}

/// How `ranks` ranks reach each other that are placed as one tensor-parallel group; `None` for fewer than two.
///
/// # Errors
/// [`PlacementError`] when there are fewer GPUs.
pub fn group(topology: &Topology, ranks: u32) -> Result<Option<Group>, PlacementError> {
    let too_few = || PlacementError::TooFewGpus {
        ranks,
        topology: topology.name().to_owned(),
        gpus: topology.gpus().len(),
        per_node: topology.gpus_per_node(),
    };
    let mesh = Mesh::new(1, 1, ranks).map_err(|_| too_few())?;
    let placement = place(topology, mesh, &[])?;
    let mut connections = Connections::new(topology);
    Ok(connections.slowest(placement.groups(mesh).map(<[usize]>::to_vec)))
}

impl<'a> Connections<'a> {
    pub(super) fn new(topology: &'a Topology) -> Self {
        Self { topology, known: HashMap::new() }
    }

    /// The machine as the ranks of `mesh` have it: the weakest GPU, the slowest group of each kind.
    pub(super) fn machine(
        &mut self,
        mesh: Mesh,
        placement: &Placement,
        expert_parallel: bool,
        numbers: NumberKind,
    ) -> (Machine, Option<Unknown>) {
        let kinds = self.topology.kinds();
        let unknown = |what, kind: &str| Unknown {
            topology: self.topology.name().to_owned(),
            what,
            kind: kind.to_owned(),
        };
        let mut missing = None;
        let (mut memory, mut flops) = (f64::INFINITY, f64::INFINITY);
        for kind in kinds {
            match kind.memory_bandwidth {
                Some(bandwidth) => memory = memory.min(bandwidth.bytes_per_second() as f64),
                None => missing = missing.or_else(|| Some(unknown("memory bandwidth", &kind.kind))),
            }
            // What has no unit for a type of number uses the next larger one.
            let wider = [numbers, NumberKind::Bf16, NumberKind::Fp16, NumberKind::Fp32];
            match wider.iter().find_map(|numbers| kind.flops.get(numbers)) {
                Some(rate) => flops = flops.min(rate.flops() as f64),
                None => missing = missing.or_else(|| Some(unknown("FLOP/s", &kind.kind))),
            }
        }
        let tensor = self.slowest(placement.groups(mesh).map(<[usize]>::to_vec));
        let (tp, pp) = (mesh.tp() as usize, mesh.pp() as usize);
        let gpu = |rank: usize| u32::try_from(rank).ok().map(|rank| placement.gpu_of_rank(rank));
        let expert = expert_parallel.then(|| {
            let of_copies = (0..mesh.dp() as usize).flat_map(|dp| (0..tp).map(move |t| dp * pp * tp + t));
            of_copies.filter_map(gpu).collect::<Vec<_>>()
        });
        let expert = expert.filter(|_| mesh.dp() > 1).and_then(|gpus| self.group(&gpus));
        let pipeline = (1..pp).filter_map(|stage| {
            let (from, to) = (gpu((stage - 1) * tp)?, gpu(stage * tp)?);
            self.group(&[from, to])
        });
        let pipeline = pipeline.collect::<Vec<_>>().into_iter().reduce(slower);
        let shared = self.topology.gpus().first().is_some_and(|gpu| self.topology.shared_pool(gpu).is_some());
        let of_memory = if shared {
            mesh.world_size().min(u32::try_from(self.topology.gpus_per_node()).unwrap_or(1))
        } else {
            1
        };
        let machine = Machine {
            memory_bytes: self.topology.least_memory_bytes() / u64::from(of_memory.max(1)),
            memory_bytes_per_second: memory,
            flops_per_second: flops,
            tensor,
            expert,
            pipeline,
        };
        (machine, missing)
    }

    /// The slowest of some sets.
    fn slowest(&mut self, sets: impl Iterator<Item = Vec<usize>>) -> Option<Group> {
        sets.filter_map(|gpus| self.group(&gpus)).reduce(slower)
    }

    /// How a set of GPUs is connected; `None` for fewer than two.
    fn group(&mut self, gpus: &[usize]) -> Option<Group> {
        let per_node = self.topology.gpus_per_node();
        // Nodes are alike: the same set further on is as fast. What spans several nodes begins at multiples of them, so the
        // number of the first node does not matter there but for where it lies in such a block.
        let block = self
            .topology
            .blocks_of_nodes()
            .into_iter()
            .filter(|&block| block < self.topology.nodes() as usize);
        let block = block.max().unwrap_or(1).max(1) * per_node;
        let first = gpus.iter().min()? / block * block;
        let mut key: Vec<usize> = gpus.iter().map(|gpu| gpu - first).collect();
        key.sort_unstable();
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let found = self.find(gpus, per_node);
        self.known.insert(key, found);
        found
    }

    fn find(&self, gpus: &[usize], per_node: usize) -> Option<Group> {
        let whole = self.topology.ring(gpus)?;
        let mut nodes: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        gpus.iter().for_each(|gpu| nodes.entry(gpu / per_node).or_default().push(*gpu));
        let rings: Vec<_> = nodes.values().map(|gpus| self.topology.ring(gpus)).collect();
        let inside = rings
            .iter()
            .flatten()
            .cloned()
            .reduce(|a, b| if b.bytes_per_second < a.bytes_per_second { b } else { a });
        let fabric = |kind: EdgeKind| matches!(kind, EdgeKind::Nvlink | EdgeKind::Xgmi);
        // A domain of NVSwitches over several nodes is as good as one node.
        let one = nodes.len() == 1 || fabric(whole.kind);
        let local = if one { whole.clone() } else { inside.unwrap_or_else(|| whole.clone()) };
        let pairs = || gpus.iter().flat_map(|a| gpus.iter().map(move |b| (*a, *b))).filter(|(a, b)| a < b);
        let direct = one
            && fabric(whole.kind)
            && pairs().all(|(a, b)| self.topology.widest_path(a, b).is_some_and(|path| fabric(path.kind)));
        // Those of a node among themselves; between nodes there is the network.
        let within = direct || rings.iter().all(|ring| ring.as_ref().is_some_and(|ring| fabric(ring.kind)));
        let most = if one { gpus.len() } else { nodes.values().map(Vec::len).max().unwrap_or(0) };
        let has_switch =
            self.topology.vertices().any(|vertex| vertex.kind == VertexKind::Hub(HubKind::Nvswitch));
        let adds_up = self.topology.kinds().iter().all(|kind| {
            known_gpu(&kind.kind).and_then(|known| known.sm).is_some_and(|sm| sm >= FIRST_IN_SWITCH)
        });
        let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
        Some(Group {
            ranks: u32::try_from(gpus.len()).unwrap_or(u32::MAX),
            nodes: if one { 1 } else { u32::try_from(nodes.len()).unwrap_or(u32::MAX) },
            ring: local.bytes_per_second.max(1) as f64,
            between: if one { f64::INFINITY } else { whole.bytes_per_second.max(1) as f64 },
            hop: seconds(local.hop_latency_ns),
            network_hop: if one { 0.0 } else { seconds(whole.hop_latency_ns) },
            direct,
            in_switch: within && has_switch && adds_up && most > 2,
        })
    }
}

/// The group that collectives take longer in.
fn slower(a: Group, b: Group) -> Group {
    let width = |group: &Group| group.ring.min(group.between);
    if width(&b) < width(&a) { b } else { a }
}
