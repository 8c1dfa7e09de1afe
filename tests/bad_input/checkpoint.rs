//! Weights that cannot be believed.

use crate::{
    checkpoint_is_damaged, plan_is_refused,
    support::{
        fixture, shardwright, text,
        tiny::{Checkpoint, TINY, header, write_file, write_tensors},
    },
};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

const FILE: &str = "model.safetensors";

/// A tiny checkpoint whose header, and length of data, were changed.
fn broken(change: impl FnOnce(&mut Map<String, Value>, &mut u64)) -> Checkpoint {
    let checkpoint = Checkpoint::tiny();
    let (mut header, mut data) = header(&TINY.tensors());
    change(&mut header, &mut data);
    write_file(&checkpoint.file(FILE), &Value::from(header).to_string(), data);
    checkpoint
}

fn with_bytes(bytes: &[u8]) -> Checkpoint {
    let checkpoint = Checkpoint::tiny();
    fs::write(checkpoint.file(FILE), bytes).unwrap();
    checkpoint
}

#[test]
fn a_checkpoint_that_is_not_broken_is_planned() {
    let checkpoint = broken(|_, _| ());
    shardwright(&["plan", text(&checkpoint.path), "--topology", "dgx-h100", "--tp", "2"]).succeeded();
}

#[test]
fn a_header_length_beyond_the_file_is_named() {
    let checkpoint = with_bytes(&[&5000u64.to_le_bytes()[..], b"{}"].concat());
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "5000", "the file has 10"]);
}

#[test]
fn an_absurd_header_length_is_refused_without_reading_it() {
    let checkpoint = with_bytes(&[0xff; 64]);
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "18446744073709551615", "the file has 64"]);
}

#[test]
fn a_file_too_short_for_a_header_is_named() {
    for bytes in [&b""[..], b"1234567"] {
        let has = format!("has {} bytes", bytes.len());
        checkpoint_is_damaged(&with_bytes(bytes).path, &[FILE, &has]);
    }
}

#[test]
fn a_header_that_is_not_json_is_named() {
    let checkpoint = Checkpoint::tiny();
    for header in ["{\"a\":", "not json", "[]", "", "{\"a\": \u{1}}"] {
        write_file(&checkpoint.file(FILE), header, 0);
        checkpoint_is_damaged(&checkpoint.path, &[FILE, "not the JSON of a safetensors file"]);
    }
}

#[test]
fn a_header_entry_that_is_no_tensor_is_named() {
    let checkpoint = broken(|header, _| header["lm_head.weight"] = json!({"dtype": "BF17", "shape": []}));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", "BF17"]);
}

#[test]
fn overlapping_offsets_are_named() {
    let checkpoint = broken(|header, _| {
        let shared = header["model.layers.0.self_attn.k_proj.weight"]["data_offsets"].clone();
        header["model.layers.0.self_attn.v_proj.weight"]["data_offsets"] = shared;
    });
    checkpoint_is_damaged(
        &checkpoint.path,
        &[
            FILE,
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "overlap",
            "256",
        ],
    );
}

#[test]
fn a_gap_between_tensors_is_named() {
    let checkpoint = broken(|header, data| {
        let (start, stop) = (*data - 2 * 24 * 16, *data);
        header["lm_head.weight"]["data_offsets"] = json!([start + 12, stop + 12]);
        *data += 12;
    });
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", "12 bytes"]);
}

#[test]
fn offsets_beyond_the_file_are_named() {
    let checkpoint = broken(|header, data| {
        header["lm_head.weight"]["data_offsets"] = json!([*data, *data + 2 * 24 * 16]);
    });
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", "ends at byte", "the file has"]);
}

#[test]
fn offsets_in_the_wrong_order_are_named() {
    let checkpoint = broken(|header, _| header["lm_head.weight"]["data_offsets"] = json!([768, 0]));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", "768"]);
}

#[test]
fn offsets_near_the_largest_number_do_not_wrap() {
    let start = u64::MAX - 2 * 24 * 16;
    let checkpoint = broken(|header, _| header["lm_head.weight"]["data_offsets"] = json!([start, u64::MAX]));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight"]);
}

#[test]
fn bytes_after_the_last_tensor_are_named() {
    let checkpoint = broken(|_, data| *data += 5);
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "5 bytes at the end"]);
}

#[test]
fn a_shape_that_does_not_fill_its_bytes_is_named() {
    let checkpoint = broken(|header, _| header["lm_head.weight"]["shape"] = json!([23, 16]));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", "BF16 [23, 16]", "736", "768"]);
}

#[test]
fn a_shape_whose_product_overflows_is_named() {
    let checkpoint = broken(|header, _| header["lm_head.weight"]["shape"] = json!([u64::MAX, u64::MAX]));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight"]);
}

#[test]
fn a_tensor_named_twice_in_a_header_is_named() {
    let checkpoint = Checkpoint::tiny();
    let (header, data) = header(&TINY.tensors());
    let entry = header["model.norm.weight"].to_string();
    let text = Value::from(header).to_string().replacen('{', &format!("{{\"model.norm.weight\":{entry},"), 1);
    write_file(&checkpoint.file(FILE), &text, data);
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "model.norm.weight", "twice"]);
}

#[test]
fn a_tensor_in_two_files_is_named_with_both() {
    let checkpoint = Checkpoint::empty();
    checkpoint.write_config(&TINY.config("llama"));
    write_tensors(&checkpoint.file("a.safetensors"), &TINY.tensors());
    write_tensors(&checkpoint.file("b.safetensors"), &TINY.tensors()[..1]);
    checkpoint_is_damaged(&checkpoint.path, &["model.embed_tokens.weight", "a.safetensors", "b.safetensors"]);
}

#[test]
fn truncated_data_is_named_with_both_lengths() {
    let checkpoint = Checkpoint::tiny();
    let file = File::options().write(true).open(checkpoint.file(FILE)).unwrap();
    let whole = file.metadata().unwrap().len();
    file.set_len(whole - 1).unwrap();
    let (end, has) = (format!("ends at byte {whole}"), format!("the file has {}", whole - 1));
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "lm_head.weight", &end, &has, "download is incomplete"]);
}

#[test]
fn an_empty_folder_is_no_checkpoint() {
    let checkpoint = Checkpoint::empty();
    checkpoint_is_damaged(&checkpoint.path, &["no safetensors file in", text(&checkpoint.path)]);
}

#[test]
fn a_path_that_is_not_there_is_named() {
    let path = Path::new("/nowhere/at/all");
    checkpoint_is_damaged(path, &["cannot read /nowhere/at/all", "No such file"]);
}

#[test]
fn a_pipe_in_place_of_the_weights_is_not_waited_for() {
    let checkpoint = Checkpoint::tiny();
    let pipe = checkpoint.file(FILE);
    fs::remove_file(&pipe).unwrap();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    checkpoint_is_damaged(&checkpoint.path, &[FILE, "not a regular file"]);
    checkpoint_is_damaged(&pipe, &[FILE, "not a regular file"]);
}

#[test]
fn a_pipe_in_place_of_the_configuration_is_not_waited_for() {
    let checkpoint = Checkpoint::tiny();
    fs::remove_file(checkpoint.file("config.json")).unwrap();
    assert!(Command::new("mkfifo").arg(checkpoint.file("config.json")).status().unwrap().success());
    plan_is_refused(&checkpoint.path, &["--tp", "2"], 3, &["config.json", "not a regular file"]);
}

#[test]
fn control_characters_in_names_never_reach_the_terminal() {
    let evil = "model.\u{1b}[31mred\r\n.weight";
    let tensor = json!({"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]});
    let checkpoint = Checkpoint::tiny();
    let header = json!({ evil: tensor }).to_string();
    write_file(&checkpoint.file(FILE), &header, 2);
    let shown = shardwright(&["inspect", text(&checkpoint.path)]).succeeded();
    assert!(!shown.contains(['\u{1b}', '\r']), "{shown:?}");
    write_file(&checkpoint.file(FILE), &header, 0);
    let refused = shardwright(&["inspect", text(&checkpoint.path)]);
    refused.refused(3, &["\\u{1b}[31mred"]);
    assert!(!refused.stderr.contains(['\u{1b}', '\r']), "{refused:?}");
}

#[test]
fn words_that_make_no_command_are_wrong_usage() {
    let path = fixture("llama-bf16");
    for args in [
        &["plan"][..],
        &["plan", text(&path), "--tp", "0"],
        &["plan", text(&path), "--tp", "x"],
        &["frobnicate"],
    ] {
        shardwright(args).refused(2, &[]);
    }
}
