//! Any text as what `nvidia-smi -L` prints: names for the GPUs of a matrix, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwright_planner::topology::{
    Bytes, Topology,
    import::{GpuChoice, ImportRequest, Source, import},
};

const MATRIX: &str = "GPU0 GPU1\nGPU0 X NV4\nGPU1 NV4 X\n";

fuzz_target!(|text: &str| {
    let list = Some(Source { origin: "fuzzed", text });
    for memory in [None, Some(Bytes::new(1 << 30))] {
        let gpus = GpuChoice { kind: None, list, memory };
        let source = Source { origin: "matrix", text: MATRIX };
        if let Ok(imported) = import(&ImportRequest { name: "fuzzed", source, matrix: None, gpus }) {
            assert!(Topology::parse(&imported.yaml, "fuzzed", None, None).is_ok());
        }
    }
});
