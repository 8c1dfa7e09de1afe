//! Plans that were edited by hand into nonsense: every command that reads one says no.

use crate::support::{plan, shardwright, text, tiny::Checkpoint, tiny::Dims, tiny::TINY};
use std::{fs, path::PathBuf, process::Command};

const ANEW: &str = "help: the plan was edited or damaged; make it anew with `shardwright plan`";

/// A tiny checkpoint of four layers and its plan, over two stages of two ranks.
fn planned() -> (Checkpoint, PathBuf, String) {
    let checkpoint = Checkpoint::new(Dims { layers: 4, ..TINY }, "llama");
    let file = checkpoint.beside("plan.yaml");
    plan(&checkpoint.path, &["--topology", "dgx-h100", "--tp", "2", "--pp", "2"], &file);
    let text = fs::read_to_string(&file).unwrap();
    (checkpoint, file, text)
}

/// Checks that every command refuses the plan in `file`.
fn refused_by_all(file: &str, code: i32, parts: &[&str]) {
    for args in [
        &["check", file][..],
        &["explain", file, "*"],
        &["slices", file, "--rank", "0"],
        &["load", file, "--device", "host"],
        &["load", file, "--device", "host", "--rank", "1", "--json"],
    ] {
        shardwright(args).refused(code, parts);
    }
}

/// Checks that a plan is refused after the first `from` in it became `to`.
fn edited(from: &str, to: &str, parts: &[&str]) {
    let (_checkpoint, file, text_of) = planned();
    assert!(text_of.contains(from), "no {from:?} in:\n{text_of}");
    fs::write(&file, text_of.replacen(from, to, 1)).unwrap();
    refused_by_all(text(&file), 1, &[parts, &[ANEW]].concat());
}

#[test]
fn an_untouched_plan_is_good() {
    let (_checkpoint, file, _) = planned();
    assert!(shardwright(&["check", text(&file)]).succeeded().ends_with("the plan is good\n"));
}

#[test]
fn text_that_is_no_plan_is_named() {
    let (_checkpoint, file, _) = planned();
    for words in ["", "a plan", "- 1\n- 2\n", "shardwright_plan: 1\n", "{", "ranks: [\n", "a: &a [*a]\n"] {
        fs::write(&file, words).unwrap();
        refused_by_all(text(&file), 1, &["not a plan", ANEW]);
    }
    fs::write(&file, [0xff, 0xfe, 0]).unwrap();
    refused_by_all(text(&file), 1, &["not a plan", "UTF-8"]);
}

#[test]
fn a_plan_cut_short_is_refused() {
    let (_checkpoint, file, whole) = planned();
    for part in [1, 2, 3] {
        fs::write(&file, &whole[..whole.len() * part / 4]).unwrap();
        refused_by_all(text(&file), 1, &[]);
    }
}

#[test]
fn wrong_yaml_is_named_with_its_line() {
    edited("mesh:\n", "mesh: [\n", &["not a plan", "line "]);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    edited("family: llama", "family: llama\ncolour: red", &["colour", "line "]);
    edited("  dp: 1", "  dp: 1\n  cp: 1", &["cp", "line "]);
}

#[test]
fn another_version_is_named() {
    edited("shardwright_plan: 1", "shardwright_plan: 99", &["version is 99", "reads 1"]);
}

#[test]
fn a_mesh_without_its_ranks_is_refused() {
    edited("  tp: 2", "  tp: 4", &["lists 4 ranks", "tp 4, pp 2, dp 1", "8"]);
    edited("  tp: 2", "  tp: 0", &["tp 0"]);
    edited("  tp: 2", "  tp: 4000000000", &["tp 4000000000"]);
}

#[test]
fn a_rank_listed_twice_is_refused() {
    edited("rank: 1", "rank: 0", &["listed in order, each once"]);
}

#[test]
fn two_ranks_on_one_gpu_are_named() {
    edited("gpu: gpu1", "gpu: gpu0", &["ranks 0 and 1", "`gpu0`"]);
    edited("device: 1", "device: 0", &["ranks 0 and 1", "`gpu1`"]);
}

#[test]
fn stages_with_a_hole_are_refused() {
    edited("- start: 2\n", "- start: 3\n", &["stages", "4 layers", "2 runs"]);
}

#[test]
fn stages_that_end_early_late_or_are_empty_are_refused() {
    edited("  stop: 4\n", "  stop: 3\n", &["stages", "4 layers"]);
    edited("  stop: 4\n", "  stop: 18446744073709551615\n", &["stages", "4 layers"]);
    edited("- start: 0\n  stop: 2\n", "- start: 0\n  stop: 0\n", &["stages", "4 layers"]);
}

#[test]
fn segments_that_do_not_tile_the_dimension_are_refused() {
    edited("- groups: 32\n", "- groups: 31\n", &["mlp.gate_proj.weight", "31", "32"]);
    edited("- groups: 32\n", "- groups: 32\n      - groups: 32\n", &["mlp.gate_proj.weight", "64", "32"]);
    edited("- groups: 32\n", "- groups: 0\n", &["not a plan", "0 groups"]);
    edited("- groups: 32\n", "- groups: 18446744073709551615\n        unit: 3\n", &["18446744073709551615"]);
}

#[test]
fn segments_that_do_not_divide_are_refused() {
    edited("- groups: 32\n", "- groups: 1\n        unit: 32\n", &["mlp.gate_proj.weight"]);
}

#[test]
fn a_split_along_a_dimension_that_is_not_there_is_refused() {
    edited("dim: 0", "dim: 7", &["model.embed_tokens.weight", "7"]);
}

#[test]
fn an_absurd_shape_is_refused() {
    edited("  - 24\n  - 16\n", "  - 18446744073709551615\n  - 16\n", &["model.embed_tokens.weight"]);
    edited("  - 24\n  - 16\n", &"  - 1\n".repeat(65), &["model.embed_tokens.weight"]);
}

#[test]
fn a_dtype_that_is_none_is_named() {
    edited("dtype: BF16", "dtype: BF17", &["BF17", "line "]);
}

#[test]
fn a_tensor_in_two_groups_is_named() {
    edited("- model.norm.weight", "- lm_head.weight", &["`lm_head.weight`", "twice"]);
}

#[test]
fn names_that_expand_without_end_are_refused_at_once() {
    let bomb = "model.layers.{0-4000000000}.input_layernorm.weight";
    edited("model.layers.{0-3}.input_layernorm.weight", bomb, &["more than 4000000 tensors"]);
    let squared = "model.{0-4000000000}.{0-4000000000}.{0-4000000000}.weight";
    edited("model.layers.{0-3}.input_layernorm.weight", squared, &["more than 4000000 tensors"]);
}

#[test]
fn a_layer_that_the_model_lacks_is_named() {
    let names = "model.layers.{0-4}.input_layernorm.weight";
    edited("model.layers.{0-3}.input_layernorm.weight", names, &["input_layernorm", "no layer below 4"]);
}

#[test]
fn a_pattern_that_is_none_is_named() {
    edited("{0-3}.input", "{3-0}.input", &["do not ascend"]);
    edited("{0-3}.input", "{0-3.input", &["not closed"]);
}

#[test]
fn a_memory_made_too_small_does_not_fit() {
    let (_checkpoint, file, whole) = planned();
    let bytes = whole.split("memory_bytes: ").nth(1).unwrap().lines().next().unwrap();
    fs::write(&file, whole.replacen(bytes, "1024", 1)).unwrap();
    shardwright(&["check", text(&file)]).refused(1, &["does not fit", "`gpu0`", "1.00 KiB", "\nhelp: "]);
}

#[test]
fn a_tensor_taken_out_of_the_plan_is_missed() {
    let (_checkpoint, file, whole) = planned();
    let (before, after) = whole.split_once("- names:\n  - model.norm.weight").unwrap();
    let (_, after) = after.split_once("- names:\n").unwrap();
    fs::write(&file, format!("{before}- names:\n{after}")).unwrap();
    for args in [&["check", text(&file)][..], &["load", text(&file)]] {
        shardwright(args).refused(1, &["`model.norm.weight`", "not in the plan", "\nhelp: "]);
    }
}

#[test]
fn a_tensor_that_the_checkpoint_lacks_is_named() {
    let (_checkpoint, file, whole) = planned();
    fs::write(&file, whole.replacen("- model.norm.weight", "- model.extra.weight", 1)).unwrap();
    for args in [&["check", text(&file)][..], &["load", text(&file)]] {
        shardwright(args).refused(1, &["`model.extra.weight`", "not in the checkpoint", "\nhelp: "]);
    }
}

#[test]
fn a_plan_that_cannot_be_read_is_bad_input() {
    let folder = Checkpoint::empty();
    refused_by_all("/nowhere/plan.yaml", 3, &["cannot read /nowhere/plan.yaml"]);
    refused_by_all(text(&folder.path), 3, &["cannot read", "not a regular file"]);
    let pipe = folder.file("pipe.yaml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused_by_all(text(&pipe), 3, &["cannot read", "not a regular file"]);
}

#[test]
fn control_characters_in_a_plan_never_reach_the_terminal() {
    let (_checkpoint, file, whole) = planned();
    fs::write(&file, whole.replacen("- model.norm.weight", "- \"model.\\e[31m.weight\"", 1)).unwrap();
    let shown = shardwright(&["explain", text(&file), "*"]).succeeded();
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
    let refused = shardwright(&["check", text(&file)]);
    refused.refused(1, &["31m"]);
    assert!(!refused.stderr.contains('\u{1b}'), "{refused:?}");
}
