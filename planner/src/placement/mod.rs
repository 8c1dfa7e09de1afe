//! Ranks onto GPUs.
//!
//! In come a topology, a mesh, and what each rank needs of memory; out goes which GPU each rank runs on: the ranks of a
//! tensor-parallel group, which exchange the most, on the set of GPUs with the fastest rings; pipeline neighbours next to each
//! other; data-parallel copies on whatever comes next, so that it is they that are apart. It knows no tensor. The same inputs
//! give the same placement.

mod groups;
mod stages;

use self::{
    groups::{Choice, Request},
    stages::Stages,
};
use crate::{mesh::Mesh, topology::Topology};
use std::{cmp::Reverse, collections::HashMap};

/// Which GPU each rank runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    gpu_of_rank: Vec<usize>,
    runner_up: Option<RunnerUp>,
}

/// The next best choice of sets for the tensor-parallel groups of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunnerUp {
    /// The GPUs of each group, by their places in [`Topology::gpus`].
    pub groups: Vec<Vec<usize>>,
    /// What an all-reduce would have on the slowest of them.
    pub bytes_per_second: u64,
}

/// Why ranks cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Fewer GPUs than ranks.
    #[error("{ranks} ranks need {ranks} GPUs, but {topology} has {gpus}")]
    TooFewGpus {
        /// Ranks of the mesh.
        ranks: u32,
        /// Name of the topology.
        topology: String,
        /// Its GPUs.
        gpus: usize,
        /// GPUs of a node.
        per_node: usize,
    },
}

impl PlacementError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let Self::TooFewGpus { ranks, gpus, per_node, .. } = self;
        let nodes = (*ranks as usize).div_ceil((*per_node).max(1));
        Some(format!("tp × pp × dp must be at most {gpus}; or plan for more nodes, like --nodes {nodes}"))
    }
}

impl Placement {
    /// The place in [`Topology::gpus`] of the GPU of `rank`.
    pub fn gpu_of_rank(&self, rank: u32) -> usize {
        self.gpu_of_rank[rank as usize]
    }

    /// The GPUs of each tensor-parallel group, in the order of the ranks.
    pub fn groups(&self, mesh: Mesh) -> impl Iterator<Item = &[usize]> {
        self.gpu_of_rank.chunks(mesh.tp() as usize)
    }

    /// The next best choice for the first node that has ranks, where there is another.
    pub fn runner_up(&self) -> Option<&RunnerUp> {
        self.runner_up.as_ref()
    }
}

/// Places the ranks of `mesh` on the GPUs of `topology`, each on its own. `needs` are bytes of memory for each rank; if no
/// placement has them, ranks are placed as if they needed none.
///
/// # Errors
/// [`PlacementError::TooFewGpus`].
pub fn place(topology: &Topology, mesh: Mesh, needs: &[u64]) -> Result<Placement, PlacementError> {
    let (ranks, per_node) = (mesh.world_size(), topology.gpus_per_node());
    let gpus = topology.gpus().len();
    if ranks as usize > gpus {
        return Err(PlacementError::TooFewGpus {
            ranks,
            topology: topology.name().to_owned(),
            gpus,
            per_node,
        });
    }
    let mut placer = Placer::new(topology, mesh, needs);
    // Where GPUs differ, a node may have room for fewer groups than its GPUs make.
    for of_node in (1..=per_node / placer.size()).rev() {
        let Some(slots) = placer.slots(|block| block * of_node) else { break };
        let placement = placer.in_nodes(&slots, of_node);
        if of_node == 1 || placer.fits(&placement) {
            return Ok(placement);
        }
    }
    // Groups wider than a node: as many GPUs of each of their nodes.
    let of_group = placer.size().div_ceil(per_node);
    if per_node < placer.size() && placer.size().is_multiple_of(of_group) {
        let mut blocks = topology.blocks_of_nodes().into_iter();
        let block = blocks.find(|&block| placer.fits_blocks(block, block / of_group));
        let room = |larger: usize| block.map_or(0, |block| larger / block * (block / of_group));
        if let (Some(block), Some(slots)) = (block, placer.slots(room)) {
            return Ok(placer.over_nodes(&slots, block, of_group));
        }
    }
    // What nodes have left over is needed: one GPU after the other, but none across a hub that joins several nodes.
    let size = placer.size();
    for block in topology.blocks_of_nodes() {
        let groups = block * per_node / size;
        if placer.fits_blocks(block, groups) {
            let start = |group: usize| group / groups * block * per_node + group % groups * size;
            let gpu_of_rank =
                (0..placer.groups()).flat_map(|group| start(group)..start(group) + size).collect();
            return Ok(Placement { gpu_of_rank, runner_up: None });
        }
    }
    Ok(Placement { gpu_of_rank: (0..ranks as usize).collect(), runner_up: None })
}

/// Most orders of stages that are tried for a choice of sets, and for the one that is taken.
const MOST_ORDERS: (usize, usize) = (200, 50_000);

/// Chooses sets in nodes, which are all alike: what was found for one holds in all.
struct Placer<'a> {
    topology: &'a Topology,
    mesh: Mesh,
    needs: &'a [u64],
    memory: Vec<u64>,
    nearest: Vec<Vec<usize>>,
    bound: u64,
    widest: u64,
    known: HashMap<Asked, Chosen>,
}

/// What each rank of each group of a node needs, and which groups are the stage after the one before.
type Asked = (Vec<Vec<u64>>, Vec<bool>);

/// The GPUs of each group in the order of its ranks, and the runner-up.
type Chosen = (Vec<Vec<usize>>, Option<Choice>);

impl<'a> Placer<'a> {
    fn new(topology: &'a Topology, mesh: Mesh, needs: &'a [u64]) -> Self {
        let per_node = topology.gpus_per_node();
        let memory: Vec<u64> = (0..per_node).map(|gpu| topology.kind_of(gpu).memory_bytes).collect();
        let nearest: Vec<Vec<usize>> = (0..per_node)
            .map(|from| {
                let mut others: Vec<usize> = (0..per_node).filter(|&to| to != from).collect();
                others.sort_by_key(|&to| Reverse(topology.widest_path(from, to).map(|path| path.order())));
                others
            })
            .collect();
        let widths = nearest.iter().enumerate().filter_map(|(from, others)| {
            topology.widest_path(from, *others.first()?).map(|path| path.bytes_per_second)
        });
        let widest = widths.max().unwrap_or(0);
        // Where every GPU has what any rank needs, memory decides nothing, and groups differ in nothing.
        let scarce = needs.iter().max() > memory.iter().min() && topology.kinds().len() > 1;
        let needs = if scarce { needs } else { &[] };
        let bound = topology.ring_bound();
        Self { topology, mesh, needs, memory, nearest, bound, widest, known: HashMap::new() }
    }

    fn size(&self) -> usize {
        self.mesh.tp() as usize
    }

    fn groups(&self) -> usize {
        (self.mesh.dp() * self.mesh.pp()) as usize
    }

    /// Whether all groups have room in blocks of `block` nodes, of which each has room for `groups`.
    fn fits_blocks(&self, block: usize, groups: usize) -> bool {
        groups > 0 && self.topology.nodes() as usize / block * groups >= self.groups()
    }

    /// For each group its place: its block, and its number there; `room` says for how many groups a block of so many nodes has
    /// room. Copies of the model stay whole in the smallest blocks that have room for all of them, as many in each, so that it
    /// is copies that are apart. `None` where there is no room.
    fn slots(&self, room: impl Fn(usize) -> usize) -> Option<Vec<Slot>> {
        let (dp, pp) = (self.mesh.dp() as usize, self.mesh.pp() as usize);
        let nodes = self.topology.nodes() as usize;
        let mut blocks = vec![1];
        blocks.extend(self.topology.blocks_of_nodes());
        for &block in &blocks {
            let (copies, count) = (room(block) / pp, nodes / block);
            if copies > 0 && copies * count >= dp {
                let each = dp.div_ceil(count);
                let slot = |copy: usize, stage: usize| Slot {
                    first_node: copy / each * block,
                    group: copy % each * pp + stage,
                };
                return Some((0..dp).flat_map(|copy| (0..pp).map(move |stage| slot(copy, stage))).collect());
            }
        }
        let block = *blocks.iter().find(|&&block| self.fits_blocks(block, room(block)))?;
        let slot =
            |group: usize| Slot { first_node: group / room(block) * block, group: group % room(block) };
        Some((0..self.groups()).map(slot).collect())
    }

    /// Whether every rank has the memory that it needs.
    fn fits(&self, placement: &Placement) -> bool {
        let has = |gpu: &usize| self.memory[gpu % self.memory.len()];
        self.needs.iter().zip(&placement.gpu_of_rank).all(|(needs, gpu)| *needs <= has(gpu))
    }

    /// Every group in a node, `of_node` of them in each.
    fn in_nodes(&mut self, slots: &[Slot], of_node: usize) -> Placement {
        let (pp, per_node) = (self.mesh.pp() as usize, self.topology.gpus_per_node());
        let node = |group: usize| slots[group].first_node + slots[group].group / of_node;
        let groups: Vec<usize> = (0..slots.len()).collect();
        let mut gpu_of_rank = Vec::with_capacity(slots.len() * self.size());
        let mut runner_up = None;
        for groups in groups.chunk_by(|&a, &b| node(a) == node(b)) {
            let node = node(groups[0]);
            let needs: Vec<Vec<u64>> = groups.iter().map(|&group| self.needs_of(group)).collect();
            let follows: Vec<bool> =
                groups.iter().enumerate().map(|(at, group)| at > 0 && !group.is_multiple_of(pp)).collect();
            let (sets, second) = self.choose(needs, follows);
            gpu_of_rank.extend(sets.iter().flatten().map(|gpu| node * per_node + gpu));
            if gpu_of_rank.len() == groups.len() * self.size() {
                let on_node = |set: Vec<usize>| set.into_iter().map(|gpu| node * per_node + gpu).collect();
                runner_up = second.map(|second| RunnerUp {
                    groups: second.groups.into_iter().map(on_node).collect(),
                    bytes_per_second: second.slowest,
                });
            }
        }
        Placement { gpu_of_rank, runner_up: runner_up.filter(|_| self.size() > 1) }
    }

    /// Every group on `of_group` nodes, as many GPUs of each.
    fn over_nodes(&mut self, slots: &[Slot], block: usize, of_group: usize) -> Placement {
        let share = self.size() / of_group;
        let per_node = self.topology.gpus_per_node();
        let in_block = block / of_group;
        let mut gpu_of_rank = Vec::with_capacity(slots.len() * self.size());
        for (group, slot) in slots.iter().enumerate() {
            let first = slot.first_node + slot.group / in_block * block + slot.group % in_block * of_group;
            for (node, needs) in (first..).zip(self.needs_of(group).chunks(share)) {
                let (sets, _) = self.choose(vec![needs.to_vec()], vec![false]);
                gpu_of_rank.extend(sets.iter().flatten().map(|gpu| node * per_node + gpu));
            }
        }
        Placement { gpu_of_rank, runner_up: None }
    }

    fn needs_of(&self, group: usize) -> Vec<u64> {
        let size = self.size();
        self.needs.get(group * size..(group + 1) * size).map_or_else(|| vec![0; size], <[u64]>::to_vec)
    }

    /// Sets for groups of one node.
    fn choose(&mut self, needs: Vec<Vec<u64>>, follows: Vec<bool>) -> Chosen {
        let key = (needs, follows);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let (needs, follows) = &key;
        let topology = self.topology;
        let score = |set: &[usize]| {
            let ring = topology.ring(set);
            ring.map_or((u64::MAX, Reverse(0)), |ring| (ring.bytes_per_second, Reverse(ring.latency_ns)))
        };
        let ordered = |sets: &[Vec<usize>], most: usize| {
            let width = |from: usize, to: usize| {
                let pairs = sets[from].iter().zip(&sets[to]);
                let widths = pairs.filter_map(|(&a, &b)| topology.widest_path(a, b));
                widths.map(|path| path.bytes_per_second).min().unwrap_or(u64::MAX)
            };
            let alike = |a: usize, b: usize| needs[a] == needs[b];
            Stages { follows, alike: &alike, width: &width, widest: self.widest }.order(most)
        };
        let between = |sets: &[Vec<usize>]| ordered(sets, MOST_ORDERS.0).0;
        let request = |needs| Request {
            memory: &self.memory,
            needs,
            nearest: &self.nearest,
            bound: self.bound,
            score: &score,
            between: &between,
            widest: self.widest,
        };
        let (mut best, mut second) = groups::best(&request(needs));
        if best.is_none() {
            let none: Vec<Vec<u64>> = needs.iter().map(|needs| vec![0; needs.len()]).collect();
            (best, second) = groups::best(&request(&none));
        }
        let sets = best.map_or_else(Vec::new, |best| best.groups);
        let (_, order) = ordered(&sets, MOST_ORDERS.1);
        let placed =
            order.iter().enumerate().map(|(group, &set)| self.in_order_of_needs(&sets[set], &needs[group]));
        let found = (placed.collect(), second);
        self.known.insert(key, found.clone());
        found
    }

    /// The GPUs of a set for ranks that need `needs`: who needs most gets the largest memory.
    fn in_order_of_needs(&self, set: &[usize], needs: &[u64]) -> Vec<usize> {
        if needs.iter().all(|need| *need == needs[0]) {
            return set.to_vec();
        }
        let mut gpus = set.to_vec();
        gpus.sort_by_key(|&gpu| Reverse(self.memory[gpu]));
        let mut ranks: Vec<usize> = (0..needs.len()).collect();
        ranks.sort_by_key(|&rank| Reverse(needs[rank]));
        let mut placed = vec![0; set.len()];
        for (rank, gpu) in ranks.into_iter().zip(gpus) {
            placed[rank] = gpu;
        }
        placed
    }
}

/// Where a group goes: the first node of a block, and the group's number there.
#[derive(Debug, Clone, Copy)]
struct Slot {
    first_node: usize,
    group: usize,
}

#[cfg(test)]
mod tests;
