//! What the simulated driver counted: how often it was called, and for how many bytes.

use crate::{
    demo,
    support::{fixture, planned, simcuda::Machine},
};
use serde_json::Value;
use std::path::Path;

/// Loads, and gives what each GPU of the first `ranks` counted beside what was printed.
fn counted(machine: &Machine, plan: &Path, args: &[&str], ranks: usize) -> (Value, Vec<Value>) {
    let (outcome, mut counts) = machine.counted(plan, &[&["--json"], args].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let printed = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(counts.len(), 1, "one process writes one document");
    let gpus = counts.remove(0)["gpus"].as_array().unwrap()[..ranks].to_vec();
    (printed, gpus)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn every_byte_is_copied_once_in_large_pieces_and_nobody_waits_in_the_driver() {
    let (_folder, plan) = demo();
    let (printed, gpus) = counted(&Machine::new(), &plan, &["--verify", "off"], 4);
    for (rank, gpu) in gpus.iter().enumerate() {
        let memory = number(&printed["ranks"][rank]["memory_bytes"]);
        let copies = &gpu["h2d"];
        // Some bytes between aligned tensors may be left out; they are zero as they are.
        let copied = number(&copies["pinned"]["bytes"]);
        let bytes = number(&printed["ranks"][rank]["bytes"]);
        assert!((bytes..=memory).contains(&copied), "{copied} of {memory}: {gpu:#}");
        assert_eq!(number(&copies["rewritten_bytes"]), 0, "{gpu:#}");
        // Small are only those where what one rank wants of a file ends and what the next wants begins.
        let (small, all) = (number(&copies["pinned"]["below_4_mib"]), number(&copies["pinned"]["copies"]));
        assert!(small * 3 <= all, "{gpu:#}");
        for route in ["registered", "pageable", "synchronous"] {
            assert_eq!(number(&copies[route]["copies"]), 0, "{gpu:#}");
        }
        assert_eq!(number(&gpu["allocations"]["count"]), 1, "{gpu:#}");
        for what in ["stream_synchronisations", "context_synchronisations", "kernels"] {
            assert_eq!(number(&gpu[what]), 0, "{gpu:#}");
        }
    }
}

#[test]
fn what_is_called_and_allocated_does_not_grow_with_the_tensors() {
    // Twice as many tensors, and larger ones.
    let (_small_folder, small) = planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1]);
    let (_folder, large) = demo();
    let counts = |plan: &Path| counted(&Machine::new(), plan, &[], 4).1;
    for (small, large) in counts(&small).iter().zip(counts(&large)) {
        for what in ["stream_synchronisations", "context_synchronisations"] {
            assert_eq!((number(&small[what]), number(&large[what])), (0, 0));
        }
        assert_eq!(small["allocations"]["count"], large["allocations"]["count"]);
        assert_eq!(small["kernels"], large["kernels"]);
        assert!(number(&large["allocations"]["count"]) <= 5, "{large:#}");
    }
}

#[test]
fn pinned_memory_is_what_was_asked_for() {
    let (_folder, plan) = demo();
    for (staging, most) in [("64 MiB", 64 << 20), ("8 MiB", 8 << 20), ("256 MiB", 128 << 20)] {
        let (_, gpus) = counted(&Machine::new(), &plan, &["--staging", staging, "--verify", "off"], 4);
        for gpu in gpus {
            let peak = number(&gpu["peak_pinned_bytes"]);
            assert!(peak > 0 && peak <= most, "{staging}: {gpu:#}");
        }
    }
}

#[test]
fn everything_is_given_back_in_the_end() {
    let (_folder, plan) = demo();
    for args in [&[][..], &["--registered"]] {
        let (_, gpus) = counted(&Machine::new(), &plan, args, 4);
        for gpu in gpus {
            for (what, left) in gpu["leaks"].as_object().unwrap() {
                assert_eq!(number(left), 0, "{what}: {gpu:#}");
            }
        }
    }
}

#[test]
fn registered_mappings_are_copied_without_staging() {
    let (_folder, plan) = demo();
    let (printed, gpus) = counted(&Machine::new(), &plan, &["--registered"], 4);
    assert_eq!(printed["verified"], true);
    let of_route = |route: &str| gpus.iter().map(|gpu| number(&gpu["h2d"][route]["bytes"])).sum::<u64>();
    // Rows that several ranks cut out of the same pages, and what is small, go through staging.
    assert!(of_route("registered") > of_route("pinned") / 2, "{gpus:#?}");
    assert!(gpus.iter().all(|gpu| number(&gpu["h2d"]["pageable"]["copies"]) == 0));
    assert!(gpus.iter().any(|gpu| number(&gpu["calls"]["cuMemcpy2DAsync_v2"]) > 0));
}
