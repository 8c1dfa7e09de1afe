//! What can go wrong: opening the library, and calling it.

use crate::{Version, sys::ResultCode};
use std::{fmt, time::Duration};

/// A name under which NCCL was looked for in vain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The name or path, as it was given to the dynamic linker.
    pub name: String,
    /// What the linker said.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", printable(&self.name), printable(&self.reason))
    }
}

/// Why no NCCL could be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// None of the names led to a library.
    #[error(
        "no NCCL library could be opened\n{}help: install NCCL 2.18 or newer, or say where libnccl.so.2 is",
        lines(tried)
    )]
    NotFound {
        /// All names, in the order in which they were tried.
        tried: Vec<Refusal>,
    },
    /// A library was opened that is not NCCL, or only part of it.
    #[error("{name} has no function `{symbol}`: it is not NCCL, or a broken one", name = printable(name))]
    MissingSymbol {
        /// The library.
        name: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// The library does not say which release it is.
    #[error(
        "{name} does not tell its version: ncclGetVersion gave {code} and the number {number}",
        name = printable(name)
    )]
    NoVersion {
        /// The library.
        name: String,
        /// What the call came to.
        code: ResultCode,
        /// What it wrote, which is no version.
        number: i32,
    },
    /// The library is older than this crate can use.
    #[error("{name} is NCCL {found}, and {least} is the oldest that will do", name = printable(name))]
    TooOld {
        /// The library.
        name: String,
        /// Its release.
        found: Version,
        /// The oldest that is accepted.
        least: Version,
    },
}

/// One name a line.
fn lines(tried: &[Refusal]) -> String {
    tried.iter().map(|refusal| format!("  {refusal}\n")).collect()
}

/// A text from outside, with what would move a terminal's cursor escaped.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() { shown.extend(letter.escape_debug()) } else { shown.push(letter) }
    }
    shown
}

/// Why a call to NCCL did not do what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// NCCL said so, at once or later.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The call still went on in the background when the time was up. The communicator was aborted.
    #[error(
        "{call}: not done after {waited:.1?}; the communicator was aborted\n\
         help: a rank that never made this call, or that ended, keeps the others waiting; NCCL_DEBUG=INFO on all ranks shows which"
    )]
    TimedOut {
        /// C's name of the function.
        call: &'static str,
        /// How long this rank waited.
        waited: Duration,
    },
    /// The caller did not want to wait any longer. The communicator was aborted.
    #[error("{call}: given up after {waited:.1?}; the communicator was aborted")]
    GivenUp {
        /// C's name of the function.
        call: &'static str,
        /// How long this rank waited.
        waited: Duration,
    },
    /// The communicator was aborted before, and can do nothing more.
    #[error("{call}: the communicator was aborted before")]
    Aborted {
        /// C's name of the function.
        call: &'static str,
    },
    /// A rank must be less than the number of ranks, and that must be a positive `int`.
    #[error("{call}: rank {rank} is not one of {world} ranks")]
    NoSuchRank {
        /// C's name of the function.
        call: &'static str,
        /// The rank: this one's own, a root or a peer.
        rank: u32,
        /// Ranks of the communicator.
        world: u32,
    },
    /// Colours and keys of a split are non-negative `int`s.
    #[error("{call}: {number} is larger than {most}, the largest that NCCL takes")]
    TooLarge {
        /// C's name of the function.
        call: &'static str,
        /// What was given.
        number: u32,
        /// What would do.
        most: i32,
    },
}

/// An error that NCCL itself reports. Shown with its name and number, with what NCCL says, and with what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// C's name of the function.
    pub call: &'static str,
    /// What it returned, or left as the communicator's asynchronous error.
    pub code: ResultCode,
    /// The library's own words for the code (`ncclGetErrorString`).
    pub meaning: Option<String>,
    /// The last error message of the process (`ncclGetLastError`). It may be of another, earlier failure.
    pub last_message: Option<String>,
}

impl Failure {
    /// What a person can do about it.
    fn help(&self) -> &'static str {
        match self.code {
            ResultCode::UNHANDLED_CUDA_ERROR => {
                "NCCL_DEBUG=WARN names the CUDA error; often the driver is too old, or the memory of the GPU is full"
            }
            ResultCode::SYSTEM_ERROR => {
                "NCCL_DEBUG=WARN names the socket or file; look at NCCL_SOCKET_IFNAME, /dev/shm and `ulimit -l`"
            }
            ResultCode::INTERNAL_ERROR => {
                "NCCL_DEBUG=WARN says more; NCCL versions that differ are one cause"
            }
            ResultCode::INVALID_ARGUMENT | ResultCode::INVALID_USAGE => {
                "NCCL_DEBUG=WARN says more: two ranks have the same GPU, or gave different arguments"
            }
            ResultCode::REMOTE_ERROR => {
                "another rank failed or its network did: look at the other ranks' output first"
            }
            ResultCode::TIMEOUT => {
                "a rank or its network is slow or gone: look at the other ranks' output first"
            }
            _ => "NCCL_DEBUG=WARN says more",
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.call)?;
        match &self.meaning {
            Some(meaning) => write!(f, "{} ({})", printable(meaning), self.code)?,
            None => write!(f, "{}", self.code)?,
        }
        if let Some(message) = &self.last_message {
            write!(f, "\nNCCL's last message: {}", printable(message))?;
        }
        write!(f, "\nhelp: {}", self.help())
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: i32) -> Failure {
        Failure { call: "ncclAllReduce", code: ResultCode(code), meaning: None, last_message: None }
    }

    #[test]
    fn failures_name_call_code_words_and_help() {
        let told = Failure {
            meaning: Some("remote process exited or there was a network error".to_owned()),
            last_message: Some("socketProgress: \u{1b}[1m connection closed".to_owned()),
            ..failure(6)
        };
        assert_eq!(
            CallError::from(told).to_string(),
            "ncclAllReduce: remote process exited or there was a network error (ncclRemoteError, code 6)\n\
             NCCL's last message: socketProgress: \\u{1b}[1m connection closed\n\
             help: another rank failed or its network did: look at the other ranks' output first"
        );
    }

    #[test]
    fn unknown_codes_are_shown_as_numbers() {
        assert_eq!(
            failure(4711).to_string(),
            "ncclAllReduce: code 4711, which this binding does not know\nhelp: NCCL_DEBUG=WARN says more"
        );
    }

    #[test]
    fn each_known_code_has_its_name() {
        for (code, name) in
            ["Success", "UnhandledCudaError", "SystemError", "InternalError", "InvalidArgument"]
                .into_iter()
                .chain(["InvalidUsage", "RemoteError", "InProgress", "Timeout"])
                .enumerate()
        {
            let code = ResultCode(i32::try_from(code).unwrap());
            assert_eq!(code.name().unwrap(), format!("nccl{name}"));
        }
        assert_eq!((ResultCode(9).name(), ResultCode(-1).name()), (None, None));
    }

    #[test]
    fn a_library_too_old_is_named_with_both_versions() {
        let error = OpenError::TooOld {
            name: "libnccl.so.2".to_owned(),
            found: Version::from_code(21003).unwrap(),
            least: Version::LEAST,
        };
        assert_eq!(error.to_string(), "libnccl.so.2 is NCCL 2.10.3, and 2.18.0 is the oldest that will do");
    }
}
