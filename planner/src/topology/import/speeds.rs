//! Figures that sources do not tell, or tell in other units.

use super::{Cpu, kinds::Kind};
use crate::{
    quote::quote,
    topology::{Bandwidth, GpuLinks, pcie_bytes_per_second},
};
use std::collections::BTreeSet;

/// Of a slot where nothing tells how fast it is: PCIe 4.0 with 16 lanes.
pub(super) const USUAL_SLOT: u64 = 31_500_000_000;

/// Most NVLinks of one GPU of any kind so far.
const MOST_NVLINKS: u32 = 18;

/// Bytes per second in one direction of a slot of `lanes` at so many transfers a second, in tenths of GT/s. `None` where no
/// such generation is known. Rounded down to 50 MB/s: more figures would only seem exact.
pub(super) fn slot(tenths_of_gt: u64, lanes: u64) -> Option<u64> {
    const STEP: u64 = 50_000_000;
    let bytes = pcie_bytes_per_second(tenths_of_gt.checked_mul(100)?, lanes)?;
    Some(bytes.max(STEP) / STEP * STEP)
}

/// What one link of a GPU passes in one direction, and how many it has at most; and whether that is only assumed.
pub(super) fn nvlink(kind: Kind<'_>, sm: Option<u32>) -> (GpuLinks, bool) {
    let known = kind.known.and_then(|known| known.nvlink);
    let each = match sm.or(kind.known.and_then(|known| known.sm)) {
        Some(60) => 20_000_000_000,
        // Bridges of workstation cards.
        Some(75 | 86) => 14_062_500_000,
        Some(100..) => 50_000_000_000,
        _ => 25_000_000_000,
    };
    let assumed = GpuLinks { count: MOST_NVLINKS, bandwidth: Bandwidth::new(each) };
    (known.unwrap_or(assumed), known.is_none())
}

/// The same for AMD's links; MI300X if nothing is known.
pub(super) fn xgmi(kind: Kind<'_>) -> (GpuLinks, bool) {
    let known = kind.known.and_then(|known| known.xgmi);
    let assumed = GpuLinks { count: 8, bandwidth: Bandwidth::new(64_000_000_000) };
    (known.unwrap_or(assumed), known.is_none())
}

/// What a card of that kind passes to its slot, as far as is known.
pub(super) fn card_slot(kind: Kind<'_>) -> u64 {
    let known = kind.known.and_then(|known| known.pcie);
    known.map_or(USUAL_SLOT, Bandwidth::bytes_per_second)
}

/// Says of which kinds the slot is not known.
pub(super) fn note_unknown_slots<'a>(kinds: impl Iterator<Item = Kind<'a>>, notes: &mut Vec<String>) {
    let unknown: BTreeSet<&str> = kinds
        .filter(|kind| kind.known.is_none_or(|known| known.pcie.is_none()))
        .map(|kind| kind.name)
        .collect();
    notes.extend(unknown.into_iter().map(unknown_slot));
}

/// Says that the slot of a kind is not known.
pub(super) fn unknown_slot(kind: &str) -> String {
    format!("the slot of a {} is not known: {} taken", quote(kind), gigabytes(USUAL_SLOT))
}

/// What two CPUs pass between PCIe devices, in bytes per second of one direction.
///
/// Source: what NCCL takes for them (`src/graph/topo.h` and `topo.cc`). It tells generations by model numbers, and writes AMD's
/// family as the sum of its parts weighted as they are in CPUID (143 for 23, 175 for 25, 191 for 26).
pub(super) fn socket(cpu: &Cpu) -> Option<u64> {
    let gigabytes = match (cpu.arch.as_str(), cpu.vendor.as_str(), cpu.family, cpu.model) {
        ("x86_64", "GenuineIntel", Some(6), Some(0xCF..)) => 40,
        ("x86_64", "GenuineIntel", Some(6), Some(0x8F..)) => 22,
        ("x86_64", "GenuineIntel", Some(6), Some(0x55..)) => 10,
        ("x86_64", "GenuineIntel", _, _) => 6,
        ("x86_64", "AuthenticAMD" | "HygonGenuine", Some(25 | 175), _) => 24,
        ("x86_64", "AuthenticAMD" | "HygonGenuine", Some(26 | 191), _) => 32,
        ("x86_64", "AuthenticAMD" | "HygonGenuine", _, _) => 16,
        ("arm64" | "aarch64", _, _, _) => 6,
        ("ppc64" | "ppc64le", _, _, _) => 32,
        _ => return None,
    };
    Some(gigabytes * 1_000_000_000)
}

/// The same where nothing is known of the CPUs: what NCCL takes for servers with slots of that speed.
pub(super) fn usual_socket(slot: u64) -> u64 {
    match slot {
        0..=16_000_000_000 => 10_000_000_000,
        16_000_000_001..=32_000_000_000 => 16_000_000_000,
        _ => 22_000_000_000,
    }
}

/// Bytes as `31.5 GB/s`, for notes.
pub(super) fn gigabytes(bytes: u64) -> String {
    Bandwidth::new(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_have_the_bandwidth_of_their_generation() {
        let slots = [(25, 1), (50, 16), (80, 16), (160, 8), (160, 16), (320, 16), (640, 16)]
            .map(|(gt, lanes)| slot(gt, lanes).map(gigabytes).unwrap_or_default());
        assert_eq!(
            slots,
            ["250 MB/s", "8 GB/s", "15.75 GB/s", "15.75 GB/s", "31.5 GB/s", "63 GB/s", "121 GB/s"]
        );
        assert_eq!(slot(170, 16), None);
    }

    #[test]
    fn sockets_are_as_wide_as_nccl_takes_them() {
        let cpu = |arch: &str, vendor: &str, family, model| Cpu {
            arch: arch.to_owned(),
            vendor: vendor.to_owned(),
            family: Some(family),
            model: Some(model),
            ..Cpu::default()
        };
        let of = |cpu: &Cpu| socket(cpu).map(gigabytes);
        assert_eq!(of(&cpu("x86_64", "GenuineIntel", 6, 79)).as_deref(), Some("6 GB/s"));
        assert_eq!(of(&cpu("x86_64", "GenuineIntel", 6, 106)).as_deref(), Some("10 GB/s"));
        assert_eq!(of(&cpu("x86_64", "GenuineIntel", 6, 173)).as_deref(), Some("22 GB/s"));
        assert_eq!(of(&cpu("x86_64", "GenuineIntel", 6, 207)).as_deref(), Some("40 GB/s"));
        assert_eq!(of(&cpu("x86_64", "AuthenticAMD", 143, 49)), of(&cpu("x86_64", "AuthenticAMD", 23, 49)));
        assert_eq!(of(&cpu("x86_64", "AuthenticAMD", 175, 1)).as_deref(), Some("24 GB/s"));
        assert_eq!(of(&cpu("arm64", "", 0, 0)).as_deref(), Some("6 GB/s"));
        assert_eq!(of(&Cpu::default()), None);
    }
}
