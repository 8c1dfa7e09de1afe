//! The CUDA driver, safely: what shardwright needs of it, over `cudarc`'s bindings, which look for the library when the program
//! runs.
//!
//! In come numbers of GPUs; out come contexts, streams, events and memory that cannot be misused from safe code, and errors that
//! name the GPU and the call. It knows nothing of ranks and tensors. Everything that waits does so by asking again and again, so
//! that every wait can end.
//!
//! `cudarc` panics when the library or a symbol is missing, so both are looked up first ([`Driver::open`]). Its result codes are
//! a Rust enum: a driver that answers with a code newer than CUDA 12.8 would be misread. Its safe layer is not used: it allocates
//! from pools, whose memory other processes cannot open, and lets copies outlive what they read.

mod buffer;
mod context;
mod error;
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

use cudarc::driver::{result, sys};
use error::checked;
use std::ffi::{CStr, c_char, c_int};

/// The oldest driver that is accepted, as `cuDriverGetVersion` codes it: CUDA 11.0, the first that takes the PTX of the kernel.
const OLDEST: i32 = 11000;

/// Every entry point that is called. A driver that lacks one is refused before any is called.
const SYMBOLS: [&str; 40] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetUuid",
    "cuDeviceGetPCIBusId",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemGetAddressRange_v2",
    "cuMemsetD8Async",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpy2DAsync_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamQuery",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventElapsedTime",
    "cuModuleLoadDataEx",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuLaunchKernel",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuIpcCloseMemHandle",
];

/// The driver's library, loaded and started.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    version: i32,
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
        // SAFETY: loading a library runs its initialisers; the driver's are what every CUDA program runs.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoLibrary);
        }
        // SAFETY: the library is there, so this does not panic; it stays loaded for as long as the process runs.
        let library = unsafe { sys::culib() };
        for symbol in SYMBOLS {
            // SAFETY: the symbol is looked up only, never called through this type.
            let found = unsafe { library.get::<unsafe extern "C" fn()>(symbol.as_bytes()) };
            if found.is_err() {
                return Err(CudaError::NoSymbol { symbol });
            }
        }
        let mut version: c_int = 0;
        // SAFETY: the pointer is good for one c_int.
        checked(None, "cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&raw mut version) }.result())?;
        if version < OLDEST {
            return Err(CudaError::TooOld { found: version, needed: OLDEST });
        }
        checked(None, "cuInit", result::init())?;
        Ok(Self { version })
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
        let count = checked(None, "cuDeviceGetCount", result::device::get_count())?;
        (0..u32::try_from(count).unwrap_or(0)).map(gpu).collect()
    }
}

fn gpu(ordinal: u32) -> Result<Gpu, CudaError> {
    let device = device(ordinal)?;
    let name = checked(Some(ordinal), "cuDeviceGetName", result::device::get_name(device))?;
    let uuid = checked(Some(ordinal), "cuDeviceGetUuid", result::device::get_uuid(device))?;
    let mut pci = [0 as c_char; 32];
    // SAFETY: the buffer is as long as is said; the driver ends what it writes with a zero.
    let answer = unsafe { sys::cuDeviceGetPCIBusId(pci.as_mut_ptr(), 31, device) };
    checked(Some(ordinal), "cuDeviceGetPCIBusId", answer.result())?;
    let pci: Vec<u8> = pci.iter().map(|&letter| letter.to_ne_bytes()[0]).collect();
    let pci = CStr::from_bytes_until_nul(&pci).unwrap_or_default();
    Ok(Gpu { ordinal, name, uuid: uuid_text(&uuid), pci: pci.to_string_lossy().to_lowercase() })
}

fn device(ordinal: u32) -> Result<sys::CUdevice, CudaError> {
    let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    checked(Some(ordinal), "cuDeviceGet", result::device::get(number))
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
