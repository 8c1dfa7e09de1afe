//! Memory: of the device and of the host.

use super::{devices::size, put};
use crate::{context, copy, host, ipc, memory, stream};
use cudarc::driver::sys::{
    CU_MEMHOSTALLOC_DEVICEMAP, CU_MEMHOSTALLOC_PORTABLE, CU_MEMHOSTALLOC_WRITECOMBINED,
    CU_MEMHOSTREGISTER_DEVICEMAP, CU_MEMHOSTREGISTER_PORTABLE, CU_MEMHOSTREGISTER_READ_ONLY, CUdeviceptr,
    CUipcMem_flags, CUipcMemHandle, CUresult, CUstream,
};
use std::ffi::{c_uchar, c_uint, c_void};

entry_points! {
    /// Free and total memory of the current context's GPU, as far as this process uses it.
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        let (free_bytes, total_bytes) = memory::free_and_total(context::current()?.gpu);
        put(free, size(free_bytes))?;
        put(total, size(total_bytes))
    }

    /// Allocates device memory.
    fn cuMemAlloc_v2(address: *mut CUdeviceptr, len: usize) {
        put(address, memory::allocate(context::current()?.gpu, len)?)
    }

    /// Frees it, without waiting for its users.
    fn cuMemFree_v2(address: CUdeviceptr) {
        if address == 0 {
            return Ok(());
        }
        // Of a broken context too, so that it doesn't count as forgotten.
        let context = context::current();
        memory::free(address).and(context.map(drop))
    }

    /// The allocation that an address lies in.
    fn cuMemGetAddressRange_v2(start: *mut CUdeviceptr, len: *mut usize, address: CUdeviceptr) {
        context::current()?;
        let bytes = memory::device_bytes(address, 1).map_err(|_| CUresult::CUDA_ERROR_NOT_FOUND)?;
        let allocation = bytes.allocation();
        put(start, allocation.address as CUdeviceptr)?;
        put(len, allocation.len)
    }

    /// Fills device memory.
    fn cuMemsetD8Async(address: CUdeviceptr, value: c_uchar, len: usize, stream: CUstream) {
        copy::fill(&stream::find(stream)?, address, value, len)
    }

    /// Allocates pinned memory.
    fn cuMemHostAlloc(start: *mut *mut c_void, len: usize, flags: c_uint) {
        let context = context::current()?;
        let known = CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_WRITECOMBINED;
        if flags & !known != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        put(start, host::allocate(context.gpu, len)?)
    }

    /// The same without flags.
    fn cuMemAllocHost_v2(start: *mut *mut c_void, len: usize) {
        put(start, host::allocate(context::current()?.gpu, len)?)
    }

    /// Frees it.
    fn cuMemFreeHost(start: *mut c_void) {
        let context = context::current();
        host::end(start, host::Kind::Pinned).and(context.map(drop))
    }

    /// Makes memory known to the driver.
    fn cuMemHostRegister_v2(start: *mut c_void, len: usize, flags: c_uint) {
        let context = context::current()?;
        let known = CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_READ_ONLY;
        if flags & !known != 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        host::register(context.gpu, start, len, flags & CU_MEMHOSTREGISTER_READ_ONLY != 0)
    }

    /// Lets the driver forget it.
    fn cuMemHostUnregister(start: *mut c_void) {
        let context = context::current();
        host::end(start, host::Kind::Registered).and(context.map(drop))
    }

    /// A handle by which another process can use an allocation.
    fn cuIpcGetMemHandle(handle: *mut CUipcMemHandle, address: CUdeviceptr) {
        put(handle, ipc::export(address)?)
    }

    /// The address of another process's memory.
    fn cuIpcOpenMemHandle_v2(address: *mut CUdeviceptr, handle: CUipcMemHandle, flags: c_uint) {
        if flags != CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as c_uint {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        put(address, ipc::open(&handle)?)
    }

    /// Ends its use.
    fn cuIpcCloseMemHandle(address: CUdeviceptr) {
        ipc::close(address)
    }
}
