//! Cases from the field, at their real sizes: layouts that engines answer with a stack trace, or with garbage.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use serde_json::{Value, json};
use std::path::Path;
use support::{
    Outcome, cut,
    headers::Headers,
    modules::{Form, Modules, llama_like, two_layers},
    shardwright, slices, text,
};

/// Plans `checkpoint` over `tp` ranks of that many DGX H100s.
fn plan(checkpoint: &Headers, nodes: &str, tp: &str, more: &[&str]) -> Outcome {
    let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
    let args =
        ["plan", text(&path), "--topology", "dgx-h100", "--nodes", nodes, "--tp", tp, "-o", text(&plan)];
    shardwright(&[&args[..], more].concat())
}

/// Where each rank's part of dimension `dim` of a tensor begins and ends.
fn held(plan: &Path, ranks: u64, tensor: &str, dim: usize) -> Vec<Vec<(usize, usize)>> {
    slices(plan, ranks)
        .iter()
        .map(|rank| {
            let held = cut::held(rank).remove(tensor);
            let boxes = held.map(|held| held.boxes).unwrap_or_default();
            boxes.iter().map(|region| (region.start[dim], region.stop[dim])).collect()
        })
        .collect()
}

fn lengths(runs: &[Vec<(usize, usize)>]) -> Vec<usize> {
    runs.iter().map(|rank| rank.iter().map(|(start, stop)| stop - start).sum()).collect()
}

fn qwen2_7b() -> Headers {
    two_layers(Form::Bf16, &llama_like("qwen2", 3584, 18944, [28, 4, 128], 152_064))
}

#[test]
fn qwen2_7b_on_eight_gpus_is_refused_with_the_sizes_that_work() {
    plan(&qwen2_7b(), "1", "8", &[]).refused(
        1,
        &[
            "`model.layers.*.self_attn.q_proj` over tp 8: 28 query heads do not divide by 8",
            "help: tp 1, 2 or 4 divide every module; or pass --uneven to deal the query heads 4,3,4,3,4,3,4,3",
        ],
    );
}

#[test]
fn qwen2_7b_uneven_on_eight_keeps_query_heads_with_their_key_value_head() {
    let checkpoint = qwen2_7b();
    plan(&checkpoint, "1", "8", &["--uneven"]).succeeded();
    let plan = checkpoint.beside("plan.yaml");
    let query = held(&plan, 8, "model.layers.0.self_attn.q_proj.weight", 0);
    let heads = [4, 3, 4, 3, 4, 3, 4, 3].map(|heads| heads * 128);
    assert_eq!(lengths(&query), heads);
    let kv = held(&plan, 8, "model.layers.0.self_attn.k_proj.weight", 0);
    let pairs: Vec<Vec<(usize, usize)>> =
        (0..8).map(|rank| vec![(rank / 2 * 128, rank / 2 * 128 + 128)]).collect();
    assert_eq!(kv, pairs);
    // The columns of o_proj are those of the rank's query heads.
    assert_eq!(held(&plan, 8, "model.layers.0.self_attn.o_proj.weight", 1), query);
}

fn qwen2_5_72b_awq() -> Headers {
    let mut config = llama_like("qwen2", 8192, 29568, [64, 8, 128], 152_064);
    config["quantization_config"] =
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": true});
    two_layers(Form::Awq(128), &config)
}

#[test]
fn qwen2_5_72b_awq_has_231_groups_that_no_two_gpus_share_evenly() {
    plan(&qwen2_5_72b_awq(), "1", "2", &[]).refused(
        1,
        &[
            "`model.layers.*.mlp.down_proj` over tp 2: intermediate 29568 is 231 groups of 128, which do not divide by 2",
            "`model.layers.*.mlp.up_proj` over tp 2: intermediate 29568 is 231 groups of 128",
            "help: tp 1 divides every module; or pass --uneven to deal the groups of intermediate 116,115",
        ],
    );
}

#[test]
fn qwen2_5_72b_awq_uneven_is_cut_between_groups_in_every_tensor() {
    let checkpoint = qwen2_5_72b_awq();
    plan(&checkpoint, "1", "2", &["--uneven"]).succeeded();
    let plan = checkpoint.beside("plan.yaml");
    let of = |tensor: &str, dim| lengths(&held(&plan, 2, &format!("model.layers.1.mlp.{tensor}"), dim));
    assert_eq!(of("down_proj.scales", 0), [116, 115]);
    assert_eq!(of("down_proj.qzeros", 0), [116, 115]);
    assert_eq!(of("down_proj.qweight", 0), [116 * 128, 115 * 128]);
    // What gives the inputs of down_proj is cut at the same features.
    assert_eq!(of("up_proj.scales", 1), [116 * 128, 115 * 128]);
    assert_eq!(of("up_proj.qweight", 1), [116 * 16, 115 * 16]);
    assert_eq!(of("gate_proj.qzeros", 1), [116 * 16, 115 * 16]);
}

fn qwen2_5_half_b_gptq() -> Headers {
    let mut config = llama_like("qwen2", 896, 4864, [14, 2, 64], 151_936);
    config["quantization_config"] =
        json!({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false});
    two_layers(Form::Gptq(128), &config)
}

#[test]
fn qwen2_5_half_b_gptq_has_seven_groups_that_are_never_cut() {
    let checkpoint = qwen2_5_half_b_gptq();
    plan(&checkpoint, "1", "2", &[]).refused(
        1,
        &["`model.layers.*.self_attn.o_proj` over tp 2: 14 query heads × 64 is 7 groups of 128, which do not divide by 2"],
    );
    plan(&checkpoint, "1", "2", &["--uneven"]).succeeded();
    let plan = checkpoint.beside("plan.yaml");
    let of = |tensor: &str, dim| held(&plan, 2, &format!("model.layers.0.self_attn.{tensor}"), dim);
    assert_eq!(lengths(&of("o_proj.scales", 0)), [4, 3]);
    assert_eq!(lengths(&of("o_proj.qweight", 0)), [4 * 16, 3 * 16]);
    assert_eq!(lengths(&of("q_proj.qweight", 1)), [4 * 128, 3 * 128]);
    // Rank 0's eighth query head reads the second key/value head, as do all of rank 1's.
    assert_eq!(of("k_proj.scales", 1), [vec![(0, 128)], vec![(64, 128)]]);
}

/// DeepSeek-V3 with one dense layer and one with experts.
fn deepseek_v3() -> Headers {
    let (hidden, form) = (7168, Form::Fp8(128));
    let config = json!({
        "model_type": "deepseek_v3", "hidden_size": hidden, "intermediate_size": 18432, "num_hidden_layers": 2,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128,
        "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128, "v_head_dim": 128, "vocab_size": 129_280, "tie_word_embeddings": false,
        "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    });
    let mut modules = Modules::default();
    for layer in 0..2 {
        let of = |module: &str| format!("model.layers.{layer}.self_attn.{module}");
        modules.linear(&of("q_a_proj"), form, 1536, hidden);
        modules.linear(&of("q_b_proj"), form, 128 * 192, 1536);
        // 576 rows: the last block of scales is half full.
        modules.linear(&of("kv_a_proj_with_mqa"), form, 576, hidden);
        modules.linear(&of("kv_b_proj"), form, 128 * 256, 512);
        modules.linear(&of("o_proj"), form, hidden, 128 * 128);
        modules.tensor(&of("q_a_layernorm.weight"), "BF16", &[1536]);
        modules.tensor(&of("kv_a_layernorm.weight"), "BF16", &[512]);
        modules.tensor(&format!("model.layers.{layer}.input_layernorm.weight"), "BF16", &[hidden]);
    }
    modules.feed_forward("model.layers.0.mlp", form, hidden, 18432);
    for expert in 0..256 {
        modules.feed_forward(&format!("model.layers.1.mlp.experts.{expert}"), form, hidden, 2048);
    }
    modules.feed_forward("model.layers.1.mlp.shared_experts", form, hidden, 2048);
    modules.linear("model.layers.1.mlp.gate", Form::Bf16, 256, hidden);
    modules.tensor("model.layers.1.mlp.gate.e_score_correction_bias", "F32", &[256]);
    modules.ends(129_280, hidden);
    modules.with(&config)
}

#[test]
fn deepseek_v3_on_32_gpus_is_refused_with_every_module_that_fails() {
    let refused = plan(&deepseek_v3(), "4", "32", &[]);
    refused.refused(
        1,
        &[
            "`model.layers.*.mlp.gate_proj` over tp 32: features 18432 is 144 blocks of 128, which do not divide by 32",
            "`model.layers.*.mlp.down_proj` over tp 32: features 18432 is 144 blocks of 128",
            "`model.layers.*.mlp.experts.*.up_proj` over tp 32: features 2048 is 16 blocks of 128, which do not divide by 32",
            "`model.layers.*.mlp.experts.*.down_proj` over tp 32: features 2048 is 16 blocks of 128",
            "`model.layers.*.mlp.shared_experts.down_proj` over tp 32: features 2048 is 16 blocks of 128",
            "help: tp 1, 2, 4, 8 or 16 divide every module; or pass --uneven",
        ],
    );
    assert_eq!(refused.stderr.matches("cannot split").count(), 9, "{}", refused.stderr);
}

#[test]
fn deepseek_v3_on_16_gpus_is_planned_between_blocks() {
    let checkpoint = deepseek_v3();
    plan(&checkpoint, "2", "16", &[]).succeeded();
    let plan = checkpoint.beside("plan.yaml");
    let whole =
        |tensor: &str| held(&plan, 16, tensor, 0).iter().all(|rank| rank.len() == 1 && rank[0].0 == 0);
    assert!(whole("model.layers.0.self_attn.q_a_proj.weight"));
    assert!(whole("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"));
    let of = |tensor: &str, dim| lengths(&held(&plan, 16, tensor, dim));
    assert_eq!(of("model.layers.0.self_attn.q_b_proj.weight", 0), [8 * 192; 16]);
    assert_eq!(of("model.layers.0.self_attn.kv_b_proj.weight_scale_inv", 0), [8 * 2; 16]);
    assert_eq!(of("model.layers.0.self_attn.o_proj.weight", 1), [8 * 128; 16]);
    assert_eq!(of("model.layers.1.mlp.experts.255.down_proj.weight", 1), [128; 16]);
    assert_eq!(of("model.layers.1.mlp.experts.255.down_proj.weight_scale_inv", 1), [1; 16]);
}

#[test]
fn deepseek_v3_uneven_on_32_gpus_says_who_holds_nothing_and_what_that_costs() {
    let checkpoint = deepseek_v3();
    let shown = plan(&checkpoint, "4", "32", &["--uneven"]).succeeded();
    assert!(shown.contains("16 ranks hold nothing of it and wait for the others"), "{shown}");
    assert!(shown.contains("more than an even share"), "{shown}");
    let plan = checkpoint.beside("plan.yaml");
    let expert = lengths(&held(&plan, 32, "model.layers.1.mlp.experts.7.up_proj.weight_scale_inv", 0));
    assert_eq!(expert.iter().filter(|&&blocks| blocks == 1).count(), 16);
    assert_eq!(expert.iter().filter(|&&blocks| blocks == 0).count(), 16);
    let dense = lengths(&held(&plan, 32, "model.layers.0.mlp.down_proj.weight", 1));
    assert!(dense.iter().all(|&columns| columns == 512 || columns == 640), "{dense:?}");
}

#[test]
fn deepseek_v3_expert_parallel_holds_whole_experts() {
    let checkpoint = deepseek_v3();
    // What is not an expert still has to divide: tp 16, two copies, 8 experts on each of 32 ranks.
    let shown = plan(&checkpoint, "4", "16", &["--dp", "2", "--expert-parallel"]).succeeded();
    assert!(shown.contains("all-to-all"), "{shown}");
    let plan = checkpoint.beside("plan.yaml");
    for (rank, printed) in slices(&plan, 32).iter().enumerate() {
        let tensors = printed["tensors"].as_object().unwrap();
        let experts: Vec<usize> = (0..256)
            .filter(|expert| {
                tensors.contains_key(&format!("model.layers.1.mlp.experts.{expert}.up_proj.weight"))
            })
            .collect();
        assert_eq!(experts, (rank * 8..rank * 8 + 8).collect::<Vec<_>>(), "rank {rank}");
        let held = &tensors[&format!("model.layers.1.mlp.experts.{}.down_proj.weight", rank * 8)];
        assert_eq!(held["shape"], Value::from(vec![7168, 2048]));
    }
}

#[test]
fn llama_33b_has_52_heads_for_3_or_8_gpus() {
    let checkpoint = two_layers(Form::Bf16, &llama_like("llama", 6656, 17920, [52, 52, 128], 32000));
    for (tp, dealt) in [("3", "18,17,17"), ("8", "7,7,7,7,6,6,6,6")] {
        let why = format!("over tp {tp}: 52 query heads do not divide by {tp}");
        let help = format!(
            "help: tp 1, 2 or 4 divide every module; or pass --uneven to deal the query heads {dealt}"
        );
        plan(&checkpoint, "1", tp, &[]).refused(1, &[&why, &help]);
        plan(&checkpoint, "1", tp, &["--uneven"]).succeeded();
        let ranks: u64 = tp.parse().unwrap();
        let query = held(&checkpoint.beside("plan.yaml"), ranks, "model.layers.0.self_attn.q_proj.weight", 0);
        let heads: Vec<String> = lengths(&query).iter().map(|rows| (rows / 128).to_string()).collect();
        assert_eq!(heads.join(","), dealt);
    }
}

#[test]
fn a_70b_on_5_gpus_is_dealt_by_key_value_heads() {
    let checkpoint = two_layers(Form::Bf16, &llama_like("llama", 8192, 28672, [64, 8, 128], 128_256));
    plan(&checkpoint, "1", "5", &[]).refused(1, &["help: tp 1, 2, 4 or 8 divide", "16,16,16,8,8"]);
    plan(&checkpoint, "1", "5", &["--uneven"]).succeeded();
    let plan = checkpoint.beside("plan.yaml");
    let of = |tensor: &str, dim| lengths(&held(&plan, 5, tensor, dim));
    assert_eq!(of("model.layers.0.self_attn.k_proj.weight", 0), [256, 256, 256, 128, 128]);
    assert_eq!(of("model.layers.0.self_attn.o_proj.weight", 1), [2048, 2048, 2048, 1024, 1024]);
    // 128,256 rows are no multiple of 5: the last rank's are filled up with zeros.
    assert_eq!(of("lm_head.weight", 0), [25652, 25652, 25652, 25652, 25648]);
    let padded = &slices(&plan, 5)[4]["tensors"]["lm_head.weight"];
    assert_eq!((padded["pad_rows"].as_u64(), padded["shape"][0].as_u64()), (Some(4), Some(25652)));
}

#[test]
fn unequal_gpus_are_dealt_in_proportion() {
    let checkpoint = two_layers(Form::Bf16, &llama_like("llama", 8192, 28672, [64, 8, 128], 128_256));
    let shown = plan(&checkpoint, "1", "3", &["--weights", "3,3,2"]).succeeded();
    assert!(!shown.contains("unevenly"), "{shown}");
    let plan_file = checkpoint.beside("plan.yaml");
    let of = |tensor: &str, dim| lengths(&held(&plan_file, 3, tensor, dim));
    assert_eq!(of("model.layers.0.self_attn.q_proj.weight", 0), [24 * 128, 24 * 128, 16 * 128]);
    assert_eq!(of("model.layers.0.self_attn.v_proj.weight", 0), [3 * 128, 3 * 128, 2 * 128]);
    assert_eq!(of("model.layers.0.mlp.down_proj.weight", 1), [10752, 10752, 7168]);
    plan(&checkpoint, "1", "3", &["--weights", "3,3"]).refused(2, &["2 weights do not go with tp 3"]);
    shardwright(&["check", text(&plan_file)]).succeeded();
}
