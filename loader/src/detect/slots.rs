//! What is plugged into what, without the bridges that are mere wire.
//!
//! In come devices with the bridges above them; out come CPUs with the devices below. A PCI Express switch is one bridge towards
//! the host and one for each slot, and before it stands the host's root port. Only where several of the devices are below a
//! bridge do they share it; any other bridge is a piece of wire, and the slowest piece counts.

use super::{Address, pcie::narrower, sysfs::Facts};
use shardwright_planner::topology::import::{Cpu, PciDevice};
use std::collections::{BTreeMap, BTreeSet};

/// What hangs on the hosts' bridges, and what has no known place.
#[derive(Debug, Default)]
pub(super) struct Slots {
    hosts: BTreeMap<Address, Slot>,
    anywhere: Vec<PciDevice>,
}

/// Where a device is, or a bridge with others below it.
#[derive(Debug)]
struct Slot {
    facts: Facts,
    device: Option<PciDevice>,
    below: BTreeMap<Address, Slot>,
}

impl Slots {
    /// Puts `device` below `bridges`, the host's first. What is in a place already stays there.
    pub(super) fn plug(
        &mut self,
        bridges: Vec<(Address, Facts)>,
        place: (Address, Facts),
        device: PciDevice,
    ) {
        let mut level = &mut self.hosts;
        for (address, facts) in bridges {
            level = &mut level.entry(address).or_insert_with(|| Slot::empty(facts)).below;
        }
        let slot = level.entry(place.0).or_insert_with(|| Slot::empty(place.1));
        slot.device.get_or_insert(device);
    }

    /// Puts `device` where nothing says that it isn't.
    pub(super) fn plug_anywhere(&mut self, device: PciDevice) {
        self.anywhere.push(device);
    }

    /// The CPUs, of one kind and one for each NUMA node that has devices. What tells no node is with the others where they are all
    /// of one, and on a CPU without number where they are not.
    pub(super) fn into_cpus(self, kind: &Cpu) -> Vec<Cpu> {
        let known: BTreeSet<u32> = self.hosts.values().filter_map(Slot::numa).collect();
        let only = known.first().copied().filter(|_| known.len() == 1);
        let mut nodes: BTreeMap<Option<u32>, Vec<PciDevice>> = BTreeMap::new();
        for (address, slot) in self.hosts {
            nodes.entry(slot.numa().or(only)).or_default().push(slot.settle(address));
        }
        if !self.anywhere.is_empty() {
            nodes.entry(only).or_default().extend(self.anywhere);
        }
        let cpu = |(numa, devices)| Cpu { numa, devices: join_functions(devices), ..kind.clone() };
        nodes.into_iter().map(cpu).collect()
    }
}

impl Slot {
    fn empty(facts: Facts) -> Self {
        Self { facts, device: None, below: BTreeMap::new() }
    }

    /// The NUMA node of this slot, or the first that is told below it.
    fn numa(&self) -> Option<u32> {
        self.facts.numa.or_else(|| self.below.values().find_map(Self::numa))
    }

    /// The device here; or the switch; or the only device below what is mere wire.
    fn settle(self, address: Address) -> PciDevice {
        let below = self.below.into_iter().map(|(address, slot)| slot.settle(address)).collect();
        let device = match (self.device, join_functions(below)) {
            (Some(device), devices) => PciDevice { devices, ..device },
            (None, mut devices) if devices.len() == 1 => devices.remove(0),
            (None, devices) => {
                let Facts { class, id, .. } = self.facts;
                PciDevice { address: address.to_string(), class, id, devices, ..PciDevice::default() }
            }
        };
        let bytes_per_second = narrower(device.bytes_per_second, self.facts.bytes_per_second);
        PciDevice { bytes_per_second, ..device }
    }
}

/// Makes one network card of its functions: each has a port, and they share the slot.
fn join_functions(devices: Vec<PciDevice>) -> Vec<PciDevice> {
    let mut joined: Vec<PciDevice> = Vec::new();
    for device in devices {
        match joined.last_mut() {
            Some(card) if is_function_of(card, &device) => {
                card.ports.extend(device.ports);
                card.bytes_per_second = narrower(card.bytes_per_second, device.bytes_per_second);
            }
            _ => joined.push(device),
        }
    }
    joined
}

fn is_function_of(card: &PciDevice, device: &PciDevice) -> bool {
    let plain =
        |device: &PciDevice| device.gpu.is_none() && device.devices.is_empty() && !device.ports.is_empty();
    let slot = |device: &PciDevice| Address::parse(&device.address).map(Address::card);
    plain(card) && plain(device) && slot(card) == slot(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shardwright_planner::topology::import::{PciGpu, Port};

    fn at(address: &str) -> Address {
        Address::parse(address).unwrap()
    }

    fn facts(numa: Option<u32>, gigabytes: u64) -> Facts {
        Facts { numa, bytes_per_second: Some(gigabytes * 1_000_000_000), ..Facts::default() }
    }

    fn gpu(address: &str) -> PciDevice {
        PciDevice { address: address.to_owned(), gpu: Some(PciGpu::default()), ..PciDevice::default() }
    }

    fn card(address: &str, port: &str) -> PciDevice {
        let ports = vec![Port { name: port.to_owned(), bytes_per_second: None }];
        PciDevice { address: address.to_owned(), ports, ..PciDevice::default() }
    }

    /// Plugs `device` below bridges of these addresses and speeds.
    fn plug(slots: &mut Slots, numa: Option<u32>, bridges: &[(&str, u64)], device: PciDevice) {
        let bridges = bridges.iter().map(|(address, speed)| (at(address), facts(numa, *speed))).collect();
        let place = at(&device.address);
        slots.plug(bridges, (place, facts(numa, 64)), device);
    }

    /// Addresses and speeds in GB/s, with what is below in parentheses.
    fn drawn(devices: &[PciDevice]) -> String {
        let draw = |device: &PciDevice| {
            let below = if device.devices.is_empty() {
                String::new()
            } else {
                format!("({})", drawn(&device.devices))
            };
            let speed =
                device.bytes_per_second.map_or("?".to_owned(), |speed| (speed / 1_000_000_000).to_string());
            format!("{}@{speed}{below}", device.address.trim_start_matches("0000:"))
        };
        devices.iter().map(draw).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_switch_is_its_upper_port_and_its_slots_are_wire() {
        let mut slots = Slots::default();
        let upper = [("0000:00:01.0", 63), ("0000:01:00.0", 31)];
        plug(&mut slots, Some(0), &[upper[0], upper[1], ("0000:02:00.0", 15)], gpu("0000:03:00.0"));
        plug(
            &mut slots,
            Some(0),
            &[upper[0], upper[1], ("0000:02:01.0", 63)],
            card("0000:04:00.0", "mlx5_0"),
        );
        let cpus = slots.into_cpus(&Cpu::default());
        assert_eq!(cpus.len(), 1);
        assert_eq!(drawn(&cpus[0].devices), "01:00.0@31(03:00.0@15 04:00.0@63)");
    }

    #[test]
    fn a_switch_with_one_device_is_wire_and_the_slowest_piece_counts() {
        let mut slots = Slots::default();
        let bridges = [("0000:00:01.0", 63), ("0000:01:00.0", 7), ("0000:02:00.0", 31)];
        plug(&mut slots, Some(0), &bridges, gpu("0000:03:00.0"));
        assert_eq!(drawn(&slots.into_cpus(&Cpu::default())[0].devices), "03:00.0@7");
    }

    #[test]
    fn switches_behind_switches_stay_where_they_are() {
        let mut slots = Slots::default();
        let first = [("0000:00:01.0", 63), ("0000:01:00.0", 63)];
        let second = [first[0], first[1], ("0000:02:00.0", 63), ("0000:03:00.0", 31)];
        plug(&mut slots, None, &[first[0], first[1], ("0000:02:01.0", 63)], gpu("0000:09:00.0"));
        for (slot, address) in [("0000:04:00.0", "0000:05:00.0"), ("0000:04:01.0", "0000:06:00.0")] {
            plug(&mut slots, None, &[&second[..], &[(slot, 63)]].concat(), gpu(address));
        }
        let cpus = slots.into_cpus(&Cpu::default());
        assert_eq!(drawn(&cpus[0].devices), "01:00.0@63(03:00.0@31(05:00.0@63 06:00.0@63) 09:00.0@63)");
    }

    #[test]
    fn functions_of_a_network_card_are_one_card_and_gpus_are_not() {
        let mut slots = Slots::default();
        for (function, port) in [("0000:01:00.0", "mlx5_0"), ("0000:01:00.1", "mlx5_1")] {
            plug(&mut slots, Some(0), &[("0000:00:01.0", 63)], card(function, port));
        }
        plug(&mut slots, Some(0), &[], gpu("0000:05:00.0"));
        plug(&mut slots, Some(0), &[], gpu("0000:05:00.1"));
        let cpus = slots.into_cpus(&Cpu::default());
        assert_eq!(drawn(&cpus[0].devices), "01:00.0@63 05:00.0@64 05:00.1@64");
        let names: Vec<_> = cpus[0].devices[0].ports.iter().map(|port| port.name.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "mlx5_1"]);
    }

    #[test]
    fn what_tells_no_node_is_with_the_others_where_there_is_one() {
        let drawn_cpus = |nodes: &[Option<u32>]| {
            let mut slots = Slots::default();
            for (number, numa) in nodes.iter().enumerate() {
                plug(&mut slots, *numa, &[], gpu(&format!("0000:0{number}:00.0")));
            }
            slots.plug_anywhere(gpu("0000:0f:00.0"));
            let cpus = slots.into_cpus(&Cpu::default());
            cpus.iter().map(|cpu| (cpu.numa, drawn(&cpu.devices))).collect::<Vec<_>>()
        };
        assert_eq!(drawn_cpus(&[]), [(None, "0f:00.0@?".to_owned())]);
        let one = "00:00.0@64 01:00.0@64 0f:00.0@?".to_owned();
        assert_eq!(drawn_cpus(&[Some(1), None]), [(Some(1), one.clone())]);
        assert_eq!(drawn_cpus(&[None, None]), [(None, one)]);
        let two = [
            (None, "0f:00.0@?".to_owned()),
            (Some(0), "00:00.0@64".to_owned()),
            (Some(1), "01:00.0@64".to_owned()),
        ];
        assert_eq!(drawn_cpus(&[Some(0), Some(1)]), two);
    }

    #[test]
    fn a_device_above_another_keeps_it_and_none_is_replaced() {
        let mut slots = Slots::default();
        plug(&mut slots, Some(0), &[], gpu("0000:01:00.0"));
        plug(&mut slots, Some(0), &[("0000:01:00.0", 63)], gpu("0000:02:00.0"));
        plug(&mut slots, Some(0), &[], card("0000:01:00.0", "mlx5_0"));
        let devices = &slots.into_cpus(&Cpu::default())[0].devices;
        assert_eq!(drawn(devices), "01:00.0@64(02:00.0@64)");
        assert!(devices[0].gpu.is_some());
    }
}
