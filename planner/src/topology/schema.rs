//! The topology as it is written, version 1. Described for people in `topologies/README.md`.

use super::quantity::{Bandwidth, Bytes, QuantityError};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Most GPUs in all nodes together.
pub const MAX_GPUS: u32 = 65_536;

/// Most GPUs of one node; a whole rack of one NVLink domain has 72.
pub(super) const MAX_GPUS_PER_NODE: u32 = 128;

/// Most hubs, and most links, of one node.
pub(super) const MAX_PARTS: usize = 1024;

/// A topology file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Document {
    /// Its name.
    pub(super) topology: String,
    /// One line for people.
    pub(super) about: String,
    /// The kind of all GPUs.
    pub(super) gpu: GpuKind,
    /// GPUs of one node.
    pub(super) gpus: Count,
    /// How many nodes of this kind.
    #[serde(default = "one")]
    pub(super) nodes: u32,
    /// What GPUs are plugged into.
    #[serde(default)]
    pub(super) hubs: Vec<Hub>,
    /// Connections beside those to a GPU's hubs.
    #[serde(default)]
    pub(super) links: Vec<Link>,
    /// What connects nodes.
    pub(super) network: Option<Network>,
}

fn one() -> u32 {
    1
}

/// A kind of GPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GpuKind {
    pub(super) kind: String,
    pub(super) memory: Memory,
    pub(super) memory_bandwidth: Option<Bandwidth>,
    /// Whether all devices of a node share one memory.
    #[serde(default)]
    pub(super) shared_memory: bool,
}

/// A memory's size: a figure, or what the machine at hand has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) enum Memory {
    Detected,
    Size(Bytes),
}

/// A number of devices: a figure, or as many as are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Count {
    Number(u32),
    Word(Detected),
}

/// The word `detected`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Detected {
    Detected,
}

/// Something with ports that GPUs are plugged into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hub {
    pub(super) name: String,
    pub(super) kind: HubKind,
    /// Which GPUs: `0-3,6`.
    pub(super) gpus: Option<Numbers>,
    /// Of each GPU's connection to it.
    pub(super) bandwidth: Option<Bandwidth>,
}

/// Kinds of hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HubKind {
    /// A fabric of NVSwitches: any GPU to any other at full speed.
    Nvswitch,
    /// A PCIe switch.
    PcieSwitch,
    /// A CPU's PCIe host bridge, with its NUMA node.
    HostBridge,
    /// Main memory, for ranks that are threads.
    Memory,
    /// A network card.
    Nic,
}

/// A connection between two named things.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Link {
    pub(super) kind: EdgeKind,
    /// Two of `gpu0`, `gpu1` … and the hubs' names.
    pub(super) between: [String; 2],
    pub(super) bandwidth: Bandwidth,
}

/// Kinds of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EdgeKind {
    /// NVLink.
    Nvlink,
    /// PCI Express.
    Pcie,
    /// Between the CPUs of a node.
    Socket,
    /// Main memory.
    Memory,
    /// Between nodes.
    Network,
}

/// What connects nodes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Network {
    /// For people: `InfiniBand NDR`.
    pub(super) kind: String,
    /// Of each of the hubs' connections to it.
    pub(super) bandwidth: Bandwidth,
    /// The hubs that it is plugged into.
    pub(super) via: Vec<String>,
}

/// Numbers as people write them: `0-3,6`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Numbers {
    text: String,
    pub(super) numbers: Vec<u32>,
}

impl TryFrom<String> for Numbers {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{} is no list of GPUs: write it like 0-3,6", crate::quote::quote(&text));
        let mut numbers = Vec::new();
        for piece in text.split(',') {
            let (start, end) = piece.split_once('-').unwrap_or((piece, piece));
            let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
            let (start, end) = (number(start)?, number(end)?);
            if start > end || end >= MAX_GPUS_PER_NODE || numbers.last().is_some_and(|&last| last >= start) {
                return Err(wrong());
            }
            numbers.extend(start..=end);
        }
        Ok(Self { text, numbers })
    }
}

impl From<Numbers> for String {
    fn from(numbers: Numbers) -> Self {
        numbers.text
    }
}

impl TryFrom<String> for Memory {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Self, QuantityError> {
        match text.as_str() {
            "detected" => Ok(Self::Detected),
            _ => text.parse().map(Self::Size),
        }
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        match memory {
            Memory::Detected => "detected".to_owned(),
            Memory::Size(bytes) => bytes.to_string(),
        }
    }
}

impl HubKind {
    /// What connects a GPU to a hub of this kind.
    pub(super) fn edge(self) -> EdgeKind {
        match self {
            Self::Nvswitch => EdgeKind::Nvlink,
            Self::PcieSwitch | Self::HostBridge | Self::Nic => EdgeKind::Pcie,
            Self::Memory => EdgeKind::Memory,
        }
    }
}

impl fmt::Display for EdgeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nvlink => "NVLink",
            Self::Pcie => "PCIe",
            Self::Socket => "socket link",
            Self::Memory => "memory",
            Self::Network => "network",
        })
    }
}
