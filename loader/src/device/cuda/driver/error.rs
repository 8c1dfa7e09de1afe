//! What the CUDA driver could not do.

use super::functions::{Code, functions};
use std::{
    ffi::{CStr, c_char},
    time::Duration,
};

/// What the CUDA driver could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The library is not there.
    #[error("no CUDA driver: libcuda.so.1 could not be loaded")]
    NoLibrary,
    /// The library lacks an entry point.
    #[error("the CUDA driver is too old: it has no `{symbol}`")]
    NoSymbol {
        /// Which.
        symbol: &'static str,
    },
    /// The library is too old.
    #[error("the CUDA driver is too old: it speaks CUDA {}, and {} is needed", version_text(*found), version_text(*needed))]
    TooOld {
        /// Its version, as `cuDriverGetVersion` codes it.
        found: i32,
        /// The oldest that would do.
        needed: i32,
    },
    /// The driver refuses the kernel.
    #[error("{gpu}: the driver, which speaks CUDA {}, refuses the fingerprint kernel ({name}){}", version_text(*version), after_colon(log))]
    Kernel {
        /// The GPU.
        gpu: String,
        /// The driver's version.
        version: i32,
        /// The code's name.
        name: String,
        /// What its compiler said.
        log: String,
    },
    /// A call failed, or reported that something asked for earlier failed.
    #[error("{}{call}: {text} ({name}, {code})", gpu.as_ref().map(|gpu| format!("{gpu}: ")).unwrap_or_default())]
    Call {
        /// The GPU, where it is about one.
        gpu: Option<String>,
        /// The entry point.
        call: &'static str,
        /// The code.
        code: i32,
        /// The code's name.
        name: String,
        /// What it means, in the driver's words.
        text: String,
    },
    /// The GPU did not finish.
    #[error("{gpu} has not finished {doing} after {} s", waited.as_secs_f64())]
    TimedOut {
        /// The GPU.
        gpu: String,
        /// What it was to finish.
        doing: &'static str,
        /// How long was waited.
        waited: Duration,
    },
}

impl CudaError {
    /// Whether it is the code `CUDA_ERROR_…`.
    pub(crate) fn is(&self, code: &str) -> bool {
        matches!(self, Self::Call { name, .. } if name == code)
    }

    /// Whether the GPU still works on something.
    pub fn is_time_out(&self) -> bool {
        matches!(self, Self::TimedOut { .. })
    }
}

/// A GPU's name in messages.
pub(crate) fn gpu_name(ordinal: u32) -> String {
    format!("cuda:{ordinal}")
}

/// 12080 as 12.8.
pub(super) fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn after_colon(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!(": {log}") }
}

/// The answer of `call`, as an error in words where it is none of success.
pub(super) fn checked(gpu: Option<u32>, call: &'static str, code: Code) -> Result<(), CudaError> {
    if code == Code::SUCCESS {
        return Ok(());
    }
    let functions = functions()?;
    Err(CudaError::Call {
        gpu: gpu.map(gpu_name),
        call,
        code: code.0,
        name: words(functions.cuGetErrorName, code),
        text: words(functions.cuGetErrorString, code),
    })
}

/// What the driver says of a code; it may not know it either.
fn words(say: unsafe extern "C" fn(i32, *mut *const c_char) -> Code, code: Code) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is good for one pointer.
    let known = unsafe { say(code.0, &raw mut text) } == Code::SUCCESS && !text.is_null();
    if !known {
        return "unknown".to_owned();
    }
    // SAFETY: the driver gave a text that ends with a zero and is never freed.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
