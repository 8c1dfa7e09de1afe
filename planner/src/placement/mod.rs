//! Ranks onto GPUs.
//!
//! In come a topology, a mesh, and what each rank needs of memory; out goes which GPU each rank runs on: the ranks of a
//! tensor-parallel group, which exchange the most, on the set of GPUs with the fastest rings; pipeline neighbours next to each
//! other; data-parallel copies on whatever comes next, so that it is they that are apart. It knows no tensor. The same inputs
//! give the same placement.

mod groups;
mod stages;

use self::groups::{Choice, Request};
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
    },
}

impl PlacementError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let Self::TooFewGpus { ranks, gpus, .. } = self;
        let nodes = (*ranks as usize).div_ceil((*gpus).max(1));
        Some(format!(
            "tp × pp × dp must be at most {gpus}; or plan for several such machines, like --nodes {nodes}"
        ))
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
        return Err(PlacementError::TooFewGpus { ranks, topology: topology.name().to_owned(), gpus });
    }
    let nodes = topology.nodes() as usize;
    let size = mesh.tp() as usize;
    let count = (mesh.dp() * mesh.pp()) as usize;
    let mut placer = Placer::new(topology, mesh, needs);
    let of_node = per_node / size;
    if of_node > 0 && of_node * nodes >= count {
        return Ok(placer.in_nodes(of_node));
    }
    // Groups are wider than nodes, or what nodes have left over is needed. Where a hub joins several nodes, no group leaves it.
    let of_group = size.div_ceil(per_node);
    if of_node == 0 && size.is_multiple_of(of_group) {
        for block in topology.blocks_of_nodes() {
            let groups_of_block = block / of_group;
            if groups_of_block > 0 && groups_of_block * (nodes / block) >= count {
                return Ok(placer.over_nodes(block, of_group));
            }
        }
    }
    for block in topology.blocks_of_nodes() {
        let groups_of_block = block * per_node / size;
        if groups_of_block > 0 && groups_of_block * (nodes / block) >= count {
            let start =
                |group: usize| group / groups_of_block * block * per_node + group % groups_of_block * size;
            let gpu_of_rank = (0..count).flat_map(|group| start(group)..start(group) + size).collect();
            return Ok(Placement { gpu_of_rank, runner_up: None });
        }
    }
    Ok(Placement { gpu_of_rank: (0..ranks as usize).collect(), runner_up: None })
}

/// Chooses sets in nodes, which are all alike: what was found for one holds in all.
struct Placer<'a> {
    topology: &'a Topology,
    mesh: Mesh,
    needs: &'a [u64],
    memory: Vec<u64>,
    nearest: Vec<Vec<usize>>,
    bound: u64,
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
        let nearest = (0..per_node)
            .map(|from| {
                let mut others: Vec<usize> = (0..per_node).filter(|&to| to != from).collect();
                others.sort_by_key(|&to| Reverse(topology.widest_path(from, to).map(|path| path.order())));
                others
            })
            .collect();
        // Where every GPU has what any rank needs, memory decides nothing, and groups differ in nothing.
        let scarce = needs.iter().max() > memory.iter().min() && topology.kinds().len() > 1;
        let needs = if scarce { needs } else { &[] };
        let bound = topology.ring_bound();
        Self { topology, mesh, needs, memory, nearest, bound, known: HashMap::new() }
    }

    /// Every group in a node that has room for `of_node` of them.
    fn in_nodes(&mut self, of_node: usize) -> Placement {
        let (dp, pp, size) = (self.mesh.dp() as usize, self.mesh.pp() as usize, self.mesh.tp() as usize);
        let (nodes, per_node) = (self.topology.nodes() as usize, self.topology.gpus_per_node());
        // Copies stay whole in a node where there is room for it.
        let copies = of_node / pp;
        let in_node = if copies > 0 && copies * nodes >= dp { copies * pp } else { of_node };
        let groups: Vec<usize> = (0..dp * pp).collect();
        let mut gpu_of_rank = Vec::with_capacity(dp * pp * size);
        let mut runner_up = None;
        for (node, groups) in groups.chunks(in_node).enumerate() {
            let needs: Vec<Vec<u64>> = groups.iter().map(|&group| self.needs_of(group)).collect();
            let follows: Vec<bool> =
                groups.iter().enumerate().map(|(at, group)| at > 0 && !group.is_multiple_of(pp)).collect();
            let (sets, second) = self.choose(needs, follows);
            gpu_of_rank.extend(sets.iter().flatten().map(|gpu| node * per_node + gpu));
            if node == 0 {
                runner_up =
                    second.map(|second| RunnerUp { groups: second.groups, bytes_per_second: second.slowest });
            }
        }
        Placement { gpu_of_rank, runner_up: runner_up.filter(|_| size > 1) }
    }

    /// Every group on `of_group` nodes, as many GPUs of each; none leaves a block of `block` nodes.
    fn over_nodes(&mut self, block: usize, of_group: usize) -> Placement {
        let share = self.mesh.tp() as usize / of_group;
        let per_node = self.topology.gpus_per_node();
        let (sets, _) = self.choose(vec![vec![0; share]], vec![false]);
        let set = sets.into_iter().next().unwrap_or_default();
        let of_block = block / of_group;
        let gpu_of_rank = (0..(self.mesh.dp() * self.mesh.pp()) as usize)
            .flat_map(|group| {
                let first = group / of_block * block + group % of_block * of_group;
                first..first + of_group
            })
            .flat_map(|node| set.iter().map(move |gpu| node * per_node + gpu))
            .collect();
        Placement { gpu_of_rank, runner_up: None }
    }

    fn needs_of(&self, group: usize) -> Vec<u64> {
        let size = self.mesh.tp() as usize;
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
            topology
                .ring(set)
                .map_or((u64::MAX, Reverse(0)), |ring| (ring.bytes_per_second, Reverse(ring.latency_ns)))
        };
        let request =
            |needs| Request { memory: &self.memory, needs, nearest: &self.nearest, bound: self.bound };
        let (mut best, mut second) = groups::best(&request(needs), score);
        if best.is_none() {
            let none: Vec<Vec<u64>> = needs.iter().map(|needs| vec![0; needs.len()]).collect();
            (best, second) = groups::best(&request(&none), score);
        }
        let sets = best.map_or_else(Vec::new, |best| best.groups);
        let width = |from: usize, to: usize| {
            let pairs = sets[from].iter().zip(&sets[to]);
            let widths = pairs
                .map(|(&a, &b)| topology.widest_path(a, b).map_or(u64::MAX, |path| path.bytes_per_second));
            widths.min().unwrap_or(u64::MAX)
        };
        let order = stages::order(follows, |a, b| needs[a] == needs[b], width);
        let placed =
            order.iter().enumerate().map(|(group, &set)| self.in_order_of_needs(&sets[set], &needs[group]));
        let found = (placed.collect(), second);
        self.known.insert(key, found.clone());
        found
    }

    /// The GPUs of a set for ranks that need `needs`: who needs most gets the largest memory.
    fn in_order_of_needs(&self, set: &[usize], needs: &[u64]) -> Vec<usize> {
        let mut gpus = set.to_vec();
        gpus.sort_by_key(|&gpu| Reverse(self.memory[gpu]));
        let mut ranks: Vec<usize> = (0..needs.len()).collect();
        ranks.sort_by_key(|&rank| Reverse(needs[rank]));
        if needs.iter().all(|need| *need == needs[0]) {
            return set.to_vec();
        }
        let mut placed = vec![0; set.len()];
        for (rank, gpu) in ranks.into_iter().zip(gpus) {
            placed[rank] = gpu;
        }
        placed
    }
}

#[cfg(test)]
mod tests;
