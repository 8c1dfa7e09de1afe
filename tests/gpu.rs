//! Loading into the GPUs of the machine at hand. Ignored unless asked for:
//!
//! ```text
//! cargo test --test gpu -- --ignored --test-threads 1
//! tests/simcuda/run cargo test --test gpu -- --ignored            (on simulated GPUs, to try the suite itself)
//! ```
//!
//! It takes as many GPUs as there are, up to eight, and needs NCCL where there are more than one.
#![allow(clippy::unwrap_used)]

mod support;

use std::{fs, path::PathBuf, time::Duration};
use support::{
    finish, fixture,
    job::signal,
    on_gpus::{self, planned},
    simcuda::Machine,
    text,
    tiny::{LLAMA_70B, write_tensors},
};
use tempfile::TempDir;

/// The largest number of ranks that this machine has a GPU for each of.
fn gpus() -> u32 {
    let loads = |tp: &u32| {
        let (_folder, plan) = planned(&fixture("llama-bf16"), [*tp, 1, 1]);
        Machine::at_hand().load(&plan, &["--verify", "off"]).code == Some(0)
    };
    [8, 4, 2, 1]
        .into_iter()
        .find(loads)
        .expect("no GPU can be loaded into: run `shardwright load` by hand to see why")
}

/// A plan of the demo's checkpoint for all GPUs.
fn demo() -> (TempDir, PathBuf, u32) {
    let (folder, _) = on_gpus::demo();
    let (gpus, plan) = (gpus(), folder.path().join("all.yaml"));
    let tp = gpus.to_string();
    support::plan(&folder.path().join("demo"), &["--topology", "host", "--tp", &tp], &plan);
    (folder, plan, gpus)
}

#[test]
#[ignore = "needs a GPU"]
fn the_demo_loads_on_all_gpus_and_verifies() {
    let (_folder, plan, gpus) = demo();
    let printed = Machine::at_hand().load(&plan, &[]).succeeded();
    assert!(printed.contains(&format!("into {}", support::count(gpus as usize, "GPU"))), "{printed}");
    assert!(printed.lines().last().unwrap().starts_with("verified: "), "{printed}");
}

#[test]
#[ignore = "needs a GPU"]
fn every_fixture_loads_and_verifies() {
    let gpus = gpus();
    on_gpus::every_fixture_loads_and_verifies(&Machine::at_hand(), &[[gpus, 1, 1], [1, gpus.min(2), 1]]);
}

#[test]
#[ignore = "needs a GPU"]
fn a_flipped_bit_is_caught_on_every_rank() {
    on_gpus::a_flipped_bit_is_caught_on_every_rank(&Machine::at_hand(), gpus());
}

#[test]
#[ignore = "needs a GPU"]
fn a_timeline_shows_reading_and_copying_side_by_side() {
    let (_folder, plan, _) = demo();
    on_gpus::a_timeline_shows_reading_and_copying_side_by_side(&Machine::at_hand(), &plan);
}

#[test]
#[ignore = "needs a GPU"]
fn processes_load_and_verify_over_nccl() {
    let (_folder, plan, gpus) = demo();
    if gpus == 1 {
        println!("not run: one GPU, and NCCL wants one for each rank");
        return;
    }
    on_gpus::processes_load_and_verify(&Machine::at_hand(), &plan, gpus, &[]);
}

#[test]
#[ignore = "needs a GPU"]
fn held_weights_are_opened_and_proved_by_another_process() {
    let (_folder, plan, gpus) = demo();
    on_gpus::held_weights_are_opened_and_proved(&Machine::at_hand(), &plan, gpus as usize);
}

#[test]
#[ignore = "needs a GPU"]
fn what_does_not_fit_is_refused_with_numbers() {
    // 140 GB on one GPU: true headers over a hole.
    let folder = TempDir::new().unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &LLAMA_70B.tensors());
    fs::write(folder.path().join("config.json"), LLAMA_70B.config("llama").to_string()).unwrap();
    let plan = folder.path().join("plan.yaml");
    let args = ["plan", text(folder.path()), "--topology", "hgx-b200", "--tp", "1", "-o", text(&plan)];
    support::shardwright(&args).succeeded();
    let outcome = Machine::at_hand().load(&plan, &["--verify", "off"]);
    if outcome.code == Some(0) {
        println!("not shown: 140 GB fit this GPU");
        return;
    }
    outcome.refused(4, &["rank 0: cuda:0 cannot give ", "it has ", "help: "]);
}

#[test]
#[ignore = "needs a GPU"]
fn an_interrupt_ends_a_holder_and_frees_the_gpus() {
    let (_folder, plan, _) = demo();
    let machine = Machine::at_hand();
    let holder = on_gpus::Holder::start(
        &machine,
        &plan,
        &[&format!("--hold={}", text(&machine.folder().join("s.sock")))],
    );
    assert_eq!(holder.end("-INT").code, Some(0));
    // And a load in the middle, or at its end where it was quicker.
    let child = machine.start(&["load", text(&plan), "--device", "cuda"]);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "-INT");
    assert!(matches!(finish(child).code, Some(0 | 4) | None));
    machine.load(&plan, &[]).succeeded();
}
