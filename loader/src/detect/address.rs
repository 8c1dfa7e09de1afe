//! PCI addresses, as sysfs and NVML write them.

use std::{fmt, ops::RangeInclusive};

/// Where a function of a device is on the PCI buses. Shown as sysfs writes it: `0000:07:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Address {
    /// Reads `0000:07:00.0`, and NVML's `00000000:07:00.0`. Domains past four digits are of buses behind Intel's VMD.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (domain, rest) = text.split_once(':')?;
        let (bus, rest) = rest.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let byte = |digits, width, most| {
            let value = u8::try_from(hex(digits, width..=width)?).ok()?;
            (value <= most).then_some(value)
        };
        Some(Self {
            domain: hex(domain, 4..=8)?,
            bus: byte(bus, 2, 0xff)?,
            device: byte(device, 2, 0x1f)?,
            function: byte(function, 1, 7)?,
        })
    }

    /// The first function of the same device.
    pub(super) fn card(self) -> Self {
        Self { function: 0, ..self }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// A number of that many hexadecimal digits.
fn hex(digits: &str, width: RangeInclusive<usize>) -> Option<u32> {
    let plain = width.contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_ways_of_writing_give_the_one_of_sysfs() {
        for (text, shown) in [
            ("0000:07:00.0", "0000:07:00.0"),
            ("00000000:1B:00.0", "0000:1b:00.0"),
            ("10000:e0:06.7", "10000:e0:06.7"),
        ] {
            assert_eq!(Address::parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "pci0000:00", "0000:07:00", "0000:07:20.0", "0000:07:00.8", "000:07:00.0", "0000:+7:00.0"]
        {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_shown_the_same(text in "[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]") {
            prop_assert_eq!(Address::parse(&text).unwrap().to_string(), text);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = Address::parse(&text);
        }
    }
}
