//! Weights that stay on simulated GPUs and are opened by other processes.

use crate::{
    planned,
    support::{Outcome, finish, fixture, job::signal, simcuda::Machine, text},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Child,
};
use tempfile::TempDir;

/// A process that holds a plan's weights.
struct Holder {
    child: Child,
    socket: PathBuf,
}

impl Holder {
    /// Loads and waits until the weights are held.
    fn start(machine: &Machine, plan: &Path, args: &[&str]) -> Self {
        let usual = ["load", text(plan), "--device", "cuda"];
        let mut command = machine.command(&[&usual, args].concat());
        let mut child = command.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let (mut line, mut all) = (String::new(), String::new());
        let socket = loop {
            line.clear();
            let read = printed.read_line(&mut line).unwrap();
            assert!(read > 0, "nothing is held: {all}{:?}", finish(child));
            all.push_str(&line);
            if let Some(rest) = line.strip_prefix("held at ") {
                break rest.split(';').next().unwrap().into();
            }
        };
        assert!(all.contains("verified: "), "{all}");
        // What it prints from now on is nobody's business, but its pipe stays open.
        std::thread::spawn(move || std::io::copy(&mut printed, &mut std::io::sink()));
        Self { child, socket }
    }

    fn end(self, name: &str) -> Outcome {
        signal(&self.child, name);
        finish(self.child)
    }
}

fn attach(machine: &Machine, args: &[&str]) -> Outcome {
    let mut command = machine.command(&[&["attach"], args].concat());
    finish(command.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap())
}

fn small() -> (TempDir, PathBuf) {
    planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1])
}

#[test]
fn held_weights_are_opened_and_proved_by_another_process() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let holder = Holder::start(&machine, &plan, &["--hold"]);
    let meta = fs::symlink_metadata(&holder.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o077, 0, "others could speak to it");
    assert_eq!(fs::metadata(holder.socket.parent().unwrap()).unwrap().mode() & 0o077, 0);

    let printed = attach(&machine, &[]).succeeded();
    assert!(printed.contains("4 ranks"), "{printed}");
    let proved = attach(&machine, &["--verify"]).succeeded();
    assert!(proved.lines().last().unwrap().contains("verified"), "{proved}");
    let facts = attach(&machine, &[text(&holder.socket), "--verify", "--json"]).json();
    assert_eq!(facts["ranks"].as_array().unwrap().len(), 4, "{facts}");

    let socket = holder.socket.clone();
    assert_eq!(holder.end("-INT").code, Some(0));
    assert!(!socket.exists());
    attach(&machine, &[]).refused(4, &["help: "]);
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
    let holder = Holder::start(&machine, &plan, &["--hold", text(&socket)]);
    holder.end("-KILL");
    attach(&machine, &[text(&socket)]).refused(4, &["mine.sock"]);
    let holder = Holder::start(&machine, &plan, &["--hold", text(&socket)]);
    attach(&machine, &[text(&socket), "--verify"]).succeeded();
    assert_eq!(holder.end("-INT").code, Some(0));
}

#[test]
fn a_rank_alone_is_held_at_a_socket_of_its_own() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let socket = machine.folder().join("mine.sock");
    let holder = Holder::start(&machine, &plan, &["--hold", text(&socket), "--rank", "2"]);
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
    let outcome =
        machine.load(&plan, &["--hold", text(&machine.folder().join("s.sock")), "--flip-byte", "1"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(!outcome.stdout.contains("held"), "{}", outcome.stdout);
    assert!(!machine.folder().join("s.sock").exists());
}
