//! What holds of every load into GPUs: `tests/cuda/` asks it of simulated ones, `tests/gpu.rs` of real ones.

use super::{
    Outcome, finish, fixture,
    holder::{Holder, attach},
    job::Job,
    planned, text,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    process::{Child, Command},
};

/// A machine with GPUs.
pub(crate) trait Gpus {
    /// The binary with `args` on this machine, not yet started.
    fn command(&self, args: &[&str]) -> Command;

    /// A folder that goes with the machine.
    fn folder(&self) -> &Path;

    /// Seconds after which a rank that is a process is given up.
    fn patience(&self) -> u64 {
        4
    }

    /// Checks that all went well, and gives what was printed. What a machine may lack besides is for it to say; by default nothing.
    fn succeeded(&self, outcome: Outcome) -> String {
        outcome.succeeded()
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    fn run(&self, args: &[&str]) -> Outcome {
        finish(self.start(args))
    }

    /// `load PLAN --device cuda` with further `args`.
    fn load(&self, plan: &Path, args: &[&str]) -> Outcome {
        self.run(&[&["load", text(plan), "--device", "cuda"], args].concat())
    }

    /// What such a load printed, as JSON.
    fn loaded(&self, plan: &Path, args: &[&str]) -> Value {
        serde_json::from_str(&self.succeeded(self.load(plan, &[&["--json"], args].concat()))).unwrap()
    }
}

/// Processes that load a rank of `plan` each on `machine`.
pub(crate) fn job<'a>(machine: &'a dyn Gpus, plan: &Path, world: u32) -> Job<'a> {
    let mut job = Job::new(plan, world, |args| machine.command(args));
    job.patience = machine.patience();
    job
}

/// `1 GPU`, `2 GPUs`.
fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// All ranks of `plan` load in one process, and their fingerprints are those of the files.
pub(crate) fn threads_verify(machine: &dyn Gpus, plan: &Path, world: u32) {
    let printed = machine.succeeded(machine.load(plan, &[]));
    let whereto = format!("on {} into {}", count(world, "rank"), count(world, "GPU"));
    assert!(printed.contains(&whereto), "no {whereto:?} in: {printed}");
    // A line for each, whatever its GPU is called.
    assert_eq!(printed.matches(" cuda:").count() as u64, u64::from(world), "{printed}");
    let last = printed.lines().last().unwrap();
    assert!(
        last.starts_with("verified: the fingerprints summed over the ranks are those of the files"),
        "{printed}"
    );
}

/// A fixture is on the GPUs what its files say, each rank on a GPU of its own.
pub(crate) fn fixture_verifies(machine: &dyn Gpus, name: &str, mesh: [u32; 3], args: &[&str]) {
    let (_folder, plan) = planned(&fixture(name), mesh);
    let printed = machine.loaded(&plan, args);
    assert_eq!(printed["verified"], true, "{name} {mesh:?} {args:?}: {printed}");
    assert_eq!(printed["mismatches"], Value::Array(Vec::new()));
    let mut gpus: Vec<&str> =
        printed["ranks"].as_array().unwrap().iter().map(|rank| rank["gpu"].as_str().unwrap()).collect();
    gpus.sort_unstable();
    gpus.dedup();
    assert_eq!(gpus.len() as u64, mesh.map(u64::from).iter().product::<u64>(), "{printed}");
}

/// One flipped bit on `rank` is found, and that rank is named.
pub(crate) fn a_flip_is_named(machine: &dyn Gpus, plan: &Path, rank: u32) {
    let outcome = machine.load(plan, &["--flip-byte", &rank.to_string()]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.starts_with("error: 1 tensor is not what the files say\n"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("`: wrong on rank {rank}; ")), "{}", outcome.stderr);
}

/// Copies run while files are read.
pub(crate) fn copies_overlap_reads(machine: &dyn Gpus, plan: &Path) {
    let file = machine.folder().join("trace.json");
    // Many windows, so that some are copied while others are read, however fast the GPU is or busy the host.
    machine.succeeded(machine.load(plan, &["--trace", text(&file), "--staging", "4 MiB"]));
    let trace = Timeline::read(&file);
    let (reads, copies) = (trace.spans("read"), trace.spans("copy"));
    assert!(reads.len() > 4 && copies.len() > 4, "{} reads, {} copies", reads.len(), copies.len());
    let overlap = |a: &(f64, f64), b: &(f64, f64)| a.0 < b.0 + b.1 && b.0 < a.0 + a.1;
    assert!(copies.iter().any(|copy| reads.iter().any(|read| overlap(copy, read))), "nothing overlaps");
    assert!(!trace.spans("verify").is_empty() && !trace.spans("scatter").is_empty());
}

/// What `--trace` wrote.
pub(crate) struct Timeline(Value);

impl Timeline {
    pub(crate) fn read(file: &Path) -> Self {
        Self(serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap())
    }

    /// Begin and length of rank 0's spans of this name, in microseconds.
    pub(crate) fn spans(&self, name: &str) -> Vec<(f64, f64)> {
        let all = self.0["traceEvents"].as_array().unwrap().iter();
        let named = all.filter(|event| event["name"] == name && event["pid"] == 0);
        named.map(|event| (event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap())).collect()
    }
}

/// One process for each of `world` ranks, and all verify; `gpus[rank]` is what the rank's device is called.
pub(crate) fn processes_verify(machine: &dyn Gpus, plan: &Path, gpus: &[String]) {
    let outcomes = job(machine, plan, gpus.len().try_into().unwrap()).run(&["--device", "cuda"]);
    for ((rank, outcome), gpu) in outcomes.into_iter().enumerate().zip(gpus) {
        let printed = machine.succeeded(outcome);
        assert!(printed.contains(gpu), "no {gpu}: {printed}");
        let last = printed.lines().last().unwrap();
        assert!(last.contains("verified"), "{printed}");
        assert!(
            rank > 0 || last.starts_with("verified: the fingerprints summed over the ranks"),
            "{printed}"
        );
    }
}

/// One flipped bit on `rank`, and every process names it.
pub(crate) fn a_flip_is_named_by_all_processes(machine: &dyn Gpus, plan: &Path, world: u32, rank: u32) {
    let args = ["--device", "cuda", "--staging", "128 KiB", "--flip-byte", &rank.to_string()];
    for outcome in job(machine, plan, world).run(&args) {
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(&format!("`: wrong on rank {rank}; ")), "{}", outcome.stderr);
    }
}

/// Weights that one process holds are opened and proved by another, as long as they are held and no longer.
pub(crate) fn held_weights_are_proved_elsewhere(machine: &dyn Gpus, plan: &Path, world: u32) {
    let holder = Holder::start(machine, plan, &["--hold"]);
    let meta = fs::symlink_metadata(&holder.socket).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o077, 0, "others could speak to it");
    assert_eq!(fs::metadata(holder.socket.parent().unwrap()).unwrap().mode() & 0o077, 0);

    let printed = machine.succeeded(attach(machine, &[]));
    assert!(printed.contains(&count(world, "rank")), "{printed}");
    let proved = machine.succeeded(attach(machine, &["--verify"]));
    assert!(proved.lines().last().unwrap().contains("the same bytes here"), "{proved}");
    let facts = machine.succeeded(attach(machine, &[text(&holder.socket), "--verify", "--json"]));
    let facts: Value = serde_json::from_str(&facts).unwrap();
    let ranks = facts["ranks"].as_array().unwrap();
    assert_eq!(ranks.len() as u64, u64::from(world), "{facts}");
    assert!(ranks.iter().all(|rank| rank["same"] == true), "{facts}");

    let socket = holder.socket.clone();
    assert_eq!(holder.end("-INT").code, Some(0));
    assert!(!socket.exists());
    attach(machine, &[]).refused(4, &["help: "]);
}

/// What a GPU cannot take is refused before anything is loaded, with what is needed and what is there.
pub(crate) fn too_much_is_refused_with_numbers(machine: &dyn Gpus, plan: &Path) {
    let outcome = machine.load(plan, &[]);
    outcome.refused(4, &["rank 0: cuda:", "help: free some memory"]);
    let number = |before: &str, behind: &str| -> u64 {
        let rest = outcome.stderr.split_once(before).unwrap_or_else(|| panic!("{}", outcome.stderr)).1;
        rest.split_once(behind).unwrap().0.parse().unwrap()
    };
    let (needed, free) = (number(" cannot give ", " bytes of memory"), number(", it has ", " free"));
    assert!(needed > free, "{}", outcome.stderr);
}
