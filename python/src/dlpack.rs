//! DLPack: memory lent to whoever knows the protocol.
//!
//! Source: <https://dmlc.github.io/dlpack/latest/c_api.html>, version 0.8, which every consumer still takes.

use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use shardwright_loader::device::{DeviceMemory, Place};
use shardwright_planner::checkpoint::Dtype;
use std::{ffi::CStr, os::raw::c_void, sync::Arc};

/// What a capsule is called until somebody takes what is in it.
const LENT: &CStr = c"dltensor";

const CPU: i32 = 1;
const CUDA: i32 = 2;

#[repr(C)]
struct Device {
    kind: i32,
    number: i32,
}

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// What a capsule keeps alive; it has the capsule's own structure in it.
struct Loan {
    managed: Managed,
    shape: Vec<i64>,
    strides: Vec<i64>,
    _memory: Arc<dyn DeviceMemory>,
}

/// DLPack's numbers for a device.
pub(crate) fn device(place: &Place) -> (i32, i32) {
    match place {
        Place::Cuda { ordinal, .. } => (CUDA, i32::try_from(*ordinal).unwrap_or(0)),
        Place::Host { .. } | Place::Files => (CPU, 0),
    }
}

/// DLPack's numbers for a dtype: its code and its bits.
fn data_type(dtype: Dtype) -> Option<(u8, u8)> {
    Some(match dtype {
        Dtype::I8 => (0, 8),
        Dtype::I16 => (0, 16),
        Dtype::I32 => (0, 32),
        Dtype::I64 => (0, 64),
        Dtype::U8 => (1, 8),
        Dtype::U16 => (1, 16),
        Dtype::U32 => (1, 32),
        Dtype::U64 => (1, 64),
        Dtype::F16 => (2, 16),
        Dtype::F32 => (2, 32),
        Dtype::F64 => (2, 64),
        Dtype::BF16 => (4, 16),
        Dtype::C64 => (5, 64),
        Dtype::BOOL => (6, 8),
        Dtype::F8_E4M3 => (10, 8),
        Dtype::F8_E5M2 => (12, 8),
        Dtype::F8_E8M0 => (14, 8),
        _ => return None,
    })
}

/// A capsule of the tensor at `address` of `memory`, row-major.
pub(crate) fn capsule<'py>(
    py: Python<'py>,
    memory: Arc<dyn DeviceMemory>,
    address: u64,
    dtype: Dtype,
    shape: &[u64],
) -> PyResult<Bound<'py, PyAny>> {
    let (code, bits) = data_type(dtype)
        .ok_or_else(|| PyBufferError::new_err(format!("{dtype} has no name in DLPack: take its bytes")))?;
    let too_large = || PyBufferError::new_err("the tensor is too large for DLPack");
    let shape = shape.iter().map(|&size| i64::try_from(size)).collect::<Result<Vec<i64>, _>>();
    let shape = shape.map_err(|_| too_large())?;
    let mut strides = vec![1i64; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim].checked_mul(shape[dim].max(1)).ok_or_else(too_large)?;
    }
    let (kind, number) = device(&memory.place());
    let mut loan = Box::new(Loan {
        managed: Managed {
            tensor: DlTensor {
                data: address as *mut c_void,
                device: Device { kind, number },
                ndim: i32::try_from(shape.len()).map_err(|_| too_large())?,
                dtype: DataType { code, bits, lanes: 1 },
                shape: std::ptr::null_mut(),
                strides: std::ptr::null_mut(),
                byte_offset: 0,
            },
            context: std::ptr::null_mut(),
            deleter: Some(give_back),
        },
        shape,
        strides,
        _memory: memory,
    });
    loan.managed.tensor.shape = loan.shape.as_mut_ptr();
    loan.managed.tensor.strides = loan.strides.as_mut_ptr();
    let loan = Box::into_raw(loan);
    // SAFETY: `loan` was made a moment ago and nobody else has it; its structure stays where it is until `give_back`.
    let managed = unsafe {
        (*loan).managed.context = loan.cast();
        &raw mut (*loan).managed
    };
    // SAFETY: the interpreter is held; the name is static; the pointer is good until the capsule's end or its taker's.
    let capsule = unsafe { ffi::PyCapsule_New(managed.cast(), LENT.as_ptr(), Some(end_of_capsule)) };
    if capsule.is_null() {
        // SAFETY: no capsule has it.
        drop(unsafe { Box::from_raw(loan) });
        return Err(PyErr::fetch(py));
    }
    // SAFETY: a new reference, which is not null.
    Ok(unsafe { Bound::from_owned_ptr(py, capsule) })
}

/// Ends a loan.
unsafe extern "C" fn give_back(managed: *mut Managed) {
    if managed.is_null() {
        return;
    }
    // SAFETY: whoever took the structure calls this once, as the protocol says; its context is the loan it lies in, which came from
    // a box. The memory may be freed without the interpreter: nothing of Python is in a loan.
    drop(unsafe { Box::from_raw((*managed).context.cast::<Loan>()) });
}

/// Ends the loan of a capsule that nobody took: one that was taken is called otherwise.
unsafe extern "C" fn end_of_capsule(capsule: *mut ffi::PyObject) {
    // SAFETY: Python calls this with the capsule that dies, and holds the interpreter.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, LENT.as_ptr()) == 1 {
            give_back(ffi::PyCapsule_GetPointer(capsule, LENT.as_ptr()).cast());
        }
    }
}
