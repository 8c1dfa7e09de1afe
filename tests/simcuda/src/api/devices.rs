//! The driver itself, its devices, their contexts, and the names of errors.

use super::{put, put_text};
use crate::{Answer, context, device, fault, lock::lock, settings::settings, stream};
use cudarc::driver::sys::{CUcontext, CUdevice, CUdevice_attribute, CUresult, CUuuid};
use std::{
    collections::HashMap,
    ffi::{CStr, CString, c_char, c_int, c_uint},
    sync::Mutex,
};

entry_points! {
    /// Starts the driver.
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if fault::value("kill-at-init").is_some() {
            fault::signal_self(libc::SIGKILL);
        }
        while fault::value("hang-init").is_some() {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
        device::initialise()
    }

    /// The newest CUDA that the driver knows.
    fn cuDriverGetVersion(version: *mut c_int) {
        put(version, settings().driver_version)
    }

    /// How many GPUs there are.
    fn cuDeviceGetCount(count: *mut c_int) {
        initialised()?;
        put(count, c_int::try_from(device::gpus().len()).unwrap_or(c_int::MAX))
    }

    /// The handle of a GPU: its number.
    fn cuDeviceGet(handle: *mut CUdevice, ordinal: c_int) {
        put(handle, device::gpu(ordinal)?.ordinal)
    }

    /// What a GPU is called.
    fn cuDeviceGetName(name: *mut c_char, room: c_int, gpu: CUdevice) {
        device::gpu(gpu)?;
        put_text(name, room, device::NAME)
    }

    /// What tells a GPU from all others.
    fn cuDeviceGetUuid(uuid: *mut CUuuid, gpu: CUdevice) {
        put_uuid(uuid, gpu)
    }

    /// The same.
    fn cuDeviceGetUuid_v2(uuid: *mut CUuuid, gpu: CUdevice) {
        put_uuid(uuid, gpu)
    }

    /// Where a GPU sits.
    fn cuDeviceGetPCIBusId(id: *mut c_char, room: c_int, gpu: CUdevice) {
        put_text(id, room, &device::bus_id(device::gpu(gpu)?.number))
    }

    /// How much memory a GPU has.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, gpu: CUdevice) {
        device::gpu(gpu)?;
        put(bytes, size(settings().memory_bytes))
    }

    /// What a GPU can do.
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, gpu: CUdevice) {
        put(value, device::attribute(device::gpu(gpu)?, attribute))
    }

    /// Whether a GPU could be let at another's memory.
    fn cuDeviceCanAccessPeer(can: *mut c_int, gpu: CUdevice, peer: CUdevice) {
        put(can, c_int::from(device::gpu(gpu)? != device::gpu(peer)?))
    }

    /// The context of a GPU, which lives until it is released.
    fn cuDevicePrimaryCtxRetain(handle: *mut CUcontext, gpu: CUdevice) {
        put(handle, context::retain(device::gpu(gpu)?))
    }

    /// Releases it.
    fn cuDevicePrimaryCtxRelease_v2(gpu: CUdevice) {
        context::release(device::gpu(gpu)?)
    }

    /// Makes a context current for this thread.
    fn cuCtxSetCurrent(handle: CUcontext) {
        initialised()?;
        context::set_current(handle)
    }

    /// The context that is.
    fn cuCtxGetCurrent(handle: *mut CUcontext) {
        initialised()?;
        put(handle, context::current_handle())
    }

    /// The GPU of the current context.
    fn cuCtxGetDevice(gpu: *mut CUdevice) {
        put(gpu, context::current()?.gpu.ordinal)
    }

    /// Waits for all work of the current context.
    fn cuCtxSynchronize() {
        let context = context::current()?;
        lock(&context.gpu.counts).context_synchronisations += 1;
        stream::synchronise_all(&context)
    }

    /// What a code is called.
    fn cuGetErrorName(error: CUresult, name: *mut *const c_char) {
        put(name, text(format!("{error:?}")).as_ptr())
    }

    /// What a code means.
    fn cuGetErrorString(error: CUresult, meaning: *mut *const c_char) {
        put(meaning, text(meaning_of(error)).as_ptr())
    }
}

fn initialised() -> Answer {
    if device::gpus().is_empty() { Err(CUresult::CUDA_ERROR_NOT_INITIALIZED) } else { Ok(()) }
}

/// A number of bytes as the driver writes it.
pub(super) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// # Safety
/// As for [`put`].
unsafe fn put_uuid(place: *mut CUuuid, gpu: CUdevice) -> Answer {
    let bytes = device::uuid(device::gpu(gpu)?.number).map(u8::cast_signed);
    // SAFETY: the caller's promise.
    unsafe { put(place, CUuuid { bytes }) }
}

/// `text` for as long as the process lives, made once.
fn text(text: String) -> &'static CStr {
    static TEXTS: Mutex<Option<HashMap<String, &'static CStr>>> = Mutex::new(None);
    let mut texts = lock(&TEXTS);
    let leak =
        |text: &String| &*Box::leak(CString::new(text.as_str()).unwrap_or_default().into_boxed_c_str());
    texts.get_or_insert_default().entry(text).or_insert_with_key(leak)
}

fn meaning_of(error: CUresult) -> String {
    let known = match error {
        CUresult::CUDA_SUCCESS => "no error",
        CUresult::CUDA_ERROR_INVALID_VALUE => "invalid argument",
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => "out of memory",
        CUresult::CUDA_ERROR_NOT_INITIALIZED => "initialization error",
        CUresult::CUDA_ERROR_NO_DEVICE => "no CUDA-capable device is detected",
        CUresult::CUDA_ERROR_INVALID_DEVICE => "invalid device ordinal",
        CUresult::CUDA_ERROR_INVALID_CONTEXT => "invalid device context",
        CUresult::CUDA_ERROR_INVALID_PTX => "a PTX JIT compilation failed",
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "the provided PTX was compiled with an unsupported toolchain."
        }
        CUresult::CUDA_ERROR_INVALID_HANDLE => "invalid resource handle",
        CUresult::CUDA_ERROR_NOT_FOUND => "named symbol not found",
        CUresult::CUDA_ERROR_NOT_READY => "device not ready",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => "an illegal memory access was encountered",
        CUresult::CUDA_ERROR_LAUNCH_TIMEOUT => "the launch timed out and was terminated",
        CUresult::CUDA_ERROR_MISALIGNED_ADDRESS => "misaligned address",
        CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED => "context is destroyed",
        CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED => {
            "part or all of the requested memory range is already mapped"
        }
        CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED => {
            "pointer does not correspond to a registered memory region"
        }
        CUresult::CUDA_ERROR_NOT_SUPPORTED => "operation not supported",
        _ => return format!("{error:?}"),
    };
    known.to_owned()
}
