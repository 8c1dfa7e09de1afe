//! Host memory that the driver knows: pinned (it allocated it) or registered.
//!
//! In: allocations and registrations. Out: [`find`], which says what a host address belongs to, and [`transfer`], which gets at
//! host memory that may not be there. Freed pinned memory keeps its addresses for ever, without access: a host or a copy that
//! uses it later is found out.

use crate::{Answer, device::Gpu, fault, lock::lock, memory};
use cudarc::driver::sys::CUresult;
use std::{
    collections::BTreeMap,
    ffi::c_void,
    fs, io, ptr,
    sync::{Arc, Mutex},
};

/// Why the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Pinned,
    Registered,
}

/// A run of host memory that the driver knows.
pub(crate) struct Region {
    pub(crate) kind: Kind,
    address: usize,
    len: usize,
    gpu: &'static Gpu,
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.kind == Kind::Pinned {
            let start: *mut c_void = ptr::with_exposed_provenance_mut(self.address);
            let len = self.len.next_multiple_of(PAGE);
            // SAFETY: the pages are ours, and no copy uses them any more: each would keep this region.
            unsafe {
                libc::madvise(start, len, libc::MADV_DONTNEED);
                libc::mprotect(start, len, libc::PROT_NONE);
            }
        }
    }
}

static REGIONS: Mutex<Regions> = Mutex::new(Regions { by_address: BTreeMap::new(), peak_pinned_bytes: 0 });

struct Regions {
    by_address: BTreeMap<usize, Arc<Region>>,
    peak_pinned_bytes: u64,
}

const PAGE: usize = 4096;

impl Regions {
    /// Those that share a byte with the `len` bytes at `address`.
    fn overlapping(&self, address: usize, len: usize) -> Option<&Arc<Region>> {
        let (_, region) = self.by_address.range(..address.saturating_add(len)).next_back()?;
        (region.address + region.len > address).then_some(region)
    }

    fn pinned_bytes(&self, gpu: Option<&Gpu>) -> u64 {
        let counts =
            |region: &&Arc<Region>| region.kind == Kind::Pinned && gpu.is_none_or(|gpu| region.gpu == gpu);
        self.by_address.values().filter(counts).map(|region| region.len as u64).sum()
    }
}

/// Allocates pinned memory, poisoned.
pub(crate) fn allocate(gpu: &'static Gpu, len: usize) -> Answer<*mut c_void> {
    if len == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    if fault::value_on("pinned-refused", gpu.number).is_some() {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    // A page without access on either side: whoever runs past an end dies.
    let pages = len.checked_next_multiple_of(PAGE).and_then(|pages| pages.checked_add(2 * PAGE));
    let pages = pages.ok_or(CUresult::CUDA_ERROR_OUT_OF_MEMORY)?;
    let mapping = memory::Mapping::new(pages, libc::PROT_NONE, None);
    let guard = mapping.map_err(|_| CUresult::CUDA_ERROR_OUT_OF_MEMORY)?.leak();
    // SAFETY: the second page of three or more.
    let start = unsafe { guard.add(PAGE) };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: these pages are ours and new.
    if unsafe { libc::mprotect(start.cast(), pages - 2 * PAGE, protection) } != 0 {
        return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    }
    // SAFETY: nobody else knows them yet.
    unsafe { start.write_bytes(memory::POISON, len) };
    let address = start.expose_provenance();
    let mut regions = lock(&REGIONS);
    regions.by_address.insert(address, Arc::new(Region { kind: Kind::Pinned, address, len, gpu }));
    let all = regions.pinned_bytes(None);
    regions.peak_pinned_bytes = regions.peak_pinned_bytes.max(all);
    let here = regions.pinned_bytes(Some(gpu));
    let mut counts = lock(&gpu.counts);
    counts.peak_pinned_bytes = counts.peak_pinned_bytes.max(here);
    Ok(start.cast())
}

/// Makes memory of the caller's known. `read_only` says that it needn't be writable.
pub(crate) fn register(gpu: &'static Gpu, start: *const c_void, len: usize, read_only: bool) -> Answer {
    let address = start.expose_provenance();
    if len == 0 || address.checked_add(len).is_none() || memory::is_device_address(address) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    if fault::value_on("register-refused", gpu.number).is_some() {
        return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
    }
    if !is_mapped(address, len, !read_only) {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let mut regions = lock(&REGIONS);
    if regions.overlapping(address, len).is_some() {
        return Err(CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    regions.by_address.insert(address, Arc::new(Region { kind: Kind::Registered, address, len, gpu }));
    Ok(())
}

/// Ends what `allocate` or `register` began. Copies that were not yet run fail then.
pub(crate) fn end(start: *const c_void, kind: Kind) -> Answer {
    let mut regions = lock(&REGIONS);
    match regions.by_address.get(&start.addr()) {
        Some(region) if region.kind == kind => {}
        _ if kind == Kind::Registered => return Err(CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED),
        _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
    regions.by_address.remove(&start.addr());
    Ok(())
}

/// What the `len` bytes at `address` belong to: nothing if they are pageable.
///
/// # Errors
/// `CUDA_ERROR_INVALID_VALUE` for device addresses and for bytes of which the driver knows only some.
pub(crate) fn find(address: usize, len: usize) -> Answer<Option<Arc<Region>>> {
    if memory::is_device_address(address) || address == 0 {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    match lock(&REGIONS).overlapping(address, len) {
        None => Ok(None),
        Some(region) if region.address <= address && address + len <= region.address + region.len => {
            Ok(Some(Arc::clone(region)))
        }
        Some(_) => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}

/// How many of `gpu` are alive.
pub(crate) fn alive_on(gpu: &Gpu, kind: Kind) -> usize {
    lock(&REGIONS).by_address.values().filter(|region| region.kind == kind && region.gpu == gpu).count()
}

/// The most pinned memory that the process had at a time.
pub(crate) fn peak_pinned_bytes() -> u64 {
    lock(&REGIONS).peak_pinned_bytes
}

/// Whether all pages are there, readable, and writable if they need be.
fn is_mapped(address: usize, len: usize, writable: bool) -> bool {
    let Ok(maps) = fs::read_to_string("/proc/self/maps") else { return false };
    let (mut reached, end) = (address, address + len);
    for line in maps.lines() {
        let mut words = line.split(' ');
        let range = words.next().and_then(|range| range.split_once('-'));
        let hex = |text| usize::from_str_radix(text, 16).ok();
        let Some((Some(from), Some(to))) = range.map(|(from, to)| (hex(from), hex(to))) else { continue };
        let rights = words.next().unwrap_or_default();
        let fits = rights.starts_with('r') && (!writable || rights[1..].starts_with('w'));
        if fits && (from..to).contains(&reached) {
            reached = to;
        }
        if reached >= end {
            return true;
        }
    }
    false
}

/// A run of host memory and one of device memory, as long: (host address, where the device's bytes are for us, length).
pub(crate) type Row = (usize, *mut u8, usize);

/// Which way bytes go between the two of a [`Row`].
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Way {
    FromHost,
    ToHost,
}

/// Copies `rows` one way, and says whether all host memory was there.
///
/// # Safety
/// The second pointer of each row is valid for its length. The host memory need not exist.
pub(crate) unsafe fn transfer(way: Way, rows: impl IntoIterator<Item = Row>) -> bool {
    /// As many as the kernel takes at a time.
    const MOST_ROWS: usize = 1024;
    /// It also takes no more than some 2 GiB.
    const MOST_BYTES: usize = 1 << 30;
    let pieces = rows.into_iter().flat_map(|(host, device, len)| {
        (0..len)
            .step_by(MOST_BYTES)
            .map(move |at| (host + at, device.wrapping_add(at), MOST_BYTES.min(len - at)))
    });
    let (mut hosts, mut devices, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (host, device, len) in pieces {
        if hosts.len() == MOST_ROWS || bytes + len > MOST_BYTES {
            // SAFETY: the caller's promise.
            if !unsafe { transfer_some(way, &hosts, &devices, bytes) } {
                return false;
            }
            hosts.clear();
            devices.clear();
            bytes = 0;
        }
        hosts.push(libc::iovec { iov_base: ptr::with_exposed_provenance_mut(host), iov_len: len });
        devices.push(libc::iovec { iov_base: device.cast(), iov_len: len });
        bytes += len;
    }
    // SAFETY: the caller's promise.
    unsafe { transfer_some(way, &hosts, &devices, bytes) }
}

/// # Safety
/// As for [`transfer`]; the runs of both lists have the same lengths.
unsafe fn transfer_some(way: Way, hosts: &[libc::iovec], devices: &[libc::iovec], bytes: usize) -> bool {
    if bytes == 0 {
        return true;
    }
    // SAFETY: it has no preconditions.
    let this = unsafe { libc::getpid() };
    let (host, device) = (hosts.as_ptr(), devices.as_ptr());
    let (host_runs, device_runs) = (hosts.len() as libc::c_ulong, devices.len() as libc::c_ulong);
    // SAFETY: the kernel checks the process's own runs; those of the device are valid by the caller's promise.
    let moved = unsafe {
        match way {
            Way::FromHost => libc::process_vm_readv(this, device, device_runs, host, host_runs, 0),
            Way::ToHost => libc::process_vm_writev(this, device, device_runs, host, host_runs, 0),
        }
    };
    let refused = moved < 0
        && matches!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EPERM | libc::ENOSYS | libc::EACCES)
        );
    if refused {
        // Some sandboxes forbid these calls. Then a host address that isn't there ends the process.
        for (host, device) in hosts.iter().zip(devices) {
            let (from, to) = match way {
                Way::FromHost => (host.iov_base, device.iov_base),
                Way::ToHost => (device.iov_base, host.iov_base),
            };
            // SAFETY: the device's side by the caller's promise, the host's by that of the program under test.
            unsafe { ptr::copy(from.cast::<u8>(), to.cast::<u8>(), host.iov_len) };
        }
        return true;
    }
    usize::try_from(moved) == Ok(bytes)
}
