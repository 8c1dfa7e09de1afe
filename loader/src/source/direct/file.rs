//! One file that is read directly.

use super::{DirectError, DirectRefused, queue::Broken};
use crate::source::SourceError;
use crate::source::opened::Identity;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use shardwright_planner::checkpoint::CatalogFile;
use std::{
    fs::File,
    io::{self, ErrorKind},
    path::PathBuf,
};

/// What direct reads begin and stop at multiples of where nobody says otherwise: what every disk takes.
pub(super) const LEAST_UNIT: usize = 4096;

/// The largest unit that is provided for.
const MOST_UNIT: u32 = 64 << 10;

/// A file, opened with `O_DIRECT`.
pub(super) struct DirectFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Its length in the catalog.
    pub(super) bytes: u64,
    identity: Identity,
    /// What its reads begin and stop at multiples of.
    pub(super) unit: usize,
}

impl DirectFile {
    pub(super) fn open(entry: &CatalogFile) -> Result<Self, DirectError> {
        let path = entry.path.clone();
        let failed = |source| SourceError::Io { attempt: "open", path: path.clone(), source };
        // A pipe would wait for somebody who writes into it.
        if std::fs::metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return Err(SourceError::NotAFile { path }.into());
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) if unknown(&error.into()) => {
                return Err(DirectRefused::FileSystem { path, source: error.into() }.into());
            }
            Err(error) => return Err(failed(error.into()).into()),
        };
        let meta = file.metadata().map_err(failed)?;
        let found = meta.len();
        if found != entry.bytes {
            return Err(SourceError::LengthChanged { path, expected: entry.bytes, found }.into());
        }
        let (file_bytes, memory_bytes) = alignment(&file).unwrap_or((4096, 4096));
        let page = rustix::param::page_size();
        let provided = |bytes: u32, most: usize| bytes.is_power_of_two() && bytes as usize <= most;
        if !provided(file_bytes, MOST_UNIT as usize) || !provided(memory_bytes, page) {
            return Err(DirectRefused::Alignment { path, file_bytes, memory_bytes }.into());
        }
        let unit = LEAST_UNIT.max(file_bytes as usize).max(memory_bytes as usize);
        Ok(Self { path, file, bytes: entry.bytes, identity: Identity::of(&meta), unit })
    }

    /// Whether it is still the file that was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), SourceError> {
        self.identity.check(&self.path)
    }

    /// What the error is called outside.
    pub(super) fn broken(&self, broken: Broken) -> SourceError {
        let path = self.path.clone();
        match broken {
            Broken::Refused { at, source } => SourceError::Read { path, at, source },
            Broken::Ended { at } => SourceError::Truncated { path, at, expected: self.bytes },
        }
    }
}

/// Whether `error` says that something is not known here, rather than that it went wrong.
pub(super) fn unknown(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported)
}

/// What the kernel says that direct reads of `file` begin at multiples of, in the file and in memory; 0 and 0 where the file
/// cannot be read so. None where it says nothing.
fn alignment(file: &File) -> Option<(u32, u32)> {
    let found = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = found.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    told.then_some((found.stx_dio_offset_align, found.stx_dio_mem_align))
}
