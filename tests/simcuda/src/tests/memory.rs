//! Device memory and what the host may do with it.

use super::*;
use crate::memory::POISON;

/// The rights of the page at `address`, as the kernel says: `rw-p`.
fn rights(address: CUdeviceptr) -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&address).then(|| rest[..4].to_owned())
    })
}

#[test]
fn the_host_cannot_touch_device_memory() {
    apart(name!(the_host_cannot_touch_device_memory), &[], || {
        start();
        let address = allocate(100_000);
        assert_eq!(rights(address).as_deref(), Some("---p"));
        assert_eq!(rights(address + 99_999).as_deref(), Some("---p"));
        // SAFETY: nothing is freed that is used.
        ok(unsafe { cuMemFree_v2(address) });
        assert_eq!(rights(address).as_deref(), Some("---p"));
    });
}

#[test]
fn a_host_that_follows_a_device_pointer_dies() {
    let name = name!(a_host_that_follows_a_device_pointer_dies);
    if env::var(CHILD).is_ok_and(|child| child == name) {
        start();
        let address = allocate(64);
        // SAFETY: none: this is the mistake.
        unsafe { ptr::with_exposed_provenance::<u8>(usize::try_from(address).unwrap()).read_volatile() };
        return;
    }
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(child(name, &[]).status.signal(), Some(libc::SIGSEGV));
}

#[test]
fn memory_is_poisoned_and_bounds_are_exact() {
    apart(name!(memory_is_poisoned_and_bounds_are_exact), &[], || {
        start();
        let address = allocate(1000);
        assert_eq!(address % 256, 0);
        assert_ne!(address % 512, 0, "more aligned than CUDA promises");
        assert_eq!(read_back(address, 1000), [POISON; 1000]);
        let bytes = vec![1; 1001];
        assert_eq!(copy_to(address, &bytes, ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(copy_to(address - 1, &bytes[..1], ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(copy_to(address + 1000, &bytes[..1], ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
        let next = allocate(8);
        assert!(next >= address + 1000 + (64 << 10), "a gap lies between");
        // SAFETY: nothing is freed that is used.
        unsafe {
            assert_eq!(cuMemFree_v2(address + 256), CUresult::CUDA_ERROR_INVALID_VALUE);
            ok(cuMemFree_v2(address));
            assert_eq!(cuMemFree_v2(address), CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        assert_eq!(copy_to(address, &bytes[..1], ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_ne!(allocate(1000), address, "addresses come once");
    });
}

#[test]
fn each_gpu_has_its_own_limited_memory() {
    let variables = [("SIMCUDA_GPUS", "2"), ("SIMCUDA_MEMORY", "1048576")];
    apart(name!(each_gpu_has_its_own_limited_memory), &variables, || {
        start();
        let (mut free, mut total, mut address) = (0, 0, 0);
        let first = allocate(700_000);
        // SAFETY: valid places.
        unsafe {
            ok(cuMemGetInfo_v2(&raw mut free, &raw mut total));
            assert_eq!(total, 1 << 20);
            assert!((total - free).abs_diff(700_000) < 8192);
            assert_eq!(cuMemAlloc_v2(&raw mut address, 400_000), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        use_gpu(1);
        allocate(700_000);
        let other = copy_to(first, &[1], ptr::null_mut());
        assert_eq!(other, CUresult::CUDA_ERROR_INVALID_VALUE, "memory of another context");
    });
}

#[test]
fn calls_need_the_driver_and_a_context() {
    apart(name!(calls_need_the_driver_and_a_context), &[], || {
        let (mut address, mut count, mut context) = (0, 0, ptr::null_mut());
        // SAFETY: valid places.
        unsafe {
            assert_eq!(cuDeviceGetCount(&raw mut count), CUresult::CUDA_ERROR_NOT_INITIALIZED);
            assert_eq!(cuMemAlloc_v2(&raw mut address, 8), CUresult::CUDA_ERROR_NOT_INITIALIZED);
            ok(cuInit(0));
            ok(cuDeviceGetCount(&raw mut count));
            assert_eq!(count, 4);
            assert_eq!(cuMemAlloc_v2(&raw mut address, 8), CUresult::CUDA_ERROR_INVALID_CONTEXT);
            assert_eq!(cuDevicePrimaryCtxRetain(&raw mut context, 4), CUresult::CUDA_ERROR_INVALID_DEVICE);
            use_gpu(3);
            allocate(8);
            ok(cuDevicePrimaryCtxRelease_v2(3));
            assert_eq!(cuMemAlloc_v2(&raw mut address, 8), CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED);
        }
    });
}

#[test]
fn registration_knows_pages_and_overlaps() {
    apart(name!(registration_knows_pages_and_overlaps), &[], || {
        start();
        let bytes = vec![7_u8; 10_000];
        let at = |offset: usize| bytes[offset..].as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: the memory outlives its registration.
        unsafe {
            ok(cuMemHostRegister_v2(at(100), 8000, 0));
            let again = cuMemHostRegister_v2(at(5000), 5000, 0);
            assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
            let part = copy_to(allocate(200), &bytes[..200], ptr::null_mut());
            assert_eq!(part, CUresult::CUDA_ERROR_INVALID_VALUE, "half registered, half not");
            ok(cuMemHostUnregister(at(100)));
            let twice = cuMemHostUnregister(at(100));
            assert_eq!(twice, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
            let constant = c"read-only".as_ptr().cast_mut().cast();
            assert_eq!(cuMemHostRegister_v2(constant, 8, 0), CUresult::CUDA_ERROR_INVALID_VALUE);
            ok(cuMemHostRegister_v2(constant, 8, 8));
        }
    });
}
