//! How fast a PCI Express link is.

use shardwright_planner::topology::{pcie_bytes_per_second, pcie_rate};

/// Widths that the specification has.
const WIDTHS: [u64; 7] = [1, 2, 4, 8, 12, 16, 32];

/// Bytes per second in one direction of `lanes` lanes of generation 1 to 6; `None` for what no link is.
pub(super) fn of_generation(generation: u32, lanes: u64) -> Option<u64> {
    link(pcie_rate(generation)?, lanes)
}

/// Bytes per second in one direction of `lanes` lanes at a rate as sysfs writes it: `32.0 GT/s PCIe`.
pub(super) fn of_rate(rate: &str, lanes: u64) -> Option<u64> {
    let (number, _) = rate.split_once(" GT/s")?;
    link(thousandths(number)?, lanes)
}

fn link(rate: u64, lanes: u64) -> Option<u64> {
    pcie_bytes_per_second(rate, lanes).filter(|_| WIDTHS.contains(&lanes))
}

/// The slower of two links one after the other, as far as they are known.
pub(super) fn narrower(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    one.into_iter().chain(other).min()
}

/// A decimal number in thousandths: `2.5` is 2500.
pub(super) fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    if !plain(whole) || !plain(fraction) || fraction.len() > 3 {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sixteen_lanes_are_as_fast_as_the_specification_says() {
        let gb = |rate| of_rate(rate, 16).unwrap() / 100_000_000;
        assert_eq!(gb("2.5 GT/s PCIe"), 40);
        assert_eq!(gb("5 GT/s"), 80);
        assert_eq!(gb("8.0 GT/s PCIe"), 157);
        assert_eq!(gb("16.0 GT/s PCIe"), 315);
        assert_eq!(gb("32.0 GT/s PCIe"), 630);
        assert_eq!(gb("64.0 GT/s PCIe"), 1210);
        assert_eq!(of_generation(5, 16), of_rate("32.0 GT/s PCIe", 16));
        assert_eq!(of_generation(1, 1), Some(250_000_000));
    }

    #[test]
    fn what_no_link_is_has_no_speed() {
        for rate in ["Unknown", "", "32.0", "33.0 GT/s PCIe", "-8 GT/s", "8.0000 GT/s", ". GT/s"] {
            assert_eq!(of_rate(rate, 16), None, "{rate}");
        }
        assert_eq!(of_rate("32.0 GT/s PCIe", 0), None);
        assert_eq!(of_rate("32.0 GT/s PCIe", 255), None);
        assert_eq!((of_generation(0, 16), of_generation(7, 16)), (None, None));
    }

    #[test]
    fn the_slower_of_two_links_counts_where_both_are_known() {
        assert_eq!(narrower(Some(3), Some(2)), Some(2));
        assert_eq!(narrower(None, Some(2)), Some(2));
        assert_eq!(narrower(None, None), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*", number in "[0-9]{0,40}\\.?[0-9]{0,5}", lanes: u64, generation: u32) {
            let _ = (thousandths(&text), thousandths(&number), of_rate(&format!("{number} GT/s"), lanes));
            let _ = of_generation(generation, lanes);
        }
    }
}
