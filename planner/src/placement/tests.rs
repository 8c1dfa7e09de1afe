//! Machines that are in use, and random ones.

use super::*;
use crate::topology::{EdgeKind, builtin};
use proptest::prelude::*;

fn built_in(name: &str, nodes: Option<u32>) -> Topology {
    Topology::parse(builtin(name).unwrap(), name, nodes, None).unwrap()
}

fn parsed(text: &str) -> Topology {
    Topology::parse(text, "test", None, None).unwrap()
}

/// The GPUs of each tensor-parallel group.
fn groups(topology: &Topology, dp: u32, pp: u32, tp: u32) -> Vec<Vec<usize>> {
    let mesh = Mesh::new(dp, pp, tp).unwrap();
    place(topology, mesh, &[]).unwrap().groups(mesh).map(<[usize]>::to_vec).collect()
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
    parsed(&text)
}

/// GPUs 0 and 1 have 8 GiB, 2 and 3 have 16, all on one hub.
fn unequal() -> Topology {
    parsed(
        "topology: t\nabout: x\ngpu:\n  - { kind: Small, memory: 8 GiB, gpus: 0-1 }\n  - { kind: Large, memory: 16 GiB, gpus: 2-3 }\ngpus: 4\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-3, bandwidth: 10 GB/s }\n",
    )
}

#[test]
fn bridged_pairs_are_tensor_parallel_groups() {
    let bridged = with_links(4, &[(0, 2, 300), (1, 3, 300)]);
    assert_eq!(groups(&bridged, 1, 2, 2), [[0, 2], [1, 3]]);
    assert_eq!(groups(&bridged, 1, 1, 2), [[0, 2]]);
    // Four stages of one GPU each: two of the three ways between them are bridges.
    assert_eq!(groups(&bridged, 1, 4, 1), [[0], [2], [1], [3]]);
    let mesh = Mesh::new(1, 2, 2).unwrap();
    let placement = place(&bridged, mesh, &[]).unwrap();
    let second = placement.runner_up().unwrap();
    assert_eq!(second.bytes_per_second, 10_000_000_000);
    assert_ne!(second.groups, [[0, 2], [1, 3]]);
}

#[test]
fn a_cube_mesh_is_cut_into_its_quads_and_its_double_links() {
    let dgx1 = built_in("dgx-1-v100", None);
    assert_eq!(groups(&dgx1, 1, 2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]);
    let doubles = [(0, 3), (0, 4), (1, 2), (1, 5), (2, 3), (4, 7), (5, 6), (6, 7)];
    for pair in groups(&dgx1, 4, 1, 2) {
        assert!(doubles.contains(&(pair[0], pair[1])), "{pair:?}");
    }
    assert_eq!(dgx1.ring(&[0, 1, 2, 3, 4, 5, 6, 7]).unwrap().bytes_per_second, 150_000_000_000);
}

#[test]
fn groups_stay_on_a_socket_and_stages_in_a_node() {
    let l40s = built_in("8xl40s-pcie", None);
    assert_eq!(groups(&l40s, 1, 2, 4), [[0, 1, 2, 3], [4, 5, 6, 7]]);
    assert_eq!(groups(&l40s, 1, 1, 2), [[0, 1]]);
    let two = built_in("dgx-h100", Some(2));
    assert_eq!(groups(&two, 1, 2, 8), [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]);
    assert_eq!(groups(&two, 1, 1, 16)[0].len(), 16);
    // Two copies: each in a node of its own, whether of two stages or of one.
    assert_eq!(groups(&two, 2, 2, 4)[2], [8, 9, 10, 11]);
    assert_eq!(groups(&two, 2, 1, 4), [[0, 1, 2, 3], [8, 9, 10, 11]]);
    // Three pairs to a node would leave a copy of two stages astride: it starts in the next node.
    let six = "topology: t\nabout: x\ngpu: { kind: X, memory: 1 GiB }\ngpus: 6\nnodes: 2\nhubs:\n  - { name: nvs, kind: nvswitch, gpus: 0-5, bandwidth: 10 GB/s }\nnetwork: { kind: Ethernet, bandwidth: 1 GB/s, via: [nvs] }\n";
    assert_eq!(groups(&parsed(six), 2, 2, 2), [[0, 1], [2, 3], [6, 7], [8, 9]]);
    assert_eq!(groups(&parsed(six), 3, 2, 2)[2..4], [[4, 5], [6, 7]]);
    // A group wider than a node takes as many GPUs of each.
    assert_eq!(groups(&parsed(six), 1, 1, 8), [[0, 1, 2, 3, 6, 7, 8, 9]]);
}

#[test]
fn groups_of_a_rack_stay_in_its_nvlink_domain() {
    let rack = built_in("gb200-nvl72", None);
    let sixteen = groups(&rack, 1, 4, 16);
    assert_eq!(sixteen[0], (0..16).collect::<Vec<_>>());
    assert_eq!(rack.ring(&sixteen[0]).unwrap().kind, EdgeKind::Nvlink);
    assert_eq!(rack.fabric_domains().len(), 1);
    assert_eq!(groups(&rack, 1, 1, 72)[0].len(), 72);
    assert_eq!(groups(&rack, 24, 1, 3).len(), 24);
    // Copies of four stages stay in a rack.
    let racks = built_in("gb200-nvl72", Some(36));
    for (dp, tp) in [(8, 4), (4, 8)] {
        for copy in groups(&racks, dp, 4, tp).chunks(4) {
            assert_eq!(copy[0][0] / 72, copy[3][tp as usize - 1] / 72, "{copy:?}");
        }
    }
    // Two racks: four groups of sixteen fit into the domain of each, and none leaves it.
    let two = built_in("gb200-nvl72", Some(36));
    for group in groups(&two, 8, 1, 16) {
        assert_eq!(group[0] / 72, group[15] / 72, "{group:?}");
        assert_eq!(two.ring(&group).unwrap().kind, EdgeKind::Nvlink);
    }
    assert_eq!(two.ring(&[0, 72]).unwrap().kind, EdgeKind::Network);
}

#[test]
fn ranks_are_placed_where_they_fit() {
    let machine = unequal();
    let gib = |sizes: &[u64]| sizes.iter().map(|size| size << 30).collect::<Vec<u64>>();
    let placed = |dp, pp, tp, needs: &[u64]| {
        let mesh = Mesh::new(dp, pp, tp).unwrap();
        let placement = place(&machine, mesh, &gib(needs)).unwrap();
        (0..mesh.world_size()).map(|rank| placement.gpu_of_rank(rank)).collect::<Vec<_>>()
    };
    assert_eq!(placed(1, 1, 2, &[8, 8]), [0, 1]);
    assert_eq!(placed(1, 1, 2, &[12, 12]), [2, 3]);
    // The second stage needs more than the small ones have.
    assert_eq!(placed(1, 2, 2, &[4, 4, 12, 12]), [0, 1, 2, 3]);
    assert_eq!(placed(1, 2, 2, &[12, 12, 4, 4]), [2, 3, 0, 1]);
    // Within a group, who needs most gets the most.
    assert_eq!(placed(1, 1, 4, &[12, 4, 12, 4]), [2, 0, 3, 1]);
    // A node with room for two groups of small needs has it for one of large needs.
    let two = parsed(
        "topology: t\nabout: x\ngpu:\n  - { kind: Small, memory: 8 GiB, gpus: 0-1 }\n  - { kind: Large, memory: 16 GiB, gpus: 2-3 }\ngpus: 4\nnodes: 2\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-3, bandwidth: 10 GB/s }\nnetwork: { kind: x, bandwidth: 1 GB/s, via: [cpu] }\n",
    );
    for (dp, pp) in [(1, 2), (2, 1)] {
        let mesh = Mesh::new(dp, pp, 2).unwrap();
        let placement = place(&two, mesh, &gib(&[12; 4])).unwrap();
        assert_eq!(placement.groups(mesh).collect::<Vec<_>>(), [[2, 3], [6, 7]], "dp {dp}, pp {pp}");
    }
    // Where nothing fits, something is still placed, for the refusal to speak of.
    assert_eq!(placed(1, 1, 4, &[99, 99, 99, 99]).len(), 4);
}

#[test]
fn too_few_gpus_are_refused_with_both_numbers() {
    let error = place(&built_in("dgx-h100", None), Mesh::new(1, 2, 8).unwrap(), &[]).unwrap_err();
    assert_eq!(error.to_string(), "16 ranks need 16 GPUs, but dgx-h100 has 8");
    assert!(error.help().unwrap().contains("--nodes 2"));
    let rack = place(&built_in("gb200-nvl72", None), Mesh::new(10, 1, 8).unwrap(), &[]).unwrap_err();
    assert!(rack.help().unwrap().contains("--nodes 20"), "{rack:?}");
}

#[test]
fn a_thousand_gpus_are_placed() {
    let cluster = built_in("dgx-h100", Some(128));
    assert_eq!(groups(&cluster, 16, 8, 8).len(), 128);
    assert_eq!(groups(&cluster, 1, 1, 1024)[0].len(), 1024);
    assert_eq!(groups(&cluster, 64, 8, 2).len(), 512);
}

#[test]
fn stages_are_neighbours_among_equally_fast_sets() {
    let bridged = with_links(4, &[(0, 2, 300), (1, 3, 300)]);
    assert_eq!(groups(&bridged, 1, 2, 1), [[0], [2]]);
    // A chain of eight, numbered otherwise.
    let chain = [1u32, 0, 2, 3, 4, 5, 6, 7];
    let links: Vec<_> = chain.windows(2).map(|ends| (ends[0], ends[1], 100)).collect();
    let found = groups(&with_links(8, &links), 1, 8, 1).concat();
    let are_linked = |a: usize, b: usize| {
        links.iter().any(|&(c, d, _)| [(c as usize, d as usize), (d as usize, c as usize)].contains(&(a, b)))
    };
    assert!(found.windows(2).all(|ends| are_linked(ends[0], ends[1])), "{found:?}");
}

#[test]
fn large_and_odd_machines_are_placed_without_trying_all() {
    // An eight by eight torus of links: more rings than could be tried.
    let torus: Vec<_> = (0..64u32)
        .flat_map(|at| {
            let (row, column) = (at / 8, at % 8);
            [(at, row * 8 + (column + 1) % 8, 25), (at, (row + 1) % 8 * 8 + column, 25)]
        })
        .collect();
    let torus = with_links(64, &torus);
    assert_eq!(groups(&torus, 1, 1, 64)[0].len(), 64);
    assert_eq!(groups(&torus, 8, 1, 8).len(), 8);
    // Small GPUs before large ones, and ranks for the large ones only.
    let text = "topology: t\nabout: x\ngpu:\n  - { kind: S, memory: 1 GiB, gpus: 0-31 }\n  - { kind: L, memory: 9 GiB, gpus: 32-63 }\ngpus: 64\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-63, bandwidth: 10 GB/s }\n";
    let mesh = Mesh::new(1, 1, 8).unwrap();
    let placement = place(&parsed(text), mesh, &[5 << 30; 8]).unwrap();
    assert!(placement.gpu_of_rank.iter().all(|&gpu| gpu >= 32));
    let none = place(&parsed(text), Mesh::new(8, 1, 8).unwrap(), &[5 << 30; 64]).unwrap();
    assert_eq!(none.gpu_of_rank.len(), 64);
}

#[test]
fn a_machine_too_large_for_every_choice_is_improved() {
    // Pairs linked 0-2, 1-3, 4-6, … but each neighbour a little as well, which leads a greedy choice astray.
    let links: Vec<_> = (0..24u32)
        .step_by(4)
        .flat_map(|at| [(at, at + 2, 90), (at + 1, at + 3, 90), (at, at + 1, 100)])
        .collect();
    let machine = with_links(24, &links);
    for set in groups(&machine, 12, 1, 2) {
        assert_eq!(machine.ring(&set).unwrap().bytes_per_second, 90_000_000_000, "{set:?}");
    }
}

/// The sum and the least ring bandwidth of the best choice, by trying every one.
fn by_trying_all(topology: &Topology, tp: usize, count: usize, free: &[usize]) -> Option<(u64, u128)> {
    if count == 0 {
        return Some((u64::MAX, 0));
    }
    let mut best = None;
    for cut in 0u32..1 << free.len() {
        if cut.count_ones() as usize != tp {
            continue;
        }
        let taken = |at: usize| cut >> at & 1 == 1;
        let set: Vec<usize> = (0..free.len()).filter(|&at| taken(at)).map(|at| free[at]).collect();
        let rest: Vec<usize> = (0..free.len()).filter(|&at| !taken(at)).map(|at| free[at]).collect();
        let own = topology.ring(&set).map_or(u64::MAX, |ring| ring.bytes_per_second);
        let Some((slowest, all)) = by_trying_all(topology, tp, count - 1, &rest) else { continue };
        best = best.max(Some((slowest.min(own), all + u128::from(own))));
    }
    best
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_rank_has_its_own_gpu_and_no_choice_of_sets_is_faster(
        gpus in 2u32..7, tp in 2u32..4, pp in 1u32..3,
        links in prop::collection::vec((0u32..7, 0u32..7, 11u32..400), 0..12),
    ) {
        let links: Vec<_> = links.into_iter().filter(|(a, b, _)| a != b && *a < gpus && *b < gpus).collect();
        let topology = with_links(gpus, &links);
        let mesh = Mesh::new(1, pp, tp).unwrap();
        let Ok(placement) = place(&topology, mesh, &[]) else {
            prop_assert!(pp * tp > gpus);
            return Ok(());
        };
        let mut used = placement.gpu_of_rank.clone();
        used.sort_unstable();
        used.dedup();
        prop_assert_eq!(used.len(), (pp * tp) as usize);
        let rings: Vec<u64> =
            placement.groups(mesh).map(|set| topology.ring(set).unwrap().bytes_per_second).collect();
        let found = (rings.iter().copied().min().unwrap(), rings.iter().map(|&ring| u128::from(ring)).sum());
        let all: Vec<usize> = (0..gpus as usize).collect();
        prop_assert_eq!(Some(found), by_trying_all(&topology, tp as usize, pp as usize, &all));
    }

    #[test]
    fn ranks_fit_whenever_they_can(
        sizes in prop::collection::vec(1u64..6, 2..6),
        needs in prop::collection::vec(1u64..6, 1..5),
    ) {
        let mut text = String::from("topology: t\nabout: x\ngpu:\n");
        for (gpu, size) in sizes.iter().enumerate() {
            text.push_str(&format!("  - {{ kind: K{gpu}, memory: {size} GiB, gpus: {gpu} }}\n"));
        }
        let last = sizes.len() - 1;
        text.push_str(&format!(
            "gpus: {}\nhubs:\n  - {{ name: cpu, kind: host-bridge, gpus: 0-{last}, bandwidth: 10 GB/s }}\n",
            sizes.len()
        ));
        let topology = parsed(&text);
        for (pp, tp) in [(needs.len(), 1), (1, needs.len())] {
            let mesh = Mesh::new(1, u32::try_from(pp).unwrap(), u32::try_from(tp).unwrap()).unwrap();
            let bytes: Vec<u64> = needs.iter().map(|need| need << 30).collect();
            let Ok(placement) = place(&topology, mesh, &bytes) else { continue };
            let fits = (0..mesh.world_size()).all(|rank| {
                topology.kind_of(placement.gpu_of_rank(rank)).memory_bytes >= bytes[rank as usize]
            });
            let sorted = |values: &[u64]| {
                let mut sorted = values.to_vec();
                sorted.sort_unstable_by(|a, b| b.cmp(a));
                sorted
            };
            let could = sorted(&needs).iter().zip(sorted(&sizes)).all(|(need, size)| *need <= size);
            prop_assert_eq!(fits, could);
        }
    }
}
