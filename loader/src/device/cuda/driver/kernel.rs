//! A kernel from PTX, which the driver compiles for the GPU at hand.

use super::{Context, Stream, error::gpu_name};
use crate::device::CudaError;
use cudarc::driver::sys;
use std::ffi::{CStr, c_void};

/// Most bytes that are kept of what the driver's compiler says.
const LOG_BYTES: usize = 4096;

/// A kernel, ready to be launched.
#[derive(Debug)]
pub(crate) struct Kernel {
    context: Context,
    module: sys::CUmodule,
    function: sys::CUfunction,
}

// SAFETY: a loaded module may be used from any thread in which the context is current, and by several at once.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Compiles `ptx` and finds the entry point `name` in it.
    pub(crate) fn new(context: &Context, ptx: &CStr, name: &CStr) -> Result<Self, CudaError> {
        context.bind()?;
        let mut log = [0u8; LOG_BYTES];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values: [*mut c_void; 2] =
            [log.as_mut_ptr().cast(), std::ptr::without_provenance_mut(LOG_BYTES)];
        let mut module = std::ptr::null_mut();
        // SAFETY: the text ends with a zero; there are two options and two values; the log is as long as is said.
        let loaded = unsafe {
            (context.functions().cuModuleLoadDataEx)(
                &raw mut module,
                ptx.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        if let Err(error) = context.check("cuModuleLoadDataEx", loaded) {
            return Err(refused(context, error, &log));
        }
        let mut kernel = Self { context: context.clone(), module, function: std::ptr::null_mut() };
        let function = &raw mut kernel.function;
        // SAFETY: the pointer is good for one function, the module was just loaded, and the name ends with a zero.
        let found = unsafe { (context.functions().cuModuleGetFunction)(function, module, name.as_ptr()) };
        context.check("cuModuleGetFunction", found)?;
        Ok(kernel)
    }

    /// Adds to `stream`: runs the kernel on `blocks` blocks of `threads` threads.
    ///
    /// # Safety
    /// `arguments` point to values of the types that the kernel takes; the memory that it is told of lives until the stream has
    /// done it.
    pub(crate) unsafe fn launch(
        &self,
        blocks: u32,
        threads: u32,
        arguments: &mut [*mut c_void],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: the module lives; the driver copies the arguments before it returns; the caller answers for the rest.
        let launched = unsafe {
            (self.context.functions().cuLaunchKernel)(
                self.function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.raw(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.context.check("cuLaunchKernel", launched)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded by `new`, unloaded here only.
            let _ = unsafe { (self.context.functions().cuModuleUnload)(self.module) };
        }
    }
}

/// Why the driver does not take the kernel; other failures as they are.
fn refused(context: &Context, error: CudaError, log: &[u8]) -> CudaError {
    let of_kernel =
        ["CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "CUDA_ERROR_INVALID_PTX", "CUDA_ERROR_NO_BINARY_FOR_GPU"];
    match error {
        CudaError::Call { name, .. } if of_kernel.contains(&name.as_str()) => {
            let log = CStr::from_bytes_until_nul(log).unwrap_or_default().to_string_lossy();
            CudaError::Kernel {
                gpu: gpu_name(context.gpu().ordinal),
                version: context.driver().version(),
                name,
                log: log.trim().replace('\n', "; "),
            }
        }
        other => other,
    }
}
