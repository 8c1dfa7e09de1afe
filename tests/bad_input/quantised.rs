//! Quantised weights that do not go together: with each other, or with what `quantization_config` declares.

use crate::{
    plan_is_refused,
    support::{
        headers::Headers,
        modules::{Form, llama_like, two_layers},
    },
};
use serde_json::{Value, json};

const ARGS: [&str; 4] = ["--topology", "dgx-h100", "--tp", "2"];
const UP: &str = "model.layers.0.mlp.up_proj";

fn checkpoint(form: Form, quantisation: Value) -> Headers {
    let mut config = llama_like("llama", 512, 1024, [8, 4, 64], 320);
    config["quantization_config"] = quantisation;
    two_layers(form, &config)
}

fn gptq() -> Headers {
    checkpoint(
        Form::Gptq(128),
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false}),
    )
}

fn fp8() -> Headers {
    checkpoint(Form::Fp8(128), json!({"quant_method": "fp8", "weight_block_size": [128, 128]}))
}

/// Checks what planning says after `change` was made to a checkpoint.
fn changed(checkpoint: Headers, change: impl FnOnce(&mut Value), parts: &[&str]) {
    let changed = checkpoint.changed(change);
    plan_is_refused(&changed.path(), &ARGS, 3, &[parts, &["\nhelp: "]].concat());
}

fn declared<'a>(fixture: &'a mut Value, key: &str) -> &'a mut Value {
    &mut fixture["config"]["quantization_config"][key]
}

fn remove(fixture: &mut Value, tensor: &str) {
    assert!(fixture["tensors"].as_object_mut().unwrap().remove(tensor).is_some());
}

#[test]
fn checkpoints_that_are_not_broken_are_planned() {
    for checkpoint in [gptq(), fp8()] {
        let path = checkpoint.path();
        let args = ["plan", path.to_str().unwrap()];
        crate::support::shardwright(&[&args[..], &ARGS].concat()).succeeded();
    }
}

#[test]
fn a_scale_that_is_missing_is_named() {
    changed(
        gptq(),
        |fixture| remove(fixture, &format!("{UP}.scales")),
        &["`model.layers.*.mlp.up_proj` is stored in `qweight`, but its `scales` is missing"],
    );
}

#[test]
fn a_scale_of_the_wrong_shape_is_named_with_the_shape_that_would_fit() {
    changed(
        gptq(),
        |fixture| fixture["tensors"][format!("{UP}.scales")] = json!(["F16", [5, 1024]]),
        &[
            "`model.layers.*.mlp.up_proj.scales` has shape [5, 1024], but 512 inputs",
            "in blocks of 128 makes 4",
        ],
    );
    changed(
        gptq(),
        |fixture| fixture["tensors"][format!("{UP}.scales")] = json!(["F16", [4, 1000]]),
        &["up_proj.scales` has shape [4, 1000], but 512 inputs and 1024 outputs", "makes [4, 1024]"],
    );
    changed(
        fp8(),
        |fixture| fixture["tensors"][format!("{UP}.weight_scale_inv")] = json!(["F32", [7, 4]]),
        &["up_proj.weight_scale_inv` has shape [7, 4], but 1024 outputs", "in blocks of 128 makes 8"],
    );
    changed(
        fp8(),
        |fixture| fixture["tensors"][format!("{UP}.weight_scale_inv")] = json!(["F32", [1, 1]]),
        &["up_proj.weight_scale_inv` has shape [1, 1]", "in blocks of 128 makes 8"],
    );
}

#[test]
fn an_index_of_the_wrong_length_is_named() {
    changed(
        gptq(),
        |fixture| fixture["tensors"][format!("{UP}.g_idx")] = json!(["I32", [511]]),
        &["up_proj.g_idx` has shape [511], but 512 inputs", "makes [512]"],
    );
}

#[test]
fn a_group_size_that_the_tensors_do_not_have_is_named() {
    changed(
        gptq(),
        |fixture| *declared(fixture, "group_size") = 64.into(),
        &["qzeros` has shape [4, 64], but 512 inputs", "in blocks of 64 makes 8 in dimension 0"],
    );
}

#[test]
fn bits_that_the_tensors_do_not_have_are_named() {
    changed(
        gptq(),
        |fixture| *declared(fixture, "bits") = 8.into(),
        &[
            "contradict each other",
            "qweight` has 64 words in dimension 0, which with weights of 8 bit do not go",
        ],
    );
}

#[test]
fn packed_weights_without_a_declaration_are_named() {
    changed(
        gptq(),
        |fixture| fixture["config"]["quantization_config"] = Value::Null,
        &["contradict each other", "holds packed weights, but config.json does not say of how many bits"],
    );
}

#[test]
fn numbers_that_no_checkpoint_has_are_named() {
    for (key, value) in [("bits", json!(0)), ("bits", json!("four")), ("group_size", json!(1u64 << 40))] {
        let shown = value.to_string();
        changed(
            gptq(),
            |fixture| *declared(fixture, key) = value,
            &["quantization_config", &format!("`{key}`"), &shown],
        );
    }
    let key = "weight_block_size";
    for value in [json!([0, 128]), json!([128]), json!("128"), json!([128, -1])] {
        changed(fp8(), |fixture| *declared(fixture, key) = value, &["`weight_block_size` is", "two numbers"]);
    }
}

#[test]
fn a_module_that_is_excluded_but_quantised_is_named() {
    changed(
        gptq(),
        |fixture| *declared(fixture, "modules_to_not_convert") = json!(["model.layers.0.mlp.up_proj"]),
        &["contradict each other", "up_proj` is excluded, but stored quantised"],
    );
}

#[test]
fn weights_that_contradict_the_dimensions_are_named() {
    changed(
        gptq(),
        |fixture| fixture["config"]["intermediate_size"] = 2048.into(),
        &["contradict each other", "`model.layers.*.mlp.", "intermediate 2048"],
    );
}
