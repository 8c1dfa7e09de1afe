//! GPUs as devices, over the CUDA driver.
//!
//! In come the same windows as for any device; they are staged in pinned memory of the host and copied by the GPU itself while
//! the next ones are read. Fingerprints are computed by a kernel from what lies in the GPU's memory.
//!
//! Downwards: `memory` (a rank's memory) over `staging` (the ring of pinned buffers), `registered` (copies straight from a
//! mapping) and `sums` (the kernel's work), all over `driver`, which alone talks to the library. Beside them `nccl`: how GPUs agree.

pub(crate) mod driver;
mod memory;
mod nccl;
mod registered;
mod staging;
mod sums;

pub use driver::{CudaError, Driver, Gpu};

use super::{Device, DeviceError, DeviceMemory, LentPieces, Pool};
use crate::{collective::Communicator, fingerprint::seed_of, numa::node_of_pci, trace::Tracer};
use driver::{Context, IpcHandle};
use memory::CudaMemory;
use nccl::NcclCommunicator;
use std::time::Duration;

/// Pinned memory of the host that a rank stages its copies in, unless something else is asked for.
pub const DEFAULT_STAGING_BYTES: u64 = 64 << 20;

/// How to use a GPU.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Pinned memory of the host for staging, in bytes.
    pub staging_bytes: u64,
    /// Whether to copy straight from mapped files, registered with the driver, where that goes.
    pub registered: bool,
    /// Whether fingerprints will be asked for.
    pub fingerprints: bool,
    /// How long to wait for the GPU to finish what it was given.
    pub patience: Duration,
    /// How long NCCL may take to connect the GPUs, while all ranks are there.
    pub connecting: Duration,
    /// Which rank loads into it, for the timeline.
    pub rank: u32,
    /// Keeps the timeline.
    pub tracer: Tracer,
}

/// A GPU that a rank loads into.
pub struct CudaDevice {
    context: Context,
    options: CudaOptions,
    nccl: Option<nccl_rs::Library>,
}

impl CudaDevice {
    /// Takes a GPU into use. With `nccl`, ranks agree over it; without, the way they came.
    ///
    /// # Errors
    /// [`DeviceError`] when the GPU cannot be used.
    pub fn new(
        driver: Driver,
        gpu: Gpu,
        options: CudaOptions,
        nccl: Option<nccl_rs::Library>,
    ) -> Result<Self, DeviceError> {
        Ok(Self { context: Context::new(driver, gpu)?, options, nccl })
    }

    /// Takes the GPU with this UUID into use, as [`CudaDevice::new`] does, wherever this process counts it.
    ///
    /// # Errors
    /// [`DeviceError::NoSuchGpu`] when this process does not see it; [`DeviceError`] when it cannot be used.
    pub fn with_uuid(driver: Driver, uuid: &str, options: CudaOptions) -> Result<Self, DeviceError> {
        let gpu = driver.gpus()?.into_iter().find(|gpu| gpu.uuid == uuid);
        let gpu = gpu.ok_or_else(|| DeviceError::NoSuchGpu { uuid: uuid.to_owned() })?;
        Self::new(driver, gpu, options, None)
    }

    /// Opens the first `bytes` bytes of another process' memory on this GPU, by what its [`DeviceMemory::ipc_handle`] gave. What
    /// lies there stays, and is only read. That process must keep it until this is dropped.
    ///
    /// # Errors
    /// [`DeviceError`] when the driver refuses, or the memory is shorter.
    pub fn open(&self, handle: [u8; 64], bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        Ok(Box::new(CudaMemory::open(&self.context, IpcHandle(handle), bytes, &self.options)?))
    }
}

impl Device for CudaDevice {
    fn name(&self) -> String {
        driver::gpu_name(self.context.gpu().ordinal)
    }

    fn numa_node(&self) -> Option<u32> {
        node_of_pci(&self.context.gpu().pci)
    }

    fn pools(&self) -> Result<Vec<Pool>, DeviceError> {
        let id = seed_of(&self.context.gpu().uuid);
        Ok(vec![Pool { name: self.name(), id, available: Some(self.context.memory_info()?.0) }])
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        Ok(Box::new(CudaMemory::new(&self.context, bytes, &self.options)?))
    }

    fn adopt(&self, lent: LentPieces) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        Ok(Box::new(CudaMemory::adopt(&self.context, &lent, &self.options)?))
    }

    fn connect(&self, control: Box<dyn Communicator>) -> Result<Box<dyn Communicator>, DeviceError> {
        match &self.nccl {
            Some(library) if control.world_size() > 1 => {
                let CudaOptions { connecting, patience, .. } = self.options;
                let nccl = NcclCommunicator::new(library, &self.context, control, connecting, patience)?;
                Ok(Box::new(nccl))
            }
            _ => Ok(control),
        }
    }
}
