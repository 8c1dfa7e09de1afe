//! Indexes that lead astray.

use crate::{
    checkpoint_is_damaged,
    support::{
        text,
        tiny::{Checkpoint, TINY, write_tensors},
    },
};
use serde_json::json;
use std::{fs, os::unix::fs::symlink, process::Command};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00003.safetensors";

fn sharded() -> Checkpoint {
    Checkpoint::sharded(TINY, 3)
}

#[test]
fn a_missing_file_is_named() {
    let checkpoint = sharded();
    fs::remove_file(checkpoint.file(FIRST)).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, FIRST, "not in the folder", "fetch"]);
}

#[test]
fn a_file_above_the_folder_is_not_opened() {
    let checkpoint = sharded();
    fs::rename(checkpoint.file(FIRST), checkpoint.beside("x.safetensors")).unwrap();
    checkpoint.list("model.embed_tokens.weight", "../x.safetensors");
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "../x.safetensors", "outside the checkpoint's folder"]);
}

#[test]
fn a_way_out_and_back_in_is_not_taken() {
    let checkpoint = sharded();
    checkpoint.list("model.embed_tokens.weight", &format!("../model/{FIRST}"));
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "../model/", "outside"]);
}

#[test]
fn an_absolute_path_is_not_opened() {
    let checkpoint = sharded();
    let outside = checkpoint.beside("x.safetensors");
    fs::rename(checkpoint.file(FIRST), &outside).unwrap();
    checkpoint.list("model.embed_tokens.weight", text(&outside));
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, text(&outside), "outside"]);
}

#[test]
fn a_link_that_leaves_the_folder_is_not_followed() {
    let checkpoint = sharded();
    fs::rename(checkpoint.file(FIRST), checkpoint.beside("x.safetensors")).unwrap();
    symlink("../x.safetensors", checkpoint.file(FIRST)).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, FIRST, "outside"]);
}

#[test]
fn without_an_index_a_link_that_leaves_the_folder_is_not_followed_either() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.file("model.safetensors");
    fs::rename(&file, checkpoint.beside("x.safetensors")).unwrap();
    symlink("../x.safetensors", &file).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &["model.safetensors", "outside"]);
}

#[test]
fn a_link_to_nothing_is_named() {
    let checkpoint = sharded();
    fs::remove_file(checkpoint.file(FIRST)).unwrap();
    symlink("gone.safetensors", checkpoint.file(FIRST)).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, FIRST]);
}

#[test]
fn a_tensor_that_its_file_lacks_is_named() {
    let checkpoint = sharded();
    checkpoint.list("model.layers.9.mlp.up_proj.weight", FIRST);
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "model.layers.9.mlp.up_proj.weight", FIRST]);
}

#[test]
fn a_tensor_that_is_in_another_file_is_named() {
    let checkpoint = sharded();
    checkpoint.list("model.norm.weight", FIRST);
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "model.norm.weight", FIRST]);
}

#[test]
fn a_damaged_file_among_several_is_the_one_named() {
    let checkpoint = sharded();
    let second = "model-00002-of-00003.safetensors";
    write_tensors(&checkpoint.file(second), &TINY.tensors()[7..14]);
    let file = fs::File::options().write(true).open(checkpoint.file(second)).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[second, "ends at byte"]);
}

#[test]
fn an_index_that_is_none_is_named() {
    let checkpoint = sharded();
    for index in [json!([]), json!({}), json!({"weight_map": {}}), json!({"weight_map": {"a": 1}})] {
        checkpoint.write_index(&index);
        checkpoint_is_damaged(&checkpoint.path, &[INDEX, "not a safetensors index"]);
    }
    fs::write(checkpoint.file(INDEX), "{\"weight_map\":").unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "not a safetensors index"]);
}

#[test]
fn an_index_that_lists_a_tensor_twice_is_refused() {
    let checkpoint = sharded();
    let twice =
        format!("{{\"weight_map\":{{\"lm_head.weight\":\"{FIRST}\",\"lm_head.weight\":\"{FIRST}\"}}}}");
    fs::write(checkpoint.file(INDEX), twice).unwrap();
    checkpoint_is_damaged(&checkpoint.path, &[INDEX, "lm_head.weight"]);
}

#[test]
fn a_pipe_that_the_index_names_is_not_waited_for() {
    let checkpoint = sharded();
    fs::remove_file(checkpoint.file(FIRST)).unwrap();
    assert!(Command::new("mkfifo").arg(checkpoint.file(FIRST)).status().unwrap().success());
    checkpoint_is_damaged(&checkpoint.path, &[FIRST, "not a regular file"]);
}
