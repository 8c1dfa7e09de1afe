//! Experts: whole ones on each rank, or a part of each, however they are stored.

use super::zoo;
use crate::support::{
    cut::{Held, held},
    headers::Headers,
    shardwright, slices, text,
};
use std::collections::BTreeMap;

fn planned(name: &str, tp: u64, dp: u64, args: &[&str]) -> (Vec<BTreeMap<String, Held>>, String) {
    let checkpoint = Headers::read(&zoo().join(format!("{name}.json"))).filled();
    let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
    let (tp_text, dp_text) = (tp.to_string(), dp.to_string());
    let all = ["plan", text(&path), "--tp", &tp_text, "--dp", &dp_text, "-o", text(&plan)];
    let shown = shardwright(&[&all[..], args].concat()).succeeded();
    shardwright(&["check", text(&plan)]).succeeded();
    // What arrives is what the files say, and each expert is counted once.
    let loaded = shardwright(&["load", text(&plan), "--device", "host"]).succeeded();
    assert!(loaded.contains("verified"), "{loaded}");
    (slices(&plan, tp * dp).iter().map(held).collect(), shown)
}

/// The experts whose `w1` (or the like) a rank holds.
fn experts(held: &BTreeMap<String, Held>, module: &str) -> Vec<usize> {
    (0..8).filter(|expert| held.contains_key(&module.replace('#', &expert.to_string()))).collect()
}

#[test]
fn experts_that_lie_one_by_one_are_assigned_to_ranks() {
    let module = "model.layers.1.block_sparse_moe.experts.#.w1.weight";
    for (tp, dp) in [(2, 1), (4, 1), (2, 2), (1, 4)] {
        let (ranks, _) = planned("mixtral", tp, dp, &["--expert-parallel"]);
        let each = 8 / ranks.len();
        for (rank, held) in ranks.iter().enumerate() {
            assert_eq!(experts(held, module), (rank * each..rank * each + each).collect::<Vec<_>>());
            assert_eq!(held["model.layers.1.block_sparse_moe.gate.weight"].shape, [8, 64]);
            let query = &held["model.layers.1.self_attn.q_proj.weight"].shape;
            assert_eq!(query[0] * usize::try_from(tp).unwrap(), 128);
        }
    }
}

#[test]
fn experts_that_lie_in_one_tensor_are_cut_between_experts() {
    for (name, tensors) in [
        ("gpt_oss", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.experts.down_proj_bias"]),
        (
            "granitemoe",
            [
                "block_sparse_moe.input_linear.weight",
                "block_sparse_moe.output_linear.weight",
                "block_sparse_moe.output_linear.weight",
            ],
        ),
    ] {
        let (ranks, _) = planned(name, 2, 2, &["--expert-parallel"]);
        for (rank, held) in ranks.iter().enumerate() {
            for tensor in tensors {
                let region = &held[&format!("model.layers.0.{tensor}")].boxes[0];
                assert_eq!((region.start[0], region.stop[0]), (rank * 2, rank * 2 + 2), "{name}, {tensor}");
            }
        }
    }
}

#[test]
fn experts_that_do_not_divide_are_refused_or_dealt_unevenly() {
    let checkpoint = Headers::read(&zoo().join("mixtral.json"));
    let path = checkpoint.path();
    // 8 experts over 12 ranks; attention is on tp 1, so only the experts fail.
    let args = ["plan", text(&path), "--tp", "1", "--dp", "3", "--expert-parallel"];
    shardwright(&args).refused(
        1,
        &[
            "`model.layers.*.block_sparse_moe.experts.*.w1` over tp 1: 8 experts do not divide by the 3 ranks of a pipeline stage",
            "--uneven",
        ],
    );
    let (ranks, _) = planned("mixtral", 1, 3, &["--expert-parallel", "--uneven"]);
    let module = "model.layers.0.block_sparse_moe.experts.#.w2.weight";
    let counts: Vec<usize> = ranks.iter().map(|held| experts(held, module).len()).collect();
    assert_eq!(counts, [3, 3, 2]);
}

#[test]
fn without_expert_parallel_each_rank_has_a_part_of_each_expert() {
    let (ranks, shown) = planned("mixtral", 4, 1, &[]);
    for held in &ranks {
        assert_eq!(experts(held, "model.layers.1.block_sparse_moe.experts.#.w3.weight").len(), 8);
        assert_eq!(held["model.layers.1.block_sparse_moe.experts.7.w2.weight"].shape, [64, 40]);
    }
    // The experts of a layer are summed on each rank first: one all-reduce a layer.
    let all_reduce = shown.lines().find(|line| line.contains("experts.*.w2.weight")).unwrap();
    assert_eq!(all_reduce.split_whitespace().nth(2), Some("2"), "{all_reduce}");
    // Gate and up rows lie interleaved: both of a feature go to one rank.
    let (ranks, _) = planned("gpt_oss", 4, 1, &[]);
    let up = &ranks[1]["model.layers.0.mlp.experts.gate_up_proj"].boxes[0];
    let down = &ranks[1]["model.layers.0.mlp.experts.down_proj"].boxes[0];
    assert_eq!((up.start[2], up.stop[2]), (2 * down.start[1], 2 * down.stop[1]));
}
