//! What goes wrong between processes: all ranks end, with one message that names the rank and the cause.

use crate::{
    job,
    support::{
        Outcome, copy_folder, fixture,
        job::{Ends, all_end, signal},
        planned, shardwright, text,
    },
};
use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// What ends within the patience that is given ends within this, however slow the machine.
const LONG: Duration = Duration::from_secs(30);

/// Checks that a rank that was not killed ended with `code` and one message that has all of `parts`.
fn ended(outcome: &Outcome, code: i32, parts: &[&str]) {
    outcome.refused(code, parts);
    let errors = outcome.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{}", outcome.stderr);
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 4));
    let outcomes = all_end([0, 1, 3].map(|rank| job.start(rank, &[])).into());
    for outcome in &outcomes {
        ended(outcome, 4, &["rank 2 did not come", "help: --meet-within"]);
    }
    ends.check(outcomes);
}

#[test]
fn ranks_of_which_some_have_a_manifest_do_not_compare() {
    let (folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let manifest = folder.path().join("fingerprints.json");
    let checkpoint = fixture("llama-bf16");
    shardwright(&["plan", text(&checkpoint), "--topology", "host", "--fingerprint", text(&manifest)])
        .succeeded();
    let (ends, job) = (Ends::within(LONG), job(&plan, 2));
    let with = ["--manifest", text(&manifest)];
    let outcomes = all_end(vec![job.start(0, &with), job.start(1, &[])]);
    ended(
        &outcomes[0],
        1,
        &["rank 0 was given a manifest, and some other rank was not", "help: give every rank the same"],
    );
    ended(&outcomes[1], 1, &["rank 1 was not given a manifest, and some other rank was"]);
    for outcome in job.run(&with) {
        outcome.succeeded();
    }
    ends.check(outcomes);
}

#[test]
fn without_rank_0_the_others_say_where_they_looked() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 2));
    let outcome = all_end(vec![job.start(1, &[])]).remove(0);
    ended(&outcome, 4, &["rank 1 did not reach rank 0 at 127.0.0.1:", "help: "]);
    ends.check(outcome);
}

#[test]
fn a_rank_that_is_killed_before_all_have_come_is_named() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 4));
    let mut children: Vec<_> = [0, 1, 2].map(|rank| job.start(rank, &[])).into();
    std::thread::sleep(Duration::from_secs(1));
    children[2].kill().unwrap();
    let outcomes = all_end(children);
    for outcome in &outcomes[..2] {
        ended(outcome, 4, &["rank 2", "ended before all ranks had come"]);
    }
    ends.check(outcomes);
}

#[test]
fn a_rank_that_is_stopped_is_given_up() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 4));
    // Rank 2 is stopped while it waits for rank 3, which comes afterwards.
    let mut children: Vec<_> = [0, 1, 2].map(|rank| job.start(rank, &[])).into();
    std::thread::sleep(Duration::from_secs(1));
    signal(&children[2], "-STOP");
    let stopped = children.remove(2);
    children.push(job.start(3, &[]));
    let outcomes = all_end(children);
    for outcome in &outcomes {
        ended(outcome, 4, &["rank 2 has made no progress for 4 s", "help: --patience"]);
    }
    ends.check(outcomes);
    // It may go on, and hears that there is no use in it.
    signal(&stopped, "-CONT");
    let outcome = all_end(vec![stopped]).remove(0);
    ended(&outcome, 4, &["rank "]);
}

#[test]
fn ranks_with_different_plans_do_not_load() {
    let checkpoint = fixture("llama-bf16");
    let (_folder, plan) = planned(&checkpoint, [2, 1, 1]);
    let (_other_folder, other) = planned(&checkpoint, [1, 2, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 2));
    let mut odd = job.command(1, &[]);
    // Rank 1 as it is, but for its plan.
    let mut command =
        crate::support::command(&["load", text(&other), "--patience", "4", "--meet-within", "4"]);
    command.envs(odd.get_envs().filter_map(|(name, value)| Some((name, value?))));
    odd = command;
    let outcomes = all_end(vec![job.start(0, &[]), odd.spawn().unwrap()]);
    for outcome in &outcomes {
        ended(outcome, 1, &["rank 1", "plan", "help: give every rank the same plan"]);
    }
    ends.check(outcomes);
}

#[test]
fn ranks_with_different_files_do_not_load() {
    let folder = TempDir::new().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    for copy in [&one, &two] {
        copy_folder(&fixture("llama-odd-vocab-bf16"), copy);
    }
    let (_plan_folder, plan) = planned(&one, [2, 1, 1]);
    let run = |other: &Path| {
        let (ends, job) = (Ends::within(LONG), job(&plan, 2));
        let outcomes = all_end(vec![job.start(0, &[]), job.start(1, &["--checkpoint", text(other)])]);
        ends.check(&outcomes);
        outcomes
    };
    // The same header over other bytes.
    let file = two.join("model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    for byte in &mut bytes[last - 5000..] {
        *byte ^= 1;
    }
    fs::write(&file, &bytes).unwrap();
    for outcome in run(&two) {
        ended(
            &outcome,
            1,
            &["rank 1 reads other weights than rank 0", "help: give every rank the same checkpoint"],
        );
    }
    // Another header is another checkpoint than was planned; rank 0 hears why rank 1 does not load.
    bytes.truncate(last);
    fs::write(&file, &bytes).unwrap();
    let outcomes = run(&two);
    ended(&outcomes[1], 3, &["model.safetensors"]);
    ended(&outcomes[0], 4, &["rank 1 failed: ", "model.safetensors"]);
}

#[test]
fn the_same_rank_twice_is_no_job() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    let (ends, job) = (Ends::within(LONG), job(&plan, 4));
    let outcomes = all_end([0, 1, 2, 2].map(|rank| job.start(rank, &[])).into());
    // One that came when the job was over already finds nobody.
    for outcome in &outcomes {
        assert!(!outcome.stdout.contains("verified"), "{outcome:?}");
        assert!(matches!(outcome.code, Some(2 | 4)), "{outcome:?}");
    }
    assert!(
        outcomes[0].stderr.contains("rank 2") && outcomes[0].stderr.contains("twice"),
        "{}",
        outcomes[0].stderr
    );
    ends.check(outcomes);
}

#[test]
fn strangers_at_the_rendezvous_disturb_nobody() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let job = job(&plan, 2);
    let first = job.start(0, &[]);
    let begin = Instant::now();
    let connect = || loop {
        match TcpStream::connect(("127.0.0.1", job.port())) {
            Ok(stream) => return stream,
            Err(error) => assert!(begin.elapsed() < LONG, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    // One says nothing, one speaks another protocol, one announces more than there is memory.
    let silent = connect();
    let mut web = connect();
    web.write_all(b"GET / HTTP/1.1\r\nHost: rank-0\r\n\r\n").unwrap();
    let mut huge = connect();
    huge.write_all(&[0xff; 64]).unwrap();
    let outcomes = all_end(vec![first, job.start(1, &[])]);
    drop((silent, web, huge));
    for outcome in outcomes {
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains("verified"), "{}", outcome.stdout);
    }
}

#[test]
fn an_interrupted_rank_takes_the_others_with_it() {
    for name in ["-INT", "-TERM"] {
        let (_folder, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
        let (ends, mut job) = (Ends::within(LONG), job(&plan, 4));
        job.patience = 60;
        let children: Vec<_> = [0, 1, 2].map(|rank| job.start(rank, &[])).into();
        std::thread::sleep(Duration::from_secs(1));
        signal(&children[1], name);
        let outcomes = all_end(children);
        ended(&outcomes[1], 4, &["interrupted"]);
        for rank in [0, 2] {
            ended(&outcomes[rank], 4, &["rank 1"]);
        }
        ends.check(outcomes);
    }
}

#[test]
fn a_rank_that_has_too_little_memory_is_named_by_all() {
    // 140 GB do not fit this host, wherever it is; its headers stand over a hole.
    let folder = TempDir::new().unwrap();
    let dims = crate::support::tiny::LLAMA_70B;
    crate::support::tiny::write_tensors(&folder.path().join("model.safetensors"), &dims.tensors());
    fs::write(folder.path().join("config.json"), dims.config("llama").to_string()).unwrap();
    let plan = folder.path().join("plan.yaml");
    let checkpoint = text(folder.path());
    let outcome =
        shardwright(&["plan", checkpoint, "--topology", "dgx-h100", "--tp", "2", "-o", text(&plan)]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let outcomes = job(&plan, 2).run(&["--device", "host"]);
    let own: Vec<_> = outcomes.iter().filter(|outcome| outcome.stderr.contains("host cannot give")).collect();
    assert_eq!(own.len(), 2, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| outcome.code == Some(4)));
}
