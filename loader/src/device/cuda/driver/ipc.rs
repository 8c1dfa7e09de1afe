//! Memory of a GPU that another process of this host opens.

use super::{Context, DeviceBuffer};
use crate::device::CudaError;
use cudarc::driver::sys;
use std::ffi::c_char;

/// What another process needs to open a [`DeviceBuffer`]; good for as long as that lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IpcHandle(pub(crate) [u8; 64]);

impl IpcHandle {
    pub(crate) fn of(buffer: &DeviceBuffer) -> Result<Self, CudaError> {
        let context = buffer.context();
        context.bind()?;
        let mut handle = sys::CUipcMemHandle_st { reserved: [0; 64] };
        // SAFETY: the pointer is good for one handle, and the address is that of a whole allocation.
        let answer = unsafe { (context.functions().cuIpcGetMemHandle)(&raw mut handle, buffer.address()) };
        context.check("cuIpcGetMemHandle", answer)?;
        Ok(Self(handle.reserved.map(|byte| byte.to_ne_bytes()[0])))
    }

    /// Maps the memory into this process; it has to be closed again.
    pub(super) fn open(self, context: &Context) -> Result<sys::CUdeviceptr, CudaError> {
        context.bind()?;
        let handle = sys::CUipcMemHandle_st { reserved: self.0.map(|byte| c_char::from_ne_bytes([byte])) };
        let mut address = 0;
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        // SAFETY: the pointer is good for one address; the driver checks the handle.
        let answer = unsafe { (context.functions().cuIpcOpenMemHandle_v2)(&raw mut address, handle, flags) };
        context.check("cuIpcOpenMemHandle", answer)?;
        Ok(address)
    }
}
