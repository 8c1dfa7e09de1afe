//! Streams and events: what runs before what.

use super::*;
use cudarc::driver::sys::CUevent;
use std::time::{Duration, Instant};

const SLOW: (&str, &str) = ("SIMCUDA_DELAY_US", "100000");

fn event(flags: u32) -> CUevent {
    let mut event = ptr::null_mut();
    // SAFETY: a valid place.
    ok(unsafe { cuEventCreate(&raw mut event, flags) });
    event
}

#[test]
fn a_stream_waits_for_the_event_of_another() {
    apart(name!(a_stream_waits_for_the_event_of_another), &[SLOW], || {
        start();
        let (first, second, event) = (stream(), stream(), event(2));
        let (a, b, host) = (allocate(1024), allocate(1024), pinned(1024));
        for round in 0..10 {
            host.fill(round);
            ok(copy_to(a, host, first));
            // SAFETY: valid handles and addresses.
            unsafe {
                ok(cuEventRecord(event, first));
                ok(cuStreamWaitEvent(second, event, 0));
                ok(cuMemcpyDtoDAsync_v2(b, a, 1024, second));
            }
            ok(wait(second));
            assert_eq!(read_back(b, 1024), [round; 1024]);
        }
    });
}

#[test]
fn events_come_when_the_work_before_them_is_done() {
    apart(name!(events_come_when_the_work_before_them_is_done), &[SLOW], || {
        start();
        let (stream, begun, done) = (stream(), event(0), event(0));
        let (address, host) = (allocate(64), pinned(64));
        let mut milliseconds = 0.0;
        let mut pending = 0;
        // SAFETY: valid handles and places.
        unsafe {
            ok(cuEventQuery(done));
            for _ in 0..5 {
                ok(cuEventRecord(begun, stream));
                ok(copy_to(address, host, stream));
                ok(cuEventRecord(done, stream));
                pending += usize::from(cuEventQuery(done) == CUresult::CUDA_ERROR_NOT_READY);
                ok(cuEventSynchronize(done));
                ok(cuEventQuery(done));
                ok(cuStreamQuery(stream));
                ok(cuEventElapsedTime(&raw mut milliseconds, begun, done));
                assert!((0.0..200.0).contains(&milliseconds));
            }
            let untimed = event(2);
            ok(cuEventRecord(untimed, stream));
            ok(cuEventSynchronize(untimed));
            let wrong = cuEventElapsedTime_v2(&raw mut milliseconds, begun, untimed);
            assert_eq!(wrong, CUresult::CUDA_ERROR_INVALID_HANDLE);
            ok(cuEventDestroy_v2(untimed));
            assert_eq!(cuEventQuery(untimed), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(cuEventQuery(stream.cast()), CUresult::CUDA_ERROR_INVALID_HANDLE);
            use_gpu(1);
            assert_eq!(cuEventRecord(begun, ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_HANDLE);
        }
        assert!(pending >= 3, "{pending}");
    });
}

#[test]
fn the_null_stream_and_blocking_streams_wait_for_each_other() {
    apart(name!(the_null_stream_and_blocking_streams_wait_for_each_other), &[SLOW], || {
        start();
        let (a, b, host) = (allocate(64), allocate(64), pinned(64));
        let mut blocking = ptr::null_mut();
        // SAFETY: a valid place.
        ok(unsafe { cuStreamCreate(&raw mut blocking, 0) });
        for round in 0..5 {
            host.fill(round);
            ok(copy_to(a, host, blocking));
            // SAFETY: valid addresses.
            ok(unsafe { cuMemcpyDtoDAsync_v2(b, a, 64, ptr::null_mut()) });
            // SAFETY: as before.
            ok(unsafe { cuMemcpyDtoDAsync_v2(a, b, 64, blocking) });
            ok(wait(blocking));
            assert_eq!(read_back(b, 64), [round; 64]);
        }
    });
}

#[test]
fn a_destroyed_stream_still_finishes_its_work() {
    apart(name!(a_destroyed_stream_still_finishes_its_work), &[SLOW], || {
        start();
        let (address, host) = (allocate(64), pinned(64));
        for round in 0..5 {
            host.fill(round);
            let stream = stream();
            ok(copy_to(address, host, stream));
            // SAFETY: a valid handle, used no more.
            unsafe {
                ok(cuStreamDestroy_v2(stream));
                ok(cuCtxSynchronize());
            }
            assert_eq!(copy_to(address, host, stream), CUresult::CUDA_ERROR_INVALID_HANDLE);
            assert_eq!(read_back(address, 64), [round; 64]);
        }
    });
}

#[test]
fn a_hung_copy_hangs_its_stream_and_no_other() {
    let hang = [("SIMCUDA_FAULT", "hang-stream:1")];
    apart(name!(a_hung_copy_hangs_its_stream_and_no_other), &hang, || {
        start();
        let (first, second, host) = (stream(), stream(), pinned(4 << 10));
        let address = allocate(4 << 10);
        ok(copy_to(address, host, first));
        ok(copy_to(address, host, second));
        ok(wait(second));
        std::thread::sleep(Duration::from_millis(50));
        let begun = Instant::now();
        // SAFETY: no pointers.
        unsafe {
            assert_eq!(cuStreamQuery(first), CUresult::CUDA_ERROR_NOT_READY);
            ok(cuStreamDestroy_v2(first));
            ok(cuDevicePrimaryCtxRelease_v2(0));
        }
        assert!(begun.elapsed() < Duration::from_secs(1));
    });
}
