//! Exporting: what lies in the files is what the ranks hold, and a folder that is not whole, or of something else, is told.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use support::{
    FIXTURES, Outcome,
    cut::{Tensor, held, read_checkpoint, read_files},
    fixture, listing, planned, shardwright, slices, text,
};
use tempfile::TempDir;

fn export(plan: &Path, into: &Path, args: &[&str]) -> Outcome {
    shardwright(&[&["export", text(plan), "-o", text(into)], args].concat())
}

/// What each rank of `plan` holds, cut out of the checkpoint.
fn expected(checkpoint: &Path, plan: &Path, ranks: u64) -> Vec<BTreeMap<String, Tensor>> {
    let tensors = read_checkpoint(checkpoint);
    let of_rank = |printed: &serde_json::Value| {
        let cut = |(name, held): (String, support::cut::Held)| {
            let cut = tensors[&name].cut(&held);
            (name, cut)
        };
        held(printed).into_iter().map(cut).collect()
    };
    slices(plan, ranks).iter().map(of_rank).collect()
}

/// An export of `llama-bf16` for two ranks.
fn exported() -> (TempDir, PathBuf, PathBuf) {
    let (folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let into = folder.path().join("exported");
    export(&plan, &into, &[]).succeeded();
    (folder, plan, into)
}

#[test]
fn files_have_what_ranks_hold_and_are_checked_and_loaded_as_a_checkpoint() {
    for name in FIXTURES {
        for mesh in [[1, 1, 1], [4, 1, 1], [8, 1, 1], [2, 2, 1], [2, 1, 2]] {
            let world: u64 = mesh.iter().map(|&size| u64::from(size)).product();
            let (folder, plan) = planned(&fixture(name), mesh);
            let into = folder.path().join("exported");
            // Small files, so that there are several.
            let printed = export(&plan, &into, &["--json", "--max-file-size", "40 KiB"]).json();
            let expected = expected(&fixture(name), &plan, world);
            assert_eq!(
                (&printed["verified"], printed["ranks"].as_array().map(Vec::len)),
                (&true.into(), Some(expected.len()))
            );
            for (rank, tensors) in expected.iter().enumerate() {
                assert_eq!(
                    &read_files(&into, &format!("rank-{rank:05}")),
                    tensors,
                    "{name} on {mesh:?}, rank {rank}"
                );
            }
            assert!(into.join("config.json").is_file() && into.join("plan.yaml").is_file());
            shardwright(&["check", text(&into)]).succeeded();
            let loaded = shardwright(&["load", text(&into), "--device", "host", "--json"]).json();
            let held: usize = expected.iter().map(BTreeMap::len).sum();
            assert_eq!((&loaded["verified"], &loaded["verified_tensors"]), (&true.into(), &held.into()));
            let own = shardwright(&["load", text(&plan), "--device", "host", "--json"]).json();
            for (loaded, own) in
                loaded["ranks"].as_array().unwrap().iter().zip(own["ranks"].as_array().unwrap())
            {
                // Padding is written, and so read.
                assert_eq!(
                    (&loaded["tensors"], &loaded["memory_bytes"]),
                    (&own["tensors"], &own["memory_bytes"])
                );
            }
            assert_eq!(listing(folder.path()), ["exported", "plan.yaml"]);
        }
    }
}

#[test]
fn what_is_cast_is_exported_as_it_is_loaded() {
    let folder = TempDir::new().unwrap();
    let (plan, into) = (folder.path().join("plan.yaml"), folder.path().join("exported"));
    let checkpoint = fixture("mistral-f32");
    support::plan(&checkpoint, &["--topology", "host", "--tp", "2", "--dtype", "bf16"], &plan);
    export(&plan, &into, &[]).succeeded();
    assert!(read_files(&into, "rank-00001").values().all(|tensor| tensor.dtype == "BF16"));
    shardwright(&["load", text(&into), "--device", "host"]).succeeded();
}

#[test]
fn ranks_that_are_exported_one_by_one_make_up_the_same_folder() {
    let (folder, plan, whole) = exported();
    let into = folder.path().join("one by one");
    let said = export(&plan, &into, &["--rank", "1"]).succeeded();
    assert!(said.contains("those of this rank's boxes"), "{said}");
    shardwright(&["check", text(&into)])
        .refused(1, &["rank 0 is not in the export", "rank-00000.json", "help: export"]);
    export(&plan, &into, &["--rank", "0"]).succeeded();
    assert_eq!(listing(&into), listing(&whole));
    for name in listing(&whole) {
        assert_eq!(fs::read(into.join(&name)).unwrap(), fs::read(whole.join(&name)).unwrap(), "{name}");
    }
    export(&plan, &into, &["--rank", "0"]).refused(2, &["has rank 0 already"]);
    let (_other, plan) = planned(&fixture("llama-bf16"), [4, 1, 1]);
    export(&plan, &into, &["--rank", "3"]).refused(2, &["has rank 0 of another export"]);
    export(&plan, &into, &["--rank", "4"]).refused(2, &["rank 4 does not exist"]);
}

#[test]
fn a_folder_that_has_something_else_is_left_alone() {
    let (folder, plan, into) = exported();
    export(&plan, &into, &[]).refused(2, &["has an export already", "help: give another folder"]);
    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.txt"), "mine").unwrap();
    for args in [&[][..], &["--rank", "1"]] {
        export(&plan, &full, args).refused(2, &["is full of something else"]);
    }
    assert_eq!(listing(&full), ["thesis.txt"]);
    let file = full.join("thesis.txt");
    export(&plan, &file, &[]).refused(2, &["is no folder"]);
    export(&into, &folder.path().join("again"), &[]).refused(2, &["is an export already"]);
    // What lies where the files are written before they are whole.
    let fresh = folder.path().join("fresh");
    fs::create_dir(folder.path().join("fresh.part")).unwrap();
    fs::write(folder.path().join("fresh.part/thesis.txt"), "mine").unwrap();
    export(&plan, &fresh, &[]).refused(2, &["fresh.part", "no export wrote it"]);
    assert_eq!(listing(&folder.path().join("fresh.part")), ["thesis.txt"]);
}

#[test]
fn what_an_interrupted_export_left_is_never_taken_for_a_whole_one() {
    let (folder, plan, whole) = exported();
    let into = folder.path().join("again");
    // As a killed export leaves it: the mark, a file that was begun, no record.
    let aside = folder.path().join("again.part");
    fs::create_dir(&aside).unwrap();
    fs::write(aside.join(".shardwright-export"), "").unwrap();
    fs::write(aside.join("rank-00000-00001-of-00001.safetensors"), "begun").unwrap();
    shardwright(&["load", text(&aside), "--device", "host"]).refused(3, &["cannot read"]);
    let outcome = export(&plan, &into, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("removed what an interrupted export left in"), "{}", outcome.stderr);
    assert_eq!(listing(&into), listing(&whole));
    assert!(!aside.exists());
}

#[test]
fn a_rank_whose_files_are_missing_changed_or_of_another_export_is_named() {
    let refused = |breaks: &dyn Fn(&Path), code: i32, parts: &[&str]| {
        let (_folder, _, into) = exported();
        breaks(&into);
        for args in [&["check"][..], &["load", "--device", "host"]] {
            shardwright(&[&args[..1], &[text(&into)], &args[1..]].concat()).refused(code, parts);
        }
    };
    let file = "rank-00001-00001-of-00001.safetensors";
    refused(&|into| fs::remove_file(into.join(file)).unwrap(), 3, &["rank 1's files", file]);
    refused(
        &|into| fs::remove_file(into.join("rank-00001.json")).unwrap(),
        1,
        &["rank 1 is not in the export"],
    );
    refused(
        &|into| {
            let bytes = fs::read(into.join(file)).unwrap();
            fs::write(into.join(file), &bytes[..bytes.len() - 100]).unwrap();
        },
        3,
        &["rank 1's files", file],
    );
    refused(
        &|into| {
            let whole = fs::read_to_string(into.join(file).with_extension("json")).unwrap_or_default();
            assert_eq!(whole, "");
            // Another rank's file in its place: as long, and with the same header.
            let record = fs::read_to_string(into.join("rank-00001.json")).unwrap();
            let (start, end) = record.split_once("\"header_sha256\": \"").unwrap();
            fs::write(into.join("rank-00001.json"), format!("{start}\"header_sha256\": \"0{}", &end[1..]))
                .unwrap();
        },
        1,
        &["of rank 1 is not the file that was exported"],
    );
    refused(
        &|into| {
            let (other, plan) = planned(&fixture("qwen2-bf16"), [2, 1, 1]);
            let exported = other.path().join("exported");
            export(&plan, &exported, &[]).succeeded();
            fs::copy(exported.join("rank-00001.json"), into.join("rank-00001.json")).unwrap();
        },
        1,
        &["rank 1's files in", "are of another export"],
    );
    refused(&|into| fs::write(into.join("rank-00000.json"), "{").unwrap(), 3, &["the record of rank 0"]);
    refused(
        &|into| {
            let record = fs::read_to_string(into.join("rank-00000.json")).unwrap();
            fs::write(into.join("rank-00000.json"), record.replace("rank-00000-", "../rank-00000-")).unwrap();
        },
        3,
        &["the record of rank 0", "is no file of the folder"],
    );
}

/// Bytes of `parts` one after the other.
fn joined(parts: &[&Tensor]) -> Vec<u8> {
    parts.iter().flat_map(|part| part.bytes.iter().copied()).collect()
}

#[test]
fn an_engines_files_have_its_names_its_fused_weights_and_its_padding() {
    // 101 rows, which vLLM fills up to 128 before it cuts them; tied and not, with biases and without.
    for name in ["llama-odd-vocab-bf16", "llama-bf16", "qwen2-bf16", "qwen3-f32"] {
        let (folder, plan) = planned(&fixture(name), [2, 1, 1]);
        let into = folder.path().join("exported");
        export(&plan, &into, &["--format", "sharded-state", "--engine", "vllm"]).succeeded();
        let (whole, expected) = (read_checkpoint(&fixture(name)), expected(&fixture(name), &plan, 2));
        let embedding = &whole["model.embed_tokens.weight"];
        let row = embedding.bytes.len() / embedding.shape[0];
        for (rank, own) in expected.iter().enumerate() {
            let tensors = read_files(&into, &format!("model-rank-{rank}-part-"));
            let layer = "model.layers.1";
            let [q, k, v] =
                ["q", "k", "v"].map(|part| &own[&format!("{layer}.self_attn.{part}_proj.weight")]);
            assert_eq!(tensors[&format!("{layer}.self_attn.qkv_proj.weight")].bytes, joined(&[q, k, v]));
            let [gate, up] = ["gate", "up"].map(|part| &own[&format!("{layer}.mlp.{part}_proj.weight")]);
            let gate_up = &tensors[&format!("{layer}.mlp.gate_up_proj.weight")];
            assert_eq!(
                (&gate_up.bytes, gate_up.shape[0]),
                (&joined(&[gate, up]), gate.shape[0] + up.shape[0])
            );
            assert_eq!(
                tensors[&format!("{layer}.self_attn.o_proj.weight")],
                own[&format!("{layer}.self_attn.o_proj.weight")]
            );
            let scale = &tensors[&format!("{layer}.self_attn.attn._k_scale")];
            assert_eq!(
                (scale.dtype.as_str(), &scale.shape, &scale.bytes),
                ("F32", &vec![], &1f32.to_le_bytes().to_vec())
            );
            // Rows of this rank of a vocabulary that is a multiple of 64.
            let each = embedding.shape[0].next_multiple_of(64) / 2;
            let mut rows = embedding.bytes.clone();
            rows.resize(2 * each * row, 0);
            let is_tied = !whole.contains_key("lm_head.weight");
            let found = &tensors[if is_tied { "lm_head.weight" } else { "model.embed_tokens.weight" }];
            assert_eq!(
                (found.shape[0], &found.bytes[..]),
                (each, &rows[rank * each * row..][..each * row]),
                "{name}"
            );
            assert_eq!(tensors.contains_key("model.embed_tokens.weight"), !is_tied);
        }
        shardwright(&["load", text(&into), "--device", "host"])
            .refused(1, &["has the names of `vllm`", "help:"]);
    }
}

#[test]
fn engines_that_call_weights_alike_have_the_same_of_them() {
    for name in ["llama-bf16", "qwen2-bf16", "qwen3-f32"] {
        let (folder, plan) = planned(&fixture(name), [2, 1, 1]);
        let [vllm, sglang] = ["vllm", "sglang"].map(|engine| {
            let into = folder.path().join(engine);
            export(&plan, &into, &["--format", "sharded-state", "--engine", engine]).succeeded();
            [0, 1].map(|rank| read_files(&into, &format!("model-rank-{rank}-part-")))
        });
        for (mut vllm, sglang) in vllm.into_iter().zip(sglang) {
            // SGLang has no scales of a cache that is not quantised.
            vllm.retain(|name, _| !name.ends_with("_scale"));
            assert_eq!(sglang, vllm, "{name}");
        }
    }
}

#[test]
fn stages_of_an_engine_have_files_of_their_own() {
    for name in ["qwen2-bf16", "llama-odd-vocab-bf16"] {
        let (folder, plan) = planned(&fixture(name), [2, 2, 1]);
        let into = folder.path().join("exported");
        export(&plan, &into, &["--format", "sharded-state", "--engine", "vllm"]).succeeded();
        let is_tied = !read_checkpoint(&fixture(name)).contains_key("lm_head.weight");
        for (stage, tp) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let tensors = read_files(&into, &format!("model-pp-{stage}-tp-{tp}-part-"));
            let of_layer = |layer: usize| {
                tensors.keys().filter(|name| name.starts_with(&format!("model.layers.{layer}."))).count()
            };
            assert!(of_layer(stage) > 8 && of_layer(1 - stage) == 0, "{:?}", tensors.keys());
            let others: Vec<&str> =
                tensors.keys().filter(|name| !name.contains(".layers.")).map(String::as_str).collect();
            match stage {
                0 => assert_eq!(others, ["model.embed_tokens.weight"]),
                _ => assert_eq!(others, ["lm_head.weight", "model.norm.weight"]),
            }
        }
        // An embedding that is the head too is on both, by the name that the engine has for it there.
        let [first, last] = [0, 1].map(|stage| read_files(&into, &format!("model-pp-{stage}-tp-1-part-")));
        let is_same = first["model.embed_tokens.weight"] == last["lm_head.weight"];
        assert_eq!(is_same, is_tied, "{name}");
    }
}

#[test]
fn what_an_engine_is_not_known_to_hold_is_refused() {
    let (folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let into = folder.path().join("exported");
    let refused = |plan: &Path, engine: &str, code: i32, parts: &[&str]| {
        export(plan, &into, &["--format", "sharded-state", "--engine", engine]).refused(code, parts);
        assert!(!into.exists());
    };
    // The same weights, of a family that was not tried.
    let other = folder.path().join("other.yaml");
    let planned_text = fs::read_to_string(&plan).unwrap();
    fs::write(&other, planned_text.replace("model_type: llama", "model_type: granite")).unwrap();
    for engine in ["vllm", "sglang"] {
        refused(&other, engine, 1, &[engine, "`granite` was never proven", "--format shardwright"]);
    }
    refused(&plan, "tgi", 2, &["`tgi` is no engine", "sglang, vllm"]);
    // Its MLP has biases, which SGLang's has not.
    let (_biases, biased) = planned(&fixture("llama-odd-vocab-bf16"), [2, 1, 1]);
    refused(&biased, "sglang", 1, &["no known name for `model.layers.*.mlp.gate_proj.bias`"]);
    let (_stages, staged) = planned(&fixture("llama-bf16"), [1, 2, 1]);
    refused(&staged, "sglang", 1, &["how sglang holds pipeline stages was never proven"]);
    export(&plan, &into, &["--format", "sharded-state"]).refused(2, &["--engine"]);
    export(&plan, &into, &["--engine", "vllm"]).refused(2, &["--engine is for --format sharded-state"]);
    let (_copies, plan) = planned(&fixture("llama-bf16"), [1, 1, 2]);
    refused(&plan, "vllm", 1, &["data-parallel copies"]);
    let rules = folder.path().join("rules.yaml");
    fs::write(&rules, "rules:\n  \"**.mlp.*\": replicated\n").unwrap();
    let whole = folder.path().join("whole.yaml");
    support::plan(
        &fixture("llama-bf16"),
        &["--topology", "host", "--tp", "2", "--rules", text(&rules)],
        &whole,
    );
    refused(
        &whole,
        "vllm",
        1,
        &["vllm holds `model.layers.*.mlp.", "cut evenly along dimension", "whole on every rank"],
    );
}

#[test]
fn a_disk_that_takes_no_more_ends_the_export_and_nothing_is_left() {
    let (folder, plan) = planned(&fixture("llama-bf16"), [2, 1, 1]);
    let into = folder.path().join("exported");
    // Files may not grow beyond 64 KiB: writing fails in the middle, as on a full disk.
    let script = r#"trap '' XFSZ; ulimit -f 64; exec "$0" export "$1" -o "$2""#;
    let outcome = std::process::Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_shardwright"), text(&plan), text(&into)])
        .output()
        .unwrap();
    let said = String::from_utf8(outcome.stderr).unwrap();
    assert_eq!(outcome.status.code(), Some(4), "{said}");
    assert!(said.contains("cannot write") && said.contains("rank-0000"), "{said}");
    assert_eq!(listing(folder.path()), ["plan.yaml"]);
}
