//! The driver's entry points, looked up in its library once.
//!
//! The types are those that `cudarc` declares, which the compiler checks; but for the result, which stays a number: a newer driver
//! may answer with a code that no enumeration of today has.

use super::error::CudaError;
use cudarc::driver::sys;
use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    sync::OnceLock,
};

/// What an entry point answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Code(pub(super) c_int);

impl Code {
    pub(super) const SUCCESS: Self = Self(sys::CUresult::CUDA_SUCCESS as c_int);
    pub(super) const NOT_READY: Self = Self(sys::CUresult::CUDA_ERROR_NOT_READY as c_int);
}

macro_rules! functions {
    ($($name:ident($($argument:ty),*);)*) => {
        /// All entry points that are called.
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        #[derive(Debug)]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            pub(super) cuGetErrorName: unsafe extern "C" fn(c_int, *mut *const c_char) -> Code,
            pub(super) cuGetErrorString: unsafe extern "C" fn(c_int, *mut *const c_char) -> Code,
            /// Since CUDA 11.4: tells the instances of a GPU that is partitioned (MIG) apart.
            pub(super) cuDeviceGetUuid_v2: Option<unsafe extern "C" fn(*mut sys::CUuuid, sys::CUdevice) -> Code>,
        }

        $(const _: unsafe fn($($argument),*) -> sys::CUresult = sys::$name;)*

        impl Functions {
            fn load() -> Result<Self, CudaError> {
                // SAFETY: loading a library runs its initialisers; the driver's are what every CUDA program runs.
                if !unsafe { sys::is_culib_present() } {
                    return Err(CudaError::NoLibrary);
                }
                // SAFETY: the library is there, so this does not panic; it stays loaded for as long as the process runs.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $(
                        // SAFETY: the driver's function of this name has these arguments, and answers with a number.
                        $name: *unsafe { library.get(stringify!($name).as_bytes()) }
                            .map_err(|_| CudaError::NoSymbol { symbol: stringify!($name) })?,
                    )*
                    // SAFETY: as above.
                    cuGetErrorName: *unsafe { library.get(b"cuGetErrorName") }
                        .map_err(|_| CudaError::NoSymbol { symbol: "cuGetErrorName" })?,
                    // SAFETY: as above.
                    cuGetErrorString: *unsafe { library.get(b"cuGetErrorString") }
                        .map_err(|_| CudaError::NoSymbol { symbol: "cuGetErrorString" })?,
                    // SAFETY: as above.
                    cuDeviceGetUuid_v2: unsafe { library.get(b"cuDeviceGetUuid_v2") }.ok().map(|symbol| *symbol),
                })
            }
        }
    };
}

functions! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut sys::CUdevice, c_int);
    cuDeviceGetName(*mut c_char, c_int, sys::CUdevice);
    cuDeviceGetUuid(*mut sys::CUuuid, sys::CUdevice);
    cuDeviceGetPCIBusId(*mut c_char, c_int, sys::CUdevice);
    cuDeviceGetAttribute(*mut c_int, sys::CUdevice_attribute, sys::CUdevice);
    cuDevicePrimaryCtxRetain(*mut sys::CUcontext, sys::CUdevice);
    cuDevicePrimaryCtxRelease_v2(sys::CUdevice);
    cuCtxSetCurrent(sys::CUcontext);
    cuMemGetInfo_v2(*mut usize, *mut usize);
    cuMemGetAddressRange_v2(*mut sys::CUdeviceptr, *mut usize, sys::CUdeviceptr);
    cuMemAlloc_v2(*mut sys::CUdeviceptr, usize);
    cuMemFree_v2(sys::CUdeviceptr);
    cuMemsetD8Async(sys::CUdeviceptr, u8, usize, sys::CUstream);
    cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    cuMemFreeHost(*mut c_void);
    cuMemHostRegister_v2(*mut c_void, usize, c_uint);
    cuMemHostUnregister(*mut c_void);
    cuMemcpyHtoDAsync_v2(sys::CUdeviceptr, *const c_void, usize, sys::CUstream);
    cuMemcpyDtoHAsync_v2(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
    cuMemcpy2DAsync_v2(*const sys::CUDA_MEMCPY2D, sys::CUstream);
    cuStreamCreate(*mut sys::CUstream, c_uint);
    cuStreamDestroy_v2(sys::CUstream);
    cuStreamQuery(sys::CUstream);
    cuEventCreate(*mut sys::CUevent, c_uint);
    cuEventDestroy_v2(sys::CUevent);
    cuEventRecord(sys::CUevent, sys::CUstream);
    cuEventQuery(sys::CUevent);
    cuEventElapsedTime(*mut f32, sys::CUevent, sys::CUevent);
    cuModuleLoadDataEx(*mut sys::CUmodule, *const c_void, c_uint, *mut sys::CUjit_option, *mut *mut c_void);
    cuModuleGetFunction(*mut sys::CUfunction, sys::CUmodule, *const c_char);
    cuModuleUnload(sys::CUmodule);
    cuLaunchKernel(
        sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream, *mut *mut c_void,
        *mut *mut c_void
    );
    cuIpcGetMemHandle(*mut sys::CUipcMemHandle, sys::CUdeviceptr);
    cuIpcOpenMemHandle_v2(*mut sys::CUdeviceptr, sys::CUipcMemHandle, c_uint);
    cuIpcCloseMemHandle(sys::CUdeviceptr);
}

/// The entry points, looked up the first time that this is called.
pub(super) fn functions() -> Result<&'static Functions, CudaError> {
    static FUNCTIONS: OnceLock<Functions> = OnceLock::new();
    match FUNCTIONS.get() {
        Some(functions) => Ok(functions),
        None => Functions::load().map(|functions| FUNCTIONS.get_or_init(|| functions)),
    }
}
