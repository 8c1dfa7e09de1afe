//! This host's memory as a device: ranks are threads, their memory is RAM.

use super::{Block, Device, DeviceError, DeviceMemory, Strip};
use crate::fingerprint::Fingerprint;
use memmap2::{Advice, MmapMut};

/// Size of a huge page; memory is aligned to it so that the kernel can use them.
const HUGE_PAGE: usize = 2 << 20;

/// This host's memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostDevice;

/// Anonymous memory, aligned to huge pages and advised to use them: with 4 KiB pages, filling it takes about twice as long.
struct HostMemory {
    map: MmapMut,
    /// First byte of the map that is aligned.
    start: usize,
    len: usize,
}

impl HostDevice {
    /// Bytes of memory that the machine has, free or not, where the system says so.
    pub fn total_bytes(self) -> Option<u64> {
        meminfo("MemTotal:")
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

    fn available_bytes(&self) -> Option<u64> {
        meminfo("MemAvailable:")
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        let refused = |available| DeviceError::OutOfMemory { device: self.name(), bytes, available };
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
        Ok(Box::new(HostMemory { map, start, len }))
    }
}

impl HostMemory {
    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.len]
    }

    /// The range of `bytes` bytes from `at` on, checked.
    fn range(&self, at: u64, bytes: u64) -> Result<std::ops::Range<usize>, DeviceError> {
        let outside = || DeviceError::OutOfRange { at, bytes, len: self.len as u64 };
        let stop = at.checked_add(bytes).filter(|&stop| stop <= self.len as u64).ok_or_else(outside)?;
        let place = |byte: u64| usize::try_from(byte).map_err(|_| outside());
        Ok(place(at)?..place(stop)?)
    }
}

impl DeviceMemory for HostMemory {
    fn len(&self) -> u64 {
        self.len as u64
    }

    fn write(&mut self, block: Block<'_>, to: u64, to_stride: u64) -> Result<(), DeviceError> {
        let mut at = to;
        for row in block.rows() {
            let range = self.range(at, row.len() as u64)?;
            let start = self.start;
            self.map[start + range.start..start + range.end].copy_from_slice(row);
            at = at.saturating_add(to_stride);
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn fingerprint(&self, seed: u64, strips: &[Strip]) -> Result<Fingerprint, DeviceError> {
        let mut sum = Fingerprint::default();
        for strip in strips {
            for run in 0..strip.runs {
                let at = strip.at.saturating_add(run.saturating_mul(strip.at_stride));
                let range = self.range(at, strip.run_bytes)?;
                sum.add(seed, strip.in_tensor + run * strip.in_tensor_stride, &self.bytes()[range]);
            }
        }
        Ok(sum)
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let range = self.range(from, into.len() as u64)?;
        into.copy_from_slice(&self.bytes()[range]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_aligned_and_keeps_what_is_written() {
        let mut memory = HostDevice.allocate(100).unwrap();
        let block = Block { bytes: &[1, 2, 9, 3, 4], run_bytes: 2, stride: 3, runs: 2 };
        memory.write(block, 10, 20).unwrap();
        memory.finish().unwrap();
        let mut bytes = [7; 100];
        memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes[10..12], [1, 2]);
        assert_eq!(bytes[30..32], [3, 4]);
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 4);
    }

    #[test]
    fn nothing_reaches_outside_the_memory() {
        let mut memory = HostDevice.allocate(8).unwrap();
        let block = Block { bytes: &[1; 4], run_bytes: 4, stride: 4, runs: 1 };
        assert!(memory.write(block, 5, 4).is_err());
        assert!(memory.write(block, u64::MAX, 4).is_err());
        assert!(memory.read(8, &mut [0]).is_err());
        let strip = Strip { at: 4, at_stride: 8, in_tensor: 0, in_tensor_stride: 8, run_bytes: 4, runs: 2 };
        assert!(memory.fingerprint(0, &[strip]).is_err());
    }

    #[test]
    fn more_than_the_machine_has_is_refused_with_both_numbers() {
        let error = HostDevice.allocate(u64::MAX / 2).map(drop).unwrap_err();
        assert!(matches!(error, DeviceError::OutOfMemory { available: Some(_), .. }), "{error}");
    }
}
