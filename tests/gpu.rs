//! Loading into the GPUs of this machine, with its driver and its NCCL: what `tests/cuda/` asks of simulated ones, where it makes
//! sense on real ones, and what only a whole load shows.
//!
//!     cargo test --release --test gpu -- --ignored
//!
//! As many GPUs are used as divide the checkpoints: 8, 4, 2 or 1, in PCI order or in that of `CUDA_VISIBLE_DEVICES`. One test has
//! them at a time. Nothing here is simulated; with the simulated driver on `LD_LIBRARY_PATH` (`tests/simcuda/`) the suite passes as
//! well, which tries the suite and says nothing of GPUs.
#![allow(clippy::unwrap_used)]

mod support;

use shardwright_loader::device::cuda::{Driver, Gpu};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use support::{
    FIXTURES, Outcome, finish, fixture,
    job::{all_end, signal},
    on_gpus,
    on_gpus::{Gpus, Timeline},
    plan, planned, shardwright, text,
    tiny::{Checkpoint, Dims, LLAMA_70B},
};
use tempfile::TempDir;

/// Who has the GPUs.
static GPUS: Mutex<()> = Mutex::new(());

/// This machine, for one test at a time.
struct ThisMachine {
    folder: TempDir,
    /// As shardwright numbers them.
    gpus: Vec<Gpu>,
    _alone: MutexGuard<'static, ()>,
}

impl ThisMachine {
    /// Asks the driver, as the binary does: what it cannot see, the tests cannot use.
    fn new() -> Self {
        let alone = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gpus =
            Driver::open().and_then(Driver::gpus).unwrap_or_else(|error| panic!("this needs a GPU: {error}"));
        if std::env::var_os("CUDA_VISIBLE_DEVICES").is_none() {
            gpus.sort_by(|a, b| a.pci.cmp(&b.pci));
        }
        assert!(!gpus.is_empty(), "this needs a GPU, and this process sees none");
        Self { folder: TempDir::new().unwrap(), gpus, _alone: alone }
    }

    /// The largest number of its GPUs that divides the checkpoints.
    fn world(&self) -> u32 {
        [8, 4, 2, 1].into_iter().find(|&world| world as usize <= self.gpus.len()).unwrap()
    }

    /// That number and all smaller ones.
    fn worlds(&self) -> impl Iterator<Item = u32> {
        let most = self.world();
        [1, 2, 4, 8].into_iter().filter(move |&world| world <= most)
    }

    /// Meshes of all its GPUs: tensor-parallel, and with two stages or two copies.
    fn meshes(&self) -> Vec<[u32; 3]> {
        let world = self.world();
        let mut meshes = vec![[world, 1, 1]];
        if world > 1 {
            meshes.extend([[world / 2, 2, 1], [world / 2, 1, 2]]);
        }
        meshes
    }

    /// What `CUDA_VISIBLE_DEVICES` is for a process that has the first GPU only.
    fn first_alone(&self) -> String {
        match std::env::var("CUDA_VISIBLE_DEVICES") {
            Ok(all) => all.split(',').next().unwrap_or_default().to_owned(),
            Err(_) => self.gpus[0].uuid.clone(),
        }
    }
}

impl Gpus for ThisMachine {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = support::command(args);
        // A job's own variables would make ranks of the processes, and a chatty NCCL prints between the lines.
        let of_a_job = |name: &str| {
            let own = [
                "RANK",
                "WORLD_SIZE",
                "LOCAL_RANK",
                "LOCAL_WORLD_SIZE",
                "JOB_COMPLETION_INDEX",
                "NCCL_DEBUG",
            ];
            own.contains(&name)
                || ["SLURM_", "OMPI_", "PMI_", "PMIX_"].iter().any(|start| name.starts_with(start))
        };
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(of_a_job) {
                command.env_remove(name);
            }
        }
        command
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Drivers and NCCL take seconds to start where nobody else uses the GPUs.
    fn patience(&self) -> u64 {
        60
    }

    /// Which libraries there are and whether files can be registered is the machine's business, as long as it is said.
    fn succeeded(&self, outcome: Outcome) -> String {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        for line in outcome.stderr.lines() {
            assert!(line.starts_with("note: "), "{}", outcome.stderr);
            println!("{line}");
        }
        outcome.stdout
    }
}

/// The checkpoint of the demo, and its plan for all GPUs.
fn demo(machine: &ThisMachine) -> (TempDir, PathBuf) {
    let place = machine.folder().join("demo");
    shardwright(&["demo", "--dir", text(&place)]).succeeded();
    planned(&place, [machine.world(), 1, 1])
}

fn small(machine: &ThisMachine) -> (TempDir, PathBuf) {
    planned(&fixture("llama-odd-vocab-bf16"), [machine.world(), 1, 1])
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn the_demo_loads_on_all_gpus_and_verifies() {
    let machine = ThisMachine::new();
    for gpu in &machine.gpus {
        println!("{} {} {}", gpu.pci, gpu.name, gpu.uuid);
    }
    println!("ranks: {}", machine.world());
    let (_folder, plan) = demo(&machine);
    on_gpus::threads_verify(&machine, &plan, machine.world());
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn every_fixture_loads_and_verifies_on_every_number_of_gpus() {
    let machine = ThisMachine::new();
    for name in FIXTURES {
        let fewer =
            machine.worlds().map(|world| [world, 1, 1]).filter(|[world, ..]| *world < machine.world());
        for mesh in fewer.chain(machine.meshes()) {
            on_gpus::fixture_verifies(&machine, name, mesh, &[]);
        }
    }
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn every_way_to_copy_and_to_verify_gives_the_files_bytes() {
    let machine = ThisMachine::new();
    let all: [&[&str]; 5] = [
        &["--registered"],
        &["--staging", "64 KiB"],
        &["--staging", "64 KiB", "--registered"],
        &["--threads", "1", "--staging", "1 MiB"],
        &["--verify", "sample"],
    ];
    for args in all {
        for name in FIXTURES {
            on_gpus::fixture_verifies(&machine, name, [machine.world(), 1, 1], args);
        }
        // The fixtures are too small to have many pages that can be registered, or windows of the usual size.
        let (_folder, plan) = demo(&machine);
        assert_eq!(machine.loaded(&plan, args)["verified"], true, "{args:?}");
    }
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn a_flipped_bit_is_caught_on_every_gpu() {
    let machine = ThisMachine::new();
    let (_folder, plan) = small(&machine);
    for rank in 0..machine.world() {
        on_gpus::a_flip_is_named(&machine, &plan, rank);
    }
}

/// `nvidia-smi` lists GPUs in PCI order, and knows nothing of how the binary found them.
#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn ranks_load_into_the_gpus_that_nvidia_smi_lists_first() {
    let machine = ThisMachine::new();
    let (_folder, plan) = small(&machine);
    let printed = machine.loaded(&plan, &[]);
    let ranks = printed["ranks"].as_array().unwrap();
    let found: Vec<&str> = ranks.iter().map(|rank| rank["gpu"].as_str().unwrap()).collect();
    let listed = Command::new("nvidia-smi").args(["--query-gpu=uuid", "--format=csv,noheader"]).output();
    let listed = match listed {
        Ok(listed) if listed.status.success() => String::from_utf8(listed.stdout).unwrap(),
        _ => return println!("skipped: nvidia-smi does not run here"),
    };
    if std::env::var_os("CUDA_VISIBLE_DEVICES").is_some() || !listed.contains(&machine.gpus[0].uuid) {
        return println!("skipped: nvidia-smi lists other GPUs than this process sees");
    }
    let listed: Vec<&str> = listed.lines().map(str::trim).take(found.len()).collect();
    assert_eq!(found, listed);
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn one_process_for_each_gpu_loads_and_verifies() {
    let machine = ThisMachine::new();
    for mesh in machine.meshes() {
        let (_folder, plan) = planned(&fixture("llama-bf16"), mesh);
        let world = machine.world() as usize;
        let gpus: Vec<String> =
            machine.gpus[..world].iter().map(|gpu| format!("cuda:{}", gpu.ordinal)).collect();
        on_gpus::processes_verify(&machine, &plan, &gpus);
    }
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn a_flipped_bit_is_named_by_all_processes() {
    let machine = ThisMachine::new();
    let (_folder, plan) = small(&machine);
    let world = machine.world();
    on_gpus::a_flip_is_named_by_all_processes(&machine, &plan, world, world - 1);
}

/// NCCL takes two ranks on one GPU or refuses them, by version and settings. Either will do; a hang or a wrong answer will not.
#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn two_ranks_on_one_gpu_verify_or_are_refused_by_nccl() {
    let machine = ThisMachine::new();
    let (_folder, plan) = planned(&fixture("llama-odd-vocab-bf16"), [2, 1, 1]);
    let job = on_gpus::job(&machine, &plan, 2);
    let run = |args: &[&str]| {
        let start = |rank: u32| {
            let mut command = job.command(rank, &[&["--device", "cuda"], args].concat());
            command.env("CUDA_VISIBLE_DEVICES", machine.first_alone()).spawn().unwrap()
        };
        all_end(vec![start(0), start(1)])
    };
    let outcomes = run(&[]);
    if outcomes.iter().all(|outcome| outcome.code == Some(0)) {
        println!("NCCL takes two ranks on one GPU");
        for outcome in outcomes {
            assert!(machine.succeeded(outcome).contains("verified"));
        }
    } else {
        for outcome in &outcomes {
            println!("{}", outcome.stderr.trim_end());
            assert_eq!(outcome.code, Some(4), "{outcome:?}");
            assert!(outcome.stderr.to_lowercase().contains("nccl"), "{}", outcome.stderr);
        }
    }
    // Without NCCL there is nobody to refuse it.
    for outcome in run(&["--verify", "off"]) {
        assert!(machine.succeeded(outcome).contains("not verified"));
    }
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn a_timeline_shows_reading_and_copying_side_by_side() {
    let machine = ThisMachine::new();
    let (_folder, plan) = demo(&machine);
    on_gpus::copies_overlap_reads(&machine, &plan);
}

#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn held_weights_are_opened_and_proved_by_another_process() {
    let machine = ThisMachine::new();
    let (_folder, plan) = small(&machine);
    on_gpus::held_weights_are_proved_elsewhere(&machine, &plan, machine.world());
    // Larger than what a driver puts together into one block of its own.
    let (_folder, plan) = demo(&machine);
    on_gpus::held_weights_are_proved_elsewhere(&machine, &plan, machine.world());
}

/// No GPU has the memory of a 70B model with five times its layers, 700 GB.
#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn more_than_a_gpu_has_is_refused_before_anything_is_loaded() {
    let machine = ThisMachine::new();
    let checkpoint = Checkpoint::sharded(Dims { layers: 400, ..LLAMA_70B }, 30);
    let (topology, file) = (checkpoint.beside("large.yaml"), checkpoint.beside("plan.yaml"));
    let large = "topology: large\nabout: one GPU larger than any\ngpu: { kind: large, memory: 4 TiB }\ngpus: 1\n\
                 hubs:\n  - { name: cpu0, kind: host-bridge, gpus: 0, bandwidth: 16 GB/s }\n";
    fs::write(&topology, large).unwrap();
    plan(&checkpoint.path, &["--topology", text(&topology), "--tp", "1"], &file);
    on_gpus::too_much_is_refused_with_numbers(&machine, &file);
}

/// A load of 800 MB in pieces of a page, interrupted ever later until it is in the midst of copying.
#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn an_interrupt_ends_a_load_that_is_copying() {
    let machine = ThisMachine::new();
    let dims =
        Dims { hidden: 2048, intermediate: 8192, layers: 6, heads: 16, vocabulary: 16_384, ..LLAMA_70B };
    let checkpoint = Checkpoint::new(dims, "llama");
    let (file, trace) = (checkpoint.beside("plan.yaml"), checkpoint.beside("trace.json"));
    plan(&checkpoint.path, &["--topology", "host", "--tp", "1"], &file);
    for tenths in 1..100 {
        let slowly = ["--threads", "1", "--staging", "32 KiB", "--verify", "off", "--trace", text(&trace)];
        let child = machine.start(&[&["load", text(&file), "--device", "cuda"], &slowly[..]].concat());
        std::thread::sleep(Duration::from_millis(100 * tenths));
        signal(&child, "-INT");
        let outcome = finish(child);
        assert_ne!(outcome.code, Some(0), "it was done before it was copying");
        // Before it listens, the signal itself ends it.
        if outcome.code.is_some() {
            outcome.refused(4, &["interrupted"]);
        }
        if trace.exists() && !Timeline::read(&trace).spans("copy").is_empty() {
            return println!(
                "interrupted after {} ms, {} copies",
                100 * tenths,
                Timeline::read(&trace).spans("copy").len()
            );
        }
    }
    panic!("it never began to copy");
}

/// Rank 1 is stopped, so rank 0 has taken its GPU and waits for as long as anybody looks.
#[test]
#[ignore = "needs a GPU: cargo test --test gpu -- --ignored"]
fn an_interrupt_ends_a_process_that_waits_for_others() {
    let machine = ThisMachine::new();
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let mut job = on_gpus::job(&machine, &plan, 2);
    job.patience = 600;
    let start = |rank: u32| {
        let mut command = job.command(rank, &["--device", "cuda", "--verify", "off"]);
        command.env("CUDA_VISIBLE_DEVICES", machine.first_alone()).spawn().unwrap()
    };
    let (first, second) = (start(0), start(1));
    signal(&second, "-STOP");
    std::thread::sleep(Duration::from_secs(3));
    signal(&first, "-INT");
    all_end(vec![first])[0].refused(4, &["interrupted"]);
    // It may have been stopped before it began, and nothing is asked of it.
    signal(&second, "-KILL");
    finish(second);
}
