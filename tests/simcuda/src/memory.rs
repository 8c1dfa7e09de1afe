//! Device memory: addresses that the host can't touch, and the bytes behind them.
//!
//! Each GPU has a range of addresses, [`RESERVED`] long and `PROT_NONE`, so that a host that follows a device pointer dies; and
//! one sparse memory file as long, mapped read-write at a private address, where the bytes are. An allocation is a piece of both
//! at the same offset. Offsets are never used twice, a gap follows each allocation, and bounds are those asked for: an access
//! past the end or after `cuMemFree` finds no allocation. Memory is poisoned, never zero.
//!
//! In: allocations. Out: [`device_bytes`], the only way to the bytes. It knows no streams: freeing doesn't wait for work that
//! still uses the memory, as a driver mostly does; that work fails with `CUDA_ERROR_ILLEGAL_ADDRESS` when it runs.

use crate::{Answer, device, device::Gpu, fault, intervals::Intervals, lock::lock, settings::settings};
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd},
    ptr,
    sync::{Arc, Mutex},
};

/// Addresses of a GPU. They are never used twice, so this is also all that a process can ever allocate there.
const RESERVED: usize = 1 << 40;
/// What memory holds before anything is written to it.
pub(crate) const POISON: u8 = 0xA5;
const PAGE: usize = 4096;
/// What an address is a multiple of, and of no more: code must not lean on luckier addresses than CUDA promises.
pub(crate) const ALIGNMENT: usize = 256;
/// Addresses that belong to nothing behind each allocation.
const GAP: usize = 64 << 10;

/// The memory of one GPU.
pub(crate) struct Space {
    /// Where its addresses begin.
    first: usize,
    /// Where the bytes of the first address are.
    bytes: *mut u8,
    file: File,
    table: Mutex<Table>,
}

// SAFETY: `bytes` is an address which lives as long as the process; who may use the bytes behind it is `DeviceBytes`'s matter.
unsafe impl Send for Space {}
// SAFETY: as for `Send`.
unsafe impl Sync for Space {}

struct Table {
    /// The first address that never belonged to anything, relative to the space's first.
    unused: usize,
    /// What allocations take from the GPU's memory: whole pages.
    used_bytes: u64,
    by_address: BTreeMap<usize, Arc<Allocation>>,
}

/// A run of device memory.
pub(crate) struct Allocation {
    pub(crate) gpu: &'static Gpu,
    pub(crate) address: usize,
    pub(crate) len: usize,
    /// Where its bytes are for us.
    bytes: *mut u8,
    pub(crate) owner: Owner,
    /// What copies from the host have written.
    pub(crate) written: Mutex<Intervals>,
}

/// Whose memory it is.
pub(crate) enum Owner {
    /// Ours, from `cuMemAlloc`.
    Us,
    /// Another process's, opened here; what was mapped for it ends with this.
    Peer(#[expect(dead_code, reason = "it is kept for its end")] Mapping),
}

// SAFETY: the pointer is an address whose mapping lives as long as the allocation or longer; access is `DeviceBytes`'s matter.
unsafe impl Send for Allocation {}
// SAFETY: as for `Send`.
unsafe impl Sync for Allocation {}

/// A mapping of ours, undone at its end.
pub(crate) struct Mapping {
    start: *mut u8,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}
// SAFETY: `Mapping` itself gives no access to the bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes from byte `offset`, a multiple of the page, of `file`, or of nothing.
    pub(crate) fn new(len: usize, protection: libc::c_int, file: Option<(&File, u64)>) -> io::Result<Self> {
        let (flags, fd, offset) = match file {
            Some((file, offset)) => {
                let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
                (libc::MAP_SHARED | libc::MAP_NORESERVE, file.as_raw_fd(), offset)
            }
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0),
        };
        // SAFETY: the kernel chooses the address, so nothing that exists is replaced.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, protection, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), len })
    }

    /// Its first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Keeps it as long as the process lives.
    pub(crate) fn leak(self) -> *mut u8 {
        let start = self.start;
        std::mem::forget(self);
        start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is one that `new` mapped, and whoever owns this no longer hands out its bytes.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

impl Space {
    /// An empty one.
    ///
    /// # Panics
    /// If the system gives no addresses or no memory file.
    pub(crate) fn new() -> Self {
        let create = || -> io::Result<Self> {
            // SAFETY: the name is a C string.
            let fd = unsafe { libc::memfd_create(c"simcuda".as_ptr(), libc::MFD_CLOEXEC) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the descriptor is new and ours.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(RESERVED as u64)?;
            let bytes = Mapping::new(RESERVED, libc::PROT_READ | libc::PROT_WRITE, Some((&file, 0)))?;
            let first = Mapping::new(RESERVED, libc::PROT_NONE, None)?;
            for mapping in [&bytes, &first] {
                // SAFETY: the mapping is ours. Nobody wants a core file of this size.
                unsafe { libc::madvise(mapping.start.cast(), RESERVED, libc::MADV_DONTDUMP) };
            }
            let (bytes, first) = (bytes.leak(), first.leak().addr());
            let table = Table { unused: GAP, used_bytes: 0, by_address: BTreeMap::new() };
            Ok(Self { first, bytes, file, table: Mutex::new(table) })
        };
        create().unwrap_or_else(|error| panic!("simcuda: no memory for a GPU: {error}"))
    }

    /// The descriptor of its memory file, and where in it the bytes of `allocation`, one of its own, begin.
    pub(crate) fn in_file(&self, allocation: &Allocation) -> (i32, u64) {
        (self.file.as_raw_fd(), (allocation.address - self.first) as u64)
    }

    fn holds(&self, address: usize) -> bool {
        (self.first..self.first + RESERVED).contains(&address)
    }
}

impl Table {
    /// An offset for `len` bytes that nothing had before, `within` a page.
    fn reserve(&mut self, len: usize, within: usize) -> Answer<usize> {
        let offset = self.unused + within;
        let end = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(PAGE));
        let unused = end.and_then(|end| end.checked_add(GAP)).filter(|end| *end <= RESERVED);
        self.unused = unused.ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
        Ok(offset)
    }
}

/// Bytes that an allocation takes from its GPU: whole pages.
fn taken(len: usize) -> u64 {
    (ALIGNMENT + len).next_multiple_of(PAGE) as u64
}

/// Allocates on `gpu`.
pub(crate) fn allocate(gpu: &'static Gpu, len: usize) -> Answer<CUdeviceptr> {
    if len == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    if len > RESERVED {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    let space = &gpu.space;
    let limit = fault::value_on("out-of-memory-after", gpu.number).unwrap_or(u64::MAX);
    let (offset, used_bytes) = {
        let mut table = lock(&space.table);
        let used_bytes = table.used_bytes + taken(len);
        if used_bytes > limit.min(settings().memory_bytes) {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        let offset = table.reserve(len, ALIGNMENT)?;
        table.used_bytes = used_bytes;
        (offset, used_bytes)
    };
    let address = space.first + offset;
    // SAFETY: the offset lies in the mapping of `RESERVED` bytes.
    let bytes = unsafe { space.bytes.add(offset) };
    // SAFETY: these bytes are of a new allocation that nobody else knows yet.
    unsafe { bytes.write_bytes(POISON, len) };
    let allocation =
        Arc::new(Allocation { gpu, address, len, bytes, owner: Owner::Us, written: Mutex::default() });
    lock(&space.table).by_address.insert(address, allocation);
    let mut counts = lock(&gpu.counts);
    counts.allocations += 1;
    counts.allocated_bytes += len as u64;
    counts.peak_bytes = counts.peak_bytes.max(used_bytes);
    Ok(address as CUdeviceptr)
}

/// Gives `len` bytes of another process an address on `gpu`: they begin `within` bytes after the start of `mapping`.
pub(crate) fn adopt(gpu: &'static Gpu, mapping: Mapping, within: usize, len: usize) -> Answer<CUdeviceptr> {
    let mut table = lock(&gpu.space.table);
    let address = gpu.space.first + table.reserve(len, within)?;
    // SAFETY: the caller's mapping is `within + len` bytes long.
    let bytes = unsafe { mapping.start().add(within) };
    let owner = Owner::Peer(mapping);
    let allocation = Arc::new(Allocation { gpu, address, len, bytes, owner, written: Mutex::default() });
    table.by_address.insert(address, allocation);
    Ok(address as CUdeviceptr)
}

/// Frees what begins at `address`, if `ours` says whether it came from `cuMemAlloc`.
fn end(address: usize, ours: bool) -> Answer<Arc<Allocation>> {
    let gpu = device::gpus().iter().find(|gpu| gpu.space.holds(address));
    let gpu = gpu.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let mut table = lock(&gpu.space.table);
    let found = table.by_address.get(&address);
    if found.is_none_or(|allocation| matches!(allocation.owner, Owner::Us) != ours) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let allocation = table.by_address.remove(&address).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if ours {
        table.used_bytes -= taken(allocation.len);
        drop(table);
        gpu.space.forget(&allocation);
    }
    Ok(allocation)
}

impl Space {
    /// Gives the pages back to the system.
    fn forget(&self, allocation: &Allocation) {
        let offset = allocation.address - self.first - ALIGNMENT;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (offset.cast_signed() as libc::off_t, taken(allocation.len).cast_signed());
        // SAFETY: the descriptor is ours; work that still uses the pages finds zeros, no fault.
        unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) };
    }
}

/// `cuMemFree`.
pub(crate) fn free(address: CUdeviceptr) -> Answer {
    let allocation = end(in_memory(address)?, true)?;
    lock(&allocation.gpu.counts).frees += 1;
    Ok(())
}

/// Ends what [`adopt`] began.
pub(crate) fn let_go(address: CUdeviceptr) -> Answer {
    end(in_memory(address)?, false).map(drop)
}

/// Frees all of a GPU and says how much there was.
pub(crate) fn free_all(gpu: &Gpu) -> usize {
    let all: Vec<Arc<Allocation>> = lock(&gpu.space.table).by_address.values().cloned().collect();
    for allocation in &all {
        let _ = end(allocation.address, matches!(allocation.owner, Owner::Us));
    }
    all.len()
}

/// How many allocations of `gpu` are alive, opened ones too.
pub(crate) fn alive_on(gpu: &Gpu) -> usize {
    lock(&gpu.space.table).by_address.len()
}

/// All that is allocated on `gpu` now, by address.
pub(crate) fn snapshot(gpu: &Gpu) -> Vec<Arc<Allocation>> {
    lock(&gpu.space.table).by_address.values().cloned().collect()
}

/// Free and total bytes of `gpu`, as far as this process uses it.
pub(crate) fn free_and_total(gpu: &Gpu) -> (u64, u64) {
    let total = settings().memory_bytes;
    (total.saturating_sub(lock(&gpu.space.table).used_bytes), total)
}

/// A device pointer as a number of this machine.
pub(crate) fn in_memory(address: CUdeviceptr) -> Answer<usize> {
    usize::try_from(address).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)
}

/// Bytes of device memory, kept from vanishing (not from being freed) as long as this lives.
pub(crate) struct DeviceBytes {
    allocation: Arc<Allocation>,
    start: usize,
    len: usize,
}

/// The `len` bytes at `address`, on whichever GPU.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` if they don't lie in one allocation that is alive. Work that runs later makes
/// `CUDA_ERROR_ILLEGAL_ADDRESS` of it.
pub(crate) fn device_bytes(address: CUdeviceptr, len: usize) -> Answer<DeviceBytes> {
    let address = in_memory(address)?;
    let gpu = device::gpus().iter().find(|gpu| gpu.space.holds(address));
    let gpu = gpu.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let table = lock(&gpu.space.table);
    let found = table.by_address.range(..=address).next_back();
    let (_, allocation) = found.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let start = address - allocation.address;
    if start > allocation.len || allocation.len - start < len {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    Ok(DeviceBytes { allocation: Arc::clone(allocation), start, len })
}

/// Whether `address` is one of a device, allocated or not.
pub(crate) fn is_device_address(address: usize) -> bool {
    device::gpus().iter().any(|gpu| gpu.space.holds(address))
}

impl DeviceBytes {
    /// Whose memory it is.
    pub(crate) fn gpu(&self) -> &'static Gpu {
        self.allocation.gpu
    }

    /// Where they are for us, `len` of them, as long as `self` lives. Others may read and write them at any time: no reference
    /// may point there.
    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: `device_bytes` checked that `start` lies in the allocation.
        unsafe { self.allocation.bytes.add(self.start) }
    }

    /// Copies them to `to`, which is as long.
    pub(crate) fn read(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len, "lengths of a read");
        // SAFETY: `len` bytes lie behind the pointer; racing writes garble the bytes as they would on a GPU.
        unsafe { ptr::copy_nonoverlapping(self.pointer(), to.as_mut_ptr(), self.len) };
    }

    /// Copies `from`, which is as long, to them.
    pub(crate) fn write(&self, from: &[u8]) {
        assert_eq!(from.len(), self.len, "lengths of a write");
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.pointer(), self.len) };
    }

    /// Marks them as written by a copy from the host and says how many were already.
    pub(crate) fn mark_written(&self) -> u64 {
        lock(&self.allocation.written).add(self.start as u64, (self.start + self.len) as u64)
    }

    /// The whole allocation they are in.
    pub(crate) fn allocation(&self) -> &Arc<Allocation> {
        &self.allocation
    }
}

/// Lets `act` change the eight bytes at the start of the page where `allocation`, one of ours, begins.
pub(crate) fn with_seal<R>(allocation: &Allocation, act: impl FnOnce(&mut [u8; 8]) -> R) -> R {
    static SEALS: Mutex<()> = Mutex::new(());
    let _one_at_a_time = lock(&SEALS);
    // SAFETY: an allocation of ours begins `ALIGNMENT` bytes after a page does. Other processes only read them.
    let seal = unsafe { allocation.bytes.sub(ALIGNMENT) }.cast::<[u8; 8]>();
    // SAFETY: as before.
    let mut bytes = unsafe { seal.read_volatile() };
    let result = act(&mut bytes);
    // SAFETY: as before.
    unsafe { seal.write_volatile(bytes) };
    result
}

impl Allocation {
    /// Where its bytes are for us, as [`DeviceBytes::pointer`].
    pub(crate) fn pointer(&self) -> *mut u8 {
        self.bytes
    }
}
