//! Figures with their units: `80 GiB`, `450 GB/s`, `400 Gb/s`.
//!
//! k, M, G, T are powers of 1000; Ki, Mi, Gi, Ti of 1024; B is bytes, b is bits.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Largest figure of either kind: 2^60, far beyond any machine.
const MOST: f64 = (1u64 << 60) as f64;

/// A number of bytes, written `81559 MiB`. At least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bytes(u64);

/// Bytes per second in one direction, written `450 GB/s` or `400 Gb/s`. At least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bandwidth(u64);

/// A text that is no figure with a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is no {what}: write it like {example}", crate::quote::quote(text))]
pub struct QuantityError {
    text: String,
    what: &'static str,
    example: &'static str,
}

impl Bytes {
    /// `bytes` bytes.
    pub fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// How many bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Bandwidth {
    /// `bytes` bytes per second.
    pub fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes per second.
    pub fn bytes_per_second(self) -> u64 {
        self.0
    }
}

/// Reads `text` as a number and a unit of bytes or bits, less `suffix`.
fn parse(text: &str, suffix: &str) -> Option<u64> {
    let text = text.trim().strip_suffix(suffix)?;
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(end);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim();
    let (prefix, bits) = match unit.strip_suffix('B') {
        Some(prefix) => (prefix, 8.0),
        None => (unit.strip_suffix('b')?, 1.0),
    };
    let factor = match prefix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return None,
    };
    let value = (number * factor * bits / 8.0).round();
    // The range makes the cast exact enough and free of wrapping.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    (1.0..=MOST).contains(&value).then_some(value as u64)
}

impl FromStr for Bytes {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError { text: text.to_owned(), what: "number of bytes", example: "80 GiB" };
        parse(text, "").map(Self).ok_or_else(wrong)
    }
}

impl FromStr for Bandwidth {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let wrong =
            || QuantityError { text: text.to_owned(), what: "bandwidth", example: "450 GB/s or 400 Gb/s" };
        parse(text, "/s").map(Self).ok_or_else(wrong)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let exact = units.iter().find(|(unit, _)| self.0.is_multiple_of(*unit));
        match exact {
            Some((unit, name)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl fmt::Display for Bandwidth {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000_000_000 => write!(f, "{} MB/s", self.0 as f64 / 1e6),
            _ => write!(f, "{} GB/s", self.0 as f64 / 1e9),
        }
    }
}

impl TryFrom<String> for Bytes {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Self, QuantityError> {
        text.parse()
    }
}

impl TryFrom<String> for Bandwidth {
    type Error = QuantityError;

    fn try_from(text: String) -> Result<Self, QuantityError> {
        text.parse()
    }
}

impl From<Bytes> for String {
    fn from(bytes: Bytes) -> Self {
        bytes.to_string()
    }
}

impl From<Bandwidth> for String {
    fn from(bandwidth: Bandwidth) -> Self {
        bandwidth.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn figures_are_read_with_their_units() {
        assert_eq!("80 GiB".parse::<Bytes>().unwrap().bytes(), 80 << 30);
        assert_eq!("1.5kB".parse::<Bytes>().unwrap().bytes(), 1500);
        assert_eq!("400 Gb/s".parse::<Bandwidth>().unwrap().bytes_per_second(), 50_000_000_000);
        assert_eq!("3.35 TB/s".parse::<Bandwidth>().unwrap().to_string(), "3350 GB/s");
    }

    #[test]
    fn what_is_no_figure_is_refused() {
        for text in ["80", "GiB", "-1 GiB", "0 GiB", "1 GX", "9e99 GB", "99999999 TB", "1 GB/s", "nan GB", ""]
        {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        assert!("450 GB".parse::<Bandwidth>().is_err());
    }

    proptest! {
        #[test]
        fn bytes_are_written_as_they_are_read(bytes in 1u64..1 << 50) {
            let bytes = Bytes::new(bytes);
            prop_assert_eq!(bytes.to_string().parse::<Bytes>().unwrap(), bytes);
        }
    }
}
