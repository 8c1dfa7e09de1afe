//! One process for each rank, each with its simulated GPU; NCCL between them.

use crate::support::{
    Outcome, fixture,
    job::{Ends, Job, all_end, signal},
    on_gpus, planned,
    simcuda::Machine,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    time::Duration,
};
use tempfile::TempDir;

/// What ends within the patience that is given ends within this, however slow the machine.
const LONG: Duration = Duration::from_secs(30);

fn small() -> (TempDir, PathBuf) {
    planned(&fixture("llama-odd-vocab-bf16"), [4, 1, 1])
}

fn job<'a>(machine: &'a Machine, plan: &Path) -> Job<'a> {
    on_gpus::job(machine, plan, 4)
}

const CUDA: &[&str] = &["--device", "cuda", "--staging", "128 KiB"];

/// Starts all ranks; `odd` has `value` in `variable` besides.
fn start_with(job: &Job<'_>, odd: u32, variable: &str, value: &str) -> Vec<Child> {
    let start = |rank: u32| {
        let mut command = job.command(rank, CUDA);
        if rank == odd {
            command.env(variable, value);
        }
        command.spawn().unwrap()
    };
    (0..job.world).map(start).collect()
}

/// Checks that a rank that was not killed ended with 4 and one message that has all of `parts`.
fn ended(outcome: &Outcome, parts: &[&str]) {
    outcome.refused(4, parts);
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{}", outcome.stderr);
}

/// What lies in the places where shared memory and sockets would be left.
fn left_behind() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten();
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn four_processes_load_four_gpus_and_verify_over_nccl() {
    let gpus = [0, 1, 2, 3].map(|rank| format!("cuda:{rank}"));
    for mesh in [[4, 1, 1], [2, 2, 1], [2, 1, 2]] {
        let (_folder, plan) = planned(&fixture("llama-bf16"), mesh);
        on_gpus::processes_verify(&Machine::new(), &plan, &gpus);
    }
}

#[test]
fn a_process_that_sees_one_gpu_has_it() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let job = job(&machine, &plan);
    let start = |rank: u32| {
        let mut command = job.command(rank, &["--device", "cuda", "--json"]);
        command.env("CUDA_VISIBLE_DEVICES", rank.to_string()).spawn().unwrap()
    };
    let outcomes = all_end((0..4).map(start).collect());
    let gpus: Vec<String> = outcomes
        .into_iter()
        .map(|outcome| outcome.json()["ranks"][0]["gpu"].as_str().unwrap().to_owned())
        .collect();
    assert!(gpus.is_sorted() && gpus[0] != gpus[3], "{gpus:?}");
}

#[test]
fn a_flipped_bit_is_named_by_all_processes() {
    let (_folder, plan) = small();
    on_gpus::a_flip_is_named_by_all_processes(&Machine::new(), &plan, 4, 3);
}

#[test]
fn ranks_with_different_releases_of_nccl_do_not_load() {
    let (_folder, plan) = small();
    let machine = Machine::new().with("SIMCUDA_NCCL_VERSION", &22203);
    let ends = Ends::within(LONG);
    let outcomes = all_end(start_with(&job(&machine, &plan), 2, "SIMCUDA_NCCL_VERSION", "23007"));
    for outcome in &outcomes {
        ended(outcome, &["rank 2", "2.30.7", "2.22.3"]);
    }
    ends.check(outcomes);
}

#[test]
fn a_rank_that_is_killed_is_named_wherever_it_is() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let before = left_behind();
    for fault in ["kill-at-copy:2", "kill-at-kernel:1", "nccl-kill:2"] {
        let ends = Ends::within(LONG);
        let outcomes = all_end(start_with(&job(&machine, &plan), 2, "SIMCUDA_FAULT", fault));
        for (rank, outcome) in outcomes.iter().enumerate() {
            match rank {
                2 => assert_eq!(outcome.code, None, "{fault}: {outcome:?}"),
                _ => ended(outcome, &["rank 2 ended before the others"]),
            }
        }
        ends.check((fault, outcomes));
    }
    assert_eq!(left_behind(), before);
}

#[test]
fn a_rank_that_dies_before_it_comes_is_missed_by_name() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let ends = Ends::within(LONG);
    let outcomes = all_end(start_with(&job(&machine, &plan), 2, "SIMCUDA_FAULT", "kill-at-init"));
    for rank in [0, 1, 3] {
        ended(&outcomes[rank], &["rank 2 did not come"]);
    }
    ends.check(outcomes);
}

#[test]
fn a_rank_whose_gpu_fails_is_named_by_all_with_the_cause() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    for (fault, cause) in [
        ("no-device", "CUDA_ERROR_NO_DEVICE"),
        ("out-of-memory-after:4000000", "cuda:2"),
        ("copy-error:2", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("kernel-error", "CUDA_ERROR_ILLEGAL_ADDRESS"),
        ("hang-stream:2", "cuda:2 has not finished copying"),
    ] {
        let ends = Ends::within(LONG);
        let outcomes = all_end(start_with(&job(&machine, &plan), 2, "SIMCUDA_FAULT", fault));
        for (rank, outcome) in outcomes.iter().enumerate() {
            let named = if rank == 2 { cause.to_owned() } else { "rank 2 failed: ".to_owned() };
            ended(outcome, &[&named, cause]);
        }
        ends.check((fault, outcomes));
    }
}

#[test]
fn a_rank_that_is_stopped_while_it_loads_is_given_up() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let ends = Ends::within(LONG);
    let mut children = start_with(&job(&machine, &plan), 2, "SIMCUDA_FAULT", "stop-at-copy:2");
    let stopped = children.remove(2);
    let outcomes = all_end(children);
    for outcome in &outcomes {
        ended(outcome, &["rank 2 has made no progress for 4 s", "help: --patience"]);
    }
    ends.check(outcomes);
    signal(&stopped, "-CONT");
    ended(&all_end(vec![stopped])[0], &["rank "]);
}

#[test]
fn a_rank_that_hangs_in_nccl_ends_all() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    for fault in ["nccl-init-hang:2", "nccl-hang:2", "nccl-error:2"] {
        let ends = Ends::within(LONG);
        let outcomes = all_end(start_with(&job(&machine, &plan), 2, "SIMCUDA_FAULT", fault));
        for outcome in &outcomes {
            ended(outcome, &["rank "]);
        }
        ends.check((fault, outcomes));
    }
}

#[test]
fn an_interrupted_rank_takes_the_others_with_it() {
    let (_folder, plan) = small();
    let machine = Machine::new();
    let ends = Ends::within(LONG);
    let mut job = job(&machine, &plan);
    job.patience = 600;
    // A copy that never ends: the load is under way for as long as anybody looks.
    let children = start_with(&job, 2, "SIMCUDA_FAULT", "hang-stream:2");
    std::thread::sleep(Duration::from_secs(2));
    signal(&children[2], "-INT");
    let outcomes = all_end(children);
    for (rank, outcome) in outcomes.iter().enumerate() {
        ended(outcome, if rank == 2 { &["interrupted"] } else { &["rank 2"] });
    }
    ends.check(outcomes);
}
