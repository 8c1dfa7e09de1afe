//! Loading in another dtype than the checkpoint's: the plan says so, and what arrives is verified as it is loaded.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::{
    fs,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};
use support::{FIXTURES, copy_folder, fixture, job::Job, plan, shardwright, slices, text};
use tempfile::TempDir;

/// A plan over `tp` ranks of this host that casts to `dtype`, in a folder that is removed in the end; and what was printed.
fn planned(checkpoint: &Path, tp: u32, dtype: &str) -> (TempDir, PathBuf, Value) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let printed = plan(checkpoint, &["--topology", "host", "--tp", &tp.to_string(), "--dtype", dtype], &file);
    (folder, file, printed)
}

fn load(plan: &Path, args: &[&str]) -> support::Outcome {
    shardwright(&[&["load", text(plan), "--device", "host"], args].concat())
}

#[test]
fn every_fixture_loads_and_verifies_in_every_dtype() {
    for name in FIXTURES {
        for dtype in ["bf16", "f16", "f32"] {
            for tp in [1, 4] {
                let (_folder, plan, _) = planned(&fixture(name), tp, dtype);
                shardwright(&["check", text(&plan)]).succeeded();
                for args in [&["--io", "read"][..], &["--io", "mmap"], &["--io", "direct"], &["--rank", "0"]]
                {
                    let printed = load(&plan, &[args, &["--json"]].concat()).json();
                    assert_eq!(printed["verified"], true, "{name} as {dtype}, tp {tp}, {args:?}: {printed}");
                }
            }
        }
    }
}

#[test]
fn a_plan_says_what_is_cast_and_counts_its_bytes() {
    let (_folder, cast, printed) = planned(&fixture("llama-bf16"), 2, "f32");
    let (_other, plain, of_plain) = planned(&fixture("llama-bf16"), 2, "bf16");
    let bytes = |printed: &Value| printed["ranks"][1]["weight_bytes"].as_u64().unwrap();
    // Each of its tensors begins at a multiple of 256 bytes, whatever its dtype.
    let tensors = of_plain["ranks"][1]["tensors"].as_u64().unwrap();
    assert!((2 * bytes(&of_plain) - bytes(&printed)) < 256 * tensors);
    assert!(bytes(&printed) > bytes(&of_plain) * 3 / 2);
    let (text_of_cast, text_of_plain) =
        (fs::read_to_string(&cast).unwrap(), fs::read_to_string(&plain).unwrap());
    assert!(text_of_cast.contains("cast: F32") && !text_of_plain.contains("cast"));

    let args =
        ["plan", text(&fixture("llama-bf16")), "--topology", "host", "--dtype", "f32"].map(str::to_owned);
    let told = shardwright(&args.each_ref().map(String::as_str)).succeeded();
    assert!(told.contains(" tensors cast to F32 as they are loaded\n"), "{told}");
    let explained = shardwright(&["explain", text(&cast), "model.norm.weight"]).succeeded();
    assert!(explained.contains("1 tensor of BF16 [64], loaded as F32\n"), "{explained}");
    // Boxes are those of the stored tensor.
    for (cast, plain) in slices(&cast, 2).iter().zip(slices(&plain, 2)) {
        for (name, held) in cast["tensors"].as_object().unwrap() {
            assert_eq!((&held["cast"], &held["dtype"]), (&Value::from("F32"), &Value::from("BF16")));
            assert_eq!(held["boxes"], plain["tensors"][name]["boxes"]);
        }
    }
    // The same memory is filled that was planned for.
    let loaded = load(&cast, &["--json"]).json();
    assert_eq!(loaded["ranks"][1]["memory_bytes"], printed["ranks"][1]["weight_bytes"]);
}

#[test]
fn processes_verify_what_they_cast() {
    let (_folder, plan, _) = planned(&fixture("llama-odd-vocab-bf16"), 4, "f16");
    let job = Job::new(&plan, 4, support::command);
    for outcome in job.run(&["--device", "host"]) {
        let printed = outcome.succeeded();
        assert!(printed.lines().last().unwrap().contains("verified"), "{printed}");
    }
}

#[test]
fn a_flipped_bit_of_what_was_cast_is_caught() {
    let (_folder, plan, _) = planned(&fixture("qwen2-bf16"), 2, "f32");
    let outcome = load(&plan, &["--flip-byte", "1"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("1 tensor is not what the files say"), "{outcome:?}");
    assert!(outcome.stderr.contains("wrong on rank 1;"), "{outcome:?}");
}

#[test]
fn a_manifest_is_of_the_dtype_that_the_plan_loads() {
    let folder = TempDir::new().unwrap();
    let [plain, cast, sums] = ["plain.yaml", "cast.yaml", "sums.json"].map(|name| folder.path().join(name));
    let checkpoint = fixture("llama-bf16");
    plan(&checkpoint, &["--topology", "host", "--tp", "2"], &plain);
    plan(
        &checkpoint,
        &["--topology", "host", "--tp", "2", "--dtype", "f32", "--fingerprint", text(&sums)],
        &cast,
    );
    let printed = load(&cast, &["--manifest", text(&sums)]).succeeded();
    assert!(printed.contains("verified: the fingerprints summed over the ranks are those of the manifest"));
    let flipped = load(&cast, &["--manifest", text(&sums), "--flip-byte", "1"]);
    assert!(flipped.code == Some(1) && flipped.stderr.contains("wrong on rank 1;"), "{flipped:?}");
    load(&plain, &["--manifest", text(&sums)])
        .refused(3, &["as F32, and the plan loads it as BF16", "help: write one for this plan"]);
}

#[test]
fn values_that_are_too_large_are_told_by_name() {
    let folder = TempDir::new().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    copy_folder(&fixture("mistral-f32"), &checkpoint);
    let file = fs::read_dir(&checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .unwrap();
    // The last value of the last tensor.
    let mut file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut length = [0; 8];
    file.read_exact(&mut length).unwrap();
    file.seek(SeekFrom::End(-4)).unwrap();
    file.write_all(&1e6f32.to_le_bytes()).unwrap();
    drop(file);
    let (_folder, half, _) = planned(&checkpoint, 2, "f16");
    let outcome = load(&half, &[]);
    assert!(
        outcome.stderr.contains("note: values of `") && outcome.stderr.contains("became infinite"),
        "{outcome:?}"
    );
    assert!(outcome.code == Some(0) && outcome.stdout.contains("verified: "), "{outcome:?}");
    let (_folder, bfloat, _) = planned(&checkpoint, 2, "bf16");
    assert_eq!(load(&bfloat, &[]).stderr, "");
}

#[test]
fn weights_that_are_too_large_in_another_dtype_do_not_fit() {
    let checkpoint = fixture("llama-bf16");
    let folder = TempDir::new().unwrap();
    let topology = folder.path().join("small.yaml");
    let total: u64 =
        fs::read_dir(&checkpoint).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    let args = |dtype: Option<&'static str>| {
        let mut args = vec!["plan", text(&checkpoint), "--topology", text(&topology), "--tp", "1"];
        args.extend(dtype.iter().flat_map(|dtype| ["--dtype", dtype]));
        shardwright(&args)
    };
    let yaml =
        format!("topology: small\nabout: one small GPU\ngpu: {{ kind: tiny, memory: {total} B }}\ngpus: 1\n");
    fs::write(&topology, yaml).unwrap();
    args(None).succeeded();
    args(Some("f32")).refused(1, &["does not fit", "help: "]);
}
