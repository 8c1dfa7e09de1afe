//! Loading into this host's memory: what arrived is what the files say, and a wrong byte is caught and named.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};
use support::{
    FIXTURES, copy_folder,
    cut::{held, read_checkpoint},
    fixture, plan, shardwright, slices, text,
    tiny::{Dims, LLAMA_70B, TINY, write_tensors},
};
use tempfile::TempDir;

/// A plan of `checkpoint` on this host, in a folder that is removed in the end.
fn planned(checkpoint: &Path, [tp, pp, dp]: [u32; 3]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let [tp, pp, dp] = [tp, pp, dp].map(|size| size.to_string());
    plan(checkpoint, &["--topology", "host", "--tp", &tp, "--pp", &pp, "--dp", &dp], &file);
    (folder, file)
}

fn load(plan: &Path, args: &[&str]) -> support::Outcome {
    shardwright(&[&["load", text(plan), "--device", "host"], args].concat())
}

/// Bytes without padding that each rank holds, from what `slices` says.
fn bytes_of_ranks(checkpoint: &Path, plan: &Path, ranks: u64) -> Vec<u64> {
    let tensors = read_checkpoint(checkpoint);
    let of_rank = |printed: &Value| {
        let bytes = held(printed).into_iter().map(|(name, mut held)| {
            held.shape[0] -= std::mem::take(&mut held.pad_rows);
            tensors[&name].cut(&held).bytes.len() as u64
        });
        bytes.sum()
    };
    slices(plan, ranks).iter().map(of_rank).collect()
}

#[test]
fn every_fixture_loads_and_verifies_on_every_mesh() {
    for name in FIXTURES {
        for mesh in [[1, 1, 1], [2, 1, 1], [4, 1, 1], [8, 1, 1], [2, 2, 1], [2, 1, 2], [2, 2, 2]] {
            let (_folder, plan) = planned(&fixture(name), mesh);
            let printed = load(&plan, &["--json"]).json();
            let what = format!("{name} on {mesh:?}: {printed}");
            assert_eq!(printed["verified"], true, "{what}");
            assert_eq!(printed["mismatches"], Value::Array(Vec::new()), "{what}");
            let ranks = printed["ranks"].as_array().unwrap();
            assert_eq!(
                ranks.len() as u64,
                mesh.iter().map(|&size| u64::from(size)).product::<u64>(),
                "{what}"
            );
            assert!(ranks.iter().zip(0u64..).all(|(rank, number)| rank["rank"] == number), "{what}");
        }
    }
}

#[test]
fn just_the_bytes_of_its_slices_are_copied_to_a_rank() {
    for name in ["llama-odd-vocab-bf16", "qwen2-bf16"] {
        let (_folder, plan) = planned(&fixture(name), [4, 2, 1]);
        let expected = bytes_of_ranks(&fixture(name), &plan, 8);
        let printed = load(&plan, &["--json"]).json();
        let ranks = printed["ranks"].as_array().unwrap();
        let found: Vec<u64> = ranks.iter().map(|rank| rank["bytes"].as_u64().unwrap()).collect();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn a_table_is_printed_for_people() {
    let (_folder, plan) = planned(&fixture("qwen3-f32"), [2, 1, 1]);
    let printed = load(&plan, &[]).succeeded();
    assert_eq!(printed.lines().count(), 6, "{printed}");
    assert!(printed.lines().next().unwrap().starts_with("rank  device  tensors"), "{printed}");
    assert!(printed.lines().last().unwrap().starts_with("verified: "), "{printed}");
}

#[test]
fn each_rank_loads_and_verifies_alone() {
    for name in FIXTURES {
        let (_folder, plan) = planned(&fixture(name), [2, 2, 1]);
        for rank in ["0", "1", "2", "3"] {
            let printed = load(&plan, &["--rank", rank, "--json"]).json();
            assert_eq!(printed["verified"], true, "{name}, rank {rank}");
            let ranks = printed["ranks"].as_array().unwrap();
            assert_eq!((ranks.len(), ranks[0]["rank"].to_string().as_str()), (1, rank), "{name}");
        }
    }
}

/// Checks that a byte flipped on `rank` ends a load with 1, and that one tensor and that rank alone are named.
fn flip_is_caught(plan: &Path, rank: u32, more: &[&str]) {
    let number = rank.to_string();
    let args = [&["--flip-byte", &number], more].concat();
    let outcome = load(plan, &args);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.starts_with("error: 1 tensor is not what the files say\n"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("`: wrong on rank {rank}; ")), "{}", outcome.stderr);
    let wrong: Vec<&str> = outcome.stdout.lines().filter(|line| line.ends_with("WRONG")).collect();
    assert_eq!(wrong.len(), 1, "{}", outcome.stdout);
    assert_eq!(wrong[0].split_whitespace().next(), Some(number.as_str()));
    assert!(!outcome.stdout.contains("verified:"), "{}", outcome.stdout);

    let outcome = load(plan, &[&args[..], &["--json"]].concat());
    assert_eq!(outcome.code, Some(1));
    let printed: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(printed["verified"], false);
    let mismatches = printed["mismatches"].as_array().unwrap();
    assert_eq!(mismatches.len(), 1, "{printed}");
    assert_eq!(mismatches[0]["ranks"], Value::from(vec![rank]));
    let tensor = mismatches[0]["tensor"].as_str().unwrap();
    assert!(outcome.stderr.contains(&format!("`{tensor}`")), "{}", outcome.stderr);
    let held_there = slices_of(plan, rank);
    assert!(held_there.contains(&tensor.to_owned()), "rank {rank} does not hold {tensor}");
}

fn slices_of(plan: &Path, rank: u32) -> Vec<String> {
    let printed = shardwright(&["slices", text(plan), "--rank", &rank.to_string()]).json();
    held(&printed).into_keys().collect()
}

#[test]
fn a_flipped_byte_is_caught_and_named_on_every_rank() {
    for name in FIXTURES {
        let (_folder, plan) = planned(&fixture(name), [4, 1, 1]);
        (0..4).for_each(|rank| flip_is_caught(&plan, rank, &[]));
    }
}

#[test]
fn a_flipped_byte_is_caught_on_every_stage_and_copy() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 2, 2]);
    (0..8).for_each(|rank| flip_is_caught(&plan, rank, &[]));
}

#[test]
fn a_flipped_byte_is_caught_on_a_rank_that_is_loaded_alone() {
    let (_folder, plan) = planned(&fixture("mistral-f32"), [2, 2, 1]);
    (0..4).for_each(|rank| flip_is_caught(&plan, rank, &["--rank", &rank.to_string()]));
}

#[test]
fn a_flipped_byte_is_caught_in_a_replicated_tensor() {
    let folder = TempDir::new().unwrap();
    let mut tensors = TINY.tensors();
    // A tensor that no rule knows is held whole by every rank, and is the largest here.
    tensors.push(("model.extra.weight".to_owned(), vec![100, 64]));
    write_tensors(&folder.path().join("model.safetensors"), &tensors);
    fs::write(folder.path().join("config.json"), TINY.config("llama").to_string()).unwrap();
    let (_plan_folder, plan) = planned(folder.path(), [4, 1, 1]);
    for rank in 0..4 {
        flip_is_caught(&plan, rank, &[]);
        let outcome = load(&plan, &["--flip-byte", &rank.to_string()]);
        assert!(outcome.stderr.contains("`model.extra.weight`"), "{}", outcome.stderr);
    }
}

#[test]
fn a_flipped_byte_passes_where_nobody_looks() {
    let (_folder, plan) = planned(&fixture("qwen3-f32"), [2, 1, 1]);
    let printed = load(&plan, &["--flip-byte", "1", "--verify", "off"]).succeeded();
    assert!(printed.contains("not verified: --verify off"), "{printed}");
    let printed = load(&plan, &["--verify", "off", "--json"]).json();
    assert_eq!((&printed["verified"], &printed["mismatches"]), (&Value::Null, &Value::Null));
}

#[test]
fn a_file_that_was_rewritten_is_not_loaded() {
    let folder = TempDir::new().unwrap();
    let checkpoint = folder.path().join("model");
    copy_folder(&fixture("llama-odd-vocab-bf16"), &checkpoint);
    let (_plan_folder, plan) = planned(&checkpoint, [2, 1, 1]);
    load(&plan, &[]).succeeded();
    // Another dtype of the same width in the header: the same tensors, read as other numbers.
    let file = checkpoint.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let at = bytes.windows(6).position(|window| window == b"\"BF16\"").unwrap();
    let changed = [&bytes[..at], b"\"F16\" ", &bytes[at + 6..]].concat();
    fs::write(&file, changed).unwrap();
    load(&plan, &[]).refused(1, &["changed since it was planned", "model.safetensors", "\nhelp: "]);
    load(&plan, &["--rank", "1"]).refused(1, &["changed since it was planned", "\nhelp: "]);
}

#[test]
fn gpus_are_an_environment_that_is_not_there() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    shardwright(&["load", text(&plan), "--device", "cuda"])
        .refused(4, &["no CUDA driver", "help: --device host"]);
}

#[test]
fn a_rank_that_does_not_exist_is_wrong_usage() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let words = ["rank 2 does not exist", "ranks 0 to 1"];
    load(&plan, &["--rank", "2"]).refused(2, &words);
    load(&plan, &["--flip-byte", "2"]).refused(2, &words);
    shardwright(&["slices", text(&plan), "--rank", "2"]).refused(2, &words);
    load(&plan, &["--rank", "-1"]).refused(2, &[]);
    shardwright(&["load", text(&plan), "--device", "tpu"]).refused(2, &["host", "cuda"]);
}

#[test]
fn a_flip_on_a_rank_that_is_not_loaded_is_wrong_usage() {
    let (_folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    load(&plan, &["--rank", "0", "--flip-byte", "1"]).refused(2, &["rank 1", "rank 0"]);
}

#[test]
fn more_than_this_host_has_is_refused_before_anything_is_loaded() {
    // Four terabytes of weights, as a hole.
    let dims = Dims {
        vocabulary: 1 << 20,
        hidden: 1 << 20,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        head_size: 4,
        ..LLAMA_70B
    };
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), dims.config("llama").to_string()).unwrap();
    write_tensors(&folder.path().join("model.safetensors"), &dims.tensors());
    let args = ["plan", text(folder.path()), "--topology", "host", "--tp", "1"];
    shardwright(&args).refused(1, &["does not fit", "\nhelp: "]);

    // Planned for a machine that has it.
    let topology = folder.path().join("roomy.yaml");
    let machine = "topology: roomy\nabout: x\ngpu: { kind: Roomy, memory: 8 TiB }\ngpus: 2\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-1, bandwidth: 10 GB/s }\n";
    fs::write(&topology, machine).unwrap();
    let file = folder.path().join("plan.yaml");
    plan(folder.path(), &["--topology", text(&topology), "--tp", "2"], &file);
    load(&file, &[]).refused(4, &["host cannot give", "bytes of memory to 2 ranks, it has", "\nhelp: "]);
    load(&file, &["--rank", "1"]).refused(4, &["host cannot give", "bytes of memory, it has"]);
}

#[test]
fn every_way_of_reading_gives_the_same_bytes() {
    let (_folder, plan) = planned(&fixture("llama-odd-vocab-bf16"), [4, 2, 1]);
    for io in ["auto", "mmap", "read", "direct"] {
        for threads in ["1", "3"] {
            let outcome = load(&plan, &["--json", "--io", io, "--threads", threads]);
            let printed: Value = serde_json::from_str(&outcome.stdout).unwrap();
            assert_eq!(printed["verified"], true, "{io}: {outcome:?}");
            let files = printed["files"].as_str().unwrap();
            let way = match io {
                "mmap" => "from mappings: as asked",
                "read" => "through the page cache: as asked",
                // Where the tests lie in memory.
                "direct" if outcome.stderr.contains("instead of directly") => "directly is refused",
                "direct" => "directly: as asked",
                _ => "reading ",
            };
            assert!(files.contains(way), "{io}: {files}");
        }
    }
}

#[test]
fn a_file_system_that_refuses_direct_reads_is_read_otherwise_and_that_is_said() {
    let folder = tempfile::tempdir_in("/dev/shm").expect("every Linux has /dev/shm");
    let checkpoint = folder.path().join("checkpoint");
    copy_folder(&fixture("qwen3-f32"), &checkpoint);
    let (_folder, plan) = planned(&checkpoint, [2, 1, 1]);
    let outcome = load(&plan, &["--io", "direct", "--json"]);
    let printed: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(printed["verified"], true);
    // Newer kernels read memory directly, too.
    let refused = outcome.stderr.contains("note: reading through the page cache instead of directly: ");
    let files = printed["files"].as_str().unwrap();
    let told = "through the page cache: reading directly is refused";
    assert_eq!(refused, files.contains(told), "{outcome:?}");
}

#[test]
fn what_a_manifest_says_is_compared_with_what_was_loaded() {
    let parent = TempDir::new().unwrap();
    let checkpoint = parent.path().join("checkpoint");
    copy_folder(&fixture("mistral-f32"), &checkpoint);
    let (folder, plan) = planned(&checkpoint, [2, 2, 1]);
    let manifest = folder.path().join("fingerprints.json");
    let args = ["plan", text(&checkpoint), "--topology", "host", "--fingerprint", text(&manifest)];
    shardwright(&args).succeeded();
    let with = ["--manifest", text(&manifest)];
    let printed = load(&plan, &with).succeeded();
    assert!(printed.contains("those of the manifest, for all"), "{printed}");
    let wrong = |args: &[&str], words: [&str; 2]| {
        let outcome = load(&plan, args);
        assert_eq!(outcome.code, Some(1), "{outcome:?}");
        assert!(words.iter().all(|words| outcome.stderr.contains(words)), "{}", outcome.stderr);
    };
    let flipped = [&with[..], &["--flip-byte", "1"]].concat();
    wrong(&flipped, ["1 tensor is not what the manifest says", "wrong on rank 1;"]);
    load(&plan, &[&with[..], &["--rank", "1"]].concat())
        .refused(2, &["one rank alone", "leave --manifest out"]);

    // A byte of the last tensor rots: all ranks load just what the file has.
    let file = checkpoint.join("model-00004-of-00004.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 4;
    fs::write(&file, &bytes).unwrap();
    load(&plan, &[]).succeeded();
    wrong(&with, ["all ranks have what the files have", "help: the files are not those"]);

    // One rank alone that is all there are.
    let (_lone, lone) = planned(&checkpoint, [1, 1, 1]);
    let outcome = load(&lone, &[&with[..], &["--rank", "0"]].concat());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    load(&plan, &[&with[..], &["--verify", "off"]].concat()).refused(2, &["--verify off compares nothing"]);

    fs::write(&manifest, "{}").unwrap();
    load(&plan, &with).refused(3, &["is no manifest of fingerprints", "help: write it with"]);
}

#[test]
fn a_full_disk_for_the_timeline_costs_no_load() {
    let (_folder, plan) = planned(&fixture("qwen3-f32"), [2, 1, 1]);
    let outcome = load(&plan, &["--trace", "/dev/full"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("/dev/full"), "{}", outcome.stderr);
}

#[test]
fn a_wrong_byte_is_told_though_nobody_reads_what_is_printed() {
    let (_folder, plan) = planned(&fixture("qwen3-f32"), [2, 1, 1]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = support::command(&["load", text(&plan), "--device", "host", "--flip-byte", "1"]);
    let outcome = support::finish(command.stdout(writer).spawn().unwrap());
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("wrong on rank 1"), "{}", outcome.stderr);
}

#[test]
fn a_timeline_that_nobody_reads_is_given_up_when_asked() {
    let (folder, plan) = planned(&fixture("qwen3-f32"), [2, 1, 1]);
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["load", text(&plan), "--device", "host", "--trace", text(&pipe)];
    let child = support::command(&args).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    support::job::signal(&child, "-INT");
    let outcome = support::finish(child);
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("interrupted"), "{}", outcome.stderr);
}
