//! What decides how a file is best read: where it lies, and how much of it is in memory already.

use super::{SourceError, opened::OpenedFile};
use rustix::{
    fs::{Advice, OFlags},
    io::{Errno, ReadWriteFlags},
};
use shardwright_planner::checkpoint::CatalogFile;
use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::fd::AsRawFd,
};

/// What is known of a file before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length.
    pub bytes: u64,
    /// How much of it is in the page cache; `None` where the system does not tell.
    pub cached_bytes: Option<u64>,
    /// Where it lies.
    pub file_system: FileSystem,
}

impl FileFacts {
    /// Looks at the file `entry`. Reads none of it.
    ///
    /// # Errors
    /// [`SourceError`] when it cannot be opened, is no regular file, or has another length than the catalog says.
    pub fn gather(entry: &CatalogFile) -> Result<Self, SourceError> {
        let opened = OpenedFile::open(entry, OFlags::empty())?;
        let failed = |source: Errno| SourceError::Io {
            attempt: "look at",
            path: entry.path.clone(),
            source: source.into(),
        };
        let kind = rustix::fs::fstatfs(opened.file()).map_err(failed)?.f_type;
        let file_system = FileSystem::of_magic(u64::try_from(kind & 0xffff_ffff).unwrap_or(0));
        let cached = counted(opened.file(), entry.bytes).or_else(|_| sampled(opened.file(), entry.bytes));
        let cached_bytes = cached.ok().map(|bytes| bytes.min(entry.bytes));
        Ok(Self { bytes: entry.bytes, cached_bytes, file_system })
    }
}

/// Where a file lies, as far as it matters for reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// On a disk of this host.
    Local(&'static str),
    /// In memory.
    Memory(&'static str),
    /// On a disk of this host, with a cache that is not the kernel's and that direct reading does not go around.
    OwnCache(&'static str),
    /// On another host, or behind a program that may fetch it from one.
    Network(&'static str),
    /// Of a kind with this magic number.
    Unknown(u64),
}

/// Kinds of file systems by their magic number: `linux/magic.h`, and for those that are not part of Linux their own sources.
const KINDS: [(u64, FileSystem); 23] = [
    (0xef53, FileSystem::Local("ext4")),
    (0x5846_5342, FileSystem::Local("xfs")),
    (0x9123_683e, FileSystem::Local("btrfs")),
    (0xf2f5_2010, FileSystem::Local("f2fs")),
    (0xca45_1a4e, FileSystem::Local("bcachefs")),
    // Of containers: its files lie on another, which is as a rule a local one.
    (0x794c_7630, FileSystem::Local("overlay")),
    (0x2fc1_2fc1, FileSystem::OwnCache("zfs")),
    (0x0102_1994, FileSystem::Memory("tmpfs")),
    (0x8584_58f6, FileSystem::Memory("ramfs")),
    (0x9584_58f6, FileSystem::Memory("hugetlbfs")),
    (0x6969, FileSystem::Network("nfs")),
    (0xff53_4d42, FileSystem::Network("cifs")),
    (0xfe53_4d42, FileSystem::Network("smb")),
    (0x517b, FileSystem::Network("smb")),
    (0x0bd0_0bd0, FileSystem::Network("lustre")),
    (0x00c3_6400, FileSystem::Network("ceph")),
    (0x6573_5546, FileSystem::Network("fuse")),
    (0x0102_1997, FileSystem::Network("9p")),
    (0x4750_4653, FileSystem::Network("gpfs")),
    (0x1983_0326, FileSystem::Network("beegfs")),
    (0x5346_414f, FileSystem::Network("afs")),
    (0x7461_636f, FileSystem::Network("ocfs2")),
    (0x0116_1970, FileSystem::Network("gfs2")),
];

impl FileSystem {
    fn of_magic(magic: u64) -> Self {
        KINDS.iter().find(|(of, _)| *of == magic).map_or(Self::Unknown(magic), |&(_, kind)| kind)
    }
}

/// About how many of the `bytes` bytes of `file` are in the page cache, by how many are of some runs of it: counting all pages of a
/// cached file takes a tenth of the time of reading it, and each process of a host would.
fn counted(file: &File, bytes: u64) -> io::Result<u64> {
    const RUNS: u64 = 64;
    const RUN_BYTES: u64 = 256 << 10;
    if bytes <= RUNS * RUN_BYTES {
        return counted_in(file, 0, 0);
    }
    let mut there = 0;
    for run in 0..RUNS {
        let at = (bytes - RUN_BYTES) / (RUNS - 1) * run;
        there += counted_in(file, at, RUN_BYTES)?.min(RUN_BYTES);
    }
    let share = u128::from(there) * u128::from(bytes) / u128::from(RUNS * RUN_BYTES);
    Ok(u64::try_from(share).unwrap_or(bytes))
}

/// Bytes of the pages in the page cache that have any of `len` bytes from `at` on; 0 for all. Since Linux 6.5; later ones tell only
/// who may write to the file.
fn counted_in(file: &File, at: u64, len: u64) -> io::Result<u64> {
    /// The same on all architectures but one.
    const SYS_CACHESTAT: libc::c_long = 451;
    #[repr(C)]
    struct Range {
        offset: u64,
        /// 0 for all.
        len: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Counts {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let (range, mut counts) = (Range { offset: at, len }, Counts::default());
    // SAFETY: the call reads `range` and writes `counts`, which have the kernel's layout and outlive it.
    let answer =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut counts, 0u32) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(counts.cached.saturating_mul(rustix::param::page_size() as u64))
}

/// About how many of the `bytes` bytes of `file` are in the page cache: as many as of a few single ones that are asked for and not
/// waited for. `mincore` would count them all, but says that all are there to those who may not write to the file.
fn sampled(file: &File, bytes: u64) -> io::Result<u64> {
    const SAMPLES: u64 = 64;
    // Else the kernel would begin to read much around those that are not there.
    rustix::fs::fadvise(file, 0, None, Advice::Random)?;
    let mut there = 0;
    for sample in 0..SAMPLES {
        let at = bytes / SAMPLES * sample + bytes % SAMPLES * sample / SAMPLES;
        let mut byte = [0];
        match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Ok(_) => there += 1,
            Err(Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes / SAMPLES * there + bytes % SAMPLES * there / SAMPLES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, path::Path};

    /// A file on the disk that the build lies on: the folder for temporary files may be in memory.
    fn on_disk(bytes: usize) -> (tempfile::NamedTempFile, CatalogFile) {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all(&vec![1; bytes]).unwrap();
        file.as_file().sync_all().unwrap();
        let path = file.path().to_owned();
        let entry = CatalogFile { name: String::new(), path, bytes: bytes as u64, header_digest: [0; 32] };
        (file, entry)
    }

    #[test]
    fn what_was_written_is_cached_until_it_is_dropped() {
        for bytes in [4 << 20, 40 << 20] {
            cached_until_dropped(bytes);
        }
    }

    fn cached_until_dropped(bytes: usize) {
        let (file, entry) = on_disk(bytes);
        let facts = FileFacts::gather(&entry).unwrap();
        assert_eq!(facts.bytes, bytes as u64);
        if matches!(facts.file_system, FileSystem::Local(_)) {
            for count in [counted, sampled] {
                let Ok(cached) = count(file.as_file(), bytes as u64) else { continue };
                assert_eq!(cached, bytes as u64);
            }
            rustix::fs::fadvise(file.as_file(), 0, None, Advice::DontNeed).unwrap();
            // In this order: samples may leave the byte that was asked for in memory.
            for count in [counted, sampled] {
                let Ok(cached) = count(file.as_file(), bytes as u64) else { continue };
                assert!(cached < bytes as u64 / 2, "{cached}");
            }
        }
    }

    #[test]
    fn file_systems_are_told_by_their_numbers() {
        assert_eq!(FileSystem::of_magic(0xef53), FileSystem::Local("ext4"));
        assert_eq!(FileSystem::of_magic(1), FileSystem::Unknown(1));
        for (number, (magic, _)) in KINDS.iter().enumerate() {
            assert!(KINDS[..number].iter().all(|(other, _)| other != magic), "{magic:#x} stands twice");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let path = Path::new("/nowhere/model.safetensors").to_owned();
        let entry = CatalogFile { name: String::new(), path, bytes: 1, header_digest: [0; 32] };
        let error = FileFacts::gather(&entry).unwrap_err();
        assert!(matches!(error, SourceError::Io { attempt: "open", .. }), "{error}");
    }
}
