//! How each file is read: as was asked, or as its facts suggest.
//!
//! A pure decision. It opens nothing and reads nothing; [`FileFacts::gather`] does, and the sources do.

use super::facts::{FileFacts, FileSystem};
use shardwright_planner::size::{Size, count};
use std::fmt;

/// Files smaller than this are not read directly: there is too little in them to have many reads under way at once.
const WORTH_DIRECT_BYTES: u64 = 8 << 20;

/// What people ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Io {
    /// What suits each file.
    #[default]
    Auto,
    /// All files mapped into memory.
    Mmap,
    /// All files read through the page cache.
    Read,
    /// All files read around the page cache.
    Direct,
}

/// How one file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Mapped into memory.
    Mmap,
    /// Through the page cache.
    Read,
    /// Around the page cache.
    Direct,
    /// Around the page cache what this process alone reads, through it what others of this host read too.
    Shared,
}

/// What matters of the load as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Whether other processes of this host read the same files at the same time.
    pub shared: bool,
    /// Bytes of all files.
    pub bytes: u64,
    /// Memory of this host that can be had; `None` where the system does not tell.
    pub available_bytes: Option<u64>,
}

/// How a file is read, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// How.
    pub way: Way,
    /// Why.
    pub reason: Reason,
}

/// Why a file is read in the way it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Somebody said so.
    Asked,
    /// It was to be read directly, and something refuses that.
    Refused,
    /// It lies in memory, on a file system of this name.
    InMemory(&'static str),
    /// It lies on another host, on a file system of this name.
    Network(&'static str),
    /// Its file system, of this name, has a cache that cannot be gone around.
    OwnCache(&'static str),
    /// Nothing is known of its file system, which has this magic number.
    UnknownFileSystem(u64),
    /// How much of it is in the page cache is not told.
    Untold,
    /// At least half of it is in the page cache.
    Cached,
    /// There is too little in it.
    Small,
    /// Others of this host find in the page cache what one has read.
    Shared,
    /// Others of this host read it too, but it would not stay in the page cache until they do.
    TooMuchToShare {
        /// Bytes of all files.
        bytes: u64,
        /// Memory that can be had.
        available_bytes: u64,
    },
    /// Most of it has to come from the disk, with a file system of this name.
    Cold(&'static str),
}

/// How a file with these facts is read.
///
/// A mapping is never chosen: it gives no byte sooner than reading does, and changes the memory of all threads page by page.
pub fn choose(io: Io, file: &FileFacts, host: &HostFacts) -> Choice {
    let (way, reason) = match io {
        Io::Mmap => (Way::Mmap, Reason::Asked),
        Io::Read => (Way::Read, Reason::Asked),
        Io::Direct => (Way::Direct, Reason::Asked),
        Io::Auto => by_facts(file, host),
    };
    Choice { way, reason }
}

fn by_facts(file: &FileFacts, host: &HostFacts) -> (Way, Reason) {
    let name = match file.file_system {
        FileSystem::Local(name) => name,
        FileSystem::Memory(name) => return (Way::Read, Reason::InMemory(name)),
        FileSystem::OwnCache(name) => return (Way::Read, Reason::OwnCache(name)),
        FileSystem::Network(name) => return (Way::Read, Reason::Network(name)),
        FileSystem::Unknown(magic) => return (Way::Read, Reason::UnknownFileSystem(magic)),
    };
    let Some(cached) = file.cached_bytes else { return (Way::Read, Reason::Untold) };
    if cached >= file.bytes.div_ceil(2) {
        return (Way::Read, Reason::Cached);
    }
    if file.bytes < WORTH_DIRECT_BYTES {
        return (Way::Read, Reason::Small);
    }
    if !host.shared {
        return (Way::Direct, Reason::Cold(name));
    }
    match host.available_bytes.filter(|&available| host.bytes > available) {
        Some(available_bytes) => (Way::Direct, Reason::TooMuchToShare { bytes: host.bytes, available_bytes }),
        None => (Way::Shared, Reason::Shared),
    }
}

/// One line on how `files` are read and why: `reading 30 files directly: 2 % of them are in the page cache, on ext4`.
pub fn summary(files: &[(FileFacts, Choice)]) -> String {
    let mut groups: Vec<Group> = Vec::new();
    for (facts, choice) in files {
        let known = groups.iter().position(|group| group.choice == *choice);
        let number = known.unwrap_or_else(|| {
            groups.push(Group { choice: *choice, files: 0, bytes: 0, cached: 0 });
            groups.len() - 1
        });
        let group = &mut groups[number];
        group.files += 1;
        group.bytes += u128::from(facts.bytes);
        group.cached += u128::from(facts.cached_bytes.unwrap_or(0));
    }
    // Those with most in them first.
    groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
    format!("reading {}", groups.join("; "))
}

/// Files that are read in the same way for the same reason.
struct Group {
    choice: Choice,
    files: u64,
    bytes: u128,
    cached: u128,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.choice.way {
            Way::Mmap => "from mappings",
            Way::Read => "through the page cache",
            Way::Direct => "directly",
            Way::Shared => "directly what one rank has alone, the rest through the page cache",
        };
        write!(f, "{} {way}: ", count(self.files, "file"))?;
        let percent = (self.cached * 100 + self.bytes / 2).checked_div(self.bytes).unwrap_or(0);
        let (of, is) = if self.files == 1 { ("it", "is") } else { ("them", "are") };
        match self.choice.reason {
            Reason::Asked => write!(f, "as asked"),
            Reason::Refused => write!(f, "reading directly is refused"),
            Reason::InMemory(name) => write!(f, "on {name}, which is memory"),
            Reason::Network(name) => {
                write!(f, "on {name}, where the page cache shares what ranks of this host read")
            }
            Reason::OwnCache(name) => write!(f, "on {name}, which has a cache of its own"),
            Reason::UnknownFileSystem(magic) => write!(f, "on a file system of unknown kind ({magic:#x})"),
            Reason::Untold => write!(f, "the system does not tell how much of {of} {is} there"),
            Reason::Cached => write!(f, "{percent} % of {of} {is} there"),
            Reason::Small => write!(f, "smaller than {} MiB", WORTH_DIRECT_BYTES >> 20),
            Reason::Shared => write!(f, "other ranks of this host find there what one has read"),
            Reason::TooMuchToShare { bytes, available_bytes } => write!(
                f,
                "{} would not stay in {} of memory until other ranks of this host read them",
                Size(bytes),
                Size(available_bytes)
            ),
            Reason::Cold(name) => write!(f, "{percent} % of {of} {is} in the page cache, on {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const ALONE: HostFacts = HostFacts { shared: false, bytes: 60 * GIB, available_bytes: Some(100 * GIB) };
    const SHARED: HostFacts = HostFacts { shared: true, ..ALONE };

    fn file(bytes: u64, percent: u64, file_system: FileSystem) -> FileFacts {
        FileFacts { bytes, cached_bytes: Some(bytes / 100 * percent), file_system }
    }

    const EXT4: FileSystem = FileSystem::Local("ext4");

    fn said(io: Io, host: &HostFacts, files: &[FileFacts]) -> String {
        let chosen: Vec<_> = files.iter().map(|file| (*file, choose(io, file, host))).collect();
        summary(&chosen)
    }

    #[test]
    fn each_reason_has_its_words() {
        let cold = file(2 * GIB, 2, EXT4);
        let mut all = Vec::new();
        for io in [Io::Mmap, Io::Read, Io::Direct] {
            all.push(said(io, &ALONE, &[cold]));
        }
        let more = HostFacts { bytes: 200 * GIB, ..SHARED };
        let untold = HostFacts { available_bytes: None, ..more };
        for host in [ALONE, SHARED, more, untold] {
            all.push(said(Io::Auto, &host, &[cold; 30]));
        }
        for facts in [
            file(2 * GIB, 92, EXT4),
            file(2 * GIB, 49, EXT4),
            file(GIB / 1024, 0, EXT4),
            FileFacts { cached_bytes: None, ..cold },
            file(2 * GIB, 0, FileSystem::Memory("tmpfs")),
            file(2 * GIB, 0, FileSystem::Network("nfs")),
            file(2 * GIB, 0, FileSystem::OwnCache("zfs")),
            file(2 * GIB, 0, FileSystem::Unknown(0x1234)),
        ] {
            all.push(said(Io::Auto, &ALONE, &[facts]));
        }
        insta::assert_snapshot!(all.join("\n"), @"
        reading 1 file from mappings: as asked
        reading 1 file through the page cache: as asked
        reading 1 file directly: as asked
        reading 30 files directly: 2 % of them are in the page cache, on ext4
        reading 30 files directly what one rank has alone, the rest through the page cache: other ranks of this host find there what one has read
        reading 30 files directly: 200.00 GiB would not stay in 100.00 GiB of memory until other ranks of this host read them
        reading 30 files directly what one rank has alone, the rest through the page cache: other ranks of this host find there what one has read
        reading 1 file through the page cache: 92 % of it is there
        reading 1 file directly: 49 % of it is in the page cache, on ext4
        reading 1 file through the page cache: smaller than 8 MiB
        reading 1 file through the page cache: the system does not tell how much of it is there
        reading 1 file through the page cache: on tmpfs, which is memory
        reading 1 file through the page cache: on nfs, where the page cache shares what ranks of this host read
        reading 1 file through the page cache: on zfs, which has a cache of its own
        reading 1 file through the page cache: on a file system of unknown kind (0x1234)
        ");
    }

    #[test]
    fn what_is_read_in_several_ways_is_said_of_each() {
        let mut files = vec![file(5 * GIB, 90, EXT4), file(1 << 20, 0, EXT4)];
        files.extend([file(5 * GIB, 0, EXT4); 27]);
        files.push(file(5 * GIB, 31, EXT4));
        insta::assert_snapshot!(said(Io::Auto, &ALONE, &files), @"reading 28 files directly: 1 % of them are in the page cache, on ext4; 1 file through the page cache: 90 % of it is there; 1 file through the page cache: smaller than 8 MiB");
    }

    #[test]
    fn half_is_enough_to_be_cached() {
        let half = |cached| FileFacts { bytes: 2 * GIB, cached_bytes: Some(cached), file_system: EXT4 };
        assert_eq!(choose(Io::Auto, &half(GIB), &ALONE).way, Way::Read);
        assert_eq!(choose(Io::Auto, &half(GIB - 1), &ALONE).way, Way::Direct);
        let empty = FileFacts { bytes: 0, cached_bytes: Some(0), file_system: EXT4 };
        assert_eq!(choose(Io::Auto, &empty, &ALONE).way, Way::Read);
    }
}
