//! The driver from outside: its entry points, called as a program calls them.
//!
//! Each test has a process of its own, since settings, failed contexts and counts belong to the process.

mod copies;
mod counts;
mod fingerprint;
mod ipc;
mod kernels;
mod memory;
mod nccl;
mod streams;

use crate::api::{copies::*, devices::*, memory::*, modules::*, streams::*};
use cudarc::driver::sys::{CUcontext, CUdeviceptr, CUfunction, CUmodule, CUresult, CUstream};
use std::{
    env,
    ffi::c_void,
    process::{Command, Output},
    ptr,
};

/// Says to this program that it is the child of which test.
const CHILD: &str = "SIMCUDA_TEST_CHILD";

/// Runs `test` in a process of its own with these variables. `name` is the test's, with its module's path before it.
#[track_caller]
fn apart(name: &str, variables: &[(&str, &str)], test: impl FnOnce()) {
    if env::var(CHILD).is_ok_and(|child| child == name) {
        return test();
    }
    let output = child(name, variables);
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{}: {text}", output.status);
    assert!(text.contains("1 passed"), "{name} is no test's name: {text}");
}

/// This program as the child of a test.
fn child(name: &str, variables: &[(&str, &str)]) -> Output {
    let (_, test) = name.split_once("::").unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, name);
    for variable in ["SIMCUDA_GPUS", "SIMCUDA_FAULT", "SIMCUDA_COUNTS", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(variable);
    }
    command.envs(variables.iter().copied()).output().unwrap()
}

/// The full name of a test of the calling module.
macro_rules! name {
    ($test:ident) => {
        concat!(module_path!(), "::", stringify!($test))
    };
}
use name;

#[track_caller]
fn ok(code: CUresult) {
    assert_eq!(code, CUresult::CUDA_SUCCESS);
}

/// The first GPU's context, current.
fn start() -> CUcontext {
    // SAFETY: valid places and flags.
    ok(unsafe { cuInit(0) });
    use_gpu(0)
}

/// A GPU's context, current.
fn use_gpu(gpu: i32) -> CUcontext {
    let mut context = ptr::null_mut();
    // SAFETY: a valid place, then a valid context.
    unsafe {
        ok(cuDevicePrimaryCtxRetain(&raw mut context, gpu));
        ok(cuCtxSetCurrent(context));
    }
    context
}

/// Device memory.
fn allocate(len: usize) -> CUdeviceptr {
    let mut address = 0;
    // SAFETY: a valid place.
    ok(unsafe { cuMemAlloc_v2(&raw mut address, len) });
    address
}

/// A stream that doesn't care for the null stream.
fn stream() -> CUstream {
    let mut stream = ptr::null_mut();
    // SAFETY: a valid place.
    ok(unsafe { cuStreamCreate(&raw mut stream, 1) });
    stream
}

/// Pinned memory, for as long as the process lives.
fn pinned(len: usize) -> &'static mut [u8] {
    let mut start = ptr::null_mut();
    // SAFETY: a valid place, then `len` bytes that are ours.
    unsafe {
        ok(cuMemHostAlloc(&raw mut start, len, 0));
        std::slice::from_raw_parts_mut(start.cast(), len)
    }
}

/// Copies to the device, later.
fn copy_to(address: CUdeviceptr, from: &[u8], stream: CUstream) -> CUresult {
    // SAFETY: the slice is valid now; the tests that let it go too early want to.
    unsafe { cuMemcpyHtoDAsync_v2(address, from.as_ptr().cast::<c_void>(), from.len(), stream) }
}

/// What is on the device now.
fn read_back(address: CUdeviceptr, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: `len` bytes of ours.
    ok(unsafe { cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, len) });
    bytes
}

fn wait(stream: CUstream) -> CUresult {
    // SAFETY: no pointers.
    unsafe { cuStreamSynchronize(stream) }
}

/// The function `name` of a text.
fn function(text: &str, name: &str) -> CUfunction {
    let text = std::ffi::CString::new(text).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let (mut module, mut function): (CUmodule, CUfunction) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: valid places and C strings.
    unsafe {
        ok(cuModuleLoadData(&raw mut module, text.as_ptr().cast()));
        ok(cuModuleGetFunction(&raw mut function, module, name.as_ptr()));
    }
    function
}

/// Launches on the null stream and waits.
fn launch(function: CUfunction, blocks: [u32; 2], threads: [u32; 2], mut parameters: Vec<u64>) -> CUresult {
    let mut places: Vec<*mut c_void> =
        parameters.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
    let ([bx, by], [tx, ty]) = (blocks, threads);
    let (stream, places) = (ptr::null_mut(), places.as_mut_ptr());
    // SAFETY: a valid function, and places of eight bytes for each parameter.
    let code = unsafe { cuLaunchKernel(function, bx, by, 1, tx, ty, 1, 0, stream, places, ptr::null_mut()) };
    if code == CUresult::CUDA_SUCCESS { wait(stream) } else { code }
}

/// Words on the device.
fn words_on_device(words: &[u64]) -> CUdeviceptr {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let address = allocate(bytes.len().max(1));
    ok(copy_to(address, &bytes, ptr::null_mut()));
    address
}

/// The same back.
fn words_of_device(address: CUdeviceptr, count: usize) -> Vec<u64> {
    let bytes = read_back(address, count * 8);
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// Random words (splitmix64), of all sizes.
fn random_words(seed: u64, count: usize) -> Vec<u64> {
    let mut state = seed;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    (0..count)
        .map(|_| match random() % 8 {
            0 => random() % 4,
            1 => random() >> 32,
            2 => (random() % 4).wrapping_neg(),
            3 => (0xffff_ffff - random() % 4) | (random() << 63),
            _ => random(),
        })
        .collect()
}
