//! Models that no family knows and whose modules have names that nobody uses: what the tensor graph tells, and what it does not.

use super::zoo;
use crate::support::{
    cut::{Held, held},
    headers::Headers,
    shardwright, slices, text,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A Llama whose modules are called otherwise: heads of 16, so that attention is wider (128) than the residual stream (64).
fn renamed(names: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::read(&zoo().join("llama.json"));
    headers = headers.changed(|fixture| {
        fixture["config"]["model_type"] = "never_heard_of".into();
        let tensors = fixture["tensors"].as_object().unwrap();
        let rename = |name: &String| {
            names.iter().fold(name.clone(), |name, (from, to)| {
                name.split('.')
                    .map(|part| if part == *from { *to } else { part })
                    .collect::<Vec<_>>()
                    .join(".")
            })
        };
        let renamed: Map<String, Value> =
            tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        assert_eq!(renamed.len(), tensors.len());
        fixture["tensors"] = renamed.into();
    });
    headers
}

const STRANGE: [(&str, &str); 9] = [
    ("q_proj", "alpha"),
    ("k_proj", "beta"),
    ("v_proj", "gamma"),
    ("o_proj", "delta"),
    ("gate_proj", "epsilon"),
    ("up_proj", "zeta"),
    ("down_proj", "eta"),
    ("self_attn", "mixer"),
    ("mlp", "channel"),
];

fn planned(checkpoint: &Headers) -> (Vec<BTreeMap<String, Held>>, String, String) {
    let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
    let shown = shardwright(&["plan", text(&path), "--tp", "2", "-o", text(&plan)]).succeeded();
    let explained = shardwright(&["explain", text(&plan), "*"]).succeeded();
    (slices(&plan, 2).iter().map(held).collect(), shown, explained)
}

#[test]
fn modules_are_paired_by_the_widths_that_flow_between_them() {
    let (ranks, shown, explained) = planned(&renamed(&STRANGE));
    assert!(shown.contains("no family knows model type `never_heard_of`"), "{shown}");
    let shape = |name: &str| ranks[1][&format!("model.layers.0.{name}.weight")].shape.clone();
    assert_eq!(shape("mixer.alpha"), [64, 64]);
    assert_eq!(shape("mixer.beta"), [16, 64]);
    assert_eq!(shape("mixer.delta"), [64, 64]);
    assert_eq!(shape("channel.zeta"), [80, 64]);
    assert_eq!(shape("channel.eta"), [64, 80]);
    assert!(
        explained.contains("column-parallel: tensor graph: it reads the residual stream, and `delta` reads its 8 query heads × 16"),
        "{explained}"
    );
    assert!(
        explained.contains("row-parallel: tensor graph: it adds to the residual stream, and reads the features 160 of `epsilon`, `zeta`"),
        "{explained}"
    );
}

#[test]
fn what_cannot_be_paired_for_sure_is_replicated_with_its_cost() {
    // A norm over the features needs all of them, and so the pair around it is not cut.
    let checkpoint = renamed(&STRANGE).changed(|fixture| {
        for layer in 0..2 {
            fixture["tensors"][format!("model.layers.{layer}.channel.theta.weight")] = json!(["F32", [160]]);
        }
    });
    let (ranks, shown, _) = planned(&checkpoint);
    assert_eq!(ranks[0]["model.layers.1.channel.eta.weight"].shape, [64, 160]);
    assert_eq!(ranks[0]["model.layers.1.mixer.beta.weight"].shape, [16, 64]);
    let warning = "each of model.layers.*.channel.epsilon.weight, model.layers.*.channel.eta.weight, \
                   model.layers.*.channel.zeta.weight is replicated";
    assert!(shown.contains(warning) && shown.contains("(80.00 KiB on each rank)"), "{shown}");

    // Two matrices fused in an order that nothing tells.
    let checkpoint = renamed(&STRANGE).changed(|fixture| {
        let tensors = fixture["tensors"].as_object_mut().unwrap();
        for layer in 0..2 {
            tensors.remove(&format!("model.layers.{layer}.channel.epsilon.weight"));
            tensors[&format!("model.layers.{layer}.channel.zeta.weight")] = json!(["F32", [320, 64]]);
        }
    });
    let (ranks, shown, _) = planned(&checkpoint);
    assert_eq!(ranks[0]["model.layers.1.channel.zeta.weight"].shape, [320, 64]);
    assert!(
        shown.contains("model.layers.*.channel.zeta.weight") && shown.contains("on each rank"),
        "{shown}"
    );
}

#[test]
fn a_known_name_whose_other_half_is_missing_is_no_cut() {
    // q, k and v are known by name, but what reads them has lost a column.
    let checkpoint = renamed(&[]).changed(|fixture| {
        for layer in 0..2 {
            fixture["tensors"][format!("model.layers.{layer}.self_attn.o_proj.weight")] =
                json!(["F32", [64, 127]]);
        }
    });
    let (ranks, shown, explained) = planned(&checkpoint);
    assert_eq!(ranks[0]["model.layers.0.self_attn.q_proj.weight"].shape, [128, 64]);
    assert!(shown.contains("what reads its outputs is not cut alike"), "{shown}");
    assert!(explained.contains("but what reads its outputs is not cut alike: replicated"), "{explained}");
}

#[test]
fn the_graph_can_be_drawn() {
    let checkpoint = renamed(&STRANGE);
    let path = checkpoint.path();
    let dot = shardwright(&["inspect", text(&path), "--dot"]).succeeded();
    insta::assert_snapshot!("dot", dot);
}
