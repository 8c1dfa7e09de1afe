//! This host's memory as a device: ranks are threads, their memory is RAM.

use super::{
    Device, DeviceError, DeviceMemory, Filling, Place, Pool, Sum, cgroup,
    claims::{Claimed, Claims},
};
use crate::fingerprint::{Fingerprint, seed_of};
use memmap2::{Advice, MmapMut, MmapRaw};

/// Most bytes that are filled at a time: what stays in a core's cache is gathered no faster, and progress is seen.
const WINDOW: u64 = 8 << 20;

/// Size of a huge page; memory is aligned to it so that the kernel can use them.
const HUGE_PAGE: usize = 2 << 20;

/// This host's memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDevice;

/// Anonymous memory, aligned to huge pages and advised to use them: with 4 KiB pages, filling it takes about twice as long.
struct HostMemory {
    map: MmapRaw,
    claims: Claims,
    /// First byte of the map that is aligned.
    start: usize,
    len: usize,
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
            let _ = map.advise_range(Advice::HugePage, start, len);
        }
        Ok(Box::new(HostMemory { map: map.into(), claims: Claims::default(), start, len }))
    }
}

impl HostMemory {
    /// The range of `bytes` bytes from `at` on, checked.
    fn range(&self, at: u64, bytes: u64) -> Result<std::ops::Range<usize>, DeviceError> {
        let outside = || DeviceError::OutOfRange { at, bytes, len: self.len as u64 };
        let stop = at.checked_add(bytes).filter(|&stop| stop <= self.len as u64).ok_or_else(outside)?;
        let place = |byte: u64| usize::try_from(byte).map_err(|_| outside());
        Ok(place(at)?..place(stop)?)
    }

    /// Lets `with` read a range that [`HostMemory::range`] gave.
    fn read_with<T>(&self, range: std::ops::Range<usize>, with: impl FnOnce(&[u8]) -> T) -> T {
        let _claimed = self.claims.take(range.clone(), false);
        // SAFETY: `range` lies inside the mapping, which lives as long as self and whose bytes are always initialised; the
        // claim keeps writers out of it until the slice is gone.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(self.start + range.start), range.len())
        };
        with(bytes)
    }
}

/// A run of the memory that a thread has alone.
struct HostFilling<'a> {
    memory: &'a HostMemory,
    /// Made by [`HostMemory::range`].
    range: std::ops::Range<usize>,
    _claimed: Claimed<'a>,
}

impl Filling for HostFilling<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        let place = self.memory.start + self.range.start;
        // SAFETY: the range lies inside the mapping, which the borrow keeps alive and whose bytes are always initialised; the
        // claim keeps all others out of it as long as self lives, and self lends it to one at a time.
        unsafe { std::slice::from_raw_parts_mut(self.memory.map.as_mut_ptr().add(place), self.range.len()) }
    }

    fn done(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl DeviceMemory for HostMemory {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn place(&self) -> Place {
        Place::Host { address: (self.map.as_ptr() as usize + self.start) as u64 }
    }

    fn is_filled_in_place(&self) -> bool {
        true
    }

    fn window_bytes(&self) -> u64 {
        WINDOW
    }

    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        let range = self.range(at, bytes)?;
        let claimed = self.claims.take(range.clone(), true);
        Ok(Box::new(HostFilling { memory: self, range, _claimed: claimed }))
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
                    let range = self.range(at, strip.run_bytes)?;
                    self.read_with(range, |bytes| fingerprint.add(sum.seed, in_tensor, bytes));
                }
            }
            Ok(fingerprint)
        };
        sums.iter().map(one).collect()
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let range = self.range(from, into.len() as u64)?;
        self.read_with(range, |bytes| into.copy_from_slice(bytes));
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
