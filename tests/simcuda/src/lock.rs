//! Locks that a panic elsewhere doesn't close.
//!
//! A panic ends in `CUDA_ERROR_UNKNOWN` for the call it struck (`api`); calls after it still deserve an answer.

use std::{
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What `mutex` guards, whoever panicked with it before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a change, but comes back now and then, since not everything that may end a wait announces itself.
pub(crate) fn wait_a_little<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait_timeout(guard, Duration::from_millis(5)).unwrap_or_else(PoisonError::into_inner).0
}
