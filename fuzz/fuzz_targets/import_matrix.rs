//! Any text as the matrix of `nvidia-smi topo -m`: a topology that can be read, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardwright_planner::topology::{
    Topology,
    import::{GpuChoice, ImportRequest, Source, import},
};

fuzz_target!(|text: &str| {
    let gpus = GpuChoice { kind: Some("A100 SXM4 80GB"), ..GpuChoice::default() };
    let source = Source { origin: "fuzzed", text };
    if let Ok(imported) = import(&ImportRequest { name: "fuzzed", source, matrix: None, gpus }) {
        assert!(Topology::parse(&imported.yaml, "fuzzed", None, None).is_ok());
    }
});
