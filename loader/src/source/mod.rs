//! Where the bytes of a checkpoint come from.
//!
//! In comes a file number and a run of bytes; out goes a slice of memory. It knows no tensor and no rank.

mod mapped;

pub use mapped::MappedFiles;

use shardwright_planner::checkpoint::ByteRange;
use std::{io, path::PathBuf};

/// The files of a checkpoint, readable from any thread.
///
/// Implementations have checked that each file has the length that the catalog says.
pub trait Source: Sync {
    /// The bytes `range` of file number `file`: borrowed where the source has them in memory, else read into `scratch`,
    /// which the caller keeps and reuses.
    ///
    /// # Errors
    /// [`SourceError`] names the file and the bytes.
    fn bytes<'a>(
        &'a self,
        file: usize,
        range: ByteRange,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], SourceError>;
}

/// Why a checkpoint's bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system refused.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted: `open`, `map`.
        attempt: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not as long as when its header was read.
    #[error("{} had {expected} bytes when its header was read and has {found} now", path.display())]
    LengthChanged {
        /// The file.
        path: PathBuf,
        /// Bytes then.
        expected: u64,
        /// Bytes now.
        found: u64,
    },
    /// Bytes that the file does not have.
    #[error("bytes {start}..{stop} of file {file} do not exist")]
    OutOfRange {
        /// Number of the file.
        file: usize,
        /// First byte.
        start: u64,
        /// One past the last byte.
        stop: u64,
    },
}
