//! A machine as its PCI tree tells it: what NCCL's topology files hold, and what the operating system and the driver say.

use crate::topology::EdgeKind;

/// The CPUs of a machine, and what is plugged into them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciTree {
    /// NUMA nodes with their PCI devices.
    pub cpus: Vec<Cpu>,
}

/// A NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// The operating system's number, where it has one.
    pub numa: Option<u32>,
    /// `x86_64`, `arm64`, `ppc64`; empty when it is not known.
    pub arch: String,
    /// As CPUID names it: `GenuineIntel`, `AuthenticAMD`; empty when it is not known.
    pub vendor: String,
    /// CPUID's family, where it is known.
    pub family: Option<u32>,
    /// CPUID's model, where it is known.
    pub model: Option<u32>,
    /// What is plugged into it.
    pub devices: Vec<PciDevice>,
}

/// A PCI device: a GPU, a network card, or a switch with others behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciDevice {
    /// Its address, lower case: `0000:07:00.0`.
    pub address: String,
    /// Its class, `0x030200`, where it is known.
    pub class: Option<u32>,
    /// Vendor and device, lower case: `10de:2330`, where they are known.
    pub id: Option<String>,
    /// Bytes per second of its slot in one direction, where they are known.
    pub bytes_per_second: Option<u64>,
    /// What kind of GPU it is, if it is one.
    pub gpu: Option<PciGpu>,
    /// Its network ports.
    pub ports: Vec<Port>,
    /// What is behind it.
    pub devices: Vec<PciDevice>,
}

/// A GPU as its driver tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PciGpu {
    /// Its number for the driver, where it is known.
    pub number: Option<u32>,
    /// Product name, `NVIDIA H100 80GB HBM3`, where it is known.
    pub name: Option<String>,
    /// Its memory, where it is known.
    pub memory_bytes: Option<u64>,
    /// CUDA compute capability, `90` for 9.0, where it is known.
    pub sm: Option<u32>,
    /// Its direct links.
    pub links: Vec<GpuLink>,
}

/// Links from a GPU to one other thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuLink {
    /// [`EdgeKind::Nvlink`] or [`EdgeKind::Xgmi`].
    pub kind: EdgeKind,
    /// Where they lead.
    pub target: LinkTarget,
    /// How many side by side.
    pub count: u32,
}

/// Where links lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkTarget {
    /// To the device at this PCI address.
    Device(String),
    /// To NVSwitches.
    Switch,
}

/// A network port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Its name: `mlx5_0`.
    pub name: String,
    /// Bytes per second in one direction, where they are known.
    pub bytes_per_second: Option<u64>,
}
