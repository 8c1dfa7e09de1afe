//! Weights that stay on simulated GPUs and are opened by other processes.

use crate::support::{
    finish, fixture,
    holder::{Holder, attach},
    on_gpus,
    on_gpus::Gpus,
    planned,
    simcuda::Machine,
    text,
};
use std::path::PathBuf;
use tempfile::TempDir;

fn small() -> (TempDir, PathBuf) {
    planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1])
}

#[test]
fn held_weights_are_opened_and_proved_by_another_process() {
    let (_folder, plan) = small();
    on_gpus::held_weights_are_proved_elsewhere(&Machine::new(), &plan, 4);
}

#[test]
fn what_is_held_is_held_once() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let holder = Holder::start(&machine, &plan, &["--hold"]);
    let mut second = machine.command(&["load", text(&plan), "--device", "cuda", "--hold"]);
    let outcome = finish(second.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap());
    outcome.refused(4, &["held", &holder.child.id().to_string()]);
    assert_eq!(holder.end("-TERM").code, Some(0));
}

#[test]
fn a_holder_that_was_killed_leaves_nothing_in_the_way() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let socket = machine.folder().join("mine.sock");
    let holder = Holder::start(&machine, &plan, &[&format!("--hold={}", text(&socket))]);
    holder.end("-KILL");
    attach(&machine, &[text(&socket)]).refused(4, &["mine.sock"]);
    let holder = Holder::start(&machine, &plan, &[&format!("--hold={}", text(&socket))]);
    attach(&machine, &[text(&socket), "--verify"]).succeeded();
    assert_eq!(holder.end("-INT").code, Some(0));
}

#[test]
fn a_rank_alone_is_held_at_a_socket_of_its_own() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let socket = machine.folder().join("mine.sock");
    let holder = Holder::start(&machine, &plan, &[&format!("--hold={}", text(&socket)), "--rank", "2"]);
    assert_eq!(holder.socket, machine.folder().join("mine-rank2.sock"));
    let facts = attach(&machine, &[text(&holder.socket), "--json"]).json();
    assert_eq!(facts["ranks"][0]["rank"], 2, "{facts}");
    assert_eq!(holder.end("-INT").code, Some(0));
}

#[test]
fn host_memory_cannot_be_held() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    machine
        .run(&["load", text(&plan), "--device", "host", "--hold"])
        .refused(2, &["--hold needs GPUs", "help: "]);
}

#[test]
fn what_does_not_verify_is_not_held() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let outcome = machine
        .load(&plan, &[&format!("--hold={}", text(&machine.folder().join("s.sock"))), "--flip-byte", "1"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(!outcome.stdout.contains("held"), "{}", outcome.stdout);
    assert!(!machine.folder().join("s.sock").exists());
}
