//! The kinds of GPUs that are known, from `topologies/gpus.yaml`: data sheets, so that topology files need not repeat them.

use super::{
    quantity::{Bandwidth, Bytes, FlopRate},
    schema::NumberKind,
};
use crate::yaml;
use serde::Deserialize;
use std::{collections::BTreeMap, sync::LazyLock};

/// What is known of a kind of GPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownGpu {
    /// Its name in topology files.
    pub kind: String,
    /// Product names, as `nvidia-smi -L` prints them.
    #[serde(default)]
    pub names: Vec<String>,
    /// PCI vendor and device, `10de:2330`.
    #[serde(default)]
    pub pci: Vec<String>,
    /// Memory of one GPU.
    pub memory: Bytes,
    /// How fast it reads its own memory.
    pub memory_bandwidth: Bandwidth,
    /// Dense operations per second, by type of number.
    #[serde(default)]
    pub flops: BTreeMap<NumberKind, FlopRate>,
    /// Its NVLinks.
    pub nvlink: Option<GpuLinks>,
    /// Its Infinity Fabric links.
    pub xgmi: Option<GpuLinks>,
    /// Its slot, in one direction, where it has one.
    pub pcie: Option<Bandwidth>,
    /// CUDA compute capability, `90` for 9.0.
    pub sm: Option<u32>,
}

/// Links of one GPU to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuLinks {
    /// How many.
    pub count: u32,
    /// Of one, in one direction.
    pub bandwidth: Bandwidth,
}

/// Every kind that is known, in the order of the file.
pub fn known_gpus() -> &'static [KnownGpu] {
    // What cannot be read is empty, and the test below fails.
    static KNOWN: LazyLock<Vec<KnownGpu>> =
        LazyLock::new(|| yaml::from_str(include_str!("../../../topologies/gpus.yaml")).unwrap_or_default());
    &KNOWN
}

/// The kind called `kind` in topology files.
pub fn known_gpu(kind: &str) -> Option<&'static KnownGpu> {
    known_gpus().iter().find(|known| known.kind == kind)
}

/// The kind that `text` names, as a topology file or as the product's own name does; letters of either case.
pub fn gpu_named(text: &str) -> Option<&'static KnownGpu> {
    let plain = |name: &str| name.trim().to_lowercase().trim_start_matches("nvidia ").to_owned();
    let wanted = plain(text);
    let known = known_gpus();
    let by_kind = known.iter().find(|known| plain(&known.kind) == wanted);
    by_kind.or_else(|| known.iter().find(|known| known.names.iter().any(|name| plain(name) == wanted)))
}

/// The kind with PCI vendor and device `pci`, `10de:2330`.
pub fn gpu_of_pci(pci: &str) -> Option<&'static KnownGpu> {
    known_gpus().iter().find(|known| known.pci.iter().any(|id| id == pci))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_kinds_are_read_and_their_names_are_their_own() {
        let text = include_str!("../../../topologies/gpus.yaml");
        let known: Vec<KnownGpu> = yaml::from_str(text).unwrap();
        assert_eq!(known, known_gpus());
        let (mut names, mut pci) = (HashSet::new(), HashSet::new());
        for gpu in &known {
            assert!(names.insert(gpu.kind.to_lowercase()), "{} twice", gpu.kind);
            for name in &gpu.names {
                assert_eq!(gpu_named(name).map(|known| &known.kind), Some(&gpu.kind));
            }
            for id in &gpu.pci {
                assert!(pci.insert(id), "{id} twice");
            }
        }
        assert_eq!(gpu_named("nvidia h100 80gb hbm3").unwrap().kind, "H100 SXM5 80GB");
        assert_eq!(gpu_of_pci("10de:2330").unwrap().nvlink.unwrap().count, 18);
        assert_eq!(gpu_named("Banana"), None);
    }
}
