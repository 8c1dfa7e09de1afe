//! NCCL's version numbers.

use std::{ffi::c_int, fmt};

/// A release of NCCL. Ordered as they came out; shown as `2.18.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 2 for all that this crate may meet.
    pub major: u32,
    /// 18 of 2.18.1.
    pub minor: u32,
    /// 1 of 2.18.1.
    pub patch: u32,
}

impl Version {
    /// The oldest release that this crate works with: non-blocking communicators that can be split.
    pub const LEAST: Self = Self { major: 2, minor: 18, patch: 0 };

    /// Reads what `ncclGetVersion` gives: `21801` is 2.18.1, and up to 2.8 `2804` is 2.8.4. `None` for numbers that are no
    /// version.
    #[must_use]
    pub fn from_code(code: c_int) -> Option<Self> {
        let code = u32::try_from(code).ok().filter(|&code| code >= 1000)?;
        let major_is = if code < 10_000 { 1000 } else { 10_000 };
        Some(Self { major: code / major_is, minor: code % major_is / 100, patch: code % 100 })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_codings_are_read() {
        for (code, shown) in [
            (2804, "2.8.4"),
            (2000, "2.0.0"),
            (20903, "2.9.3"),
            (21801, "2.18.1"),
            (22304, "2.23.4"),
            (23007, "2.30.7"),
        ] {
            assert_eq!(Version::from_code(code).unwrap().to_string(), shown);
        }
        for code in [c_int::MIN, -21801, 0, 999] {
            assert_eq!(Version::from_code(code), None);
        }
    }

    #[test]
    fn releases_are_ordered_across_the_codings() {
        let version = |code| Version::from_code(code).unwrap();
        assert!(version(2804) < version(20903) && version(20903) < Version::LEAST);
        assert!(Version::LEAST < version(21801) && version(21801) < version(23007));
    }
}
