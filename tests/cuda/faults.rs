//! What goes wrong on GPUs, in one process: one message that names the rank and the cause, and the exit code that goes with it.

use crate::{
    demo,
    support::{
        Outcome, finish, fixture,
        on_gpus::{self, Gpus},
        planned, shardwright,
        simcuda::Machine,
        text,
        tiny::{Dims, write_tensors},
    },
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What ends within the patience that is given ends within this, however slow the machine.
const LONG: Duration = Duration::from_secs(20);

fn small() -> (TempDir, PathBuf) {
    planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1])
}

/// Loads with little patience, in many small copies; nothing may hang.
fn impatient(machine: &Machine, plan: &Path, args: &[&str]) -> Outcome {
    let begin = Instant::now();
    let outcome = machine
        .load(plan, &[&["--patience", "3", "--meet-within", "3", "--staging", "128 KiB"], args].concat());
    assert!(begin.elapsed() < LONG, "took {:?}: {outcome:?}", begin.elapsed());
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, usize::from(outcome.code != Some(0)), "{outcome:?}");
    outcome
}

#[test]
fn without_a_driver_the_answer_says_what_works() {
    let (_folder, plan) = small();
    shardwright(&["load", text(&plan), "--device", "cuda"])
        .refused(4, &["no CUDA driver: libcuda.so.1", "help: --device host"]);
}

#[test]
fn a_driver_that_is_too_old_is_named_with_both_versions() {
    let (_folder, plan) = small();
    impatient(&Machine::new().with("SIMCUDA_DRIVER", &10020), &plan, &[])
        .refused(4, &["it speaks CUDA 10.2, and 11.0 is needed", "help: update the NVIDIA driver"]);
    let machine = Machine::new().with("SIMCUDA_PTX_VERSION", &"6.5");
    impatient(&machine, &plan, &[]).refused(
        4,
        &[
            "refuses the fingerprint kernel (CUDA_ERROR_UNSUPPORTED_PTX_VERSION)",
            "help: update",
            "--verify off",
        ],
    );
    // What helps, as it says.
    impatient(&machine, &plan, &["--verify", "off"]).succeeded();
}

#[test]
fn without_nccl_the_answer_names_what_was_tried_and_what_works() {
    let (_folder, plan) = small();
    let machine = Machine::new().without_nccl();
    impatient(&machine, &plan, &[]).refused(
        4,
        &["no NCCL library could be opened", "libnccl.so.2", "help: install NCCL", "--verify off"],
    );
    impatient(&machine, &plan, &["--verify", "off"]).succeeded();
    // A rank alone needs nobody to agree with.
    impatient(&machine, &plan, &["--rank", "1"]).succeeded();
}

#[test]
fn an_nccl_that_is_too_old_is_refused_with_both_versions() {
    let (_folder, plan) = small();
    impatient(&Machine::new().with("SIMCUDA_NCCL_VERSION", &21703), &plan, &[])
        .refused(4, &["libnccl.so.2 is NCCL 2.17.3, and 2.18.0 is the oldest"]);
}

#[test]
fn fewer_gpus_than_ranks_are_counted() {
    let (_folder, plan) = small();
    impatient(&Machine::new().with("SIMCUDA_GPUS", &2), &plan, &[])
        .refused(4, &["rank 2 runs on GPU 2 of its node, but this process sees 2 GPUs", "help: "]);
    impatient(&Machine::new().with("CUDA_VISIBLE_DEVICES", &"3"), &plan, &[])
        .refused(4, &["rank 1 runs on GPU 1", "CUDA_VISIBLE_DEVICES is \"3\""]);
    impatient(&Machine::new().with_fault("no-device"), &plan, &[]).refused(4, &["CUDA_ERROR_NO_DEVICE"]);
}

#[test]
fn memory_that_is_too_small_is_refused_before_anything_is_loaded() {
    let (_folder, plan) = demo();
    on_gpus::too_much_is_refused_with_numbers(&Machine::new().with("SIMCUDA_MEMORY", &(32 << 20)), &plan);
}

#[test]
fn memory_that_is_gone_later_is_the_error_of_that_rank() {
    let (_folder, plan) = small();
    for fault in ["out-of-memory-after:4000000@2", "pinned-refused@2"] {
        let outcome = impatient(&Machine::new().with_fault(fault), &plan, &[]);
        outcome.refused(4, &["rank 2: cuda:2"]);
    }
}

#[test]
fn a_copy_that_fails_is_the_error_of_its_rank() {
    let (_folder, plan) = small();
    for fault in ["copy-error:3@1", "kernel-error@1"] {
        let outcome = impatient(&Machine::new().with_fault(fault), &plan, &[]);
        outcome.refused(4, &["rank 1", "cuda:1: cu", "CUDA_ERROR_ILLEGAL_ADDRESS, 700"]);
    }
}

#[test]
fn a_copy_that_is_silently_wrong_is_caught_and_named() {
    let (_folder, plan) = small();
    for fault in ["copy-flip:1@3", "copy-flip:3@3", "copy-drop:2@3"] {
        let outcome = impatient(&Machine::new().with_fault(fault), &plan, &[]);
        assert_eq!(outcome.code, Some(1), "{fault}: {outcome:?}");
        assert!(outcome.stderr.contains("not what the files say"), "{}", outcome.stderr);
        let named: Vec<&str> = outcome.stderr.lines().filter(|line| line.contains("`: ")).collect();
        assert!(!named.is_empty() && named.iter().all(|line| line.contains("wrong on rank 3;")), "{named:?}");
    }
}

#[test]
fn mappings_that_cannot_be_registered_are_staged_and_that_is_said() {
    let (_folder, plan) = demo();
    let outcome = Machine::new().with_fault("register-refused").load(&plan, &["--registered"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("note: cuda:0: "), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("verified: "), "{}", outcome.stdout);
}

#[test]
fn a_gpu_that_hangs_is_given_up_and_named() {
    let (_folder, plan) = small();
    impatient(&Machine::new().with_fault("hang-stream:2@1"), &plan, &[])
        .refused(4, &["rank 1: cuda:1 has not finished copying"]);
}

#[test]
fn an_nccl_that_hangs_or_fails_ends_all_ranks() {
    let (_folder, plan) = small();
    for fault in ["nccl-init-hang:1", "nccl-hang:1", "nccl-error:1"] {
        let outcome = impatient(&Machine::new().with_fault(fault), &plan, &[]);
        outcome.refused(4, &["rank ", "cuda:", ": NCCL: "]);
    }
}

#[test]
fn an_interrupt_ends_a_load() {
    let (_folder, plan) = demo();
    // A copy that never ends, so that the load is under way for as long as anybody looks; and a driver that hangs at once.
    for (signal, fault) in [("-INT", "hang-stream:2@1"), ("-TERM", "hang-stream:2@1"), ("-INT", "hang-init")]
    {
        let machine = Machine::new().with_fault(fault);
        let child = machine.start(&["load", text(&plan), "--device", "cuda", "--patience", "600"]);
        std::thread::sleep(Duration::from_secs(1));
        let begin = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let outcome = finish(child);
        assert!(begin.elapsed() < LONG, "took {:?}", begin.elapsed());
        outcome.refused(4, &["interrupted"]);
    }
}

#[test]
fn many_threads_do_not_wait_for_buffers_that_are_lost() {
    let (_folder, plan) = small();
    for fault in ["copy-error:2@1", "hang-stream:2@1"] {
        let outcome = impatient(&Machine::new().with_fault(fault), &plan, &["--threads", "256"]);
        outcome.refused(4, &["rank 1", "cuda:1"]);
    }
}

#[test]
fn a_plan_for_several_nodes_wants_a_process_for_each_rank() {
    let folder = TempDir::new().unwrap();
    let plan = folder.path().join("plan.yaml");
    let checkpoint = fixture("llama-bf16");
    let nodes = ["--topology", "dgx-h100", "--nodes", "2", "--tp", "8", "--pp", "2"];
    crate::support::plan(&checkpoint, &nodes, &plan);
    impatient(&Machine::new().with("SIMCUDA_GPUS", &8), &plan, &[])
        .refused(2, &["GPUs of 2 nodes", "help: start a process for each rank"]);
}

#[test]
fn a_timeline_that_cannot_be_written_costs_no_load() {
    let (_folder, plan) = small();
    let outcome = Machine::new().load(&plan, &["--trace", "/nonexistent/trace.json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.contains("verified: ") && outcome.stderr.contains("trace.json"), "{outcome:?}");
}

#[test]
fn matrices_of_some_gib_are_copied_from_their_mapping() {
    // Their rows lie farther apart than the driver counts, were they taken for rows: 2.3 GiB over a hole.
    let folder = TempDir::new().unwrap();
    let dims = Dims {
        vocabulary: 150_000,
        hidden: 8192,
        intermediate: 16,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_size: 4,
    };
    write_tensors(&folder.path().join("model.safetensors"), &dims.tensors());
    fs::write(folder.path().join("config.json"), dims.config("llama").to_string()).unwrap();
    let (_plan_folder, plan) = planned(folder.path(), [1, 1, 1]);
    let machine = Machine::new().with("SIMCUDA_MEMORY", &(8u64 << 30));
    let outcome = machine.load(&plan, &["--registered", "--verify", "off"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}
