//! What is counted, as the file says it when the process has ended.

use super::*;
use serde_json::{Value, json};

#[test]
fn the_file_tells_what_happened_and_what_was_left() {
    let name = name!(the_file_tells_what_happened_and_what_was_left);
    if env::var(CHILD).is_ok_and(|child| child == name) {
        start();
        let (address, stream, host) = (allocate(10 << 20), stream(), pinned(6 << 20));
        ok(copy_to(address, host, stream));
        ok(copy_to(address + (1 << 20), &host[..1 << 20], stream));
        ok(wait(stream));
        let registered = vec![0_u8; 4096];
        let start = registered.as_ptr().cast_mut().cast::<c_void>();
        let kept = allocate(16);
        // SAFETY: valid memory, which outlives its registration, and valid handles.
        unsafe {
            ok(cuMemHostRegister_v2(start, 4096, 0));
            ok(copy_to(address + (8 << 20), &registered, stream));
            ok(cuMemcpyHtoD_v2(kept, start, 16));
            ok(cuCtxSynchronize());
            ok(cuMemHostUnregister(start));
            let (mut one, mut other) = (ptr::null_mut(), ptr::null_mut());
            ok(cuEventCreate(&raw mut one, 2));
            ok(cuEventCreate(&raw mut other, 2));
            ok(cuEventDestroy_v2(other));
            ok(cuMemFree_v2(address));
        }
        ok(copy_to(kept, &[1, 2], stream));
        ok(wait(stream));
        read_back(kept, 16);
        use_gpu(1);
        allocate(8);
        // SAFETY: no pointers.
        ok(unsafe { cuDevicePrimaryCtxRelease_v2(1) });
        return;
    }
    let folder = env::temp_dir().join(format!("simcuda-counts-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let output =
        child(name, &[("SIMCUDA_COUNTS", folder.join("run").to_str().unwrap()), ("SIMCUDA_GPUS", "2")]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("one file expected: {files:?}") };
    let counts: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let gpu = &counts["gpus"][0];
    let copies = |copies: u64, bytes: u64, smallest: u64, small: u64| json!({"copies": copies, "bytes": bytes, "smallest": smallest, "below_4_mib": small});
    assert_eq!(gpu["h2d"]["pinned"], copies(2, 7 << 20, 1 << 20, 1));
    assert_eq!(gpu["h2d"]["registered"], copies(1, 4096, 4096, 1));
    assert_eq!(gpu["h2d"]["pageable"], copies(1, 2, 2, 1));
    assert_eq!(gpu["h2d"]["synchronous"], copies(1, 16, 16, 1));
    assert_eq!(gpu["h2d"]["rewritten_bytes"], (1 << 20) + 2);
    assert_eq!(gpu["d2h"]["synchronous"], copies(1, 16, 16, 1));
    assert_eq!(gpu["allocations"]["count"], 2);
    assert_eq!(gpu["allocations"]["bytes"], (10 << 20) + 16);
    assert_eq!(gpu["allocations"]["frees"], 1);
    assert_eq!((&gpu["stream_synchronisations"], &gpu["context_synchronisations"]), (&json!(2), &json!(1)));
    assert_eq!((&gpu["peak_pinned_bytes"], &counts["peak_pinned_bytes"]), (&json!(6 << 20), &json!(6 << 20)));
    let left = json!({"contexts": 1, "allocations": 1, "streams": 1, "events": 1, "modules": 0, "pinned": 1,
                      "registered": 0});
    assert_eq!(gpu["leaks"], left);
    assert_eq!(gpu["calls"]["cuMemcpyHtoDAsync_v2"], 4);
    assert_eq!(counts["calls"]["cuInit"], 1);
    assert_eq!(counts["gpus"][1]["leaks"]["allocations"], 1, "gone with its context, but not freed");
    assert_eq!(counts["gpus"][1]["leaks"]["contexts"], 0);
}
