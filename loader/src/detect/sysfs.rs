//! PCI devices as Linux lists them: `bus/pci/devices/` links each address to a folder, inside those of the bridges above it.
//!
//! In comes where sysfs is mounted; out come places, and what is written of the device at each. Whatever is missing, too long or
//! not as the kernel writes it counts as not said, and nothing outside the root is read.

use super::{Address, pcie};
use shardwright_planner::topology::import::{PciDevice, Port};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Most bytes that are read of a file.
const MOST_BYTES: u64 = 64 << 10;

/// Most PCI devices that are looked at; virtual functions count.
const MOST_DEVICES: usize = 1 << 14;

/// Most bridges one behind the other.
const MOST_BRIDGES: usize = 32;

/// Most ports of a network card.
const MOST_PORTS: usize = 64;

/// Longest name of a network interface or RDMA device; the kernel's own limits are lower.
const LONGEST_NAME: usize = 64;

/// Slower cards don't carry a model's weights or activations.
const LEAST_NETWORK: u64 = 25_000_000_000 / 8;

/// PCI class of network controllers, and of InfiniBand among them.
const NETWORK: u32 = 0x02;
const INFINIBAND: u32 = 0x0207;

/// A sysfs that has PCI devices.
#[derive(Debug)]
pub(super) struct Sysfs {
    /// Without symbolic links.
    root: PathBuf,
    places: BTreeMap<Address, Place>,
}

/// Where a device is: its folder, and those of the bridges above it, the host's first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) address: Address,
    pub(super) path: PathBuf,
    pub(super) bridges: Vec<(Address, PathBuf)>,
}

/// What is written of a device, as far as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) class: Option<u32>,
    pub(super) id: Option<String>,
    pub(super) numa: Option<u32>,
    pub(super) bytes_per_second: Option<u64>,
}

impl Sysfs {
    /// Lists the PCI devices of the sysfs at `root`.
    ///
    /// # Errors
    /// Their list cannot be read.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let entries = fs::read_dir(root.join("bus/pci/devices"))?;
        let places = entries
            .take(MOST_DEVICES)
            .filter_map(|entry| place(&root, &entry.ok()?.path()))
            .map(|place| (place.address, place))
            .collect();
        Ok(Self { root, places })
    }

    /// Where the device at `address` is.
    pub(super) fn place(&self, address: Address) -> Option<&Place> {
        self.places.get(&address)
    }

    /// The bridges above a device, the host's first, with what is written of them.
    pub(super) fn bridges(&self, place: &Place) -> Vec<(Address, Facts)> {
        place.bridges.iter().map(|(address, folder)| (*address, self.facts(folder))).collect()
    }

    /// What is written in the folder of a device or bridge.
    pub(super) fn facts(&self, device: &Path) -> Facts {
        let hex = |name| {
            let text = self.text(&device.join(name))?;
            u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()
        };
        let id = || Some(format!("{:04x}:{:04x}", hex("vendor")?, hex("device")?));
        Facts {
            class: hex("class"),
            id: id(),
            numa: self.text(&device.join("numa_node")).and_then(|node| node.parse().ok()),
            bytes_per_second: self.bytes_per_second(device),
        }
    }

    /// What the link above a device can do: at its highest rate, since idle devices slow down, and at the number of lanes that
    /// it runs on, since idle devices keep theirs and a slot may have fewer than both ends could use.
    fn bytes_per_second(&self, device: &Path) -> Option<u64> {
        let rate = self.text(&device.join("max_link_speed"))?;
        let lanes = |name| self.text(&device.join(name))?.parse::<u64>().ok();
        let most = lanes("max_link_width")?;
        let used = lanes("current_link_width").filter(|&lanes| lanes > 0);
        pcie::of_rate(&rate, used.map_or(most, |used| used.min(most)))
    }

    /// The network cards that ranks may talk through.
    pub(super) fn network_cards(&self) -> impl Iterator<Item = (&Place, Facts, PciDevice)> {
        self.places.values().filter_map(|place| {
            let facts = self.facts(&place.path);
            let class = facts.class.filter(|class| class >> 16 == NETWORK)?;
            // A virtual function shares the port of its card.
            if fs::symlink_metadata(place.path.join("physfn")).is_ok() {
                return None;
            }
            let ports = self.ports(&place.path, class >> 8 == INFINIBAND);
            let device = PciDevice {
                address: place.address.to_string(),
                class: Some(class),
                id: facts.id.clone(),
                ports,
                ..PciDevice::default()
            };
            (!device.ports.is_empty()).then_some((place, facts, device))
        })
    }

    /// The ports of a card that are worth a rank's while: the RDMA ones if it has any, else its network interfaces.
    fn ports(&self, card: &Path, infiniband: bool) -> Vec<Port> {
        let fast = |port: &Port| port.bytes_per_second.is_some_and(|speed| speed >= LEAST_NETWORK);
        let rdma = self.rdma_ports(card);
        if rdma.is_empty() {
            return self.interfaces(card).into_iter().filter(fast).collect();
        }
        rdma.into_iter().filter(|port| infiniband || port.bytes_per_second.is_none() || fast(port)).collect()
    }

    /// `infiniband/mlx5_0/ports/1`, of RoCE cards too. A device with several ports numbers them.
    fn rdma_ports(&self, card: &Path) -> Vec<Port> {
        let folder = card.join("infiniband");
        let mut found = Vec::new();
        for name in self.names(&folder) {
            let ports = folder.join(&name).join("ports");
            let numbers = self.names(&ports);
            for number in &numbers {
                let bytes_per_second = self.rdma_rate(&ports.join(number));
                let name = if numbers.len() == 1 { name.clone() } else { format!("{name}:{number}") };
                found.push(Port { name, bytes_per_second });
            }
        }
        found.truncate(MOST_PORTS);
        found
    }

    /// Reads `400 Gb/sec (4X NDR)`. A port that is down tells the slowest rate, not its own.
    fn rdma_rate(&self, port: &Path) -> Option<u64> {
        if self.text(&port.join("state")).is_some_and(|state| !state.contains("ACTIVE")) {
            return None;
        }
        let rate = self.text(&port.join("rate"))?;
        let (number, _) = rate.split_once(" Gb/sec")?;
        pcie::thousandths(number)?.checked_mul(1_000_000 / 8)
    }

    /// `net/eth0`, with `speed` in Mb/s, or -1 when it is down.
    fn interfaces(&self, card: &Path) -> Vec<Port> {
        let folder = card.join("net");
        let speed = |name: &str| {
            let megabits: u64 = self.text(&folder.join(name).join("speed"))?.parse().ok()?;
            megabits.checked_mul(1_000_000 / 8)
        };
        let names = self.names(&folder).into_iter();
        names.map(|name| Port { bytes_per_second: speed(&name), name }).collect()
    }

    /// What is in a file below the root, without the blanks around it.
    fn text(&self, path: &Path) -> Option<String> {
        Some(beginning(&self.inside(path)?)?.trim().to_owned())
    }

    /// The names in a folder below the root that can be names of ports, sorted.
    fn names(&self, folder: &Path) -> Vec<String> {
        let Some(Ok(entries)) = self.inside(folder).map(fs::read_dir) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .take(MOST_PORTS)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.len() <= LONGEST_NAME && !name.contains(char::is_control))
            .collect();
        names.sort();
        names
    }

    /// `path` without symbolic links, unless they lead out of the root.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        path.canonicalize().ok().filter(|path| path.starts_with(&self.root))
    }
}

/// The place behind a link of `bus/pci/devices/`, if it is one.
fn place(root: &Path, link: &Path) -> Option<Place> {
    let address_of = |name: &std::ffi::OsStr| Address::parse(name.to_str()?);
    let address = address_of(link.file_name()?)?;
    let path = link.canonicalize().ok()?;
    let mut folder = root.join("devices");
    let below = path.strip_prefix(&folder).ok()?;
    // Folders between that are no device: those of the host bridge, and of another root behind a device (Intel's VMD).
    let mut chain = Vec::new();
    for name in below {
        folder.push(name);
        chain.extend(address_of(name).map(|address| (address, folder.clone())));
    }
    let (last, path_of_last) = chain.pop()?;
    let told = last == address && path_of_last == path && chain.len() <= MOST_BRIDGES;
    told.then_some(Place { address, path, bridges: chain })
}

/// The first bytes of a regular file, as text; what is no text in it is replaced.
pub(super) fn beginning(path: &Path) -> Option<String> {
    // Opening anything else, a pipe for one, may wait for ever.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
