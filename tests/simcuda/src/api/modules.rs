//! Modules, functions and launches.

use super::put;
use crate::{Answer, interpret::Grid, module, stream};
use cudarc::driver::sys::{CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult, CUstream};
use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr, slice,
};

entry_points! {
    /// Loads PTX text that ends with a zero.
    fn cuModuleLoadData(handle: *mut CUmodule, image: *const c_void) {
        put(handle, load(image).0?)
    }

    /// The same, with room for a log.
    fn cuModuleLoadDataEx(
        handle: *mut CUmodule,
        image: *const c_void,
        count: c_uint,
        options: *mut CUjit_option,
        values: *mut *mut c_void,
    ) {
        let (loaded, log) = load(image);
        if count > 0 {
            if options.is_null() || values.is_null() {
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
            let options = slice::from_raw_parts(options.cast::<u32>(), count as usize);
            let values = slice::from_raw_parts_mut(values, count as usize);
            write_log(options, values, CUjit_option::CU_JIT_ERROR_LOG_BUFFER, &log);
            write_log(options, values, CUjit_option::CU_JIT_INFO_LOG_BUFFER, "");
        }
        put(handle, loaded?)
    }

    /// A function of a module.
    fn cuModuleGetFunction(handle: *mut CUfunction, module: CUmodule, name: *const c_char) {
        if name.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let name = CStr::from_ptr(name).to_str().map_err(|_| CUresult::CUDA_ERROR_NOT_FOUND)?;
        put(handle, module::function(module, name)?)
    }

    /// Ends a module.
    fn cuModuleUnload(module: CUmodule) {
        module::unload(module)
    }

    /// What a function needs.
    fn cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction) {
        put(value, module::find(function)?.attribute(attribute)?)
    }

    /// Runs a function, later.
    fn cuLaunchKernel(
        function: CUfunction,
        blocks_x: c_uint,
        blocks_y: c_uint,
        blocks_z: c_uint,
        threads_x: c_uint,
        threads_y: c_uint,
        threads_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        parameters: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        let (function, stream) = (module::find(function)?, stream::find(stream)?);
        if !extra.is_null() {
            return Err(CUresult::CUDA_ERROR_NOT_SUPPORTED);
        }
        if shared_bytes > 48 << 10 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let kernel = function.kernel();
        let mut bytes = vec![0; kernel.parameter_bytes];
        if parameters.is_null() && !kernel.parameters.is_empty() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        for (at, parameter) in kernel.parameters.iter().enumerate() {
            let from = parameters.add(at).read();
            if from.is_null() {
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
            let to = &mut bytes[parameter.offset..][..parameter.len];
            ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), to.len());
        }
        let grid = Grid { blocks: [blocks_x, blocks_y, blocks_z], threads: [threads_x, threads_y, threads_z] };
        function.launch(&stream, grid, bytes)
    }
}

/// # Safety
/// `image` is null or begins something that the driver could load: text with a zero at its end, or four bytes more of binary.
unsafe fn load(image: *const c_void) -> (Answer<CUmodule>, String) {
    let refused = |code| (Err(code), String::new());
    if image.is_null() {
        return refused(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's promise. Text begins with a comment or a directive; no binary does.
    let first = unsafe { image.cast::<u8>().read() };
    if !(matches!(first, b'/' | b'.') || first.is_ascii_whitespace()) {
        return refused(CUresult::CUDA_ERROR_INVALID_IMAGE);
    }
    // SAFETY: it is text, and the caller promises its end.
    match unsafe { CStr::from_ptr(image.cast()) }.to_str() {
        Ok(text) => module::load(text),
        Err(_) => refused(CUresult::CUDA_ERROR_INVALID_IMAGE),
    }
}

/// Writes a log where the options say, cut to the room there is, and how long it became.
///
/// # Safety
/// If there is a buffer among the options, it has the room that another says.
unsafe fn write_log(options: &[u32], values: &mut [*mut c_void], buffer: CUjit_option, log: &str) {
    // The option of a buffer's size is the one behind that of the buffer.
    let find = |option: u32| options.iter().position(|known| *known == option);
    let (Some(buffer), Some(size)) = (find(buffer as u32), find(buffer as u32 + 1)) else { return };
    let room = values[size].addr();
    if values[buffer].is_null() || room == 0 {
        return;
    }
    let room = c_int::try_from(room).unwrap_or(c_int::MAX);
    // SAFETY: the caller's promise.
    let written = unsafe { super::put_text(values[buffer].cast(), room, log) };
    debug_assert_eq!(written, Ok(()));
    values[size] = ptr::without_provenance_mut(log.len().min(room.cast_unsigned() as usize - 1) + 1);
}
