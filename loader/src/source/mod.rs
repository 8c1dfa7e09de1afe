//! Where the bytes of a checkpoint come from.
//!
//! In comes a file number and a run of bytes; out goes a slice of memory. It knows no tensor and no rank.

mod mapped;

pub use mapped::MappedFiles;

use shardwright_planner::checkpoint::ByteRange;
use std::{io, ops::ControlFlow, path::PathBuf};

/// Most bytes that a source hands on at a time: what stays in a core's cache until it is copied and summed up.
pub const PIECE_BYTES: usize = 256 << 10;

/// A run of bytes that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Number of the file.
    pub file: usize,
    /// Which of its bytes.
    pub range: ByteRange,
    /// The caller's own number for it.
    pub tag: u64,
}

/// The files of a checkpoint, readable from any thread.
///
/// Implementations have checked that each file has the length that the catalog says.
pub trait Source: Sync {
    /// Reads what `next` asks for, in that order, until it gives `None`, and hands it on in pieces of at most [`PIECE_BYTES`], in
    /// order: `deliver` is told which request a piece belongs to, the piece's first byte in the file, and the piece. It breaks
    /// when it wants no more, which is no error here. Requests may be taken some way ahead of what is delivered. Each thread
    /// that reads calls it once.
    ///
    /// # Errors
    /// [`SourceError`] names the file and the bytes; nothing is delivered after it.
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: &mut dyn FnMut(Request, u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), SourceError>;

    /// The bytes `range` of file number `file` where they lie mapped into memory; `None` where they do not.
    fn mapped(&self, file: usize, range: ByteRange) -> Option<&[u8]> {
        let _ = (file, range);
        None
    }
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
