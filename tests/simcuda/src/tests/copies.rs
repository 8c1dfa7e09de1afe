//! Copies: when they happen, and what becomes of them when something went away.

use super::*;
use cudarc::driver::sys::{CUDA_MEMCPY2D, CUmemorytype};

/// A delay that no test's thread outlasts by chance.
const SLOW: (&str, &str) = ("SIMCUDA_DELAY_US", "200000");

#[test]
fn pinned_memory_is_read_only_when_the_stream_gets_there() {
    apart(name!(pinned_memory_is_read_only_when_the_stream_gets_there), &[SLOW], || {
        start();
        let (address, stream, host) = (allocate(4096), stream(), pinned(4096));
        let mut seen_late = 0;
        for round in 0..8 {
            host.fill(1);
            ok(copy_to(address, host, stream));
            host.fill(2);
            ok(wait(stream));
            seen_late += usize::from(read_back(address, 4096) == [2; 4096]);
            assert!(round < 8);
        }
        assert!(seen_late >= 6, "the early change was seen {seen_late} times of 8");
    });
}

#[test]
fn registered_memory_is_read_late_and_pageable_memory_at_once() {
    apart(name!(registered_memory_is_read_late_and_pageable_memory_at_once), &[SLOW], || {
        start();
        let (registered, pageable, stream) = (allocate(8192), allocate(8192), stream());
        let mut bytes = vec![1_u8; 8192];
        ok(copy_to(pageable, &bytes, stream));
        let start = bytes.as_mut_ptr();
        // SAFETY: the vector outlives its registration.
        ok(unsafe { cuMemHostRegister_v2(start.cast(), 8192, 0) });
        ok(copy_to(registered, &bytes, stream));
        bytes.fill(2);
        ok(wait(stream));
        assert_eq!(read_back(pageable, 8192), [1; 8192]);
        assert_eq!(read_back(registered, 8192), [2; 8192]);
    });
}

#[test]
fn a_source_freed_too_early_breaks_the_context() {
    apart(name!(a_source_freed_too_early_breaks_the_context), &[SLOW], || {
        start();
        let (address, stream, host) = (allocate(4096), stream(), pinned(4096));
        ok(copy_to(address, host, stream));
        // SAFETY: none: this is the mistake.
        ok(unsafe { cuMemFreeHost(host.as_mut_ptr().cast()) });
        assert_eq!(wait(stream), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        // SAFETY: valid places; the calls fail.
        unsafe {
            assert_eq!(cuStreamQuery(stream), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            let (mut free, mut total) = (0, 0);
            assert_eq!(cuMemGetInfo_v2(&raw mut free, &raw mut total), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
            assert_eq!(cuCtxSynchronize(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
        use_gpu(1);
        allocate(8);
    });
}

#[test]
fn a_source_freed_before_is_an_invalid_value() {
    apart(name!(a_source_freed_before_is_an_invalid_value), &[], || {
        start();
        let (address, host) = (allocate(4096), pinned(4096));
        // SAFETY: none: this is the mistake.
        ok(unsafe { cuMemFreeHost(host.as_mut_ptr().cast()) });
        assert_eq!(copy_to(address, host, ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
        let device = ptr::with_exposed_provenance(usize::try_from(address).unwrap());
        // SAFETY: the driver refuses to read there.
        let other = unsafe { cuMemcpyHtoD_v2(address, device, 8) };
        assert_eq!(other, CUresult::CUDA_ERROR_INVALID_VALUE, "a device address as the host's");
        // SAFETY: as before.
        let other = unsafe { cuMemcpyHtoD_v2(address, ptr::without_provenance(64), 8) };
        assert_eq!(other, CUresult::CUDA_ERROR_INVALID_VALUE, "no address at all");
    });
}

#[test]
fn a_target_freed_too_early_breaks_the_context() {
    apart(name!(a_target_freed_too_early_breaks_the_context), &[SLOW], || {
        start();
        let (address, stream, host) = (allocate(4096), stream(), pinned(4096));
        ok(copy_to(address, host, stream));
        // SAFETY: none: this is the mistake.
        ok(unsafe { cuMemFree_v2(address) });
        assert_eq!(wait(stream), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn rows_land_at_their_pitch() {
    apart(name!(rows_land_at_their_pitch), &[], || {
        start();
        let (address, stream, host) = (allocate(50), stream(), pinned(40));
        for (byte, value) in host.iter_mut().zip(0..) {
            *byte = value;
        }
        let mut what = CUDA_MEMCPY2D {
            srcXInBytes: 1,
            srcY: 1,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: host.as_ptr().cast(),
            srcDevice: 0,
            srcArray: ptr::null_mut(),
            srcPitch: 8,
            dstXInBytes: 2,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: ptr::null_mut(),
            dstDevice: address,
            dstArray: ptr::null_mut(),
            dstPitch: 10,
            WidthInBytes: 3,
            Height: 4,
        };
        // SAFETY: the struct and the memory outlive the copy.
        ok(unsafe { cuMemcpy2DAsync_v2(&raw const what, stream) });
        ok(wait(stream));
        let device = read_back(address, 50);
        for row in 0..4 {
            let from = (row + 1) * 8 + 1;
            assert_eq!(device[row * 10 + 2..][..3], host[from..from + 3]);
            assert_eq!(device[row * 10 + 5], crate::memory::POISON);
        }
        (what.dstXInBytes, what.Height) = (8, 1);
        // SAFETY: as before.
        let wide = unsafe { cuMemcpy2DAsync_v2(&raw const what, stream) };
        assert_eq!(wide, CUresult::CUDA_ERROR_INVALID_VALUE, "a row past its pitch");
    });
}

#[test]
fn faults_strike_the_copy_they_name() {
    let flip = [("SIMCUDA_FAULT", "copy-flip:2,copy-drop:3,copy-error:4,copy-error:1@1")];
    apart(name!(faults_strike_the_copy_they_name), &flip, || {
        start();
        let address = allocate(4 << 10);
        let mut results = Vec::new();
        for round in 1..=4 {
            let code = copy_to(address, &[round; 4 << 10], ptr::null_mut());
            results.push((code, wait(ptr::null_mut())));
            if round < 4 {
                let seen = read_back(address, 4 << 10);
                let mut flipped = [2; 4 << 10];
                flipped[2 << 10] ^= 0x10;
                assert!(seen == [[1; 4 << 10], flipped, flipped][usize::from(round) - 1], "round {round}");
            }
        }
        assert_eq!(results[2], (CUresult::CUDA_SUCCESS, CUresult::CUDA_SUCCESS));
        assert_eq!(results[3], (CUresult::CUDA_SUCCESS, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        use_gpu(1);
        ok(copy_to(allocate(4 << 10), &[1; 4 << 10], ptr::null_mut()));
        assert_eq!(wait(ptr::null_mut()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
}

#[test]
fn memory_can_be_refused() {
    let variables = [("SIMCUDA_FAULT", "pinned-refused@0,register-refused,out-of-memory-after:65536")];
    apart(name!(memory_can_be_refused), &variables, || {
        start();
        let (mut start, mut address, mut bytes) = (ptr::null_mut(), 0, vec![0_u8; 64]);
        // SAFETY: valid places.
        unsafe {
            assert_eq!(cuMemHostAlloc(&raw mut start, 64, 0), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
            let refused = cuMemHostRegister_v2(bytes.as_mut_ptr().cast(), 64, 0);
            assert_eq!(refused, CUresult::CUDA_ERROR_NOT_SUPPORTED);
            allocate(40_000);
            assert_eq!(cuMemAlloc_v2(&raw mut address, 40_000), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        use_gpu(1);
        pinned(64);
    });
}
