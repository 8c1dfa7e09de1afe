//! Where rank 0 is reached.

use shardwright_planner::quote::quote;
use std::{fmt, str::FromStr};

/// Longest name of a host (RFC 1035), with some room for a scope.
const MAX_HOST_BYTES: usize = 300;

/// A host, by name or number, and a port other than 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
}

/// What is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is no address; HOST:PORT is one, as in node1:29401 or [fd00::1]:29401", quote(.0))]
pub struct AddressError(String);

impl Address {
    /// The address of `host` and `port`.
    ///
    /// # Errors
    /// [`AddressError`] when the host is not one word or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, AddressError> {
        let letters = |letter: char| letter.is_ascii_alphanumeric() || "-_.:%".contains(letter);
        if host.is_empty() || host.len() > MAX_HOST_BYTES || !host.chars().all(letters) || port == 0 {
            return Err(AddressError(format!("{host}:{port}")));
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        let numeric = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // Whether the last colon begins a port cannot be told without brackets.
        if numeric.is_none() && host.contains(':') {
            return Err(error());
        }
        let port = port.parse().map_err(|_| error())?;
        Self::new(numeric.unwrap_or(host), port).map_err(|_| error())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_written_as_they_are_read() {
        for text in ["node1:29401", "10.0.0.1:1", "[fd00::1]:65535", "[fe80::1%eth0]:29401", "a-b_c.d:80"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let wrong =
            ["", "node1", ":29401", "node1:", "node1:0", "node1:70000", "fd00::1:29401", "a b:1", "[]:1"];
        for text in wrong {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains("is no address"), "{text}");
        }
        assert!(format!("{}:1", "x".repeat(400)).parse::<Address>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_an_address_or_an_error(text in any::<String>()) {
            if let Ok(address) = text.parse::<Address>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
