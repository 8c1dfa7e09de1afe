//! Streams and events: work of a GPU in order, and how far it is.

use super::{Context, functions::Code};
use crate::device::CudaError;
use cudarc::driver::sys;
use std::time::{Duration, Instant};

/// The longest pause between two looks at work that is not done.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// A queue of a GPU's work, done in order and independent of other queues.
#[derive(Debug)]
pub(crate) struct Stream {
    context: Context,
    raw: sys::CUstream,
}

// SAFETY: the driver's calls on a stream may come from any thread in which the context is current, and from several at once.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Context,
    raw: sys::CUevent,
}

// SAFETY: as for streams.
unsafe impl Send for Event {}
// SAFETY: as for streams.
unsafe impl Sync for Event {}

impl Stream {
    pub(crate) fn new(context: &Context) -> Result<Self, CudaError> {
        context.bind()?;
        let mut raw = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer is good for one stream.
        let made = unsafe { (context.functions().cuStreamCreate)(&raw mut raw, flags) };
        context.check("cuStreamCreate", made)?;
        Ok(Self { context: context.clone(), raw })
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// The driver's handle, good for as long as the stream lives.
    pub(crate) fn raw(&self) -> sys::CUstream {
        self.raw
    }

    /// Whether all work is done. An error is of some earlier work.
    pub(crate) fn is_idle(&self) -> Result<bool, CudaError> {
        self.context.bind()?;
        // SAFETY: the stream lives.
        let answer = unsafe { (self.context.functions().cuStreamQuery)(self.raw) };
        ready(&self.context, "cuStreamQuery", answer)
    }

    /// Waits until all work is done, at most for `patience`.
    pub(crate) fn wait(&self, doing: &'static str, patience: Duration) -> Result<(), CudaError> {
        wait(&self.context, doing, patience, || self.is_idle())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the stream is not used again. Work that is still in it goes on; who gave it memory keeps that.
            let _ = unsafe { (self.context.functions().cuStreamDestroy_v2)(self.raw) };
        }
    }
}

impl Event {
    /// A mark; one with `timing` can say how long the GPU took between two.
    pub(crate) fn new(context: &Context, timing: bool) -> Result<Self, CudaError> {
        context.bind()?;
        let flags = match timing {
            true => sys::CUevent_flags::CU_EVENT_DEFAULT,
            false => sys::CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is good for one event.
        let made = unsafe { (context.functions().cuEventCreate)(&raw mut raw, flags as u32) };
        context.check("cuEventCreate", made)?;
        Ok(Self { context: context.clone(), raw })
    }

    /// Puts the mark after all work that is in the stream now.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: both live.
        self.context
            .check("cuEventRecord", unsafe { (self.context.functions().cuEventRecord)(self.raw, stream.raw) })
    }

    /// Whether the work before the mark is done. An error is of some earlier work of the GPU.
    pub(crate) fn is_done(&self) -> Result<bool, CudaError> {
        self.context.bind()?;
        // SAFETY: the event lives.
        let answer = unsafe { (self.context.functions().cuEventQuery)(self.raw) };
        ready(&self.context, "cuEventQuery", answer)
    }

    /// Waits until the work before the mark is done, at most for `patience`.
    pub(crate) fn wait(&self, doing: &'static str, patience: Duration) -> Result<(), CudaError> {
        wait(&self.context, doing, patience, || self.is_done())
    }

    /// The time between two marks that were reached; both with timing.
    pub(crate) fn since(&self, earlier: &Self) -> Result<Duration, CudaError> {
        self.context.bind()?;
        let mut millis = 0f32;
        // SAFETY: both live, and the pointer is good for one number.
        let told =
            unsafe { (self.context.functions().cuEventElapsedTime)(&raw mut millis, earlier.raw, self.raw) };
        self.context.check("cuEventElapsedTime", told)?;
        Ok(Duration::try_from_secs_f32(millis / 1000.0).unwrap_or_default())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: the event is not used again.
            let _ = unsafe { (self.context.functions().cuEventDestroy_v2)(self.raw) };
        }
    }
}

fn ready(context: &Context, call: &'static str, answer: Code) -> Result<bool, CudaError> {
    match answer {
        Code::NOT_READY => Ok(false),
        answer => context.check(call, answer).map(|()| true),
    }
}

/// Asks again and again, in pauses that grow: what is short is not slept over, what is long costs no core.
fn wait(
    context: &Context,
    doing: &'static str,
    patience: Duration,
    done: impl Fn() -> Result<bool, CudaError>,
) -> Result<(), CudaError> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(5);
    while !done()? {
        if begin.elapsed() > patience {
            let gpu = super::error::gpu_name(context.gpu().ordinal);
            return Err(CudaError::TimedOut { gpu, doing, waited: patience });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(())
}
