//! DLPack: memory lent to whoever knows the protocol.
//!
//! Source: <https://dmlc.github.io/dlpack/latest/c_api.html>, version 0.8, which every consumer still takes.

use pyo3::{exceptions::PyBufferError, ffi, prelude::*};
use shardwright_loader::device::{DeviceMemory, Place};
use shardwright_planner::checkpoint::Dtype;
use std::{ffi::CStr, os::raw::c_void, sync::Arc};

/// What a capsule is called until somebody takes what is in it.
const LENT: &CStr = c"dltensor";

/// What it is called from then on.
const TAKEN: &CStr = c"used_dltensor";

/// A device's kind: memory of this host.
pub(crate) const CPU: i32 = 1;

/// A device's kind: a GPU, by the number that the driver has for it in this process.
pub(crate) const CUDA: i32 = 2;

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

/// The dtypes that DLPack has numbers for: code and bits.
const DTYPES: [(Dtype, (u8, u8)); 17] = [
    (Dtype::I8, (0, 8)),
    (Dtype::I16, (0, 16)),
    (Dtype::I32, (0, 32)),
    (Dtype::I64, (0, 64)),
    (Dtype::U8, (1, 8)),
    (Dtype::U16, (1, 16)),
    (Dtype::U32, (1, 32)),
    (Dtype::U64, (1, 64)),
    (Dtype::F16, (2, 16)),
    (Dtype::F32, (2, 32)),
    (Dtype::F64, (2, 64)),
    (Dtype::BF16, (4, 16)),
    (Dtype::C64, (5, 64)),
    (Dtype::BOOL, (6, 8)),
    (Dtype::F8_E4M3, (10, 8)),
    (Dtype::F8_E5M2, (12, 8)),
    (Dtype::F8_E8M0, (14, 8)),
];

/// DLPack's numbers for a dtype.
fn data_type(dtype: Dtype) -> Option<(u8, u8)> {
    DTYPES.iter().find(|(known, _)| *known == dtype).map(|(_, numbers)| *numbers)
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

/// Memory that was lent to us: a tensor that somebody else has.
pub(crate) struct Borrowed {
    /// What of it is to be given back.
    managed: *mut Managed,
}

// SAFETY: it only keeps the structure until it is given back, which is done with the interpreter held.
unsafe impl Send for Borrowed {}
// SAFETY: as above; nothing of it can be changed.
unsafe impl Sync for Borrowed {}

/// What a tensor of somebody else's is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    /// Its first byte.
    pub(crate) address: u64,
    /// Its bytes, which lie one after the other.
    pub(crate) bytes: u64,
    /// Its dtype.
    pub(crate) dtype: Dtype,
    /// DLPack's numbers for its device.
    pub(crate) device: (i32, i32),
}

/// Borrows `tensor`, which is anything that knows DLPack and lies row by row without holes.
pub(crate) fn borrow(name: &str, tensor: &Bound<'_, PyAny>) -> PyResult<(Borrowed, View)> {
    let refused = |why: &str| PyBufferError::new_err(format!("nothing can be loaded into {name}: {why}"));
    let capsule = tensor.call_method0("__dlpack__")?;
    let raw = capsule.as_ptr();
    // SAFETY: the interpreter is held, and the object is alive.
    if unsafe { ffi::PyCapsule_IsValid(raw, LENT.as_ptr()) } != 1 {
        return Err(refused("it gives no capsule of DLPack, or one that was taken already"));
    }
    // SAFETY: a capsule of this name has that structure. It is ours once the capsule has the other name.
    let managed = unsafe { ffi::PyCapsule_GetPointer(raw, LENT.as_ptr()) }.cast::<Managed>();
    // SAFETY: as above; the name is static.
    if managed.is_null() || unsafe { ffi::PyCapsule_SetName(raw, TAKEN.as_ptr()) } != 0 {
        return Err(refused("its capsule cannot be taken"));
    }
    let borrowed = Borrowed { managed };
    // SAFETY: the structure is good until it is given back.
    let tensor = unsafe { &(*managed).tensor };
    let dims = usize::try_from(tensor.ndim).map_err(|_| refused("it has no shape"))?;
    let sizes = |first: *mut i64| -> &[i64] {
        // SAFETY: the protocol says that there are as many numbers, where there are any.
        if first.is_null() || dims == 0 { &[] } else { unsafe { std::slice::from_raw_parts(first, dims) } }
    };
    let (shape, strides) = (sizes(tensor.shape), sizes(tensor.strides));
    if shape.len() != dims {
        return Err(refused("it has no shape"));
    }
    let mut elements = 1i64;
    for (number, &size) in shape.iter().enumerate().rev() {
        // Without strides it is row-major; those of dimensions that have one index say nothing.
        if size != 1 && strides.get(number).is_some_and(|&stride| stride != elements) {
            return Err(refused("its rows do not lie one after the other"));
        }
        elements = elements.checked_mul(size).ok_or_else(|| refused("it is too large"))?;
    }
    let numbers = (tensor.dtype.code, tensor.dtype.bits);
    let dtype = DTYPES.iter().find(|(_, known)| *known == numbers && tensor.dtype.lanes == 1);
    let dtype = dtype.map(|(dtype, _)| *dtype);
    let bits = u64::from(tensor.dtype.bits);
    let bytes = u64::try_from(elements).ok().and_then(|elements| elements.checked_mul(bits));
    let view = View {
        address: (tensor.data.expose_provenance() as u64).saturating_add(tensor.byte_offset),
        bytes: bytes.ok_or_else(|| refused("it is too large"))? / 8,
        dtype: dtype.ok_or_else(|| refused("nobody knows its dtype: give a view of its bytes"))?,
        device: (tensor.device.kind, tensor.device.number),
    };
    Ok((borrowed, view))
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let managed = self.managed;
        let give_back = |_: Python<'_>| {
            // SAFETY: it was taken once, and is given back once, here.
            if let Some(deleter) = unsafe { (*managed).deleter } {
                // SAFETY: as above; what it frees may be Python's, and the interpreter is held.
                unsafe { deleter(managed) };
            }
        };
        // An interpreter that has ended frees nothing any more.
        let _ = Python::try_attach(give_back);
    }
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
