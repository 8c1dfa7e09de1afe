//! Where the bytes go: the seam between the loader and a rank's memory.
//!
//! In come rows of bytes and places for them; out come fingerprints of what lies there. It knows no file and no tensor.

mod host;

pub use host::HostDevice;

use crate::fingerprint::Fingerprint;

/// Something that ranks load into: this host's memory, or a GPU.
pub trait Device: Send + Sync {
    /// What it is, for people: `host`.
    fn name(&self) -> String;

    /// Bytes that can be allocated now, where the device knows.
    fn available_bytes(&self) -> Option<u64>;

    /// One piece of memory of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with both numbers.
    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError>;
}

/// A rank's memory. All weights of a rank lie in one.
///
/// Writes may complete later than the call, in any order; [`DeviceMemory::finish`] waits for them. Reading what was written
/// before it finished gives old or new bytes.
pub trait DeviceMemory: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies `block`: row `n` goes to `to + n * to_stride`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when a row would lie outside.
    fn write(&mut self, block: Block<'_>, to: u64, to_stride: u64) -> Result<(), DeviceError>;

    /// Waits until everything written has arrived.
    ///
    /// # Errors
    /// [`DeviceError`] when a write failed.
    fn finish(&mut self) -> Result<(), DeviceError>;

    /// The sum of the fingerprints of `strips`, computed on the device from what lies there.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when a strip lies outside.
    fn fingerprint(&self, seed: u64, strips: &[Strip]) -> Result<Fingerprint, DeviceError>;

    /// Copies bytes from `from` on into `into`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when they lie outside.
    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError>;
}

/// Rows of bytes in host memory that are to be copied to a device.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// From the first row's first byte to the last row's last byte.
    pub bytes: &'a [u8],
    /// Bytes of each row.
    pub run_bytes: usize,
    /// Bytes from one row's beginning to the next.
    pub stride: usize,
    /// How many rows.
    pub runs: usize,
}

impl<'a> Block<'a> {
    /// The rows one by one. Rows that `bytes` does not hold are left out; what is written is counted elsewhere.
    pub fn rows(self) -> impl Iterator<Item = &'a [u8]> {
        (0..self.runs).filter_map(move |run| {
            let start = run.checked_mul(self.stride)?;
            self.bytes.get(start..start.checked_add(self.run_bytes)?)
        })
    }
}

/// Rows of a tensor as they lie in a rank's memory: row `n` at `at + n * at_stride` holds the tensor's bytes from
/// `in_tensor + n * in_tensor_stride` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strip {
    /// First byte in the rank's memory.
    pub at: u64,
    /// Bytes from one row's beginning to the next in the rank's memory.
    pub at_stride: u64,
    /// First byte in the whole tensor.
    pub in_tensor: u64,
    /// Bytes from one row's beginning to the next in the whole tensor.
    pub in_tensor_stride: u64,
    /// Bytes of each row.
    pub run_bytes: u64,
    /// How many rows.
    pub runs: u64,
}

/// What a device could not do.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not enough memory.
    #[error("{device} cannot give {bytes} bytes of memory{}", available.map_or(String::new(), |free| format!(", it has {free} free")))]
    OutOfMemory {
        /// The device.
        device: String,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes it has free, where it knows.
        available: Option<u64>,
    },
    /// A place outside the memory.
    #[error("{bytes} bytes at {at} lie outside a memory of {len} bytes")]
    OutOfRange {
        /// First byte.
        at: u64,
        /// How many.
        bytes: u64,
        /// The memory's length.
        len: u64,
    },
}
