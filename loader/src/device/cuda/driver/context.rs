//! A GPU in use: its primary context.

use super::{
    Driver, Gpu,
    error::checked,
    functions::{Code, Functions},
};
use crate::device::CudaError;
use cudarc::driver::sys;
use std::sync::Arc;

/// A GPU's primary context, which everything in this process that uses the GPU shares. Released when the last clone is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Context(Arc<Retained>);

#[derive(Debug)]
struct Retained {
    driver: Driver,
    gpu: Gpu,
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

// SAFETY: a primary context may be used from any thread that has made it current (`bind`), and by several at once.
unsafe impl Send for Retained {}
// SAFETY: as above.
unsafe impl Sync for Retained {}

impl Drop for Retained {
    fn drop(&mut self) {
        // SAFETY: it was retained once, by `Context::new`, and everything made in it holds a clone and is gone.
        let _ = unsafe { (self.driver.functions.cuDevicePrimaryCtxRelease_v2)(self.device) };
    }
}

impl Context {
    /// Takes the GPU into use.
    pub(crate) fn new(driver: Driver, gpu: Gpu) -> Result<Self, CudaError> {
        let device = driver.device(gpu.ordinal)?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is good for one context, and the device comes from the driver.
        let retained = unsafe { (driver.functions.cuDevicePrimaryCtxRetain)(&raw mut raw, device) };
        checked(Some(gpu.ordinal), "cuDevicePrimaryCtxRetain", retained)?;
        Ok(Self(Arc::new(Retained { driver, gpu, device, raw })))
    }

    pub(crate) fn driver(&self) -> Driver {
        self.0.driver
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.0.driver.functions
    }

    /// The answer of `call`, as an error that names this GPU where it is none of success.
    pub(super) fn check(&self, call: &'static str, code: Code) -> Result<(), CudaError> {
        checked(Some(self.0.gpu.ordinal), call, code)
    }

    /// Makes it the calling thread's current context, as every call that follows needs.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for as long as self lives.
        self.check("cuCtxSetCurrent", unsafe { (self.functions().cuCtxSetCurrent)(self.0.raw) })
    }

    /// Bytes of the GPU's memory that nobody uses, and all of them.
    pub(crate) fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0usize, 0usize);
        // SAFETY: the pointers are good for a number each.
        let told = unsafe { (self.functions().cuMemGetInfo_v2)(&raw mut free, &raw mut total) };
        self.check("cuMemGetInfo", told)?;
        Ok((free as u64, total as u64))
    }

    /// One of the GPU's figures.
    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32, CudaError> {
        let mut value = 0;
        // SAFETY: the pointer is good for one number, and the device comes from the driver.
        let told =
            unsafe { (self.functions().cuDeviceGetAttribute)(&raw mut value, attribute, self.0.device) };
        self.check("cuDeviceGetAttribute", told)?;
        Ok(value)
    }
}
