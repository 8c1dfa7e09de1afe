//! From a matrix to hubs.
//!
//! The matrix tells of each pair how far up the tree of PCIe their ways meet, so devices at most so far apart form the sets of
//! that level: those behind one switch, behind several, at one host bridge, in one NUMA node. Of GPUs with NVLinks it tells the
//! links instead; these are placed by what they are near to, and by their CPUs.

use super::{
    fabric::{Fabric, Links},
    kinds::Kinds,
    matrix::{Matrix, Relation},
    plugged::{self, Card, Plugged},
    speeds::{self, gigabytes},
};
use crate::topology::{HubKind, schema::Document};

/// Connects the GPUs of `document` as the matrix tells.
pub(super) fn connect(matrix: &Matrix, kinds: &Kinds, document: &mut Document, notes: &mut Vec<String>) {
    let links = Links { kinds, sm: &[] };
    let fabric = Fabric::of_matrix(matrix, &links, notes);
    fabric.write(&links, document, notes);
    let levels = Levels::of(matrix, notes);
    let slots: Vec<u64> = (0..matrix.gpus).map(|gpu| speeds::card_slot(kinds.of(gpu))).collect();
    let slot = slots.iter().copied().max().unwrap_or(speeds::USUAL_SLOT);
    let socket = speeds::usual_socket(slot);
    let roots = Builder { matrix, levels: &levels, slots: &slots, slot }.roots();
    note_assumed(matrix, kinds, slot, (roots.len() > 1).then_some(socket), notes);
    let mut numbers: Vec<u32> = roots.iter().filter_map(|root| root.numa).collect();
    numbers.sort_unstable();
    if let Some([number, ..]) = numbers.windows(2).find(|pair| pair[0] == pair[1]) {
        notes
            .push(format!("GPUs of NUMA node {number} are SYS apart, as if in several: they are kept apart"));
    }
    plugged::write(roots, socket, "network", document);
}

fn note_assumed(matrix: &Matrix, kinds: &Kinds, slot: u64, socket: Option<u64>, notes: &mut Vec<String>) {
    speeds::note_unknown_slots((0..matrix.gpus).map(|gpu| kinds.of(gpu)), notes);
    if let Some(socket) = socket {
        notes.push(format!(
            "a matrix does not tell the bandwidth between CPUs: {} taken, usual with such slots",
            gigabytes(socket)
        ));
    }
    if !matrix.nics.is_empty() {
        notes.push(format!(
            "a matrix does not tell the speed of network cards: {} taken, all that a slot passes",
            gigabytes(slot)
        ));
    }
    if matrix.affinity.iter().any(|affinity| !affinity.numa.is_empty() && affinity.numa_node().is_none()) {
        notes.push("GPUs near several NUMA nodes: their numbers are left out".to_owned());
    }
}

/// The levels of the tree from its leaves.
const LEVELS: [Relation; 4] = [Relation::Pix, Relation::Pxb, Relation::Phb, Relation::Node];

/// Of each level which set each device is in: the smallest number of any device of the set.
struct Levels([Vec<usize>; LEVELS.len()]);

impl Levels {
    fn of(matrix: &Matrix, notes: &mut Vec<String>) -> Self {
        let devices = matrix.devices();
        let mut sets: Vec<usize> = (0..devices).collect();
        let levels = LEVELS.map(|level| {
            for from in 0..devices {
                for to in from + 1..devices {
                    let relation = matrix.relation(from, to);
                    if relation <= level && !matches!(relation, Relation::Own | Relation::Links(_)) {
                        join(&mut sets, from, to);
                    }
                }
            }
            if level >= Relation::Phb {
                Self::join_by_cpus(matrix, level, &mut sets);
            }
            sets.clone()
        });
        let found = Self(levels);
        found.note_closer(matrix, notes);
        found
    }

    /// GPUs with NVLinks between them whose CPUs are the same are at one host bridge, or in one NUMA node, unless something
    /// in either's set is known to be farther from something in the other's.
    fn join_by_cpus(matrix: &Matrix, level: Relation, sets: &mut [usize]) {
        for from in 0..matrix.gpus {
            for to in from + 1..matrix.gpus {
                let linked = matches!(matrix.relation(from, to), Relation::Links(_));
                let same = matrix.affinity[from].place() == matrix.affinity[to].place();
                if !linked || !same || sets[from] == sets[to] {
                    continue;
                }
                let members = |of: usize| -> Vec<usize> {
                    (0..sets.len()).filter(|&device| sets[device] == sets[of]).collect()
                };
                let (here, there) = (members(from), members(to));
                if !here.iter().any(|&a| there.iter().any(|&b| matrix.relation(a, b) > level)) {
                    join(sets, from, to);
                }
            }
        }
    }

    /// The level at which two devices meet; `None` if in different NUMA nodes.
    fn meet(&self, from: usize, to: usize) -> Option<Relation> {
        let mut levels = LEVELS.into_iter().zip(&self.0);
        levels.find(|(_, sets)| sets[from] == sets[to]).map(|(level, _)| level)
    }

    /// Says where the matrix is no tree: of two devices near to a third, but farther from each other.
    fn note_closer(&self, matrix: &Matrix, notes: &mut Vec<String>) {
        let name = |device: usize| match device.checked_sub(matrix.gpus) {
            None => format!("GPU{device}"),
            Some(nic) => format!("NIC{nic}"),
        };
        let mut closer = 0;
        let mut example = None;
        for from in 0..matrix.devices() {
            for to in from + 1..matrix.devices() {
                let told = matrix.relation(from, to);
                if let Some(level) = self.meet(from, to).filter(|level| *level < told) {
                    closer += 1;
                    example.get_or_insert_with(|| {
                        format!("{} and {}, {told} there and {level} here", name(from), name(to))
                    });
                }
            }
        }
        if let Some(example) = example {
            notes.push(format!(
                "the matrix is no tree; taken nearer than in it: {}, first {example}",
                crate::size::count(closer, "pair")
            ));
        }
    }
}

/// Puts the sets of two devices together.
fn join(sets: &mut [usize], from: usize, to: usize) {
    let (kept, gone) = (sets[from].min(sets[to]), sets[from].max(sets[to]));
    if kept == gone {
        return;
    }
    for set in sets.iter_mut().filter(|set| **set == gone) {
        *set = kept;
    }
}

struct Builder<'a> {
    matrix: &'a Matrix,
    levels: &'a Levels,
    /// Bytes per second of each GPU's slot.
    slots: &'a [u64],
    /// And of all else.
    slot: u64,
}

impl Builder<'_> {
    /// The NUMA nodes.
    fn roots(&self) -> Vec<Plugged> {
        let all: Vec<usize> = (0..self.matrix.devices()).collect();
        let nodes = self.split(&all, 3).into_iter().map(|devices| {
            let bridges = self.split(&devices, 2);
            let mut root = match bridges.as_slice() {
                [_] => self.bridge(&devices),
                _ => {
                    let mut root = Plugged::new(HubKind::NumaNode, self.slot);
                    root.below = bridges.iter().map(|bridge| self.bridge(bridge)).collect();
                    root
                }
            };
            let gpus = devices.iter().filter_map(|&device| self.matrix.affinity.get(device));
            let mut numbers: Vec<Option<u32>> = gpus.map(super::matrix::Affinity::numa_node).collect();
            numbers.dedup();
            root.numa = numbers.first().copied().flatten().filter(|_| numbers.len() == 1);
            root
        });
        nodes.collect()
    }

    fn bridge(&self, devices: &[usize]) -> Plugged {
        let mut bridge = Plugged::new(HubKind::HostBridge, self.slot);
        for behind in self.split(devices, 1) {
            match behind.as_slice() {
                [one] => self.plug(*one, &mut bridge),
                several => bridge.below.push(self.switches(several)),
            }
        }
        bridge
    }

    /// The switch of devices at most [`Relation::Pxb`] apart, with further ones below it if they are not all behind one.
    fn switches(&self, devices: &[usize]) -> Plugged {
        let mut switch = Plugged::new(HubKind::PcieSwitch, self.slot);
        let behind = self.split(devices, 0);
        for set in &behind {
            match set.as_slice() {
                several @ [_, _, ..] if behind.len() > 1 => {
                    let mut below = Plugged::new(HubKind::PcieSwitch, self.slot);
                    several.iter().for_each(|&device| self.plug(device, &mut below));
                    switch.below.push(below);
                }
                devices => devices.iter().for_each(|&device| self.plug(device, &mut switch)),
            }
        }
        switch
    }

    fn plug(&self, device: usize, hub: &mut Plugged) {
        match (self.slots.get(device), u32::try_from(device)) {
            (Some(&slot), Ok(gpu)) => hub.gpus.push((gpu, slot)),
            _ => hub.cards.push(Card {
                name: self.matrix.nics[device - self.matrix.gpus].clone(),
                bandwidth: self.slot,
                slot: None,
            }),
        }
    }

    /// Divides devices by their sets of a level, in the order of their first devices.
    fn split(&self, devices: &[usize], level: usize) -> Vec<Vec<usize>> {
        let sets = &self.levels.0[level];
        let mut split: Vec<Vec<usize>> = Vec::new();
        for &device in devices {
            match split.iter_mut().find(|known| sets[known[0]] == sets[device]) {
                Some(known) => known.push(device),
                None => split.push(vec![device]),
            }
        }
        split
    }
}
