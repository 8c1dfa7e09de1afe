//! A checkpoint's files, opened, and which files they were then.

use super::SourceError;
use rustix::fs::{Advice, OFlags};
use shardwright_planner::checkpoint::{ByteRange, Catalog, CatalogFile};
use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    num::NonZero,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Most bytes that the kernel is asked to read ahead at once. It cuts one request at the larger of the device's request size
/// (1280 KiB as a rule) and its readahead (128 KiB as a rule), and forgets the rest.
const AHEAD_STEP: u32 = 512 << 10;

/// Those files of a catalog that somebody wants, each a regular file of the length that the catalog says.
#[derive(Debug)]
pub(super) struct OpenedFiles(Vec<Option<OpenedFile>>);

impl OpenedFiles {
    /// Opens the files of `catalog` whose numbers are `wanted`, with `also` among the flags.
    ///
    /// # Errors
    /// [`SourceError`] of the first that cannot be opened, is no regular file, or has another length.
    pub(super) fn open(
        catalog: &Catalog,
        wanted: &dyn Fn(usize) -> bool,
        also: OFlags,
    ) -> Result<Self, SourceError> {
        let open = |(number, entry)| wanted(number).then(|| OpenedFile::open(entry, also)).transpose();
        catalog.files().iter().enumerate().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// All files, by number; `None` for those that nobody wanted.
    pub(super) fn all(&self) -> &[Option<OpenedFile>] {
        &self.0
    }

    /// File number `file`, which has the bytes `range`.
    ///
    /// # Errors
    /// [`SourceError::OutOfRange`] when there is no such file, or it does not have them.
    pub(super) fn file(&self, file: usize, range: ByteRange) -> Result<&OpenedFile, SourceError> {
        let (start, stop) = (range.start(), range.stop());
        let found = self.0.get(file).and_then(Option::as_ref).filter(|opened| stop <= opened.bytes);
        found.ok_or(SourceError::OutOfRange { file, start, stop })
    }

    /// Has the kernel begin to read what will be wanted. What does not exist is reported when it is read.
    pub(super) fn announce(&self, file: usize, range: ByteRange) {
        if let Ok(file) = self.file(file, range) {
            file.read_ahead(range);
        }
    }

    /// See [`Source::check_unchanged`](super::Source::check_unchanged).
    pub(super) fn check_unchanged(&self) -> Result<(), SourceError> {
        self.0.iter().flatten().try_for_each(OpenedFile::check_unchanged)
    }
}

/// One file of a checkpoint, open for reading.
#[derive(Debug)]
pub(super) struct OpenedFile {
    file: File,
    path: PathBuf,
    bytes: u64,
    identity: Identity,
}

impl OpenedFile {
    /// Opens `entry`, with `also` among the flags.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be opened, is no regular file, or has another length than the catalog says.
    pub(super) fn open(entry: &CatalogFile, also: OFlags) -> Result<Self, SourceError> {
        let path = &entry.path;
        let failed = |source: io::Error| SourceError::Io { attempt: "open", path: path.clone(), source };
        // A pipe would wait for somebody who writes into it. Only for opening: io_uring gives up early on such files.
        let flags = also | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(SourceError::NotAFile { path: path.clone() });
        }
        let found = meta.len();
        if found != entry.bytes {
            return Err(SourceError::LengthChanged { path: path.clone(), expected: entry.bytes, found });
        }
        let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| failed(error.into()))?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        Ok(Self { file, path: path.clone(), bytes: entry.bytes, identity: Identity::of(&meta) })
    }

    /// The file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where it was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length when it was opened, which is what the catalog says.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Says that it is read from front to back. Only advice: nothing is lost where nobody takes it.
    pub(super) fn advise_sequential(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::Sequential);
    }

    /// Says that what is not asked to be read ahead is not to be. Only advice.
    pub(super) fn advise_random(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::Random);
    }

    fn read_ahead(&self, range: ByteRange) {
        for at in (range.start()..range.stop()).step_by(AHEAD_STEP as usize) {
            let len = NonZero::new((range.stop() - at).min(u64::from(AHEAD_STEP)));
            let _ = rustix::fs::fadvise(&self.file, at, len, Advice::WillNeed);
        }
    }

    /// Reads the bytes that begin at `at`, as many as `into` holds.
    ///
    /// # Errors
    /// [`SourceError::Truncated`] when the file ends before that, [`SourceError::Read`] when the system refuses.
    pub(super) fn read(&self, at: u64, into: &mut [u8]) -> Result<(), SourceError> {
        let mut done = 0;
        while done < into.len() {
            let place = at + done as u64;
            match self.file.read_at(&mut into[done..], place) {
                Ok(0) => return Err(self.truncated(place)),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.unreadable(place, source)),
            }
        }
        Ok(())
    }

    /// The file ends at `at`, too early.
    pub(super) fn truncated(&self, at: u64) -> SourceError {
        SourceError::Truncated { path: self.path.clone(), at, expected: self.bytes }
    }

    /// The system refused to read the bytes at `at`.
    pub(super) fn unreadable(&self, at: u64, source: io::Error) -> SourceError {
        SourceError::Read { path: self.path.clone(), at, source }
    }

    /// Why the bytes at `at`, which the mapped file should have, cannot be had: it ends before, or its medium is broken.
    pub(super) fn why_missing(&self, at: u64) -> SourceError {
        match self.file.metadata() {
            Ok(meta) if meta.len() < self.bytes => self.truncated(meta.len()),
            Ok(_) => self.unreadable(at, rustix::io::Errno::IO.into()),
            Err(error) => self.unreadable(at, error),
        }
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        self.identity.check(&self.path)
    }
}

/// Which file it is, and in which state: when all of this is the same, nobody wrote to it, if its clock can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: unlike the other, no program can set it back.
    changed: (i64, i64),
}

impl Identity {
    pub(super) fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Checks that the file at `path`, which is still open, is this one in this state.
    pub(super) fn check(self, path: &Path) -> Result<(), SourceError> {
        // While the file is open no other can have its inode: whatever the path names, if it has this inode it is this file.
        match std::fs::metadata(path) {
            Ok(meta) if Self::of(&meta) == self => Ok(()),
            Ok(_) => Err(SourceError::Changed { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SourceError::Changed { path: path.to_owned() })
            }
            Err(source) => Err(SourceError::Io { attempt: "look at", path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &Path, bytes: u64) -> CatalogFile {
        CatalogFile { name: String::new(), path: path.to_owned(), bytes, header_digest: [0; 32] }
    }

    #[test]
    fn a_pipe_is_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let error = OpenedFile::open(&entry(&path, 0), OFlags::empty()).unwrap_err();
        assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
        let error = OpenedFile::open(&entry(folder.path(), 0), OFlags::empty()).unwrap_err();
        assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
    }

    #[test]
    fn an_opened_file_waits_for_its_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let opened = OpenedFile::open(&entry(file.path(), 0), OFlags::empty()).unwrap();
        assert!(!rustix::fs::fcntl_getfl(opened.file()).unwrap().contains(OFlags::NONBLOCK));
    }

    #[test]
    fn what_the_system_refuses_to_read_is_named_with_its_place() {
        // The first page of a process is never mapped.
        let opened = OpenedFile::open(&entry(Path::new("/proc/self/mem"), 0), OFlags::empty()).unwrap();
        let error = opened.read(7, &mut [0]).unwrap_err();
        assert!(matches!(error, SourceError::Read { at: 7, .. }), "{error}");
        assert!(error.to_string().starts_with("cannot read byte 7 of /proc/self/mem: "), "{error}");
    }

    #[test]
    fn a_file_that_was_written_to_or_replaced_is_no_longer_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let fresh = || {
            std::fs::write(&path, [0; 8]).unwrap();
            OpenedFile::open(&entry(&path, 8), OFlags::empty()).unwrap()
        };
        let changes: [&dyn Fn(); 5] = [
            &|| std::fs::write(&path, [1; 8]).unwrap(),
            &|| File::options().append(true).open(&path).unwrap().set_len(7).unwrap(),
            &|| {
                // With its time set back.
                let file = File::options().write(true).open(&path).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(&[1], 3).unwrap();
                file.set_modified(before).unwrap();
            },
            &|| {
                let other = folder.path().join("other");
                std::fs::copy(&path, &other).unwrap();
                std::fs::rename(&other, &path).unwrap();
            },
            &|| std::fs::remove_file(&path).unwrap(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let opened = fresh();
            opened.read(0, &mut [0; 8]).unwrap();
            opened.check_unchanged().unwrap();
            // The clock of file systems ticks every few milliseconds.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change();
            let changed = opened.check_unchanged();
            assert!(matches!(changed, Err(SourceError::Changed { .. })), "{number}: {changed:?}");
        }
    }
}
