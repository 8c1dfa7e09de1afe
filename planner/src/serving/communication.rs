//! How long collectives take: latency and bandwidth (α–β) over the connections of a group.
//!
//! Hockney's model (1994), for the algorithms that NCCL and the engines have; of those that a group can do the fastest counts.

use super::Assumptions;

/// How the ranks of a group reach each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Group {
    /// How many there are; at least 2.
    pub ranks: u32,
    /// Over how many nodes, with as many ranks in each.
    pub nodes: u32,
    /// What each rank sends to the next in the rings inside a node, all rings together, in bytes a second.
    pub ring: f64,
    /// The same between nodes, over all network cards of a node together; infinite where there is one node.
    pub between: f64,
    /// From one rank to the next inside a node, in seconds.
    pub hop: f64,
    /// From one node to the next.
    pub network_hop: f64,
    /// Whether every rank of a node writes straight into the memory of every other, over NVLink or xGMI.
    pub direct: bool,
    /// Whether a switch adds up on the way (NVLink SHARP).
    pub in_switch: bool,
}

/// How a collective is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// Round a ring, twice (Patarasuk and Yuan 2009).
    Ring,
    /// Up and down a double binary tree of nodes, rings inside them (Sanders et al. 2009).
    Tree,
    /// Every rank reads all of every other.
    OneShot,
    /// Every rank adds up a share that it reads of every other, and all read the shares.
    TwoShot,
    /// Switches add up.
    InSwitch,
    /// Straight from one rank to another.
    PointToPoint,
}

/// How long a collective takes, and how it is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CollectiveTime {
    /// Seconds.
    pub seconds: f64,
    /// How.
    pub algorithm: Algorithm,
}

const NOTHING: CollectiveTime = CollectiveTime { seconds: 0.0, algorithm: Algorithm::PointToPoint };

/// Largest message that engines add up in one shot, and in two (vLLM's and TensorRT-LLM's custom all-reduces).
const ONE_SHOT_BYTES: f64 = 512.0 * 1024.0;
const TWO_SHOT_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// An all-reduce of `bytes` bytes on each of `n` ranks.
///
/// - ring: `c + 2 (n-1) α + 2 (n-1)/n S/B`, between nodes with what a node sends in place of `B` where that is less;
/// - tree, over several nodes: `c + 2 (g-1) α + 2 log2(m) α_net + 2 S / min(B, B_net)`;
/// - one shot, in a node: `c₁ + (n-1) S/B`; two shots: `2 c₁ + 2 (n-1)/n S/B`;
/// - in the switch: `c + 2 α + (1 + 1/n) S/B`.
pub fn all_reduce(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let (ring, between) = (group.ring * speed.links, group.between * speed.links);
    let (start, one_shot) = (seconds(speed.collective), seconds(speed.one_shot));
    let narrowest = ring.min(between);
    let of_node = (n / m).max(1.0);
    let hops = 2.0 * ((n - m) * group.hop + (m - 1.0) * group.network_hop);
    let mut ways = vec![(Algorithm::Ring, start + hops + 2.0 * (n - 1.0) / n * bytes / narrowest)];
    if m > 1.0 {
        let up = 2.0 * ((of_node - 1.0) * group.hop + m.log2().ceil() * group.network_hop);
        ways.push((Algorithm::Tree, start + up + 2.0 * bytes / narrowest));
    }
    if group.direct && m <= 1.0 {
        if bytes <= ONE_SHOT_BYTES {
            ways.push((Algorithm::OneShot, one_shot + (n - 1.0) * bytes / ring));
        }
        if bytes <= TWO_SHOT_BYTES {
            ways.push((Algorithm::TwoShot, 2.0 * one_shot + 2.0 * (n - 1.0) / n * bytes / ring));
        }
        if group.in_switch {
            ways.push((Algorithm::InSwitch, start + 2.0 * group.hop + (1.0 + 1.0 / n) * bytes / ring));
        }
    }
    fastest(&ways)
}

/// An all-gather of `bytes` bytes from each rank, or a reduce-scatter that leaves as many: `c + (n-1) α + (n-1) S/B`.
pub fn all_gather(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let narrowest = group.ring.min(group.between) * speed.links;
    let hops = (n - m) * group.hop + (m - 1.0) * group.network_hop;
    let taken = seconds(speed.collective) + hops + (n - 1.0) * bytes / narrowest;
    CollectiveTime { seconds: taken, algorithm: Algorithm::Ring }
}

/// An all-to-all in which each rank sends `bytes` bytes in all, evenly to all ranks: inside a node at the speed of a rank's links,
/// between nodes at its share of the node's network: `c + α + max(S (g-1)/n / B, S (n-g)/n / (B_net/g))`.
pub fn all_to_all(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let of_node = (n / m).max(1.0);
    let inside = bytes * (of_node - 1.0) / n / (group.ring * speed.links);
    let outside =
        if m > 1.0 { bytes * (n - of_node) / n / (group.between * speed.links / of_node) } else { 0.0 };
    let hop = if m > 1.0 { group.network_hop } else { group.hop };
    let taken = seconds(speed.collective) + hop + inside.max(outside);
    CollectiveTime { seconds: taken, algorithm: Algorithm::PointToPoint }
}

/// `bytes` bytes from each rank of a pipeline stage to one of the next: `c + α + S/B`.
pub fn send(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (width, hop) =
        if group.nodes > 1 { (group.between, group.network_hop) } else { (group.ring, group.hop) };
    let taken = seconds(speed.collective) + hop + bytes / (width * speed.links);
    CollectiveTime { seconds: taken, algorithm: Algorithm::PointToPoint }
}

fn fastest(ways: &[(Algorithm, f64)]) -> CollectiveTime {
    let best = ways.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    best.map_or(NOTHING, |&(algorithm, seconds)| CollectiveTime { seconds, algorithm })
}

pub(super) fn seconds(latency: crate::topology::Latency) -> f64 {
    latency.nanoseconds() as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nvlink(ranks: u32) -> Group {
        Group {
            ranks,
            nodes: 1,
            ring: 450e9,
            between: f64::INFINITY,
            hop: 6e-7,
            network_hop: 0.0,
            direct: true,
            in_switch: false,
        }
    }

    fn cluster(ranks: u32, nodes: u32) -> Group {
        Group { nodes, between: 400e9, network_hop: 2.7e-6, ..nvlink(ranks) }
    }

    #[test]
    fn a_rank_alone_waits_for_nobody() {
        let assumptions = Assumptions::built_in().unwrap();
        assert_eq!(all_reduce(None, 1e9, &assumptions).seconds, 0.0);
        assert_eq!(all_to_all(None, 1e9, &assumptions).seconds, 0.0);
    }

    #[test]
    fn small_messages_go_in_one_shot_and_large_ones_round_the_ring() {
        let assumptions = Assumptions::built_in().unwrap();
        let way = |group: Group, bytes: f64| all_reduce(Some(&group), bytes, &assumptions).algorithm;
        assert_eq!(way(nvlink(8), 8192.0), Algorithm::OneShot);
        assert_eq!(way(nvlink(8), 4e6), Algorithm::TwoShot);
        assert_eq!(way(nvlink(8), 1e9), Algorithm::Ring);
        assert_eq!(way(Group { in_switch: true, ..nvlink(8) }, 1e9), Algorithm::InSwitch);
        assert_eq!(way(Group { direct: false, ..nvlink(8) }, 8192.0), Algorithm::Ring);
        assert_eq!(way(cluster(64, 8), 8192.0), Algorithm::Tree);
        // What nccl-tests calls bus bandwidth comes near the links'.
        let large = all_reduce(Some(&nvlink(8)), 8e9, &assumptions).seconds;
        let bus = 2.0 * 7.0 / 8.0 * 8e9 / large;
        assert!((bus / (450e9 * assumptions.speed.links) - 1.0).abs() < 0.01, "{bus}");
    }

    proptest! {
        #[test]
        fn more_bytes_or_narrower_links_never_take_less(
            ranks in 2u32..17, nodes in 1u32..5, bytes in 1.0f64..1e9, more in 0.0f64..1e9, narrower in 0.1f64..1.0,
        ) {
            let assumptions = Assumptions::built_in().unwrap();
            let group = if nodes > 1 { cluster(ranks * nodes, nodes) } else { nvlink(ranks) };
            let narrow = Group { ring: group.ring * narrower, between: group.between * narrower, ..group };
            for of in [all_reduce, all_gather, all_to_all, send] {
                let time = |group: &Group, bytes: f64| of(Some(group), bytes, &assumptions).seconds;
                prop_assert!(time(&group, bytes) > 0.0);
                prop_assert!(time(&narrow, bytes) >= time(&group, bytes));
                // Where engines change the algorithm the time may jump, but down it does not go.
                prop_assert!(time(&group, bytes + more) >= time(&group, bytes) * 0.999);
            }
        }
    }
}
