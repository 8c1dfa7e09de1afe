//! One process for each rank, as launchers start them: real processes, real sockets, host memory.
#![allow(clippy::unwrap_used)]

mod faults;
#[path = "../support/mod.rs"]
mod support;

use serde_json::Value;
use std::path::Path;
use support::{
    FIXTURES, fixture,
    job::{Job, Launcher, all_end},
    planned, text,
};

fn job(plan: &Path, world: u32) -> Job<'static> {
    Job::new(plan, world, support::command)
}

#[test]
fn two_to_eight_processes_load_and_verify_together() {
    for (name, mesh) in FIXTURES.into_iter().zip([[2, 1, 1], [4, 1, 1], [2, 2, 1], [2, 2, 2], [8, 1, 1]]) {
        let (_folder, plan) = planned(&fixture(name), mesh);
        let world = mesh.iter().product();
        for (rank, outcome) in job(&plan, world).run(&["--json"]).into_iter().enumerate() {
            let printed = outcome.json();
            assert_eq!(printed["verified"], true, "{name} on {mesh:?}: {printed}");
            let ranks = printed["ranks"].as_array().unwrap();
            assert_eq!((ranks.len(), &ranks[0]["rank"]), (1, &Value::from(rank)), "{name}");
        }
    }
}

#[test]
fn every_launcher_is_understood() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    for launcher in [
        Launcher::Torchrun,
        Launcher::OpenMpi,
        Launcher::Pmi,
        Launcher::Slurm,
        Launcher::Kubernetes,
        Launcher::Arguments,
    ] {
        let mut job = job(&plan, 4);
        job.launcher = launcher;
        let outcomes = job.run(&[]);
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            let printed = outcome.succeeded();
            match rank {
                0 => {
                    assert!(printed.contains("on 4 ranks into host memory"), "{launcher:?}: {printed}");
                    let last = printed.lines().last().unwrap();
                    assert!(
                        last.starts_with("verified: the fingerprints summed over the ranks"),
                        "{printed}"
                    );
                }
                _ => {
                    assert!(printed.starts_with(&format!("rank {rank}: loaded ")), "{launcher:?}: {printed}");
                    assert!(printed.ends_with("; verified\n") && printed.lines().count() == 1, "{printed}");
                }
            }
        }
    }
}

#[test]
fn where_to_meet_can_be_said_under_a_launcher_too() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let job = job(&plan, 2);
    let meet = format!("127.0.0.1:{}", job.port());
    let start = |rank: u32| {
        let mut command = job.command(rank, &["--rendezvous", &meet]);
        command.env("SHARDWRIGHT_PORT", "1").spawn().unwrap()
    };
    for outcome in all_end(vec![start(0), start(1)]) {
        assert!(outcome.succeeded().contains("verified"));
    }
}

#[test]
fn a_flipped_bit_in_one_process_is_named_by_all() {
    let (_folder, plan) = planned(&fixture("qwen2-bf16"), [2, 2, 1]);
    for outcome in job(&plan, 4).run(&["--flip-byte", "2"]) {
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(
            outcome.stderr.starts_with("error: 1 tensor is not what the files say\n"),
            "{}",
            outcome.stderr
        );
        assert!(outcome.stderr.contains("`: wrong on rank 2; "), "{}", outcome.stderr);
    }
}

#[test]
fn without_verifying_the_processes_meet_all_the_same() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    for outcome in job(&plan, 2).run(&["--verify", "off"]) {
        assert!(outcome.succeeded().contains("not verified: --verify off"));
    }
}

#[test]
fn a_process_of_a_job_of_one_loads_all_ranks() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let printed = job(&plan, 1).run(&[]).remove(0).succeeded();
    assert!(printed.contains("on 2 ranks"), "{printed}");
}

#[test]
fn where_ranks_meet_must_be_said() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let run = |variables: &[(&str, &str)], args: &[&str]| {
        let mut command = support::command(&[&["load", text(&plan)], args].concat());
        support::finish(command.envs(variables.iter().copied()).spawn().unwrap())
    };
    run(&[("JOB_COMPLETION_INDEX", "1")], &[]).refused(2, &["help: ", "--rendezvous HOST:PORT"]);
    run(&[], &["--rank", "1", "--world-size", "2"]).refused(2, &["help: give --rendezvous HOST:PORT"]);
    run(&[], &["--rendezvous", "127.0.0.1:29999"])
        .refused(2, &["nothing says which one this is", "help: give --rank"]);
    run(&[], &["--rank", "1", "--rendezvous", "nowhere"]).refused(2, &["nowhere"]);
    run(&[("RANK", "x"), ("WORLD_SIZE", "2")], &[]).refused(2, &["RANK is `x`"]);
    let world = [("RANK", "0"), ("WORLD_SIZE", "3"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")];
    run(&world, &[]).refused(2, &["torchrun started 3 ranks, but the plan has 2", "help: start 2 processes"]);
}
