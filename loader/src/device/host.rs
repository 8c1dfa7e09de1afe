//! This host's memory as a device: ranks are threads, their memory is RAM.

use super::{
    Device, DeviceError, DeviceMemory, Filling, Keeper, LentPieces, Place, Pool, Sum, cgroup,
    claims::{Claimed, Claims},
    pieces::Pieces,
};
use crate::fingerprint::{Fingerprint, seed_of};
use memmap2::{Advice, MmapMut, MmapRaw};
use rustix::mm;
use std::ops::Range;

/// Most bytes that are filled at a time: what stays in a core's cache is gathered no faster, and progress is seen.
const WINDOW: u64 = 8 << 20;

/// Size of a huge page; memory is aligned to it so that the kernel can use them.
const HUGE_PAGE: usize = 2 << 20;

/// This host's memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDevice;

/// Memory of this process: its own, or pieces that somebody lent, with its own between them.
struct HostMemory {
    pieces: Pieces,
    claims: Claims,
    _own: OwnMemory,
    _keeper: Keeper,
}

/// Anonymous memory, aligned to huge pages and advised to use them: with 4 KiB pages, filling it takes about twice as long.
struct OwnMemory {
    map: MmapRaw,
    /// First byte of the map that is aligned.
    start: usize,
}

impl HostDevice {
    /// Bytes of memory that the machine has, free or not, where the system says so.
    pub fn total_bytes(self) -> Option<u64> {
        meminfo("MemTotal:")
    }

    /// Bytes of memory that this process can have now, where the system says so.
    pub fn available_bytes(self) -> Option<u64> {
        let groups = cgroup::pools().into_iter().filter_map(|pool| pool.available);
        meminfo("MemAvailable:").into_iter().chain(groups).min()
    }
}

/// A figure of `/proc/meminfo` in bytes.
fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

impl Device for HostDevice {
    fn name(&self) -> String {
        "host".to_owned()
    }

    fn pools(&self) -> Result<Vec<Pool>, DeviceError> {
        let name = self.name();
        let machine = Pool { id: seed_of(&name), name, available: meminfo("MemAvailable:") };
        Ok(std::iter::once(machine).chain(cgroup::pools()).collect())
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        let own = self.own_memory(bytes)?;
        Ok(Box::new(HostMemory::new(Pieces::whole(own.address(), bytes), own, None)))
    }

    fn adopt(&self, lent: LentPieces) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        let own = self.own_memory(lent.own_bytes())?;
        lent.lent().for_each(|(address, bytes)| advise(address, bytes));
        for (address, bytes) in lent.padded() {
            if let (Ok(address), Ok(bytes)) = (usize::try_from(address), usize::try_from(bytes)) {
                // SAFETY: who lent the piece answers for it: see `LentPieces::new`.
                unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_bytes(0, bytes) };
            }
        }
        Ok(Box::new(HostMemory::new(lent.pieces(own.address()), own, lent.keeper())))
    }
}

/// Asks for huge pages in memory that somebody lent. Only advice: without them it is slower, not wrong.
fn advise(address: u64, bytes: u64) {
    let stop = address.saturating_add(bytes) / HUGE_PAGE as u64 * HUGE_PAGE as u64;
    let start = address.next_multiple_of(HUGE_PAGE as u64);
    if let (Ok(first), Ok(len)) = (usize::try_from(start), usize::try_from(stop.saturating_sub(start)))
        && len > 0
    {
        let first = std::ptr::with_exposed_provenance_mut(first);
        // SAFETY: the pages lie inside memory that was lent, and stay what they are whatever size the kernel chooses.
        let _ = unsafe { mm::madvise(first, len, mm::Advice::LinuxHugepage) };
    }
}

impl HostDevice {
    fn own_memory(self, bytes: u64) -> Result<OwnMemory, DeviceError> {
        let refused = |available| {
            let device = self.name();
            DeviceError::OutOfMemory { device, ranks: 1, bytes, available }
        };
        let available = self.available_bytes();
        if available.is_some_and(|free| bytes > free) {
            return Err(refused(available));
        }
        let len = usize::try_from(bytes).map_err(|_| refused(available))?;
        let room = len.checked_add(HUGE_PAGE).ok_or_else(|| refused(available))?;
        let map = MmapMut::map_anon(room).map_err(|_| refused(available))?;
        let start = map.as_ptr().align_offset(HUGE_PAGE);
        if len > 0 {
            // Only advice: without huge pages it is slower, not wrong.
            let _ = map.advise_range(Advice::HugePage, start, len / HUGE_PAGE * HUGE_PAGE);
        }
        Ok(OwnMemory { map: map.into(), start })
    }
}

impl OwnMemory {
    fn address(&self) -> u64 {
        (self.map.as_mut_ptr().expose_provenance() + self.start) as u64
    }
}

impl HostMemory {
    fn new(pieces: Pieces, own: OwnMemory, keeper: Keeper) -> Self {
        Self { pieces, claims: Claims::default(), _own: own, _keeper: keeper }
    }

    /// The first of `bytes` bytes from `at` on, checked, and their number.
    fn bytes_at(&self, at: u64, bytes: u64) -> Result<(*mut u8, usize), DeviceError> {
        let outside = |_| DeviceError::OutOfRange { at, bytes, len: self.pieces.len() };
        let address = usize::try_from(self.pieces.address(at, bytes)?).map_err(outside)?;
        Ok((std::ptr::with_exposed_provenance_mut(address), usize::try_from(bytes).map_err(outside)?))
    }

    /// Lets `with` read `bytes` bytes from `at` on.
    fn read_with<T>(&self, at: u64, bytes: u64, with: impl FnOnce(&[u8]) -> T) -> Result<T, DeviceError> {
        let (first, len) = self.bytes_at(at, bytes)?;
        let _claimed = self.claims.take(at..at + bytes, false);
        // SAFETY: the bytes lie inside a piece, which lives as long as self and is initialised; the claim keeps writers out of
        // it until the slice is gone.
        Ok(with(unsafe { std::slice::from_raw_parts(first, len) }))
    }
}

/// A run of the memory that a thread has alone.
struct HostFilling<'a> {
    /// Made by [`HostMemory::bytes_at`].
    first: *mut u8,
    len: usize,
    _claimed: Claimed<'a>,
}

impl Filling for HostFilling<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the bytes lie inside a piece, which the borrow keeps alive and which is initialised; the claim keeps all
        // others out of it as long as self lives, and self lends it to one at a time.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }

    fn done(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl DeviceMemory for HostMemory {
    fn len(&self) -> u64 {
        self.pieces.len()
    }

    fn place(&self) -> Place {
        Place::Host { address: self.pieces.all().first().map_or(0, |piece| piece.address) }
    }

    fn address(&self, at: u64) -> u64 {
        self.pieces.address(at, 0).unwrap_or(0)
    }

    fn is_filled_in_place(&self) -> bool {
        true
    }

    fn window_end(&self, at: u64) -> u64 {
        self.pieces.end(at).min(at.saturating_add(WINDOW))
    }

    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        let (first, len) = self.bytes_at(at, bytes)?;
        Ok(Box::new(HostFilling { first, len, _claimed: self.claims.take(at..at + bytes, true) }))
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn fingerprints(&self, sums: &[Sum]) -> Result<Vec<Fingerprint>, DeviceError> {
        let one = |sum: &Sum| {
            let mut fingerprint = Fingerprint::default();
            for strip in &sum.strips {
                for run in 0..strip.runs {
                    let at = strip.at.saturating_add(run.saturating_mul(strip.at_stride));
                    let in_tensor = strip.in_tensor + run * strip.in_tensor_stride;
                    self.read_with(at, strip.run_bytes, |bytes| fingerprint.add(sum.seed, in_tensor, bytes))?;
                }
            }
            Ok(fingerprint)
        };
        sums.iter().map(one).collect()
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let stop = self.pieces.checked_end(from, into.len() as u64)?;
        into.fill(0);
        for (Range { start, end }, _) in self.pieces.parts(from..stop) {
            let place = |byte: u64| usize::try_from(byte - from).unwrap_or(usize::MAX);
            if let Some(into) = into.get_mut(place(start)..place(end)) {
                self.read_with(start, end - start, |bytes| into.copy_from_slice(bytes))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Strip;

    #[test]
    fn memory_is_zero_aligned_and_keeps_what_is_written() {
        let memory = HostDevice.allocate(100).unwrap();
        assert_eq!(memory.place().address() % HUGE_PAGE as u64, 0);
        for (at, bytes) in [(10, [1, 2]), (30, [3, 4])] {
            let mut filling = memory.begin(at, 2).unwrap();
            filling.bytes().copy_from_slice(&bytes);
            filling.done().unwrap();
        }
        memory.finish().unwrap();
        let mut bytes = [7; 100];
        memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes[10..12], [1, 2]);
        assert_eq!(bytes[30..32], [3, 4]);
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 4);
    }

    #[test]
    fn threads_fill_their_places_at_once() {
        let memory = HostDevice.allocate(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let memory = &memory;
                scope.spawn(move || {
                    for number in (thread..1 << 10).step_by(4) {
                        let value = number.to_le_bytes()[0];
                        let mut filling = memory.begin(number << 10, 1 << 10).unwrap();
                        filling.bytes().fill(value);
                        filling.done().unwrap();
                    }
                });
            }
        });
        let mut bytes = vec![0; 1 << 20];
        memory.read(0, &mut bytes).unwrap();
        assert!((0u64..).zip(&bytes).all(|(at, &byte)| byte == (at >> 10).to_le_bytes()[0]));
    }

    #[test]
    fn nothing_reaches_outside_the_memory() {
        let memory = HostDevice.allocate(8).unwrap();
        assert!(memory.begin(5, 4).is_err());
        assert!(memory.begin(u64::MAX, 4).is_err());
        assert!(memory.read(8, &mut [0]).is_err());
        let strip = Strip { at: 4, at_stride: 8, in_tensor: 0, in_tensor_stride: 8, run_bytes: 4, runs: 2 };
        assert!(memory.fingerprints(&[Sum { seed: 0, strips: vec![strip] }]).is_err());
    }

    #[test]
    fn more_than_the_machine_has_is_refused_with_both_numbers() {
        let error = HostDevice.allocate(u64::MAX / 2).map(drop).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { available: Some(_), .. }), "{error}");
    }
}
