//! Copies.

use crate::{
    Answer,
    copy::{Place, Shape, Side, Waits, copy},
    device::attribute,
    memory, stream,
};
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUdevice_attribute, CUdeviceptr, CUmemorytype, CUresult, CUstream};
use std::{ffi::c_void, ptr};

entry_points! {
    /// Copies to the device, later.
    fn cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, len: usize, stream: CUstream) {
        run(host(from), Place::Device(to), len, stream, Waits::No)
    }

    /// Copies from the device, later.
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, len: usize, stream: CUstream) {
        run(Place::Device(from), host(to), len, stream, Waits::No)
    }

    /// Copies within the device or between devices, later.
    fn cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, len: usize, stream: CUstream) {
        run(Place::Device(from), Place::Device(to), len, stream, Waits::No)
    }

    /// Copies to the device and waits.
    fn cuMemcpyHtoD_v2(to: CUdeviceptr, from: *const c_void, len: usize) {
        run(host(from), Place::Device(to), len, ptr::null_mut(), Waits::Yes)
    }

    /// Copies from the device and waits.
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: CUdeviceptr, len: usize) {
        run(Place::Device(from), host(to), len, ptr::null_mut(), Waits::Yes)
    }

    /// Copies rows, later.
    fn cuMemcpy2DAsync_v2(what: *const CUDA_MEMCPY2D, stream: CUstream) {
        let stream = stream::find(stream)?;
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        if what.is_null() {
            return Err(invalid);
        }
        let what = &*what.cast::<Rows>();
        let most = attribute(stream.context.gpu, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH);
        let side = |side: &RowsSide| -> Answer<Side> {
            let pitch = if side.pitch == 0 { what.width } else { side.pitch };
            // The driver refuses rows that reach past their pitch even if there is only one.
            let row_end = side.x.checked_add(what.width).ok_or(invalid)?;
            if row_end > pitch || i32::try_from(pitch).map_or(true, |pitch| pitch > most) {
                return Err(invalid);
            }
            let offset = side.y.checked_mul(pitch).and_then(|rows| rows.checked_add(side.x)).ok_or(invalid)?;
            let place = place(side)?;
            let place = match place {
                Place::Host(address) => Place::Host(address.checked_add(offset).ok_or(invalid)?),
                Place::Device(address) => Place::Device(address.checked_add(offset as u64).ok_or(invalid)?),
            };
            Ok(Side { place, pitch })
        };
        let shape = Shape { width: what.width, height: what.height };
        copy(&stream, side(&what.from)?, side(&what.to)?, shape, Waits::No)
    }
}

/// [`CUDA_MEMCPY2D`], but with a number where the caller's may be no `CUmemorytype`: it is 0 where C code cleared the struct.
#[repr(C)]
struct Rows {
    from: RowsSide,
    to: RowsSide,
    width: usize,
    height: usize,
}

/// One side of it.
#[repr(C)]
struct RowsSide {
    x: usize,
    y: usize,
    memory: u32,
    host: *const c_void,
    device: CUdeviceptr,
    array: *const c_void,
    pitch: usize,
}

const _: () = assert!(size_of::<Rows>() == size_of::<CUDA_MEMCPY2D>());
const _: () = assert!(std::mem::offset_of!(Rows, to) == std::mem::offset_of!(CUDA_MEMCPY2D, dstXInBytes));
const _: () = assert!(std::mem::offset_of!(Rows, width) == std::mem::offset_of!(CUDA_MEMCPY2D, WidthInBytes));
const _: () = assert!(std::mem::offset_of!(RowsSide, pitch) == std::mem::offset_of!(CUDA_MEMCPY2D, srcPitch));

/// Where a side begins. With unified addresses, the address says it.
fn place(side: &RowsSide) -> Answer<Place> {
    const HOST: u32 = CUmemorytype::CU_MEMORYTYPE_HOST as u32;
    const DEVICE: u32 = CUmemorytype::CU_MEMORYTYPE_DEVICE as u32;
    const UNIFIED: u32 = CUmemorytype::CU_MEMORYTYPE_UNIFIED as u32;
    match side.memory {
        HOST => Ok(host(side.host)),
        DEVICE => Ok(Place::Device(side.device)),
        UNIFIED => {
            let address = memory::in_memory(side.device)?;
            let device = memory::is_device_address(address);
            Ok(if device { Place::Device(side.device) } else { Place::Host(address) })
        }
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}

/// A host address, which a copy may later make a pointer of again.
fn host(pointer: *const c_void) -> Place {
    Place::Host(pointer.expose_provenance())
}

/// Copies one run.
fn run(from: Place, to: Place, len: usize, stream: CUstream, waits: Waits) -> Answer {
    let side = |place| Side { place, pitch: len };
    copy(&stream::find(stream)?, side(from), side(to), Shape { width: len, height: 1 }, waits)
}
