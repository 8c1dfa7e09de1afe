//! Ranks onto GPUs.
//!
//! In come a topology and a mesh; out goes which GPU each rank runs on: the ranks of a tensor-parallel group, which exchange
//! the most, on the GPUs with the widest paths between them; pipeline neighbours next to each other; data-parallel copies on
//! whatever comes next. It knows no tensor. The same inputs give the same placement.

mod groups;

use crate::{
    mesh::Mesh,
    topology::{EdgeKind, Topology},
};

/// Which GPU each rank runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    gpu_of_rank: Vec<usize>,
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
}

/// Places the ranks of `mesh` on the GPUs of `topology`, each on its own.
///
/// # Errors
/// [`PlacementError::TooFewGpus`].
pub fn place(topology: &Topology, mesh: Mesh) -> Result<Placement, PlacementError> {
    let (ranks, per_node) = (mesh.world_size(), topology.gpus_per_node());
    let gpus = topology.gpus().len();
    if ranks as usize > gpus {
        return Err(PlacementError::TooFewGpus { ranks, topology: topology.name().to_owned(), gpus });
    }
    let size = mesh.tp() as usize;
    let count = (mesh.dp() * mesh.pp()) as usize;
    let groups_per_node = per_node / size;
    if groups_per_node * topology.nodes() as usize >= count && groups_per_node > 0 {
        // Every group fits into a node. All nodes are alike: what is best in one is best in all.
        let width = |a: usize, b: usize| topology.widest_path(a, b).map_or(0, |(bandwidth, _)| bandwidth);
        let mut gpu_of_rank = Vec::with_capacity(ranks as usize);
        let mut left = count;
        for node in 0..topology.nodes() as usize {
            let here = left.min(groups_per_node);
            for group in groups::best(per_node, size, here, width) {
                gpu_of_rank.extend(group.into_iter().map(|gpu| node * per_node + gpu));
            }
            left -= here;
        }
        return Ok(Placement { gpu_of_rank });
    }
    // Groups are wider than nodes, or the nodes' remainders are needed: fill node after node.
    Ok(Placement { gpu_of_rank: (0..ranks as usize).collect() })
}

/// The narrowest path between any two GPUs of the tensor-parallel group that `rank` belongs to, in bytes per second and with
/// the kind of its narrowest part; `None` for a group of one.
pub fn group_path(
    topology: &Topology,
    mesh: Mesh,
    placement: &Placement,
    rank: u32,
) -> Option<(u64, EdgeKind)> {
    let first = rank - mesh.coordinates(rank).tp;
    let members: Vec<usize> = (first..first + mesh.tp()).map(|rank| placement.gpu_of_rank(rank)).collect();
    let pairs =
        members.iter().enumerate().flat_map(|(at, &a)| members[at + 1..].iter().map(move |&b| (a, b)));
    pairs.filter_map(|(a, b)| topology.widest_path(a, b)).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::builtin;
    use proptest::prelude::*;

    fn topology(name: &str, nodes: u32) -> Topology {
        Topology::parse(builtin(name).unwrap(), name, Some(nodes), None).unwrap()
    }

    fn groups(topology: &Topology, dp: u32, pp: u32, tp: u32) -> Vec<Vec<usize>> {
        let mesh = Mesh::new(dp, pp, tp).unwrap();
        let placement = place(topology, mesh).unwrap();
        placement.gpu_of_rank.chunks(tp as usize).map(<[usize]>::to_vec).collect()
    }

    fn with_links(gpus: u32, links: &[(u32, u32, u32)]) -> Topology {
        let mut text = format!(
            "topology: t\nabout: x\ngpu: {{ kind: X, memory: 1 GiB }}\ngpus: {gpus}\nhubs:\n  - {{ name: cpu, kind: host-bridge, gpus: 0-{}, bandwidth: 10 GB/s }}\nlinks:\n",
            gpus - 1
        );
        for (a, b, width) in links {
            text.push_str(&format!(
                "  - {{ kind: nvlink, between: [gpu{a}, gpu{b}], bandwidth: {width} GB/s }}\n"
            ));
        }
        Topology::parse(&text, "t", None, None).unwrap()
    }

    #[test]
    fn bridged_pairs_are_tensor_parallel_groups() {
        let bridged = with_links(4, &[(0, 2, 300), (1, 3, 300)]);
        assert_eq!(groups(&bridged, 1, 2, 2), [[0, 2], [1, 3]]);
        assert_eq!(groups(&bridged, 1, 1, 2), [[0, 2]]);
    }

    #[test]
    fn groups_stay_on_a_socket_and_stages_in_a_node() {
        let l40s = topology("8xl40s-pcie", 1);
        assert_eq!(groups(&l40s, 1, 2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(groups(&l40s, 1, 1, 2), [[0, 1]]);
        let two = topology("dgx-h100", 2);
        assert_eq!(groups(&two, 1, 2, 8), [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]);
        assert_eq!(groups(&two, 1, 1, 16)[0].len(), 16);
        let mesh = Mesh::new(1, 2, 4).unwrap();
        let placement = place(&l40s, mesh).unwrap();
        assert_eq!(group_path(&l40s, mesh, &placement, 5), Some((31_500_000_000, EdgeKind::Pcie)));
        let one = Mesh::new(1, 1, 1).unwrap();
        assert_eq!(group_path(&l40s, one, &place(&l40s, one).unwrap(), 0), None);
    }

    #[test]
    fn too_few_gpus_are_refused_with_both_numbers() {
        let error = place(&topology("dgx-h100", 1), Mesh::new(1, 2, 8).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "16 ranks need 16 GPUs, but dgx-h100 has 8");
        assert!(error.help().unwrap().contains("--nodes 2"));
    }

    #[test]
    fn a_thousand_gpus_are_placed() {
        assert_eq!(groups(&topology("dgx-h100", 128), 16, 8, 8).len(), 128);
    }

    proptest! {
        #[test]
        fn every_rank_has_its_own_gpu_and_no_group_is_worse_placed_than_in_order(
            gpus in 1u32..9, tp in 1u32..5, pp in 1u32..3,
            links in prop::collection::vec((0u32..9, 0u32..9, 11u32..400), 0..12),
        ) {
            let links: Vec<_> = links.into_iter().filter(|(a, b, _)| a != b && *a < gpus && *b < gpus).collect();
            let topology = with_links(gpus, &links);
            let mesh = Mesh::new(1, pp, tp).unwrap();
            let Ok(placement) = place(&topology, mesh) else {
                prop_assert!(pp * tp > gpus);
                return Ok(());
            };
            let mut used = placement.gpu_of_rank.clone();
            used.sort_unstable();
            used.dedup();
            prop_assert_eq!(used.len(), (pp * tp) as usize);
            let in_order = Placement { gpu_of_rank: (0..(pp * tp) as usize).collect() };
            let worst = |placement: &Placement| {
                (0..pp * tp).filter_map(|rank| group_path(&topology, mesh, placement, rank)).map(|path| path.0).min()
            };
            prop_assert!(worst(&placement) >= worst(&in_order));
        }
    }
}
