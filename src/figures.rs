//! Numbers as people read them.

use std::time::Duration;

const GIB: f64 = (1u64 << 30) as f64;

/// Bytes in GiB.
pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.2}", as_f64(bytes) / GIB)
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.2}", as_f64(bytes) / f64::from(1 << 20))
}

/// Bytes in KiB.
pub(crate) fn kib(bytes: u64) -> String {
    format!("{:.2}", as_f64(bytes) / 1024.0)
}

/// A part of a whole in percent.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "0.0".to_owned() } else { format!("{:.1}", 100.0 * as_f64(part) / as_f64(whole)) }
}

/// Bytes in a time as GB/s (10^9).
pub(crate) fn gb_per_second(bytes: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { as_f64(bytes) / 1e9 / time.as_secs_f64() }
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}
