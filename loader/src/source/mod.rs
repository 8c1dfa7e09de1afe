//! Where the bytes of a checkpoint come from.
//!
//! In comes a file number and a run of bytes; out goes a slice of memory. It knows no tensor and no rank.

mod ahead;
mod by_file;
mod choice;
mod direct;
mod facts;
mod fault;
#[cfg(test)]
mod fixture;
mod mapped;
mod open;
mod opened;
mod read;

pub use by_file::{ByFile, SourcesOf};
pub use choice::{Choice, HostFacts, Io, Reason, Way, choose, summary};
pub use direct::{DirectError, DirectFiles, DirectOptions, DirectRefused};
pub use facts::{FileFacts, FileSystem};
pub use mapped::MappedFiles;
pub use open::{Opened, open};
pub use read::ReadFiles;

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
    /// Whether other processes of this host want some of these bytes too. Where they are few, somebody says what of them is to be
    /// [read ahead](Source::read_ahead).
    pub shared: bool,
}

/// What takes the pieces: each with the request that it belongs to and its first byte in the file.
pub type Deliver<'a> = &'a mut dyn FnMut(Request, u64, &[u8]) -> ControlFlow<()>;

/// The files of a checkpoint, readable from any thread.
///
/// Implementations have checked that each file has the length that the catalog says.
pub trait Source: Sync {
    /// Reads what `next` asks for, in that order, until it gives `None`, and hands it on in pieces of at most [`PIECE_BYTES`], in
    /// order: `deliver` is told which request a piece belongs to, the piece's first byte in the file, and the piece. It breaks
    /// when it wants no more, which is no error here. What was delivered holds when the next piece comes, or the end without an
    /// error: a mapped file may be cut while its bytes are used. Requests may be taken some way ahead of what is delivered. Each thread
    /// that reads calls it once.
    ///
    /// # Errors
    /// [`SourceError`] names the file and the bytes; nothing is delivered after it.
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError>;

    /// Says that some process of this host will soon ask for these bytes, which are [shared](Request::shared). Only advice.
    fn read_ahead(&self, file: usize, range: ByteRange) {
        let _ = (file, range);
    }

    /// The bytes `range` of file number `file` where they lie mapped into memory; `None` where they do not. Whether they were
    /// there all the time is known when all is read, from [`check_unchanged`](Self::check_unchanged).
    ///
    /// # Errors
    /// [`SourceError`] when they do not exist, or are known to be gone.
    fn mapped(&self, file: usize, range: ByteRange) -> Result<Option<&[u8]>, SourceError> {
        let _ = (file, range);
        Ok(None)
    }

    /// Whether the files are still those that were opened, each in the state in which it was. Asked when all is read: what was
    /// written to meanwhile gave bytes of before and after. A network file system may know of others' writes some seconds late.
    ///
    /// # Errors
    /// [`SourceError::Changed`] names the file that another took the place of, or that was written to.
    fn check_unchanged(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

/// Reads the bytes `range` of file number `file`, which `deliver` is given piece by piece, each with its first byte in the file.
///
/// # Errors
/// As [`Source::stream`].
pub fn read_run(
    source: &dyn Source,
    file: usize,
    range: ByteRange,
    deliver: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> Result<(), SourceError> {
    let mut request = Some(Request { file, range, tag: 0, shared: false });
    source.stream(&mut || request.take(), &mut |_, at, piece| deliver(at, piece))
}

/// Why a checkpoint's bytes could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The system refused.
    #[error("cannot {attempt} {}: {source}", path.display())]
    Io {
        /// What was attempted: `open`, `map`, `look at`.
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
    /// The file has another header than the one that was read.
    #[error("{} has another header now than when the checkpoint was read", path.display())]
    HeaderChanged {
        /// The file.
        path: PathBuf,
    },
    /// A pipe, a device or a folder where a file was when its header was read.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was found there.
        path: PathBuf,
    },
    /// More mapped files than a process can mind.
    #[error("cannot map {}: {most} files are mapped already", path.display())]
    TooManyMappings {
        /// The file.
        path: PathBuf,
        /// How many can be mapped.
        most: usize,
    },
    /// The file became shorter after it was opened.
    #[error("{} ends at byte {at}, before its {expected} bytes were read", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Where it ends.
        at: u64,
        /// Its length when it was opened.
        expected: u64,
    },
    /// The system refused to read.
    #[error("cannot read byte {at} of {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The first byte that could not be read.
        at: u64,
        /// The system's answer.
        source: io::Error,
    },
    /// The file was written to, or another has taken its place.
    #[error("{} is not the file that was opened, or was written to since", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
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

impl SourceError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::LengthChanged { .. } | Self::OutOfRange { .. } => Some("load files that nobody is writing"),
            Self::Truncated { .. } | Self::Changed { .. } | Self::HeaderChanged { .. } => {
                Some("the checkpoint was changed while it was read; load again")
            }
            Self::NotAFile { .. } => Some("give a checkpoint of regular files"),
            Self::TooManyMappings { .. } => Some("--io read maps no file"),
            Self::Io { .. } | Self::Read { .. } => None,
        }
    }
}
