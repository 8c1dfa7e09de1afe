//! The name of a communicator, before there is one.

use crate::sys;
use std::fmt;

/// What all ranks of a new communicator must have before they can find each other. Made by
/// [`Library::unique_id`](crate::Library::unique_id) on one rank, and brought to the others as bytes.
///
/// It holds an address and a secret of the rank that made it: whoever knows it may join.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; Self::BYTES]);

impl UniqueId {
    /// Bytes of an identifier.
    pub const BYTES: usize = sys::UNIQUE_ID_BYTES;

    /// An identifier that another rank sent.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// What to send to other ranks.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }

    pub(crate) fn from_raw(raw: sys::RawUniqueId) -> Self {
        Self(raw.internal.map(|letter| u8::from_ne_bytes(letter.to_ne_bytes())))
    }

    pub(crate) fn to_raw(self) -> sys::RawUniqueId {
        sys::RawUniqueId { internal: self.0.map(|byte| std::ffi::c_char::from_ne_bytes([byte])) }
    }
}

/// Does not show the secret.
impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UniqueId").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_pass_through_c_and_back() {
        let bytes = std::array::from_fn(|at| u8::try_from(at * 2).unwrap());
        let id = UniqueId::from_bytes(bytes);
        assert_eq!(UniqueId::from_raw(id.to_raw()).as_bytes(), &bytes);
        assert_eq!(format!("{id:?}"), "UniqueId { .. }");
    }
}
