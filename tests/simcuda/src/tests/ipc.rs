//! Memory shared between processes.

use super::*;
use cudarc::driver::sys::CUipcMemHandle;
use std::ffi::c_char;

/// The handle that a test's second process opens.
const HANDLE: &str = "SIMCUDA_TEST_HANDLE";

fn export(address: CUdeviceptr) -> (CUresult, CUipcMemHandle) {
    let mut handle = CUipcMemHandle { reserved: [0; 64] };
    // SAFETY: a valid place.
    (unsafe { cuIpcGetMemHandle(&raw mut handle, address) }, handle)
}

fn open(handle: CUipcMemHandle) -> (CUresult, CUdeviceptr) {
    let mut address = 0;
    // SAFETY: a valid place.
    (unsafe { cuIpcOpenMemHandle_v2(&raw mut address, handle, 1) }, address)
}

fn to_text(handle: CUipcMemHandle) -> String {
    handle.reserved.map(|byte| format!("{:02x}", byte.to_le_bytes()[0])).concat()
}

/// The handle that this process shall open, if it is a second one.
fn handle_to_open() -> Option<CUipcMemHandle> {
    let text = env::var(HANDLE).ok()?;
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..][..2], 16).unwrap().cast_signed() as c_char;
    Some(CUipcMemHandle { reserved: std::array::from_fn(byte) })
}

#[test]
fn another_process_reads_and_writes_the_same_memory() {
    let name = name!(another_process_reads_and_writes_the_same_memory);
    apart(name, &[], || {
        start();
        if let Some(handle) = handle_to_open() {
            use_gpu(1);
            let (code, address) = open(handle);
            ok(code);
            assert_eq!(read_back(address, 5000), [3; 5000]);
            ok(copy_to(address + 4000, &[4; 1000], ptr::null_mut()));
            ok(wait(ptr::null_mut()));
            assert_eq!(open(handle), (CUresult::CUDA_SUCCESS, address), "the same when opened again");
            // SAFETY: nothing uses it any more when it is closed the last time.
            unsafe {
                assert_eq!(cuMemFree_v2(address), CUresult::CUDA_ERROR_INVALID_VALUE);
                assert_eq!(copy_to(address, &[0; 5001], ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
                ok(cuIpcCloseMemHandle(address));
                ok(copy_to(address, &[9], ptr::null_mut()));
                ok(wait(ptr::null_mut()));
                ok(cuIpcCloseMemHandle(address));
                assert_eq!(cuIpcCloseMemHandle(address), CUresult::CUDA_ERROR_INVALID_VALUE);
            }
            assert_eq!(copy_to(address, &[0], ptr::null_mut()), CUresult::CUDA_ERROR_INVALID_VALUE);
            return;
        }
        let address = allocate(5000);
        ok(copy_to(address, &[3; 5000], ptr::null_mut()));
        ok(wait(ptr::null_mut()));
        let (code, handle) = export(address);
        ok(code);
        assert_eq!(export(address).1, handle);
        assert_eq!(export(address + 256).0, CUresult::CUDA_ERROR_INVALID_VALUE, "not its beginning");
        assert_eq!(open(handle).0, CUresult::CUDA_ERROR_INVALID_CONTEXT, "one's own");
        let output = child(name, &[(HANDLE, &to_text(handle))]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = read_back(address, 5000);
        assert_eq!((bytes[0], bytes[1], bytes[4000]), (9, 3, 4));
    });
}

#[test]
fn freed_memory_and_that_of_ended_processes_does_not_open() {
    let name = name!(freed_memory_and_that_of_ended_processes_does_not_open);
    apart(name, &[], || {
        start();
        if let Some(handle) = handle_to_open() {
            assert_eq!(open(handle).0, CUresult::CUDA_ERROR_INVALID_VALUE);
            // And one of our own for the other to open, when we are gone.
            println!("handle={}", to_text(export(allocate(8)).1));
            return;
        }
        let (freed, kept) = (allocate(5000), allocate(5000));
        let handle = export(freed).1;
        ok(export(kept).0);
        // SAFETY: nothing uses it.
        ok(unsafe { cuMemFree_v2(freed) });
        let output = child(name, &[(HANDLE, &to_text(handle))]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let theirs = text.lines().find_map(|line| line.split_once("handle=")).unwrap().1;
        // SAFETY: this process has no other thread that looks at the environment.
        unsafe { env::set_var(HANDLE, theirs) };
        assert_eq!(open(handle_to_open().unwrap()).0, CUresult::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(open(CUipcMemHandle { reserved: [7; 64] }).0, CUresult::CUDA_ERROR_INVALID_VALUE);
    });
}
