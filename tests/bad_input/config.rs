//! Configurations that are missing, contradict the tensors, or ask for what does not divide.

use crate::{
    plan_is_refused,
    support::{
        fixture, shardwright, text,
        tiny::{Checkpoint, Dims, QWEN2_7B, TINY, write_tensors},
    },
};
use serde_json::{Value, json};
use std::fs;

const ARGS: [&str; 4] = ["--topology", "dgx-h100", "--tp", "2"];

/// Checks what planning a tiny checkpoint says after one entry of its configuration was changed.
fn configured(key: &str, value: impl Into<Value>, code: i32, parts: &[&str]) {
    let checkpoint = Checkpoint::tiny();
    checkpoint.configure(key, value);
    let parts = [parts, &["\nhelp: "]].concat();
    plan_is_refused(&checkpoint.path, &ARGS, code, &parts);
}

#[test]
fn a_missing_configuration_is_named() {
    let checkpoint = Checkpoint::tiny();
    fs::remove_file(checkpoint.file("config.json")).unwrap();
    let path = checkpoint.file("config.json");
    plan_is_refused(&checkpoint.path, &ARGS, 3, &[&format!("{} is missing", text(&path)), "\nhelp: "]);
}

#[test]
fn a_configuration_that_is_not_json_is_named() {
    let checkpoint = Checkpoint::tiny();
    for words in ["", "{", "7", "[{}]"] {
        fs::write(checkpoint.file("config.json"), words).unwrap();
        plan_is_refused(&checkpoint.path, &ARGS, 3, &["config.json is not the JSON", "\nhelp: "]);
    }
}

#[test]
fn a_missing_dimension_is_named() {
    for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
    {
        configured(key, Value::Null, 3, &["config.json", &format!("`{key}`")]);
    }
    configured("model_type", Value::Null, 3, &["config.json", "`model_type`"]);
}

#[test]
fn a_dimension_that_no_model_has_is_named() {
    for value in [json!(0), json!(-16), json!(u64::MAX), json!("16"), json!(16.5)] {
        let shown = value.to_string();
        configured("hidden_size", value, 3, &["config.json", "`hidden_size`", &shown]);
    }
}

#[test]
fn heads_that_contradict_the_shapes_are_named() {
    configured("num_attention_heads", 8, 3, &["self_attn.", "[16, 16]", "8 query heads"]);
    configured("num_key_value_heads", 1, 3, &["self_attn.k_proj", "[8, 16]", "[4, 16]", "1 kv heads"]);
    configured("head_dim", 8, 3, &["self_attn.", "× 8"]);
}

#[test]
fn heads_that_contradict_each_other_are_named() {
    configured("num_key_value_heads", 3, 3, &["config.json", "4 attention heads", "3 key/value heads"]);
}

#[test]
fn widths_that_contradict_the_shapes_are_named() {
    configured("hidden_size", 32, 3, &["contradict", "hidden 32"]);
    configured("intermediate_size", 64, 3, &["mlp.", "intermediate 64"]);
    configured("vocab_size", 25, 3, &["[24, 16]", "[25, 16]", "vocabulary 25"]);
}

#[test]
fn more_layers_than_the_tensors_have_are_named() {
    configured("num_hidden_layers", 3, 3, &["config.json counts 3 layers", "lacks layer 2"]);
}

#[test]
fn fewer_layers_than_the_tensors_have_are_named() {
    configured("num_hidden_layers", 1, 3, &["config.json counts 1 layer,", "has layer 1"]);
}

#[test]
fn a_layer_without_one_of_its_tensors_is_named() {
    let checkpoint = Checkpoint::tiny();
    let mut tensors = TINY.tensors();
    tensors.retain(|(name, _)| name != "model.layers.1.mlp.up_proj.weight");
    write_tensors(&checkpoint.file("model.safetensors"), &tensors);
    plan_is_refused(&checkpoint.path, &ARGS, 3, &["model.layers.*.mlp.up_proj.weight", "lacks layer 1"]);
}

#[test]
fn a_missing_embedding_is_named() {
    let checkpoint = Checkpoint::tiny();
    write_tensors(&checkpoint.file("model.safetensors"), &TINY.tensors()[1..]);
    plan_is_refused(&checkpoint.path, &ARGS, 3, &["embed_tokens"]);
}

#[test]
fn a_model_type_without_a_family_is_planned_by_names_and_shapes() {
    let checkpoint = Checkpoint::tiny();
    checkpoint.configure("model_type", "never_heard_of");
    let shown = shardwright(&[&["plan", text(&checkpoint.path)], &ARGS[..]].concat()).succeeded();
    assert!(shown.contains("family decoder"), "{shown}");
    assert!(shown.contains("warning: no family knows model type `never_heard_of`"), "{shown}");
    let known = shardwright(&[&["plan", text(&Checkpoint::tiny().path)], &ARGS[..]].concat()).succeeded();
    let table = |shown: &str| shown.split("\n\n").nth(1).map(str::to_owned);
    assert_eq!(table(&shown), table(&known));
}

#[test]
fn qwen2_7b_over_eight_ranks_says_what_divides() {
    let checkpoint = Checkpoint::empty();
    let mut tensors = QWEN2_7B.tensors();
    let (query, kv) = (28 * 128, 4 * 128);
    for layer in 0..QWEN2_7B.layers {
        for (module, size) in [("q_proj", query), ("k_proj", kv), ("v_proj", kv)] {
            tensors.push((format!("model.layers.{layer}.self_attn.{module}.bias"), vec![size]));
        }
    }
    write_tensors(&checkpoint.file("model.safetensors"), &tensors);
    checkpoint.write_config(&QWEN2_7B.config("qwen2"));

    let on = |tp: &'static str| ["--topology", "dgx-h100", "--tp", tp];
    let said = plan_is_refused(
        &checkpoint.path,
        &on("8"),
        1,
        &[
            "cannot split `model.layers.*.self_attn.q_proj` over tp 8: 28 query heads do not divide by 8",
            "28 query and 4 kv heads of 128",
            "help: tp 1, 2 or 4 divide every module",
            "--uneven to deal the query heads 4,3,4,3,4,3,4,3",
        ],
    );
    assert!(said.lines().all(|line| line.chars().count() <= 200), "{said}");
    // What the help promises holds.
    for tp in ["1", "2", "4"] {
        shardwright(&[&["plan", text(&checkpoint.path)], &on(tp)[..]].concat()).succeeded();
    }
    let uneven =
        shardwright(&[&["plan", text(&checkpoint.path), "--uneven"], &on("8")[..]].concat()).succeeded();
    assert!(uneven.contains("dealt unevenly"), "{uneven}");
}

#[test]
fn an_intermediate_width_that_does_not_divide_is_named() {
    let dims = Dims { intermediate: 33, ..TINY };
    let checkpoint = Checkpoint::new(dims, "llama");
    let parts = ["mlp.gate_proj", "intermediate 33 does not divide by 2", "help: tp 1 divides every module"];
    plan_is_refused(&checkpoint.path, &ARGS, 1, &parts);
}

#[test]
fn more_stages_than_layers_are_refused() {
    let args = ["--topology", "dgx-h100", "--tp", "1", "--pp", "3"];
    let parts = ["cannot cut 2 layers into 3 pipeline stages", "help: --pp is at most 2"];
    plan_is_refused(&Checkpoint::tiny().path, &args, 1, &parts);
}

#[test]
fn a_mesh_beyond_any_machine_is_wrong_usage() {
    let path = fixture("llama-bf16");
    let args = ["--tp", "4000000000", "--pp", "4000000000"];
    plan_is_refused(&path, &args, 2, &["4000000000"]);
}
