//! Any text as NCCL's topology file, alone and with a matrix beside it: a topology that can be read, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwright_planner::topology::{
    Topology,
    import::{GpuChoice, ImportRequest, Source, import},
};

const MATRIX: &str = "GPU0 GPU1\nGPU0 X NV4\nGPU1 NV4 X\n";

fuzz_target!(|text: &str| {
    let gpus = GpuChoice { kind: Some("RTX A6000"), ..GpuChoice::default() };
    let source = Source { origin: "fuzzed", text };
    for matrix in [None, Some(Source { origin: "matrix", text: MATRIX })] {
        if let Ok(imported) = import(&ImportRequest { name: "fuzzed", source, matrix, gpus }) {
            assert!(Topology::parse(&imported.yaml, "fuzzed", None, None).is_ok());
        }
    }
});
