//! From a tree of PCI devices to hubs.

use super::{
    Cpu, ImportProblem, LinkTarget, MAX_DEPTH, MAX_DEVICES, MAX_GPUS, MAX_NICS, PciDevice, PciGpu, PciTree,
    fabric::{Fabric, Links},
    kinds::{Kinds, Seen},
    matrix::Matrix,
    plugged::{self, Card, Plugged},
    speeds::{self, gigabytes},
};
use crate::{
    size::count,
    topology::{EdgeKind, HubKind, runs, schema::Document},
};
use std::collections::{BTreeMap, BTreeSet};

/// Of a network port of which nothing is known: 100 Gb/s, as NCCL takes it.
const USUAL_PORT: u64 = 12_500_000_000;

const INFINIBAND: u32 = 0x0207;
const ETHERNET: u32 = 0x0200;

/// A tree within bounds, with its GPUs found and numbered.
pub(super) struct Machine<'a> {
    tree: &'a PciTree,
    /// In the order of their numbers.
    pub(super) gpus: Vec<FoundGpu<'a>>,
}

/// A GPU of a tree.
pub(super) struct FoundGpu<'a> {
    device: &'a PciDevice,
    /// Its place among the GPUs in the order of the tree.
    place: usize,
}

impl FoundGpu<'_> {
    /// What the tree tells of it.
    pub(super) fn seen(&self) -> Seen {
        let gpu = self.device.gpu.as_ref();
        Seen {
            name: gpu.and_then(|gpu| gpu.name.clone()),
            pci: self.device.id.clone(),
            memory: gpu.and_then(|gpu| gpu.memory_bytes),
        }
    }
}

/// Whether any device of the tree is known to be a GPU.
pub(super) fn has_gpus(tree: &PciTree) -> bool {
    fn any(devices: &[PciDevice], depth: usize) -> bool {
        depth <= MAX_DEPTH && devices.iter().any(|device| is_gpu(device) || any(&device.devices, depth + 1))
    }
    tree.cpus.iter().any(|cpu| any(&cpu.devices, 1))
}

fn is_gpu(device: &PciDevice) -> bool {
    // A board's own display has the class of one, too.
    let of_maker = device.id.as_deref().is_none_or(|id| id.starts_with("10de:"));
    let class = device.class.map(|class| class >> 8);
    device.gpu.is_some()
        || (class == Some(0x0302) || class == Some(0x0300)) && of_maker
        || class == Some(0x1200) && device.id.as_deref().is_none_or(|id| id.starts_with("1002:"))
}

fn is_card(device: &PciDevice) -> bool {
    !device.ports.is_empty()
        || device.class.is_some_and(|class| class >> 16 == 0x02) && device.devices.is_empty()
}

impl<'a> Machine<'a> {
    pub(super) fn of(tree: &'a PciTree) -> Result<Self, ImportProblem> {
        let mut survey = Survey::default();
        for cpu in &tree.cpus {
            survey.look_at(&cpu.devices, 1)?;
        }
        let Survey { mut gpus, devices, .. } = survey;
        if gpus.is_empty() {
            return Err(ImportProblem::NoGpus { devices });
        }
        // The driver's numbers where all have one of their own; else by address, as the driver would.
        let number = |gpu: &FoundGpu<'_>| gpu.device.gpu.as_ref().and_then(|gpu| gpu.number);
        let numbers: BTreeSet<u32> = gpus.iter().filter_map(number).collect();
        if numbers.len() == gpus.len() {
            gpus.sort_by_key(number);
        } else {
            gpus.sort_by_key(|gpu| order_of_address(&gpu.device.address));
        }
        Ok(Self { tree, gpus })
    }

    /// Connects the GPUs of `document` as the tree tells; the NVLinks are those of `matrix` if there is one.
    pub(super) fn connect(
        &self,
        matrix: Option<&Matrix>,
        kinds: &Kinds,
        document: &mut Document,
        notes: &mut Vec<String>,
    ) {
        let sm: Vec<Option<u32>> =
            self.gpus.iter().map(|gpu| gpu.device.gpu.as_ref().and_then(|gpu| gpu.sm)).collect();
        let links = Links { kinds, sm: &sm };
        let (fabric, advice) = match matrix {
            Some(matrix) => (Fabric::of_matrix(matrix, &links, notes), ""),
            None => (
                self.fabric(notes),
                "; if they are linked, give what `nvidia-smi topo -m` prints with --matrix FILE",
            ),
        };
        fabric.note_missing(&links, advice, notes);
        fabric.write(&links, document, notes);
        let of_driver: Vec<u32> =
            self.gpus.iter().filter_map(|gpu| gpu.device.gpu.as_ref().and_then(|gpu| gpu.number)).collect();
        if (0..).zip(&of_driver).any(|(number, of_driver)| number != *of_driver) {
            notes.push(format!(
                "the GPUs that the driver numbers {} are numbered from 0 here",
                runs(&of_driver)
            ));
        }
        let mut numbers = vec![0; self.gpus.len()];
        for (number, gpu) in (0u32..).zip(&self.gpus) {
            numbers[gpu.place] = number;
        }
        let mut builder = Builder { kinds, numbers, places: 0, told: Told::default() };
        let roots: Vec<(&Cpu, Plugged)> =
            self.tree.cpus.iter().filter_map(|cpu| Some((cpu, builder.root(cpu)?))).collect();
        builder.told.note(notes);
        let socket = self.socket(&roots, kinds, notes);
        let network = match &builder.told.classes.into_iter().collect::<Vec<_>>()[..] {
            [INFINIBAND] => "InfiniBand",
            [ETHERNET] => "Ethernet",
            _ => "network",
        };
        plugged::write(roots.into_iter().map(|(_, root)| root).collect(), socket, network, document);
    }

    /// What the CPUs pass to each other.
    fn socket(&self, roots: &[(&Cpu, Plugged)], kinds: &Kinds, notes: &mut Vec<String>) -> u64 {
        let told = roots.iter().filter_map(|(cpu, _)| speeds::socket(cpu)).min();
        let widest = || (0..kinds.gpus()).map(|gpu| speeds::card_slot(kinds.of(gpu))).max();
        let socket = told.unwrap_or_else(|| speeds::usual_socket(widest().unwrap_or(speeds::USUAL_SLOT)));
        if roots.len() > 1 {
            notes.push(format!(
                "the bandwidth between CPUs is not told: {} taken, {}",
                gigabytes(socket),
                if told.is_some() { "as NCCL does for these CPUs" } else { "usual with such slots" }
            ));
        }
        socket
    }

    /// The links that the tree tells.
    fn fabric(&self, notes: &mut Vec<String>) -> Fabric {
        let by_address: BTreeMap<&str, usize> =
            (0..).zip(&self.gpus).map(|(number, gpu)| (gpu.device.address.as_str(), number)).collect();
        let mut directed: BTreeMap<(usize, usize), (EdgeKind, u32)> = BTreeMap::new();
        let mut fabric = Fabric::default();
        let (mut to_itself, mut to_nothing) = (0, 0);
        for (from, gpu) in self.gpus.iter().enumerate() {
            for link in gpu.device.gpu.iter().flat_map(|gpu: &PciGpu| &gpu.links) {
                let to = match &link.target {
                    LinkTarget::Switch => {
                        let count = fabric.switched.entry(from).or_default();
                        *count = count.saturating_add(link.count);
                        continue;
                    }
                    LinkTarget::Device(address) => by_address.get(address.as_str()).copied(),
                };
                match to {
                    Some(to) if to == from => to_itself += 1,
                    Some(to) => {
                        let (_, count) = directed.entry((from, to)).or_insert((link.kind, 0));
                        *count = count.saturating_add(link.count);
                    }
                    None => to_nothing += 1,
                }
            }
        }
        let mut unequal = 0;
        for (&(from, to), &(kind, count)) in &directed {
            let back = directed.get(&(to, from)).map(|(_, count)| *count);
            unequal += u32::from(back != Some(count));
            // Only one end may tell of a link; where both do, no more than both agree on.
            let count = back.map_or(count, |back| back.min(count));
            fabric.pairs.insert((from.min(to), from.max(to)), (kind, count));
        }
        for (entries, what) in [
            (to_itself, "a GPU's links lead to the GPU itself, which tells nothing"),
            (to_nothing, "a GPU's links lead to a device that is not described"),
        ] {
            if entries > 0 {
                notes.push(format!("{what}: left out, {}", count(entries, "time")));
            }
        }
        if unequal > 0 {
            notes.push(
                "two GPUs tell of unequal numbers of links between them: the smaller is taken".to_owned(),
            );
        }
        fabric
    }
}

/// An address as the numbers in it: domains have four digits, or more.
fn order_of_address(address: &str) -> (Vec<u64>, &str) {
    let pieces = address.split([':', '.']);
    (pieces.map(|piece| u64::from_str_radix(piece, 16).unwrap_or(u64::MAX)).collect(), address)
}

/// Counts what there is, and stops at what no machine has.
#[derive(Default)]
struct Survey<'a> {
    gpus: Vec<FoundGpu<'a>>,
    cards: usize,
    devices: usize,
    addresses: BTreeSet<&'a str>,
}

impl<'a> Survey<'a> {
    fn look_at(&mut self, devices: &'a [PciDevice], depth: usize) -> Result<(), ImportProblem> {
        for device in devices {
            if depth > MAX_DEPTH {
                return Err(ImportProblem::TooDeep { line: 0 });
            }
            if !device.address.is_empty() && !self.addresses.insert(&device.address) {
                return Err(ImportProblem::AddressTwice { address: device.address.clone() });
            }
            self.devices += 1;
            if is_gpu(device) {
                self.gpus.push(FoundGpu { device, place: self.gpus.len() });
            } else if is_card(device) {
                self.cards += device.ports.len().max(1);
            }
            for (count, what, most) in [
                (self.gpus.len(), "GPUs", MAX_GPUS),
                (self.cards, "network cards", MAX_NICS),
                (self.devices, "PCI devices", MAX_DEVICES),
            ] {
                if count > most {
                    return Err(ImportProblem::TooMany { count, what, most });
                }
            }
            self.look_at(&device.devices, depth + 1)?;
        }
        Ok(())
    }
}

/// What of the tree is not told, to be said once.
#[derive(Default)]
struct Told {
    /// GPUs whose slots are not.
    gpu_slots: usize,
    /// Kinds of these whose data sheet does not help.
    kinds: BTreeSet<String>,
    /// Network cards whose speed is not.
    cards: usize,
    /// Classes of the network cards.
    classes: BTreeSet<u32>,
}

impl Told {
    fn note(&self, notes: &mut Vec<String>) {
        if self.gpu_slots > 0 {
            let gpus = count(self.gpu_slots as u64, "GPU");
            notes.push(format!("the slot of {gpus} is not told: taken from the data sheet"));
        }
        for kind in &self.kinds {
            notes.push(speeds::unknown_slot(kind));
        }
        if self.cards > 0 {
            let cards = count(self.cards as u64, "network card");
            notes.push(format!(
                "the speed of {cards} is not told: taken for all that the slot passes, else 100 Gb/s"
            ));
        }
    }
}

struct Builder<'a> {
    kinds: &'a Kinds,
    /// Of each GPU in the order of the tree its number.
    numbers: Vec<u32>,
    /// GPUs seen so far.
    places: usize,
    told: Told,
}

impl Builder<'_> {
    fn root(&mut self, cpu: &Cpu) -> Option<Plugged> {
        let mut root = Plugged::new(HubKind::HostBridge, speeds::USUAL_SLOT);
        root.numa = cpu.numa;
        self.plug_all(&cpu.devices, &mut root);
        (root.things() > 0).then_some(root)
    }

    fn plug_all(&mut self, devices: &[PciDevice], hub: &mut Plugged) {
        for device in devices {
            if is_gpu(device) {
                self.plug_gpu(device, hub);
                self.plug_all(&device.devices, hub);
            } else if is_card(device) {
                self.plug_card(device, hub);
                self.plug_all(&device.devices, hub);
            } else {
                self.plug_switch(device, hub);
            }
        }
    }

    fn plug_gpu(&mut self, device: &PciDevice, hub: &mut Plugged) {
        let number = self.numbers[self.places];
        self.places += 1;
        let kind = self.kinds.of(number as usize);
        let card = speeds::card_slot(kind);
        // What the slot could do helps no card.
        let known = kind.known.is_some_and(|known| known.pcie.is_some());
        let slot = match device.bytes_per_second {
            Some(slot) if known => slot.min(card),
            Some(slot) => slot,
            None => {
                self.told.gpu_slots += 1;
                if !known {
                    self.told.kinds.insert(kind.name.to_owned());
                }
                card
            }
        };
        hub.gpus.push((number, slot));
    }

    fn plug_card(&mut self, device: &PciDevice, hub: &mut Plugged) {
        self.told.classes.extend(device.class.map(|class| class >> 8));
        let first = device.ports.first().map(|port| port.name.clone()).unwrap_or_default();
        let speeds = || device.ports.iter().filter_map(|port| port.bytes_per_second);
        match device.bytes_per_second {
            // The ports of a card share its slot.
            Some(slot) => {
                let told = speeds().next().is_some();
                self.told.cards += usize::from(!told);
                let bandwidth = if told { speeds().fold(0, u64::saturating_add) } else { slot };
                hub.cards.push(Card { name: first, bandwidth, slot: Some(slot) });
            }
            None if device.ports.is_empty() => {
                self.told.cards += 1;
                hub.cards.push(Card { name: first, bandwidth: USUAL_PORT, slot: None });
            }
            None => {
                for port in &device.ports {
                    self.told.cards += usize::from(port.bytes_per_second.is_none());
                    let bandwidth = port.bytes_per_second.unwrap_or(USUAL_PORT);
                    hub.cards.push(Card { name: port.name.clone(), bandwidth, slot: None });
                }
            }
        }
    }

    /// A switch, which is a mere piece of wire if one thing alone is behind it: as fast as the narrower of its ends.
    fn plug_switch(&mut self, device: &PciDevice, hub: &mut Plugged) {
        let mut switch = Plugged::new(HubKind::PcieSwitch, device.bytes_per_second.unwrap_or(u64::MAX));
        self.plug_all(&device.devices, &mut switch);
        let narrower = |slot: u64| slot.min(switch.uplink);
        if switch.things() == 1 {
            hub.gpus.extend(switch.gpus.iter().map(|(gpu, slot)| (*gpu, narrower(*slot))));
            hub.cards.extend(switch.cards.iter().map(|card| {
                let slot = narrower(card.slot.unwrap_or(u64::MAX));
                Card { slot: (slot != u64::MAX).then_some(slot), ..card.clone() }
            }));
            let uplink = switch.uplink;
            hub.below.extend(
                switch.below.into_iter().map(|below| Plugged { uplink: below.uplink.min(uplink), ..below }),
            );
        } else if switch.things() > 1 {
            if switch.uplink == u64::MAX {
                let slots = switch
                    .gpus
                    .iter()
                    .map(|(_, slot)| *slot)
                    .chain(switch.below.iter().map(|hub| hub.uplink));
                let widest = slots.filter(|slot| *slot != u64::MAX).max();
                switch.uplink = widest.unwrap_or(speeds::USUAL_SLOT);
            }
            hub.below.push(switch);
        }
    }
}
