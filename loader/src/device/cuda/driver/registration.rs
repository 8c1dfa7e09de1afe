//! Pages of the host that a GPU copies from by itself, for a while.

use super::Context;
use crate::device::CudaError;
use cudarc::driver::sys;

/// What the driver answers when it does not take some pages, with which nothing else is wrong.
const REFUSALS: [&str; 5] = [
    "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
    "CUDA_ERROR_NOT_SUPPORTED",
    "CUDA_ERROR_NOT_PERMITTED",
    "CUDA_ERROR_INVALID_VALUE",
    "CUDA_ERROR_OUT_OF_MEMORY",
];

/// Read-only pages that are registered with the driver until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    context: Context,
    start: usize,
}

impl Registration {
    /// Whether the driver registers read-only memory, as mapped files are.
    pub(crate) fn is_supported(context: &Context) -> Result<bool, CudaError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
        match context.attribute(attribute) {
            // A driver from before there was such a thing.
            Err(error) if error.is("CUDA_ERROR_INVALID_VALUE") => Ok(false),
            value => Ok(value? != 0),
        }
    }

    /// Registers the pages that hold `bytes`. `None` when the driver does not take them: some are registered already, or it takes
    /// none of a file.
    ///
    /// Bytes of others in the pages at the edges do no harm: a mapping consists of whole pages, and nobody writes.
    pub(crate) fn new(context: &Context, bytes: &[u8]) -> Result<Option<Self>, CudaError> {
        context.bind()?;
        let (first, page) = (bytes.as_ptr().expose_provenance(), rustix::param::page_size());
        let start = first / page * page;
        let len = (first + bytes.len()).next_multiple_of(page) - start;
        let flags = sys::CU_MEMHOSTREGISTER_READ_ONLY | sys::CU_MEMHOSTREGISTER_PORTABLE;
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the pages are mapped: each holds a byte that the caller has borrowed. They are read only, by the GPU as well.
        let answer = unsafe { (context.functions().cuMemHostRegister_v2)(address, len, flags) };
        match context.check("cuMemHostRegister", answer) {
            Ok(()) => Ok(Some(Self { context: context.clone(), start })),
            Err(error) if REFUSALS.iter().any(|refusal| error.is(refusal)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Leaves the pages registered: a copy that nobody knows the end of may use them.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: registered by `new`, given back here only, after the copy that used it.
            let _ = unsafe {
                (self.context.functions().cuMemHostUnregister)(std::ptr::with_exposed_provenance_mut(
                    self.start,
                ))
            };
        }
    }
}
