//! Where the bytes go: the seam between the loader and a rank's memory.
//!
//! In come windows of bytes and places for them; out come fingerprints of what lies there. It knows no file and no tensor.

mod cgroup;
mod claims;
pub mod cuda;
mod host;
mod pieces;

pub use cuda::{CudaDevice, CudaError, CudaOptions};
pub use host::HostDevice;
pub use pieces::LentPieces;

pub(crate) use pieces::{Keeper, LentPiece, checked_end, parts};

use crate::{
    collective::{CollectiveError, Communicator},
    fingerprint::Fingerprint,
};
use shardwright_planner::quote::quote;
use std::{io, path::PathBuf};

/// Something that ranks load into: this host's memory, or a GPU.
pub trait Device: Send + Sync {
    /// What it is, for people: `host`, `cuda:0`.
    fn name(&self) -> String;

    /// The NUMA node that it hangs on, where the system says one.
    fn numa_node(&self) -> Option<u32> {
        None
    }

    /// What its memory is taken from, all of it from each.
    ///
    /// # Errors
    /// [`DeviceError`] when it cannot be asked.
    fn pools(&self) -> Result<Vec<Pool>, DeviceError>;

    /// One piece of memory of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with both numbers.
    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError>;

    /// Memory of which somebody lent some pieces, and the rest, all zero, is the device's own. A piece that will not be filled to the
    /// last byte is zero, too.
    ///
    /// # Errors
    /// [`DeviceError::TakesNone`] where the device takes no memory of others; else as [`Device::allocate`].
    fn adopt(&self, lent: LentPieces) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        let _ = lent;
        Err(DeviceError::TakesNone { device: self.name() })
    }

    /// How the ranks' devices agree among themselves, for ranks that can agree over `control` already. A device that has no
    /// way of its own gives `control` back.
    ///
    /// # Errors
    /// [`DeviceError`] when the devices do not find together.
    fn connect(&self, control: Box<dyn Communicator>) -> Result<Box<dyn Communicator>, DeviceError> {
        Ok(control)
    }
}

/// Memory that is shared by all who take from it: a GPU's, a machine's, what a control group may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// What it is, for people.
    pub name: String,
    /// A number that other pools of the same machine have but by accident, the same in all processes; not 0.
    pub id: u64,
    /// Bytes that can be had of it now, where the system says.
    pub available: Option<u64>,
}

/// A rank's memory. All weights of a rank lie in one, at places that are counted from its beginning. It may consist of pieces that
/// lie apart; no tensor lies in two.
///
/// What is filled may arrive later than the call, in any order; [`DeviceMemory::finish`] waits for it. Reading what was filled
/// before it finished gives old or new bytes. Threads may fill different places at once.
pub trait DeviceMemory: Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> u64;

    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where it lies.
    fn place(&self) -> Place;

    /// The address of the byte `at`; 0 where it has none.
    fn address(&self, at: u64) -> u64 {
        match self.place().address() {
            0 => 0,
            start => start + at,
        }
    }

    /// Whether what is filled lies in the memory itself at once, so that a [`Filling`] can be summed up in place of it.
    fn is_filled_in_place(&self) -> bool {
        false
    }

    /// Where a [`Filling`] that begins at `at` ends at the latest; more than `at`.
    fn window_end(&self, at: u64) -> u64;

    /// A place to write the `bytes` bytes that are to lie at `at`. It waits until there is one.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when they lie outside, or are more than a window; [`DeviceError`] when an earlier copy failed.
    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError>;

    /// From how many bytes on [`DeviceMemory::copy_mapped`] is worth a try; `None` where it never is.
    fn least_mapped_bytes(&self) -> Option<usize> {
        None
    }

    /// Copies rows from where they lie in host memory, with no staging between: row `n` goes to `to + n * to_stride`. False when
    /// this does not go for these rows; then nothing was copied. The rows are in use until the call returns, no longer.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when a row would lie outside; [`DeviceError`] when a copy failed.
    fn copy_mapped(&self, block: Block<'_>, to: u64, to_stride: u64) -> Result<bool, DeviceError> {
        let _ = (block, to, to_stride);
        Ok(false)
    }

    /// What was asked for and did not go, for people.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Waits until everything filled has arrived.
    ///
    /// # Errors
    /// [`DeviceError`] when a copy failed.
    fn finish(&self) -> Result<(), DeviceError>;

    /// The fingerprints of `sums`, computed on the device from what lies there.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when a strip lies outside.
    fn fingerprints(&self, sums: &[Sum]) -> Result<Vec<Fingerprint>, DeviceError>;

    /// What other processes of this host need to open the memory, where it can be opened.
    ///
    /// # Errors
    /// [`DeviceError`] when the device refuses.
    fn ipc_handle(&self) -> Result<Option<[u8; 64]>, DeviceError> {
        Ok(None)
    }

    /// Copies bytes from `from` on into `into`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfRange`] when they lie outside.
    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError>;
}

/// Bytes on their way into a rank's memory. Dropped before it is done, what lies in their place is anything.
///
/// Where the memory is [filled in place](DeviceMemory::is_filled_in_place), its bytes are the memory itself.
pub trait Filling {
    /// The bytes to write: of any content at first, but for memory that is filled in place, where it is zero or what was there.
    fn bytes(&mut self) -> &mut [u8];

    /// Sends them on their way.
    ///
    /// # Errors
    /// [`DeviceError`] when they cannot be copied.
    fn done(self: Box<Self>) -> Result<(), DeviceError>;
}

/// Rows of bytes in host memory.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// From the first row's first byte to the last row's last byte.
    pub bytes: &'a [u8],
    /// Bytes of each row; at least 1.
    pub run_bytes: usize,
    /// Bytes from one row's beginning to the next; at least as many.
    pub stride: usize,
    /// How many rows; at least 1.
    pub runs: usize,
}

/// Where a memory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In this process.
    Host {
        /// Its first byte.
        address: u64,
    },
    /// In files: it has no addresses.
    Files,
    /// In a GPU's memory.
    Cuda {
        /// Its first byte: a device pointer of the GPU's primary context.
        address: u64,
        /// The GPU's number for the CUDA driver, in this process.
        ordinal: u32,
        /// The GPU's UUID, as `nvidia-smi -L` prints it.
        uuid: String,
    },
}

impl Place {
    /// The address of its first byte; 0 where it has none.
    pub fn address(&self) -> u64 {
        match self {
            Self::Host { address } | Self::Cuda { address, .. } => *address,
            Self::Files => 0,
        }
    }
}

/// What one fingerprint is over: strips of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum {
    /// The tensor's, see [`crate::fingerprint::seed_of`].
    pub seed: u64,
    /// Its bytes; no byte twice.
    pub strips: Vec<Strip>,
}

impl Sum {
    /// Bytes it is over.
    pub fn bytes(&self) -> u64 {
        self.strips
            .iter()
            .map(|strip| strip.run_bytes.saturating_mul(strip.runs))
            .fold(0, u64::saturating_add)
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
    #[error(
        "{device} cannot give {bytes} bytes of memory{}{}",
        if *ranks == 1 { String::new() } else { format!(" to {ranks} ranks") },
        available.map_or(String::new(), |free| format!(", it has {free} free"))
    )]
    OutOfMemory {
        /// The device, or the pool that it takes from.
        device: String,
        /// How many ranks want it together.
        ranks: usize,
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
    /// The ranks do not get on together.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// Something was to be written to another process' memory.
    #[error("{device}: the memory is another process', and is only read")]
    ReadOnly {
        /// The device.
        device: String,
    },
    /// A GPU that this process does not see.
    #[error("this process sees no GPU {}", quote(uuid))]
    NoSuchGpu {
        /// Its UUID.
        uuid: String,
    },
    /// Another process' memory is not what it says.
    #[error("{device}: the memory that was opened has {found} bytes, and {bytes} were to be there")]
    TooShort {
        /// The device.
        device: String,
        /// Bytes that were to be there.
        bytes: u64,
        /// Its length.
        found: u64,
    },
    /// A file that is a rank's memory cannot be written, or read back.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was to be done with it.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// Somebody lent memory to a device that takes none.
    #[error("{device} does not load into memory that somebody else has")]
    TakesNone {
        /// The device.
        device: String,
    },
    /// Fingerprints were asked for, though the device was made without.
    #[error("the device was made to load without verifying")]
    NoFingerprints,
    /// The CUDA driver could not do something.
    #[error(transparent)]
    Cuda(CudaError),
    /// NCCL could not do something.
    #[error("{device}: NCCL: {source}")]
    Nccl {
        /// The rank's device: what fails on it often comes out first in NCCL.
        device: String,
        /// NCCL's answer.
        source: nccl_rs::CallError,
    },
    /// Ranks have different releases of NCCL.
    #[error("NCCL differs between ranks: rank 0 has {first}, rank {rank} has {other}")]
    NcclDiffers {
        /// The release of rank 0.
        first: String,
        /// The first rank that has another.
        rank: u32,
        /// Its release.
        other: String,
    },
}
