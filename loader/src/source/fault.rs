//! Mappings that outlive their files' bytes: where a file became shorter, or its medium fails, reading a page of its mapping
//! raises SIGBUS, which ends the process. Here it does not: the page reads as zeros from then on, and the mapping says so.
//!
//! Signal handlers belong to the whole process, so this is its one piece of global state: a handler and a table of the mappings
//! that it minds. The handler touches nothing but atomics, `mmap` and `sigaction`. Faults of others go to whoever minded them
//! before.

use std::{
    fs::File,
    io,
    mem::MaybeUninit,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

/// Most files that can be mapped at a time.
pub(super) const MOST_MAPPINGS: usize = 4096;

const NO_FAULT: u64 = u64::MAX;

static TABLE: Table<MOST_MAPPINGS> = Table::new();

/// Who minded SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A file in memory, read-only, whose reading ends no process.
#[derive(Debug)]
pub(super) struct GuardedMap {
    // Before the mapping, so that it is dropped first: what is no longer in the table may be unmapped.
    slot: Slot,
    map: memmap2::Mmap,
}

/// Why a file was not mapped.
#[derive(Debug)]
pub(super) enum MapError {
    /// [`MOST_MAPPINGS`] are there already.
    Full,
    /// The system refused.
    Io(io::Error),
}

impl GuardedMap {
    /// Maps the first `bytes` bytes of `file`, at least one.
    pub(super) fn new(file: &File, bytes: usize) -> Result<Self, MapError> {
        install().map_err(MapError::Io)?;
        // SAFETY: the mapping is read-only and private to this type, which hands out shared slices of it. A shorter file is what
        // the guard is for. What no mapping can rule out is another process that rewrites the file meanwhile; checkpoints are
        // written once and renamed into place, whether it was changed is asked when all is read, and whatever bytes were read are
        // verified afterwards.
        let map = unsafe { memmap2::MmapOptions::new().len(bytes).map(file) }.map_err(MapError::Io)?;
        let slot = Slot(TABLE.add(map.as_ptr().addr(), bytes).ok_or(MapError::Full)?);
        Ok(Self { slot, map })
    }

    /// The file's bytes. They can be believed if there is no [`fault`](Self::fault) when they were used.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A byte, at the beginning of a page, that could not be had and reads as zero: the first that was noticed.
    pub(super) fn fault(&self) -> Option<u64> {
        let at = TABLE.0[self.slot.0].fault.load(Ordering::Acquire);
        (at != NO_FAULT).then_some(at)
    }

    /// Has the pages of the `len` bytes from `at` on in memory, so that reading them faults no page.
    ///
    /// # Errors
    /// When they cannot be had. Kernels before 5.14 cannot do this, which is no error: then reading faults the pages.
    pub(super) fn populate(&self, at: usize, len: usize) -> Result<(), ()> {
        let page = rustix::param::page_size();
        let begin = at - at % page;
        let end = at.saturating_add(len).min(self.map.len());
        let Some(len) = end.checked_sub(begin) else { return Ok(()) };
        let start = self.map.as_ptr().wrapping_add(begin).cast_mut().cast();
        // SAFETY: `begin..end` lies in the mapping, which begins at a page; populating changes no byte of it.
        let answer = unsafe { libc::madvise(start, len, libc::MADV_POPULATE_READ) };
        let refused = answer != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        if refused { Err(()) } else { Ok(()) }
    }
}

/// A place in the table, given back when dropped.
#[derive(Debug)]
struct Slot(usize);

impl Drop for Slot {
    fn drop(&mut self) {
        TABLE.remove(self.0);
    }
}

/// The mappings that are minded. Those who change it take turns; the handler reads it at any time.
struct Table<const N: usize>([Entry; N], Mutex<()>);

struct Entry {
    /// Address of the first byte; 0 where there is no mapping. Written last and cleared first.
    start: AtomicUsize,
    len: AtomicUsize,
    fault: AtomicU64,
}

impl Entry {
    const fn new() -> Self {
        Self { start: AtomicUsize::new(0), len: AtomicUsize::new(0), fault: AtomicU64::new(NO_FAULT) }
    }
}

impl<const N: usize> Table<N> {
    const fn new() -> Self {
        Self([const { Entry::new() }; N], Mutex::new(()))
    }

    fn add(&self, start: usize, len: usize) -> Option<usize> {
        let _turn = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = self.0.iter().position(|entry| entry.start.load(Ordering::Relaxed) == 0)?;
        let entry = &self.0[slot];
        entry.len.store(len, Ordering::SeqCst);
        entry.fault.store(NO_FAULT, Ordering::SeqCst);
        entry.start.store(start, Ordering::SeqCst);
        Some(slot)
    }

    fn remove(&self, slot: usize) {
        let _turn = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        self.0[slot].start.store(0, Ordering::SeqCst);
    }

    /// The mapping that has `address`, and how far from its beginning. Called by the handler.
    ///
    /// Who reads a mapping keeps it alive, so the entry that is looked for does not change meanwhile. Others may: an entry whose
    /// `start` is another after its `len` was read is none of ours.
    fn find(&self, address: usize) -> Option<(&Entry, usize)> {
        self.0.iter().find_map(|entry| {
            let start = entry.start.load(Ordering::SeqCst);
            let len = entry.len.load(Ordering::SeqCst);
            let settled = start != 0 && entry.start.load(Ordering::SeqCst) == start;
            let offset = address.checked_sub(start)?;
            // The last page is mapped whole.
            (settled && offset < len.next_multiple_of(PAGE_AT_LEAST)).then_some((entry, offset))
        })
    }
}

/// Pages are multiples of it everywhere. An address past a file's last byte is not read, so less than a page will do.
const PAGE_AT_LEAST: usize = 4096;

/// Minds SIGBUS from now on, once for the process.
fn install() -> io::Result<()> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // What the handler asks for is known before it can be called.
    rustix::param::page_size();
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no action is set; the present one is written to `before`, which has room for it.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), before.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the system has written it, and a zeroed one is valid as well.
    BEFORE.get_or_init(|| unsafe { before.assume_init() });
    // SAFETY: all zeros is an action without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    action.sa_sigaction = handler as libc::sighandler_t;
    // On the alternative stack, which Rust's threads have: a fault may come when there is little stack left.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for, lives as long as the program, and calls only what may be
    // called at any time.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the address of this thread's `errno`, valid as long as it runs. Whoever was interrupted finds it unchanged.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the system passes a valid `siginfo_t` to a handler that was set with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above; faults have an address, and what was sent by a process (`code` is not positive) is not looked at.
    let address = unsafe { (*info).si_addr() };
    if code <= 0 || !patch(address.addr()) {
        pass_on(signal, code, info, context);
    }
    // SAFETY: as above.
    unsafe { *errno = before };
}

/// Puts a page of zeros where `address` is, if it is in a mapping that is minded, and takes note.
fn patch(address: usize) -> bool {
    let Some((entry, offset)) = TABLE.find(address) else { return false };
    let page = rustix::param::page_size();
    let begin = address - address % page;
    // Before the thread goes on, so that it finds it.
    let at = offset - offset % page;
    let _ = entry.fault.compare_exchange(NO_FAULT, at as u64, Ordering::AcqRel, Ordering::Acquire);
    let fixed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let start = std::ptr::without_provenance_mut(begin);
    // SAFETY: the page lies in a mapping of this module's, which is alive because somebody was reading it; it has no byte that
    // could be read and stays readable. `mmap` is a bare system call.
    let mapped = unsafe { libc::mmap(start, page, libc::PROT_READ, fixed, -1, 0) };
    mapped == start
}

/// Does what would have been done without this module.
fn pass_on(signal: libc::c_int, code: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get();
    let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
    match handler {
        // A process may ask that what is sent to it is ignored; a fault cannot be.
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the default action needs no handler; both calls may be made at any time. The signal comes when this
            // handler returns, and ends the process.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
        handler if before.is_some_and(|before| before.sa_flags & libc::SA_SIGINFO != 0) => {
            // SAFETY: it was set with SA_SIGINFO, so it has this signature, and gets what this one got.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: it was set without SA_SIGINFO, so it takes the signal's number.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, os::unix::process::ExitStatusExt, process::Command};

    const PAGE: usize = 64 << 10;

    fn file(bytes: usize) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; bytes]).unwrap();
        file
    }

    fn sum(bytes: &[u8]) -> u64 {
        bytes.iter().map(|&byte| u64::from(byte)).sum()
    }

    #[test]
    fn bytes_that_are_gone_read_as_zeros_and_are_noticed() {
        let file = file(8 * PAGE);
        let maps = [(); 3].map(|()| GuardedMap::new(&file, 8 * PAGE).unwrap());
        let whole = GuardedMap::new(&self::file(PAGE), PAGE).unwrap();
        assert_eq!(maps[0].populate(PAGE + 1, 6 * PAGE), Ok(()));
        assert_eq!(sum(maps[0].bytes()), 7 * 8 * PAGE as u64);
        file.set_len(3 * PAGE as u64).unwrap();
        assert_eq!(maps[1].fault(), None);
        std::thread::scope(|scope| {
            for map in &maps {
                for _ in 0..2 {
                    scope.spawn(|| assert_eq!(sum(map.bytes()), 7 * 3 * PAGE as u64));
                }
            }
        });
        for map in &maps {
            assert!(map.fault().is_some_and(|at| at >= 3 * PAGE as u64), "{:?}", map.fault());
        }
        assert_eq!(sum(whole.bytes()), 7 * PAGE as u64);
        assert_eq!(whole.fault(), None);
    }

    #[test]
    fn populating_what_is_gone_says_so() {
        let file = file(2 * PAGE);
        let map = GuardedMap::new(&file, 2 * PAGE).unwrap();
        file.set_len(PAGE as u64).unwrap();
        assert_eq!(map.populate(0, PAGE), Ok(()));
        assert_eq!(map.populate(PAGE - 1, 2), Err(()));
        assert_eq!(map.fault(), None);
    }

    #[test]
    fn a_full_table_takes_no_more_until_one_goes() {
        let table = Table::<2>::new();
        assert_eq!(table.add(0x1000, 10), Some(0));
        assert_eq!(table.add(0x9000, 0x1001), Some(1));
        assert_eq!(table.add(0x2_0000, 10), None);
        let found = |address| table.find(address).map(|(_, offset)| offset);
        assert_eq!([0xfff, 0x1000, 0x1fff, 0x2000].map(found), [None, Some(0), Some(0xfff), None]);
        assert_eq!([0x8fff, 0x9001, 0xafff, 0xb000].map(found), [None, Some(1), Some(0x1fff), None]);
        table.remove(0);
        assert_eq!(found(0x1000), None);
        assert_eq!(table.add(0x2_0000, 10), Some(0));
    }

    #[test]
    fn a_mapping_of_others_still_ends_the_process() {
        for case in ["fault", "kill"] {
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "source::fault::tests::dies", "--ignored", "--nocapture"])
                .env("SHARDWRIGHT_TEST_DIES_OF", case)
                .output()
                .unwrap()
                .status;
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{case}: {status}");
        }
    }

    #[test]
    #[ignore = "ends the process; another test runs it in one of its own"]
    fn dies() {
        let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
        rustix::process::setrlimit(rustix::process::Resource::Core, none).unwrap();
        let file = file(2 * PAGE);
        let guarded = GuardedMap::new(&file, 2 * PAGE).unwrap();
        // SAFETY: the file is this test's own; that it becomes shorter is the test.
        let other = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        file.set_len(PAGE as u64).unwrap();
        assert_eq!(sum(guarded.bytes()), 7 * PAGE as u64);
        if std::env::var("SHARDWRIGHT_TEST_DIES_OF").unwrap() == "kill" {
            // Twice: Rust's own handler takes the first for a fault that will come again when it no longer minds it.
            for _ in 0..2 {
                let this = rustix::process::getpid();
                rustix::process::kill_process(this, rustix::process::Signal::BUS).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            return;
        }
        println!("{}", sum(&other));
    }
}
