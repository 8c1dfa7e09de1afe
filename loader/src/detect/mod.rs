//! What machine this is: its GPUs as NVML tells them, and what they are plugged into, as sysfs does.
//!
//! In come the places to look at ([`Sources`]); out goes the planner's [`PciTree`] with [`Note`]s on what could not be found
//! out. It knows no topology: the planner draws it from the tree. Nothing here has been run on GPUs yet; the tests answer by a
//! simulated NVML and folders that look like sysfs.

mod address;
mod cpu;
mod error;
mod nvml;
mod pcie;
mod slots;
mod sysfs;

pub use address::Address;
pub use error::{DetectError, Note};

use self::{nvml::Gpu, slots::Slots, sysfs::Sysfs};
use shardwright_planner::topology::import::{PciDevice, PciTree};
use std::path::PathBuf;

/// Where the operating system tells what it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    /// Where sysfs is mounted: `/sys`.
    pub sysfs: PathBuf,
    /// What the CPU is: `/proc/cpuinfo`.
    pub cpuinfo: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self { sysfs: "/sys".into(), cpuinfo: "/proc/cpuinfo".into() }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detected {
    /// CPUs, and what is plugged into them.
    pub tree: PciTree,
    /// What could not be found out, for people.
    pub notes: Vec<Note>,
}

/// Asks the driver for GPUs and the operating system for what they are plugged into.
///
/// GPUs are numbered as NVML numbers them, which is by PCI address and heeds no `CUDA_VISIBLE_DEVICES`. What is not known of a
/// GPU is left open; where sysfs tells nothing, all GPUs hang on one CPU. Network cards are listed where they are InfiniBand,
/// or reach 25 Gb/s, or can do RDMA at an unknown speed.
///
/// # Errors
/// [`DetectError::NoDriver`] and [`DetectError::NoGpu`] where there is nothing to find; [`DetectError::Nvml`] and
/// [`DetectError::Gpu`] when a call fails without whose answer nothing can be said.
pub fn detect(sources: &Sources) -> Result<Detected, DetectError> {
    let (gpus, mut notes) = nvml::gpus()?;
    let cpu = cpu::read(&sources.cpuinfo);
    let mut slots = Slots::default();
    match Sysfs::open(&sources.sysfs) {
        Ok(sysfs) => plug(&sysfs, gpus, &mut slots, &mut notes),
        Err(source) => {
            notes.push(Note::NoSysfs { path: sources.sysfs.clone(), reason: source.to_string() });
            gpus.into_iter().for_each(|gpu| slots.plug_anywhere(gpu.into_device()));
        }
    }
    Ok(Detected { tree: PciTree { cpus: slots.into_cpus(&cpu) }, notes })
}

/// Puts every GPU and network card where sysfs sees it.
fn plug(sysfs: &Sysfs, gpus: Vec<Gpu>, slots: &mut Slots, notes: &mut Vec<Note>) {
    for gpu in gpus {
        let (number, address) = (gpu.number, gpu.address);
        let device = gpu.into_device();
        let Some(place) = sysfs.place(address) else {
            notes.push(Note::NotInSysfs { gpu: number, address });
            slots.plug_anywhere(device);
            continue;
        };
        let facts = sysfs.facts(&place.path);
        let device = PciDevice { class: facts.class, ..device };
        slots.plug(sysfs.bridges(place), (address, facts), device);
    }
    for (place, facts, device) in sysfs.network_cards() {
        slots.plug(sysfs.bridges(place), (place.address, facts), device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_are_where_linux_has_them() {
        let sources = Sources::default();
        assert_eq!(sources.sysfs, PathBuf::from("/sys"));
        assert_eq!(sources.cpuinfo, PathBuf::from("/proc/cpuinfo"));
    }
}
