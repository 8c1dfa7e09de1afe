//! Streams and events.

use super::put;
use crate::{Answer, event, lock::lock, stream};
use cudarc::driver::sys::{CUevent, CUevent_flags, CUresult, CUstream, CUstream_flags};
use std::ffi::{c_int, c_uint};

entry_points! {
    /// A new stream of the current context.
    fn cuStreamCreate(handle: *mut CUstream, flags: c_uint) {
        put(handle, stream::create(non_blocking(flags)?)?)
    }

    /// The same; priorities make no difference here.
    fn cuStreamCreateWithPriority(handle: *mut CUstream, flags: c_uint, _priority: c_int) {
        put(handle, stream::create(non_blocking(flags)?)?)
    }

    /// Ends a stream once its work is done, without waiting for it.
    fn cuStreamDestroy_v2(handle: CUstream) {
        stream::destroy(handle)
    }

    /// Whether a stream's work is done.
    fn cuStreamQuery(handle: CUstream) {
        stream::find(handle)?.query()
    }

    /// Waits for a stream's work.
    fn cuStreamSynchronize(handle: CUstream) {
        let stream = stream::find(handle)?;
        lock(&stream.context.gpu.counts).stream_synchronisations += 1;
        stream.synchronise()
    }

    /// Lets a stream wait for an event.
    fn cuStreamWaitEvent(handle: CUstream, event: CUevent, flags: c_uint) {
        if flags > 1 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        event::make_wait(handle, event)
    }

    /// A new event of the current context.
    fn cuEventCreate(handle: *mut CUevent, flags: c_uint) {
        put(handle, event::create(flags & CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint == 0)?)
    }

    /// Ends an event.
    fn cuEventDestroy_v2(handle: CUevent) {
        event::destroy(handle)
    }

    /// Lets a stream set an event when it gets there.
    fn cuEventRecord(handle: CUevent, stream: CUstream) {
        event::record(handle, stream)
    }

    /// Whether an event was set.
    fn cuEventQuery(handle: CUevent) {
        event::query(handle)
    }

    /// Waits for an event.
    fn cuEventSynchronize(handle: CUevent) {
        event::synchronise(handle)
    }

    /// The time between two events.
    fn cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent) {
        put(milliseconds, event::milliseconds_between(start, end)?)
    }

    /// The same.
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: CUevent, end: CUevent) {
        put(milliseconds, event::milliseconds_between(start, end)?)
    }
}

fn non_blocking(flags: c_uint) -> Answer<bool> {
    const NON_BLOCKING: c_uint = CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
    match flags {
        0 => Ok(false),
        NON_BLOCKING => Ok(true),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }
}
