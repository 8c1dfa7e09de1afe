//! What kind of CPU this is, as `/proc/cpuinfo` tells it.

use super::sysfs::beginning;
use shardwright_planner::topology::import::Cpu;
use std::path::Path;

/// The kind of the first CPU in the file; empty where nothing is known.
pub(super) fn read(cpuinfo: &Path) -> Cpu {
    beginning(cpuinfo).map(|text| parse(&text)).unwrap_or_default()
}

/// x86 tells vendor, family and model. Others are known by a key that only they have.
fn parse(text: &str) -> Cpu {
    let value = |key: &str| {
        text.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            (found.trim() == key).then(|| value.trim())
        })
    };
    let number = |key| value(key).and_then(|value| value.parse().ok());
    if let Some(family) = number("cpu family") {
        let vendor = value("vendor_id").unwrap_or_default().chars().take(MOST_LETTERS).collect();
        return Cpu {
            arch: "x86_64".to_owned(),
            vendor,
            family: Some(family),
            model: number("model"),
            ..Cpu::default()
        };
    }
    let arch = if value("CPU implementer").is_some() {
        "arm64"
    } else if value("cpu").is_some_and(|cpu| cpu.starts_with("POWER")) {
        "ppc64"
    } else {
        ""
    };
    Cpu { arch: arch.to_owned(), ..Cpu::default() }
}

/// Longest vendor; CPUID's have twelve letters.
const MOST_LETTERS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_cpu_of_an_x86_machine_is_told() {
        let cpu = parse(
            "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Intel(R) Xeon(R)\n\n\
             processor\t: 1\nvendor_id\t: Other\ncpu family\t: 7\nmodel\t\t: 1\n",
        );
        assert_eq!((cpu.arch.as_str(), cpu.vendor.as_str()), ("x86_64", "GenuineIntel"));
        assert_eq!((cpu.family, cpu.model), (Some(6), Some(143)));
    }

    #[test]
    fn other_architectures_are_known_by_their_keys() {
        assert_eq!(parse("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd4f\n").arch, "arm64");
        assert_eq!(parse("processor\t: 0\ncpu\t\t: POWER9, altivec supported\n").arch, "ppc64");
        assert_eq!(parse("processor: 0\n"), Cpu::default());
    }

    #[test]
    fn a_file_that_is_not_there_tells_nothing() {
        assert_eq!(read(Path::new("/nowhere/cpuinfo")), Cpu::default());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(vendor_id|cpu family|model|cpu|[a-z]{0,4}|:|\t|\n|[0-9]{0,30}|.){0,40}") {
            parse(&text);
        }
    }
}
