//! What holds on simulated GPUs and on real ones alike.

use super::{
    FIXTURES, Outcome, finish, fixture,
    job::{Job, signal},
    plan as make_plan,
    simcuda::Machine,
    text,
};
use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Child,
};
use tempfile::TempDir;

/// A plan of `checkpoint` for this host, in a folder that is removed in the end.
pub(crate) fn planned(checkpoint: &Path, [tp, pp, dp]: [u32; 3]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let [tp, pp, dp] = [tp, pp, dp].map(|size| size.to_string());
    make_plan(checkpoint, &["--topology", "host", "--tp", &tp, "--pp", &pp, "--dp", &dp], &file);
    (folder, file)
}

/// The checkpoint of the demo, written once, and its plan for four ranks.
pub(crate) fn demo() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("demo");
    super::shardwright(&["demo", "--dir", text(&place)]).succeeded();
    let plan = place.join("plan.yaml");
    (folder, plan)
}

pub(crate) fn every_fixture_loads_and_verifies(machine: &Machine, meshes: &[[u32; 3]]) {
    for name in FIXTURES {
        for mesh in meshes {
            let (_folder, plan) = planned(&fixture(name), *mesh);
            for more in [&[][..], &["--registered"], &["--staging", "64 KiB"], &["--verify", "sample"]] {
                let printed = machine.load(&plan, &[&["--json"], more].concat()).json();
                assert_eq!(printed["verified"], true, "{name} {mesh:?} {more:?}: {printed}");
                assert_eq!(printed["mismatches"], Value::Array(Vec::new()));
            }
        }
    }
}

pub(crate) fn a_flipped_bit_is_caught_on_every_rank(machine: &Machine, tp: u32) {
    let (_folder, plan) = planned(&fixture("llama-odd-vocab-bf16"), [tp, 1, 1]);
    for rank in 0..tp {
        let outcome = machine.load(&plan, &["--flip-byte", &rank.to_string()]);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(
            outcome.stderr.starts_with("error: 1 tensor is not what the files say\n"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains(&format!("`: wrong on rank {rank}; ")), "{}", outcome.stderr);
    }
}

pub(crate) fn a_timeline_shows_reading_and_copying_side_by_side(machine: &Machine, plan: &Path) {
    let trace = machine.folder().join("trace.json");
    machine.load(plan, &["--trace", text(&trace)]).succeeded();
    let trace: Value = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
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

/// One process for each rank.
pub(crate) fn processes_load_and_verify(machine: &Machine, plan: &Path, world: u32, args: &[&str]) {
    let mut job = Job::new(plan, world, |args| machine.command(args));
    job.patience = 60;
    let outcomes = job.run(&[&["--device", "cuda"], args].concat());
    for (rank, outcome) in outcomes.into_iter().enumerate() {
        let printed = outcome.succeeded();
        assert!(printed.contains(&format!("cuda:{rank}")), "{printed}");
        let last = printed.lines().last().unwrap();
        assert!(last.contains("verified"), "{printed}");
        assert!(
            rank > 0 || last.starts_with("verified: the fingerprints summed over the ranks"),
            "{printed}"
        );
    }
}

/// A process that holds a plan's weights.
pub(crate) struct Holder {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Holder {
    /// Loads and waits until the weights are held.
    pub(crate) fn start(machine: &Machine, plan: &Path, args: &[&str]) -> Self {
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

    pub(crate) fn end(self, name: &str) -> Outcome {
        signal(&self.child, name);
        finish(self.child)
    }
}

pub(crate) fn attach(machine: &Machine, args: &[&str]) -> Outcome {
    let mut command = machine.command(&[&["attach"], args].concat());
    finish(command.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap())
}

pub(crate) fn held_weights_are_opened_and_proved(machine: &Machine, plan: &Path, ranks: usize) {
    let holder = Holder::start(machine, plan, &["--hold"]);
    let meta = fs::symlink_metadata(&holder.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o077, 0, "others could speak to it");
    assert_eq!(fs::metadata(holder.socket.parent().unwrap()).unwrap().mode() & 0o077, 0);

    let printed = attach(machine, &[]).succeeded();
    assert!(printed.contains(&super::count(ranks, "rank")), "{printed}");
    let proved = attach(machine, &["--verify"]).succeeded();
    assert!(proved.lines().last().unwrap().contains("verified"), "{proved}");
    let facts = attach(machine, &[text(&holder.socket), "--verify", "--json"]).json();
    assert_eq!(facts["ranks"].as_array().unwrap().len(), ranks, "{facts}");

    let socket = holder.socket.clone();
    assert_eq!(holder.end("-INT").code, Some(0));
    assert!(!socket.exists());
    attach(machine, &[]).refused(4, &["help: "]);
}
