//! Figures with their units: `80 GiB`, `450 GB/s`, `400 Gb/s`, `989.4 TFLOP/s`, `500 ns`.
//!
//! k, M, G, T, P are powers of 1000; Ki, Mi, Gi, Ti of 1024; B is bytes, b is bits.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A text that is no figure with a unit, or one that no machine has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is no {what}: write it like {example}, at most {most}", crate::quote::quote(text))]
pub struct QuantityError {
    text: String,
    what: &'static str,
    example: &'static str,
    most: &'static str,
}

/// A figure that is written with its unit, kept in its base unit. From 1 to its largest.
macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident in $base:ident: $what:literal, like $example:literal, read by $read:path, most $most:literal = $number:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
        #[serde(into = "String")]
        pub struct $name(u64);

        impl $name {
            /// The figure in its base unit.
            pub fn new($base: u64) -> Self {
                Self($base)
            }

            /// The figure in its base unit.
            pub fn $base(self) -> u64 {
                self.0
            }
        }

        impl FromStr for $name {
            type Err = QuantityError;

            fn from_str(text: &str) -> Result<Self, QuantityError> {
                let wrong = || QuantityError {
                    text: text.to_owned(),
                    what: $what,
                    example: $example,
                    most: $most,
                };
                $read(text).and_then(|value| within(value, $number)).map(Self).ok_or_else(wrong)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(crate::yaml::Parsed::new($what))
            }
        }

        impl From<$name> for String {
            fn from(quantity: $name) -> Self {
                quantity.to_string()
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "description": concat!("A ", $what, ", written like ", $example, "; at most ", $most, "."),
                    "pattern": r"^\s*[0-9.]+\s*[A-Za-z/]+\s*$",
                })
            }
        }
    };
}

quantity! {
    /// A number of bytes, written `81559 MiB`.
    Bytes in bytes: "number of bytes", like "80 GiB", read by read_bytes, most "1024 TiB" = 1 << 50
}

quantity! {
    /// Bytes per second in one direction, written `450 GB/s` or `400 Gb/s`.
    Bandwidth in bytes_per_second: "bandwidth", like "450 GB/s or 400 Gb/s", read by read_bandwidth, most "1000 TB/s" = 1_000_000_000_000_000
}

quantity! {
    /// Dense floating-point (or integer) operations per second, written `989.4 TFLOP/s`.
    FlopRate in flops: "rate of operations", like "989.4 TFLOP/s", read by read_flops, most "1000 PFLOP/s" = 1_000_000_000_000_000_000
}

quantity! {
    /// How long the first byte takes, written `500 ns` or `1.5 us`.
    Latency in nanoseconds: "latency", like "500 ns or 1.5 us", read by read_latency, most "1 s" = 1_000_000_000
}

/// The whole number nearest to `value`, from 1 to `most`.
fn within(value: f64, most: u64) -> Option<u64> {
    let value = value.round();
    // The range makes the casts exact enough and free of wrapping.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    (1.0..=most as f64).contains(&value).then_some(value as u64)
}

/// The number at the start of `text`, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

fn prefix(prefix: &str) -> Option<f64> {
    Some(match prefix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        _ => return None,
    })
}

fn read_bytes(text: &str) -> Option<f64> {
    let (number, unit) = number(text)?;
    match unit.strip_suffix('B') {
        Some(bytes) => Some(number * prefix(bytes)?),
        None => Some(number * prefix(unit.strip_suffix('b')?)? / 8.0),
    }
}

fn read_bandwidth(text: &str) -> Option<f64> {
    read_bytes(text.trim().strip_suffix("/s")?)
}

fn read_flops(text: &str) -> Option<f64> {
    let (number, unit) = number(text)?;
    let unit = unit.strip_suffix("FLOP/s").or_else(|| unit.strip_suffix("OP/s"))?;
    Some(number * prefix(unit)?)
}

fn read_latency(text: &str) -> Option<f64> {
    let (number, unit) = number(text)?;
    let nanoseconds = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    Some(number * nanoseconds)
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
            0..1_000_000 => write!(f, "{} B/s", self.0),
            1_000_000..1_000_000_000 => write!(f, "{} MB/s", self.0 as f64 / 1e6),
            _ => write!(f, "{} GB/s", self.0 as f64 / 1e9),
        }
    }
}

impl fmt::Display for FlopRate {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000_000_000 => write!(f, "{} FLOP/s", self.0),
            1_000_000_000..1_000_000_000_000 => write!(f, "{} GFLOP/s", self.0 as f64 / 1e9),
            _ => write!(f, "{} TFLOP/s", self.0 as f64 / 1e12),
        }
    }
}

impl fmt::Display for Latency {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..1_000 => write!(f, "{} ns", self.0),
            _ => write!(f, "{} us", self.0 as f64 / 1e3),
        }
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
        assert_eq!("989.4 TFLOP/s".parse::<FlopRate>().unwrap().flops(), 989_400_000_000_000);
        assert_eq!("1979 TOP/s".parse::<FlopRate>().unwrap().to_string(), "1979 TFLOP/s");
        assert_eq!("1.5 us".parse::<Latency>().unwrap().nanoseconds(), 1500);
        assert_eq!("0.9us".parse::<Latency>().unwrap().to_string(), "900 ns");
    }

    #[test]
    fn what_is_no_figure_is_refused() {
        for text in ["80", "GiB", "-1 GiB", "0 GiB", "1 GX", "9e99 GB", "99999999 TB", "1 GB/s", "nan GB", ""]
        {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
        for text in ["450 GB", "-1 GB/s", "0 GB/s", "9999 TB/s", "1 GB/min"] {
            assert!(text.parse::<Bandwidth>().is_err(), "{text}");
        }
        for text in ["2 min", "2 s", "-1 ns", "1"] {
            assert!(text.parse::<Latency>().is_err(), "{text}");
        }
        let error = "2000 PFLOP/s".parse::<FlopRate>().unwrap_err().to_string();
        assert_eq!(
            error,
            "`2000 PFLOP/s` is no rate of operations: write it like 989.4 TFLOP/s, at most 1000 PFLOP/s"
        );
    }

    proptest! {
        #[test]
        fn figures_are_written_as_they_are_read(figure in 1u64..1 << 49) {
            let bytes = Bytes::new(figure);
            prop_assert_eq!(bytes.to_string().parse::<Bytes>().unwrap(), bytes);
            let bandwidth = Bandwidth::new(figure);
            prop_assert_eq!(bandwidth.to_string().parse::<Bandwidth>().unwrap(), bandwidth);
            let rate = FlopRate::new(figure);
            prop_assert_eq!(rate.to_string().parse::<FlopRate>().unwrap(), rate);
            let latency = Latency::new(figure % 1_000_000_000 + 1);
            prop_assert_eq!(latency.to_string().parse::<Latency>().unwrap(), latency);
        }

        #[test]
        fn no_text_panics(text in ".{0,30}") {
            let _ = (text.parse::<Bytes>(), text.parse::<Bandwidth>(), text.parse::<FlopRate>(), text.parse::<Latency>());
        }
    }
}
