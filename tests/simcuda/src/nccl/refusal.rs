//! Why a call fails, and the text that goes with it.

use nccl_rs::sys::ResultCode;
use std::{
    ffi::c_char,
    sync::atomic::{AtomicU8, Ordering},
};

/// A code, and words for `ncclGetLastError`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: ResultCode,
    pub(super) words: String,
}

impl Refusal {
    pub(super) fn new(code: ResultCode, words: impl Into<String>) -> Self {
        Self { code, words: words.into() }
    }

    pub(super) fn argument(words: impl Into<String>) -> Self {
        Self::new(ResultCode::INVALID_ARGUMENT, words)
    }

    /// Makes it the last error of the process.
    pub(super) fn keep(&self) -> ResultCode {
        let most = LAST.len() - 1;
        let bytes = self.words.bytes().filter(|&byte| byte != 0).take(most).chain([0]);
        for (kept, byte) in LAST.iter().zip(bytes) {
            kept.store(byte, Ordering::Relaxed);
        }
        self.code
    }
}

/// One buffer for the process, as NCCL has it; texts of two threads may mix. The last byte stays zero.
static LAST: [AtomicU8; 1024] = [const { AtomicU8::new(0) }; 1024];

/// The text of the last error.
pub(super) fn last_words() -> *const c_char {
    LAST.as_ptr().cast()
}
