//! The entry points, by the names and with the types that `cudarc` loads them by.
//!
//! Each is three steps: it is counted, its arguments become ours, the module that knows the matter answers. No panic leaves:
//! it becomes `CUDA_ERROR_UNKNOWN`.
#![allow(non_snake_case, reason = "the names are NVIDIA's")]

use crate::{Answer, counts};
use cudarc::driver::sys::CUresult;
use std::{
    ffi::c_char,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr,
};

/// Exports functions, and lets none differ from `cudarc`'s declaration of it.
macro_rules! entry_points {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        $(#[$doc])*
        ///
        /// # Safety
        /// As for NVIDIA's function of this name.
        #[unsafe(no_mangle)]
        #[allow(clippy::too_many_arguments, reason = "NVIDIA's")]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> cudarc::driver::sys::CUresult {
            #[allow(unused_unsafe, reason = "not all use pointers")]
            // SAFETY: the caller keeps what NVIDIA's documentation asks for: pointers are valid for what the function reads
            // or writes there, or null.
            crate::api::guarded(stringify!($name), || unsafe { $body })
        }
        const _: unsafe fn($($type),*) -> cudarc::driver::sys::CUresult = cudarc::driver::sys::$name;
    )*};
}

pub mod copies;
pub mod devices;
pub mod memory;
pub mod modules;
pub mod streams;

/// Counts the call, and makes a code of what comes of it.
fn guarded(function: &'static str, act: impl FnOnce() -> Answer) -> CUresult {
    let counted = || {
        counts::call(function);
        act()
    };
    match catch_unwind(AssertUnwindSafe(counted)) {
        Ok(Ok(())) => CUresult::CUDA_SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => CUresult::CUDA_ERROR_UNKNOWN,
    }
}

/// Writes `value` where the caller wants it.
///
/// # Safety
/// `place` is null or valid for a write.
unsafe fn put<T>(place: *mut T, value: T) -> Answer {
    if place.is_null() {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    Ok(())
}

/// Writes `text` with a zero behind, cut to the room there is.
///
/// # Safety
/// `place` is null or valid for `room` bytes.
unsafe fn put_text(place: *mut c_char, room: i32, text: &str) -> Answer {
    let room = usize::try_from(room).ok().filter(|room| *room > 0);
    let room = room.filter(|_| !place.is_null()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    let len = text.len().min(room - 1);
    // SAFETY: `len` and a zero fit in the room that the caller promises.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), place, len);
        place.add(len).write(0);
    }
    Ok(())
}
