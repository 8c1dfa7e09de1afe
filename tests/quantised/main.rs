//! Every quantised layout that a real tool wrote (`fixtures/quantised/`): the tensors of each module are cut at the same
//! logical element, and never through a word, a group or a block.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use serde_json::Value;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};
use support::{
    cut::{Held, held},
    headers::Headers,
    listing, shardwright, slices, text,
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantised")
}

fn all() -> Vec<String> {
    listing(&folder()).iter().map(|name| name.strip_suffix(".json").unwrap().to_owned()).collect()
}

fn read(name: &str) -> Headers {
    Headers::read(&folder().join(format!("{name}.json")))
}

/// Plans over `tp` ranks with further `args`; what each rank holds, and what was printed.
fn planned(name: &str, tp: u64, args: &[&str]) -> (Vec<BTreeMap<String, Held>>, String) {
    let checkpoint = read(name);
    let (path, plan, tp_text) = (checkpoint.path(), checkpoint.beside("plan.yaml"), tp.to_string());
    let all = ["plan", text(&path), "--topology", "dgx-h100", "--tp", &tp_text, "-o", text(&plan)];
    let shown = shardwright(&[&all[..], args].concat()).succeeded();
    shardwright(&["check", text(&plan)]).succeeded();
    (slices(&plan, tp).iter().map(held).collect(), shown)
}

/// The logical run `start..stop` of one dimension that a rank holds of a tensor, when each of its elements stands for
/// `elements / stored` logical ones.
fn logical(held: &Held, dim: usize, (elements, stored): (usize, usize)) -> (usize, usize) {
    assert_eq!(held.boxes.len(), 1, "{held:?}");
    let exact = |at: usize| {
        assert_eq!(at * elements % stored, 0, "{held:?} is cut inside {elements} elements");
        at * elements / stored
    };
    (exact(held.boxes[0].start[dim]), exact(held.boxes[0].stop[dim]))
}

/// For each tensor of a module: which of its dimensions is cut, and its logical elements in so many stored ones.
type Forms<'a> = &'a [(&'a str, usize, (usize, usize))];

/// Checks that on each rank the tensors of `module` hold the same logical elements, `runs` of them.
fn cut_alike(ranks: &[BTreeMap<String, Held>], module: &str, forms: Forms<'_>, runs: &[(usize, usize)]) {
    for (rank, (tensors, run)) in ranks.iter().zip(runs).enumerate() {
        for (parameter, dim, form) in forms {
            let name = format!("model.layers.0.{module}.{parameter}");
            let held = tensors.get(&name).unwrap_or_else(|| panic!("rank {rank} lacks {name}"));
            assert_eq!(logical(held, *dim, *form), *run, "rank {rank}, {name}");
        }
    }
}

/// Checks that every rank holds all of these tensors.
fn whole(checkpoint: &str, ranks: &[BTreeMap<String, Held>], names: &[&str]) {
    let fixture = read(checkpoint).fixture;
    for name in names {
        let name = format!("model.layers.0.{name}");
        for tensors in ranks {
            assert_eq!(Value::from(tensors[&name].shape.clone()), fixture["tensors"][&name][1], "{name}");
        }
    }
}

#[test]
fn every_layout_is_planned_over_one_two_and_four_ranks() {
    for name in all() {
        for tp in [1, 2] {
            planned(&name, tp, &[]);
        }
        planned(&name, 4, &["--uneven"]);
    }
}

#[test]
fn gptq_is_cut_between_words_and_groups() {
    // 512 features; columns of gate_proj, rows of down_proj.
    let halves = [(0, 256), (256, 512)];
    for (name, bits) in [("gptq-4bit-g128", 4), ("gptq-8bit", 8), ("gptq-3bit", 3), ("gptq-2bit", 2)] {
        let word = (32, bits);
        let group = read(name).fixture["config"]["quantization_config"]["group_size"].as_u64().unwrap();
        let group = (usize::try_from(group).unwrap(), 1);
        let (ranks, _) = planned(name, 2, &[]);
        let out: Forms<'_> = &[("qweight", 1, (1, 1)), ("scales", 1, (1, 1)), ("qzeros", 1, word)];
        cut_alike(&ranks, "mlp.gate_proj", out, &halves);
        whole(name, &ranks, &["mlp.gate_proj.g_idx"]);
        let input: Forms<'_> =
            &[("qweight", 0, word), ("scales", 0, group), ("qzeros", 0, group), ("g_idx", 0, (1, 1))];
        cut_alike(&ranks, "mlp.down_proj", input, &halves);
    }
}

#[test]
fn gptq_with_act_order_keeps_scales_whole_where_inputs_are_cut() {
    let name = "gptq-4bit-g64-act-order";
    let (ranks, shown) = planned(name, 2, &[]);
    assert!(shown.contains("act-order"), "{shown}");
    cut_alike(
        &ranks,
        "mlp.down_proj",
        &[("qweight", 0, (8, 1)), ("g_idx", 0, (1, 1))],
        &[(0, 256), (256, 512)],
    );
    whole(name, &ranks, &["mlp.down_proj.scales", "mlp.down_proj.qzeros"]);
    cut_alike(
        &ranks,
        "mlp.up_proj",
        &[("scales", 1, (1, 1)), ("qzeros", 1, (8, 1))],
        &[(0, 256), (256, 512)],
    );
}

#[test]
fn awq_is_cut_between_words_of_outputs_and_groups_of_inputs() {
    for name in ["awq-4bit-g128", "awq-4bit-g128-gptqmodel"] {
        let (ranks, _) = planned(name, 2, &[]);
        let halves = [(0, 256), (256, 512)];
        let out: Forms<'_> = &[("qweight", 1, (8, 1)), ("qzeros", 1, (8, 1)), ("scales", 1, (1, 1))];
        cut_alike(&ranks, "mlp.up_proj", out, &halves);
        let input: Forms<'_> = &[("qweight", 0, (1, 1)), ("qzeros", 0, (128, 1)), ("scales", 0, (128, 1))];
        cut_alike(&ranks, "mlp.down_proj", input, &halves);
    }
}

#[test]
fn compressed_tensors_are_cut_between_words_groups_and_blocks() {
    let halves = [(0, 256), (256, 512)];
    let (ranks, _) = planned("ct-int4-g128", 2, &[]);
    cut_alike(&ranks, "mlp.up_proj", &[("weight_packed", 0, (1, 1)), ("weight_scale", 0, (1, 1))], &halves);
    cut_alike(
        &ranks,
        "mlp.down_proj",
        &[("weight_packed", 1, (8, 1)), ("weight_scale", 1, (128, 1))],
        &halves,
    );
    whole("ct-int4-g128", &ranks, &["mlp.down_proj.weight_shape"]);

    // Zero points are packed along the outputs.
    let (ranks, _) = planned("ct-int4-g128-asymmetric", 2, &[]);
    cut_alike(
        &ranks,
        "mlp.up_proj",
        &[("weight_packed", 0, (1, 1)), ("weight_zero_point", 0, (8, 1))],
        &halves,
    );
    cut_alike(&ranks, "mlp.down_proj", &[("weight_zero_point", 1, (128, 1))], &halves);

    let name = "ct-int4-g128-act-order";
    let (ranks, _) = planned(name, 2, &[]);
    cut_alike(&ranks, "mlp.down_proj", &[("weight_packed", 1, (8, 1)), ("weight_g_idx", 0, (1, 1))], &halves);
    whole(name, &ranks, &["mlp.down_proj.weight_scale"]);

    let (ranks, _) = planned("ct-nvfp4", 2, &[]);
    cut_alike(
        &ranks,
        "mlp.down_proj",
        &[("weight_packed", 1, (2, 1)), ("weight_scale", 1, (16, 1))],
        &halves,
    );
    whole("ct-nvfp4", &ranks, &["mlp.down_proj.weight_global_scale", "mlp.down_proj.input_global_scale"]);

    let (ranks, _) = planned("ct-mxfp4", 2, &[]);
    cut_alike(
        &ranks,
        "mlp.down_proj",
        &[("weight_packed", 1, (2, 1)), ("weight_scale", 1, (32, 1))],
        &halves,
    );

    for name in ["ct-fp8-channel", "ct-int8-w8a8"] {
        let (ranks, _) = planned(name, 2, &[]);
        cut_alike(&ranks, "mlp.up_proj", &[("weight", 0, (1, 1)), ("weight_scale", 0, (1, 1))], &halves);
        cut_alike(&ranks, "mlp.down_proj", &[("weight", 1, (1, 1))], &halves);
        whole(name, &ranks, &["mlp.down_proj.weight_scale"]);
    }
}

#[test]
fn fp8_is_cut_between_blocks_or_keeps_its_one_scale() {
    let halves = [(0, 256), (256, 512)];
    for (name, scale) in [("fp8-block", "weight_scale_inv"), ("ct-fp8-block", "weight_scale")] {
        let (ranks, _) = planned(name, 2, &[]);
        cut_alike(&ranks, "mlp.up_proj", &[("weight", 0, (1, 1)), (scale, 0, (128, 1))], &halves);
        cut_alike(&ranks, "mlp.down_proj", &[("weight", 1, (1, 1)), (scale, 1, (128, 1))], &halves);
    }
    for (name, scale) in [("fp8-tensor", "weight_scale_inv"), ("modelopt-fp8", "weight_scale")] {
        let (ranks, _) = planned(name, 2, &[]);
        cut_alike(&ranks, "mlp.down_proj", &[("weight", 1, (1, 1))], &halves);
        whole(name, &ranks, &[&format!("mlp.down_proj.{scale}")]);
    }
    let (ranks, _) = planned("modelopt-nvfp4", 2, &[]);
    cut_alike(&ranks, "mlp.down_proj", &[("weight", 1, (2, 1)), ("weight_scale", 1, (16, 1))], &halves);
}

#[test]
fn latent_attention_in_blocks_keeps_its_ragged_latent_whole() {
    let name = "fp8-block-deepseek";
    let (ranks, _) = planned(name, 2, &[]);
    whole(
        name,
        &ranks,
        &["self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight_scale_inv"],
    );
    let scales = &ranks[1]["model.layers.0.self_attn.kv_b_proj.weight_scale_inv"];
    let weight = &ranks[1]["model.layers.0.self_attn.kv_b_proj.weight"];
    assert_eq!(logical(scales, 0, (128, 1)), logical(weight, 0, (1, 1)));
}

#[test]
fn mxfp4_experts_are_cut_in_pairs_of_rows_and_blocks_of_inputs() {
    let (ranks, _) = planned("mxfp4-gpt-oss", 2, &[]);
    let experts = |parameter: &str| format!("model.layers.0.mlp.experts.{parameter}");
    for (rank, tensors) in ranks.iter().enumerate() {
        // 192 features: 384 interleaved rows of gate and up, 6 blocks of 32 inputs of down.
        let rows = (rank * 192, rank * 192 + 192);
        for parameter in ["gate_up_proj_blocks", "gate_up_proj_scales", "gate_up_proj_bias"] {
            assert_eq!(logical(&tensors[&experts(parameter)], 1, (1, 1)), rows, "{parameter}");
        }
        for parameter in ["down_proj_blocks", "down_proj_scales"] {
            let blocks = (rank * 96, rank * 96 + 96);
            assert_eq!(logical(&tensors[&experts(parameter)], 2, (32, 1)), blocks, "{parameter}");
        }
        assert_eq!(tensors.contains_key(&experts("down_proj_bias")), rank == 0);
    }
    let (ranks, _) = planned("mxfp4-gpt-oss", 2, &["--expert-parallel"]);
    for (rank, tensors) in ranks.iter().enumerate() {
        for parameter in ["gate_up_proj_blocks", "down_proj_scales", "down_proj_bias"] {
            assert_eq!(
                logical(&tensors[&experts(parameter)], 0, (1, 1)),
                (rank * 2, rank * 2 + 2),
                "{parameter}"
            );
        }
    }
}

#[test]
fn flattened_weights_are_held_whole_and_say_why() {
    for name in ["bitsandbytes-nf4", "bitsandbytes-fp4"] {
        let (ranks, shown) = planned(name, 2, &[]);
        whole(name, &ranks, &["mlp.up_proj.weight", "mlp.up_proj.weight.absmax"]);
        assert!(
            shown.contains("flattened in a form of their own, of which no part can be cut out"),
            "{shown}"
        );
        assert!(shown.contains("KiB on each rank"), "{shown}");
    }
    let (ranks, _) = planned("bitsandbytes-int8", 2, &[]);
    cut_alike(&ranks, "mlp.up_proj", &[("weight", 0, (1, 1)), ("SCB", 0, (1, 1))], &[(0, 256), (256, 512)]);
    let (_, shown) = planned("awq-4bit-gemv", 2, &[]);
    assert!(shown.contains("packed for one kernel (awq gemv)"), "{shown}");
}

#[test]
fn modules_that_are_not_quantised_are_cut_like_those_that_are() {
    for name in [
        "ct-ignore",
        "ct-ignore-regex",
        "gptq-dynamic",
        "awq-modules-to-not-convert",
        "fp8-block-modules-to-not-convert",
    ] {
        let (ranks, _) = planned(name, 2, &[]);
        let fixture = read(name).fixture;
        let rows = fixture["config"]["intermediate_size"].as_u64().unwrap() / 2;
        for layer in 0..2 {
            // Plain in one layer, packed in another: the same features on each rank.
            for (tensor, held) in &ranks[1] {
                if tensor.starts_with(&format!("model.layers.{layer}.mlp.up_proj."))
                    && tensor.ends_with(".weight")
                {
                    assert_eq!(held.shape[0] as u64, rows, "{name}, {tensor}");
                }
            }
        }
    }
}
