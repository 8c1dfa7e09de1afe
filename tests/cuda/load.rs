//! What arrived on the GPUs is what the files say.

use crate::{
    demo, planned,
    support::{FIXTURES, fixture, simcuda::Machine},
};
use serde_json::Value;

#[test]
fn the_demo_loads_on_four_gpus_and_verifies_over_nccl() {
    let (_folder, plan) = demo();
    let printed = Machine::new().load(&plan, &[]).succeeded();
    assert!(printed.contains("on 4 ranks into 4 GPUs"), "{printed}");
    assert!(printed.contains("cuda:3"), "{printed}");
    let last = printed.lines().last().unwrap();
    assert!(
        last.starts_with("verified: the fingerprints summed over the ranks are those of the files"),
        "{printed}"
    );
}

#[test]
fn every_fixture_loads_and_verifies_on_every_mesh() {
    let machine = Machine::new().with("SIMCUDA_GPUS", &8);
    for name in FIXTURES {
        for mesh in [[1, 1, 1], [2, 1, 1], [8, 1, 1], [2, 2, 2]] {
            let (_folder, plan) = planned(&fixture(name), mesh);
            for more in [&[][..], &["--registered"], &["--staging", "64 KiB"], &["--verify", "sample"]] {
                let printed = machine.load(&plan, &[&["--json"], more].concat()).json();
                assert_eq!(printed["verified"], true, "{name} {mesh:?} {more:?}: {printed}");
                assert_eq!(printed["mismatches"], Value::Array(Vec::new()));
            }
        }
    }
}

#[test]
fn a_flipped_bit_is_caught_on_every_gpu() {
    let (_folder, plan) = planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1]);
    for rank in ["0", "1", "2", "3"] {
        let outcome = Machine::new().load(&plan, &["--flip-byte", rank]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(
            outcome.stderr.starts_with("error: 1 tensor is not what the files say\n"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(&format!("`: wrong on rank {rank}; ")), "{}", outcome.stderr);
    }
}

#[test]
fn ranks_load_into_the_gpus_of_their_plan() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let devices = |machine: Machine| {
        let printed = machine.load(&plan, &["--json"]).json();
        [0, 1].map(|rank| printed["ranks"][rank]["gpu"].as_str().unwrap().to_owned())
    };
    let plain = devices(Machine::new());
    let swapped = devices(Machine::new().with("CUDA_VISIBLE_DEVICES", &"1,0"));
    assert_eq!(plain, [swapped[1].clone(), swapped[0].clone()]);
    // A process that sees one GPU has it.
    let only = Machine::new().with("CUDA_VISIBLE_DEVICES", &"1");
    let printed = only.load(&plan, &["--rank", "0", "--json"]).json();
    assert_eq!(printed["ranks"][0]["gpu"], plain[1]);
}

#[test]
fn a_timeline_shows_reading_and_copying_side_by_side() {
    let (_folder, plan) = demo();
    let machine = Machine::new();
    let trace = machine.folder().join("trace.json");
    machine.load(&plan, &["--trace", crate::text(&trace)]).succeeded();
    let trace: Value = serde_json::from_str(&std::fs::read_to_string(trace).unwrap()).unwrap();
    let spans = |name: &str| -> Vec<(f64, f64)> {
        let all = trace["traceEvents"].as_array().unwrap().iter();
        let named = all.filter(|event| event["name"] == name && event["pid"] == 0);
        named.map(|event| (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap())).collect()
    };
    let (reads, copies) = (spans("read"), spans("copy"));
    // The kernel is told by a copy as well.
    assert!(
        reads.len() > 4 && copies.len() == reads.len() + 1,
        "{} reads, {} copies",
        reads.len(),
        copies.len()
    );
    let overlap = |a: &(f64, f64), b: &(f64, f64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
    assert!(copies.iter().any(|copy| reads.iter().any(|read| overlap(copy, read))), "nothing overlaps");
    assert_eq!(spans("verify").len(), 1);
}
