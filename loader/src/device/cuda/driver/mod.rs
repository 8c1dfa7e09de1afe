//! The CUDA driver, safely: what shardwright needs of it, over `cudarc`'s bindings, which look for the library when the program
//! runs.
//!
//! In come numbers of GPUs; out come contexts, streams, events and memory that cannot be misused from safe code, and errors that
//! name the GPU and the call. It knows nothing of ranks and tensors. Everything that waits does so by asking again and again, so
//! that every wait can end.
//!
//! Of `cudarc` the declarations and the search for the library are used. Its functions panic where an entry point is missing and
//! take a result code that they do not know for one that they do, so the entry points are looked up here (`functions`); its safe
//! layer allocates from pools, whose memory other processes cannot open, and lets copies outlive what they read.

mod buffer;
mod context;
mod error;
mod functions;
mod ipc;
mod kernel;
mod registration;
mod stream;

pub(crate) use buffer::{DeviceBuffer, Origin, PinnedBuffer, Rows2d};
pub(crate) use context::Context;
pub use error::CudaError;
pub(crate) use error::gpu_name;
pub(crate) use ipc::IpcHandle;
pub(crate) use kernel::Kernel;
pub(crate) use registration::Registration;
pub(crate) use stream::{Event, Stream};

use cudarc::driver::sys;
use error::checked;
use functions::{Functions, functions};
use std::ffi::{CStr, c_char, c_int};

/// The oldest driver that is accepted, as `cuDriverGetVersion` codes it: CUDA 11.0, the first that takes the PTX of the kernel.
const OLDEST: i32 = 11000;

/// The driver's library, loaded and started.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    version: i32,
    functions: &'static Functions,
}

/// A GPU as the driver tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number for the driver, in this process: what `CUDA_VISIBLE_DEVICES` and `CUDA_DEVICE_ORDER` make of it.
    pub ordinal: u32,
    /// What the product is called.
    pub name: String,
    /// Its UUID, as `nvidia-smi -L` prints it: `GPU-…`.
    pub uuid: String,
    /// Where it is plugged in, as `0000:1b:00.0`; GPUs in the order of these are in PCI_BUS_ID order.
    pub pci: String,
}

impl Driver {
    /// Loads the library and starts it.
    ///
    /// # Errors
    /// [`CudaError`] says whether there is no library, it is too old, or it cannot start.
    pub fn open() -> Result<Self, CudaError> {
        let functions = functions()?;
        let mut version: c_int = 0;
        // SAFETY: the pointer is good for one c_int.
        checked(None, "cuDriverGetVersion", unsafe { (functions.cuDriverGetVersion)(&raw mut version) })?;
        if version < OLDEST {
            return Err(CudaError::TooOld { found: version, needed: OLDEST });
        }
        // SAFETY: a call without pointers.
        checked(None, "cuInit", unsafe { (functions.cuInit)(0) })?;
        Ok(Self { version, functions })
    }

    /// The version of CUDA that the driver speaks, coded as 1000 times the major plus 10 times the minor: 12080 is 12.8.
    pub fn version(self) -> i32 {
        self.version
    }

    /// All GPUs that this process may use, by their numbers.
    ///
    /// # Errors
    /// [`CudaError`] when one cannot be asked.
    pub fn gpus(self) -> Result<Vec<Gpu>, CudaError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is good for one c_int.
        checked(None, "cuDeviceGetCount", unsafe { (self.functions.cuDeviceGetCount)(&raw mut count) })?;
        (0..u32::try_from(count).unwrap_or(0)).map(|ordinal| self.gpu(ordinal)).collect()
    }

    fn gpu(self, ordinal: u32) -> Result<Gpu, CudaError> {
        let device = self.device(ordinal)?;
        let (mut name, mut pci) = ([0 as c_char; 128], [0 as c_char; 32]);
        // SAFETY: the buffer is longer than is said; the driver ends what it writes with a zero.
        let named = unsafe { (self.functions.cuDeviceGetName)(name.as_mut_ptr(), 127, device) };
        checked(Some(ordinal), "cuDeviceGetName", named)?;
        // SAFETY: as above.
        let placed = unsafe { (self.functions.cuDeviceGetPCIBusId)(pci.as_mut_ptr(), 31, device) };
        checked(Some(ordinal), "cuDeviceGetPCIBusId", placed)?;
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        let ask = self.functions.cuDeviceGetUuid_v2.unwrap_or(self.functions.cuDeviceGetUuid);
        // SAFETY: the pointer is good for one UUID.
        checked(Some(ordinal), "cuDeviceGetUuid", unsafe { ask(&raw mut uuid, device) })?;
        Ok(Gpu { ordinal, name: text(&name), uuid: uuid_text(&uuid), pci: text(&pci).to_lowercase() })
    }

    fn device(self, ordinal: u32) -> Result<sys::CUdevice, CudaError> {
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let mut device = 0;
        // SAFETY: the pointer is good for one device.
        checked(Some(ordinal), "cuDeviceGet", unsafe {
            (self.functions.cuDeviceGet)(&raw mut device, number)
        })?;
        Ok(device)
    }
}

/// The letters before the first zero.
fn text(letters: &[c_char]) -> String {
    let bytes: Vec<u8> = letters.iter().map(|&letter| letter.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).unwrap_or_default().to_string_lossy().into_owned()
}

fn uuid_text(uuid: &sys::CUuuid) -> String {
    let mut text = String::from("GPU");
    for (at, byte) in uuid.bytes.iter().enumerate() {
        if matches!(at, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", byte.to_ne_bytes()[0]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvidia_smi_does() {
        let uuid = sys::CUuuid {
            bytes: [0, 17, 34, 51, 68, 85, 102, 119, 136, 153, 170, 187, 204, 221, 238, 255u8]
                .map(|byte| c_char::from_ne_bytes([byte])),
        };
        assert_eq!(uuid_text(&uuid), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
