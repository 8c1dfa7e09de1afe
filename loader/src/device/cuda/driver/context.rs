//! A GPU in use: its primary context.

use super::{Driver, Gpu, device, error::checked};
use crate::device::CudaError;
use cudarc::driver::{result, sys};
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
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Context {
    /// Takes the GPU into use.
    pub(crate) fn new(driver: Driver, gpu: Gpu) -> Result<Self, CudaError> {
        let device = device(gpu.ordinal)?;
        // SAFETY: the device comes from the driver.
        let raw = unsafe { result::primary_ctx::retain(device) };
        let raw = checked(Some(gpu.ordinal), "cuDevicePrimaryCtxRetain", raw)?;
        Ok(Self(Arc::new(Retained { driver, gpu, device, raw })))
    }

    pub(crate) fn driver(&self) -> Driver {
        self.0.driver
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }

    pub(super) fn check<T>(
        &self,
        call: &'static str,
        result: Result<T, result::DriverError>,
    ) -> Result<T, CudaError> {
        checked(Some(self.0.gpu.ordinal), call, result)
    }

    /// Makes it the calling thread's current context, as every call that follows needs.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for as long as self lives.
        self.check("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.0.raw) })
    }

    /// Bytes of the GPU's memory that nobody uses, and all of them.
    pub(crate) fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (free, total) = self.check("cuMemGetInfo", result::mem_get_info())?;
        Ok((free as u64, total as u64))
    }

    /// One of the GPU's figures.
    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32, CudaError> {
        // SAFETY: the device comes from the driver.
        let value = unsafe { result::device::get_attribute(self.0.device, attribute) };
        self.check("cuDeviceGetAttribute", value)
    }
}
