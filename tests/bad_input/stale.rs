//! Checkpoints that changed after they were planned.

use crate::support::{
    plan, shardwright, text,
    tiny::{Checkpoint, Dims, TINY, header, write_file, write_tensors},
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

const FILE: &str = "model.safetensors";

fn planned(checkpoint: &Checkpoint) -> PathBuf {
    let file = checkpoint.beside("plan.yaml");
    plan(&checkpoint.path, &["--topology", "dgx-h100", "--tp", "2"], &file);
    file
}

/// Checks that neither `check` nor `load` takes the checkpoint for the one that was planned.
fn refused(plan: &Path, code: i32, parts: &[&str]) {
    let parts = [parts, &["\nhelp: "]].concat();
    for args in [
        &["check", text(plan)][..],
        &["check", text(plan), "--json"],
        &["load", text(plan), "--device", "host"],
        &["load", text(plan), "--device", "host", "--rank", "0"],
    ] {
        shardwright(args).refused(code, &parts);
    }
}

#[test]
fn another_length_is_named_with_both() {
    let checkpoint = Checkpoint::tiny();
    let plan = planned(&checkpoint);
    let before = fs::metadata(checkpoint.file(FILE)).unwrap().len();
    write_tensors(&checkpoint.file(FILE), &Dims { vocabulary: 26, ..TINY }.tensors());
    let now = fs::metadata(checkpoint.file(FILE)).unwrap().len();
    assert_ne!(before, now);
    let parts = ["changed since it was planned", FILE, &before.to_string(), &now.to_string()];
    refused(&plan, 1, &parts);
}

#[test]
fn another_header_of_the_same_length_is_named() {
    let checkpoint = Checkpoint::tiny();
    let plan = planned(&checkpoint);
    let (header, data) = header(&TINY.tensors());
    let swapped = Value::from(header)
        .to_string()
        .replace(".q_proj.", ".x_proj.")
        .replace(".o_proj.", ".q_proj.")
        .replace(".x_proj.", ".o_proj.");
    write_file(&checkpoint.file(FILE), &swapped, data);
    refused(&plan, 1, &["changed since it was planned", FILE, "header"]);
}

#[test]
fn another_dtype_of_the_same_width_is_another_header() {
    let checkpoint = Checkpoint::tiny();
    let plan = planned(&checkpoint);
    let (mut header, data) = header(&TINY.tensors());
    header["model.norm.weight"]["dtype"] = json!("F16");
    write_file(&checkpoint.file(FILE), &Value::from(header).to_string(), data);
    refused(&plan, 1, &["changed since it was planned", FILE]);
}

#[test]
fn a_file_added_is_named() {
    let checkpoint = Checkpoint::tiny();
    fs::rename(checkpoint.file(FILE), checkpoint.file("a.safetensors")).unwrap();
    let plan = planned(&checkpoint);
    write_tensors(&checkpoint.file("b.safetensors"), &[("extra.weight".to_owned(), vec![4])]);
    refused(&plan, 1, &["changed since it was planned", "b.safetensors", "was not there"]);
}

#[test]
fn a_file_gone_is_named() {
    let checkpoint = Checkpoint::empty();
    let tensors = TINY.tensors();
    write_tensors(&checkpoint.file("a.safetensors"), &tensors[..9]);
    write_tensors(&checkpoint.file("b.safetensors"), &tensors[9..]);
    checkpoint.write_config(&TINY.config("llama"));
    let plan = planned(&checkpoint);
    fs::remove_file(checkpoint.file("b.safetensors")).unwrap();
    refused(&plan, 1, &["changed since it was planned", "b.safetensors", "not there any more"]);
}

#[test]
fn a_file_gone_that_the_index_names_is_an_incomplete_checkpoint() {
    let checkpoint = Checkpoint::sharded(TINY, 3);
    let plan = planned(&checkpoint);
    fs::remove_file(checkpoint.file("model-00002-of-00003.safetensors")).unwrap();
    refused(&plan, 3, &["model-00002-of-00003.safetensors"]);
}

#[test]
fn a_file_cut_short_is_a_damaged_checkpoint() {
    let checkpoint = Checkpoint::tiny();
    let plan = planned(&checkpoint);
    let file = File::options().write(true).open(checkpoint.file(FILE)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 2).unwrap();
    refused(&plan, 3, &[FILE, "ends at byte"]);
}

#[test]
fn a_checkpoint_that_moved_is_named_and_found_with_an_option() {
    let checkpoint = Checkpoint::tiny();
    let plan = planned(&checkpoint);
    let moved = checkpoint.beside("elsewhere");
    fs::rename(&checkpoint.path, &moved).unwrap();
    refused(&plan, 3, &[text(&checkpoint.path), "--checkpoint"]);
    shardwright(&["check", text(&plan), "--checkpoint", text(&moved)]).succeeded();
    let load = ["load", text(&plan), "--device", "host", "--checkpoint", text(&moved)];
    shardwright(&load).succeeded();
}

#[test]
fn another_checkpoint_is_refused() {
    let (checkpoint, other) = (Checkpoint::tiny(), Checkpoint::sharded(TINY, 3));
    let plan = planned(&checkpoint);
    shardwright(&["check", text(&plan), "--checkpoint", text(&other.path)]).refused(1, &[FILE, "\nhelp: "]);
}
