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
    /// Switches add up, and a double binary tree of nodes where there are several.
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

/// How NCCL moves bytes: with a flag beside each word, beside each 128 bytes, or in large chunks. The later ones are slower to begin
/// and let more through.
///
/// Source: the latencies and shares of bandwidth of NCCL's own model (`src/graph/tuning.cc`), as multiples of the first one's, which
/// is what topologies and assumptions have.
struct Protocol {
    start: f64,
    hop: f64,
    network_hop: f64,
    share: f64,
    network_share: f64,
    /// Whether it takes NVLink or the like.
    direct: bool,
}

const PROTOCOLS: [Protocol; 3] = [
    Protocol { start: 1.0, hop: 1.0, network_hop: 1.0, share: 0.25, network_share: 0.25, direct: false },
    Protocol { start: 2.1, hop: 3.2, network_hop: 1.5, share: 0.92, network_share: 0.92, direct: true },
    Protocol { start: 1.3, hop: 5.7, network_hop: 5.2, share: 1.0, network_share: 1.0, direct: false },
];

/// What NCCL makes of switches that add up: only the protocol that begins last, after what it has as 25 µs, where the quickest has
/// 6.6 µs for a ring; and 0.85 of the links (`nvlsEfficiency` of Hopper).
const IN_SWITCH: Protocol =
    Protocol { start: 3.8, hop: 0.0, network_hop: 5.2, share: 0.85, network_share: 1.0, direct: true };

/// Trees of nodes: later to begin between nodes than rings, and 0.92 of their bandwidth.
const TREES: [Protocol; 3] = [
    Protocol { network_hop: 1.85, share: 0.25 * 0.92, network_share: 0.25 * 0.92, ..PROTOCOLS[0] },
    Protocol { network_hop: 3.15, share: 0.92 * 0.92, network_share: 0.92 * 0.92, ..PROTOCOLS[1] },
    Protocol { network_hop: 5.2, share: 0.92, network_share: 0.92, ..PROTOCOLS[2] },
];

/// What is on the way at a time, of all channels: half a MiB of each of 16.
const ON_THE_WAY_BYTES: f64 = 8.0 * 1024.0 * 1024.0;

/// What a collective does inside nodes, or between them.
#[derive(Clone, Copy)]
struct Part {
    /// One after the other.
    hops: f64,
    /// Over the narrowest link.
    bytes: f64,
}

impl Protocol {
    /// Seconds of a collective: `c + hops α + hops_net α_net + t`, where `t` is the longer of `bytes / (share B)` inside nodes and
    /// `bytes_net / (share B_net)` between them, which go on at the same time. Where `first` is the share of the message that must be
    /// through the one before the other can begin, that share of the shorter one comes on top.
    fn seconds(
        &self,
        group: &Group,
        [inside, outside]: [Part; 2],
        first: f64,
        assumptions: &Assumptions,
    ) -> f64 {
        let speed = &assumptions.speed;
        let in_nodes = inside.bytes / (group.ring * speed.links * self.share);
        let in_network = outside.bytes / (group.between * speed.network * self.network_share);
        seconds(speed.collective) * self.start
            + inside.hops * group.hop * self.hop
            + outside.hops * group.network_hop * self.network_hop
            + in_nodes.max(in_network)
            + in_nodes.min(in_network) * first
    }
}

impl Group {
    /// Seconds of a collective of NCCL's in that of some protocols which is quickest.
    fn quickest(
        &self,
        protocols: &[Protocol],
        parts: [Part; 2],
        first: f64,
        assumptions: &Assumptions,
    ) -> f64 {
        let of = |protocol: &Protocol| protocol.seconds(self, parts, first, assumptions);
        protocols
            .iter()
            .filter(|protocol| self.direct || !protocol.direct)
            .map(of)
            .fold(f64::INFINITY, f64::min)
    }

    /// Ranks of a node.
    fn of_node(&self) -> f64 {
        (f64::from(self.ranks) / f64::from(self.nodes.max(1))).max(1.0)
    }
}

/// An all-reduce of `bytes` bytes on each of `n` ranks, as engines do it: by NCCL, or inside a node by kernels of their own.
///
/// - one shot: `c₁ + (n-1) S/B`; two shots: `2 c₁ + 2 (n-1)/n S/B`.
pub fn all_reduce(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let mut ways = vec![nccl_all_reduce(group, bytes, assumptions)];
    let n = f64::from(group.ranks);
    if group.direct && group.nodes <= 1 {
        let ring = group.ring * assumptions.speed.links;
        let one_shot = seconds(assumptions.speed.one_shot);
        let mut add = |algorithm, seconds| ways.push(CollectiveTime { seconds, algorithm });
        if bytes <= ONE_SHOT_BYTES {
            add(Algorithm::OneShot, one_shot + (n - 1.0) * bytes / ring);
        }
        if bytes <= TWO_SHOT_BYTES {
            add(Algorithm::TwoShot, 2.0 * one_shot + 2.0 * (n - 1.0) / n * bytes / ring);
        }
    }
    fastest(&ways)
}

/// An all-reduce of `bytes` bytes on each of `n` ranks, `g` in each of `m` nodes, as NCCL does it: by that protocol and algorithm
/// which is fastest.
///
/// - ring: `2 (n-m)` hops in nodes and `2 (m-1)` between them, `2 (n-1)/n S` bytes over each link;
/// - tree, over several nodes: `2 (g-1)` and `2 log2(m)` hops, `2 S` bytes in a node; between two nodes `S`, between more `2 S`, as a
///   node has two others below it in one of the two trees, and none in the other;
/// - in the switch: `(1 + 1/g) S` bytes in a node, and between nodes as in a tree.
pub fn nccl_all_reduce(group: &Group, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let g = group.of_node();
    let mut ways = Vec::with_capacity(3);
    let mut add = |algorithm, seconds| ways.push(CollectiveTime { seconds, algorithm });
    let around = 2.0 * (n - 1.0) / n * bytes;
    let ring = [Part { hops: 2.0 * (n - m), bytes: around }, Part { hops: 2.0 * (m - 1.0), bytes: around }];
    add(Algorithm::Ring, group.quickest(&PROTOCOLS, ring, 0.0, assumptions));
    let first = (ON_THE_WAY_BYTES / bytes).min(1.0);
    let tree = Part { hops: 2.0 * m.log2().ceil(), bytes: if m > 2.0 { 2.0 * bytes } else { bytes } };
    if m > 1.0 {
        let inside = Part { hops: 2.0 * (g - 1.0), bytes: 2.0 * bytes };
        add(Algorithm::Tree, group.quickest(&TREES, [inside, tree], first, assumptions));
    }
    if group.in_switch {
        let inside = Part { hops: 0.0, bytes: (1.0 + 1.0 / g) * bytes };
        add(Algorithm::InSwitch, IN_SWITCH.seconds(group, [inside, tree], first, assumptions));
    }
    fastest(&ways)
}

/// An all-gather of `bytes` bytes from each rank, or a reduce-scatter that leaves as many: `n-m` hops in nodes and `m-1` between
/// them, `(n-1) S` bytes over each link.
pub fn all_gather(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let around = (n - 1.0) * bytes;
    let ring = [Part { hops: n - m, bytes: around }, Part { hops: m - 1.0, bytes: around }];
    let seconds = group.quickest(&PROTOCOLS, ring, 0.0, assumptions);
    CollectiveTime { seconds, algorithm: Algorithm::Ring }
}

/// An all-to-all in which each rank sends `bytes` bytes in all, evenly to all `n` ranks, `g` in a node: inside a node at the speed of a rank's links,
/// between nodes at its share of the node's network: `c + α + max(S (g-1)/n / B, S (n-g)/n / (B_net/g))`.
pub fn all_to_all(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (n, m) = (f64::from(group.ranks), f64::from(group.nodes.max(1)));
    let of_node = group.of_node();
    let inside = bytes * (of_node - 1.0) / n / (group.ring * speed.links);
    let outside =
        if m > 1.0 { bytes * (n - of_node) / n / (group.between * speed.network / of_node) } else { 0.0 };
    let hop = if m > 1.0 { group.network_hop } else { group.hop };
    let taken = seconds(speed.collective) + hop + inside.max(outside);
    CollectiveTime { seconds: taken, algorithm: Algorithm::PointToPoint }
}

/// `bytes` bytes from each rank of a pipeline stage to one of the next: `c + α + S/B`.
pub fn send(group: Option<&Group>, bytes: f64, assumptions: &Assumptions) -> CollectiveTime {
    let Some(group) = group else { return NOTHING };
    let speed = &assumptions.speed;
    let (width, hop) = if group.nodes > 1 {
        (group.between * speed.network, group.network_hop)
    } else {
        (group.ring * speed.links, group.hop)
    };
    let taken = seconds(speed.collective) + hop + bytes / width;
    CollectiveTime { seconds: taken, algorithm: Algorithm::PointToPoint }
}

fn fastest(ways: &[CollectiveTime]) -> CollectiveTime {
    ways.iter().copied().min_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap_or(NOTHING)
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
