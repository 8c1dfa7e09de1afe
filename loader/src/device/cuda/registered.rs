//! Copies straight from mapped files: their pages are registered with the driver, copied by the GPU, and given back.
//!
//! Only whole pages can be registered, and a page only once at a time: rows at the edges of what is copied, and pages that
//! another rank has registered at the moment, go through staging as always.

use super::driver::{Context, CudaError, DeviceBuffer, Event, Registration, Rows2d, Stream};
use crate::device::Block;
use cudarc::driver::sys;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Registering costs some time for each page: below this many bytes staging is faster.
pub(super) const WORTH_WHILE: usize = 1 << 20;

/// The stream of copies from registered memory.
pub(super) struct Registered {
    stream: Stream,
    /// Events that no copy uses.
    events: Mutex<Vec<Event>>,
    /// How often there was something to register, and how often the driver refused.
    tried: AtomicU64,
    refused: AtomicU64,
    /// Most bytes from one row to the next.
    most_pitch: usize,
    patience: Duration,
}

impl Registered {
    /// `None` where the driver cannot register memory that is read-only, as mapped files are.
    pub(super) fn new(context: &Context, patience: Duration) -> Result<Option<Self>, CudaError> {
        if !Registration::is_supported(context)? {
            return Ok(None);
        }
        let most = context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_PITCH)?;
        Ok(Some(Self {
            most_pitch: usize::try_from(most).unwrap_or(0),
            stream: Stream::new(context)?,
            events: Mutex::default(),
            tried: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            patience,
        }))
    }

    /// How often there was something to register, and how often the driver refused.
    pub(super) fn tried_and_refused(&self) -> (u64, u64) {
        (self.tried.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }

    /// Whether no copy is under way.
    pub(super) fn is_quiet(&self) -> bool {
        self.stream.is_idle().unwrap_or(false)
    }

    /// Copies all rows and waits for them, or copies nothing and says so.
    pub(super) fn copy(
        &self,
        block: Block<'_>,
        into: &DeviceBuffer,
        to: usize,
        to_stride: usize,
    ) -> Result<bool, CudaError> {
        // Rows farther apart than the driver counts go through staging.
        if block.bytes.len() < WORTH_WHILE || block.stride.max(to_stride) > self.most_pitch && block.runs > 1
        {
            return Ok(false);
        }
        let registration = Registration::new(self.stream.context(), block.bytes)?;
        self.tried.fetch_add(1, Ordering::Relaxed);
        let Some(registration) = registration else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        };
        let event = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let event = match event {
            Some(event) => event,
            None => Event::new(self.stream.context(), false)?,
        };
        let rows = Rows2d {
            from: block.bytes.as_ptr(),
            from_stride: if block.runs > 1 { block.stride } else { 0 },
            to,
            to_stride: if block.runs > 1 { to_stride } else { 0 },
            run_bytes: block.run_bytes,
            runs: block.runs,
        };
        // SAFETY: the rows lie in `block.bytes`, which is borrowed until this returns, and in pages that stay registered until
        // `registration` is dropped; both only end after the event has passed, or the registration never does.
        unsafe { into.copy_rows(rows, &self.stream) }?;
        let done =
            event.record(&self.stream).and_then(|()| event.wait("copying from mapped files", self.patience));
        if let Err(error) = done {
            registration.forget();
            return Err(error);
        }
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        Ok(true)
    }
}
