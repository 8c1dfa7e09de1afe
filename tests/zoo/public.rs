//! Models whose code came with their weights: planned from their public shapes. And every family that has to be known.

use crate::support::{
    cut::held,
    modules::{Form, Modules},
    shardwright, slices, text,
};
use serde_json::json;
use shardwright_planner::rules::Families;

/// Dense and mixture-of-experts, state-space and linear attention, encoders and towers: none of these is guessed.
const KNOWN: &str = "llama mistral ministral qwen2 qwen3 gemma gemma2 gemma3_text phi phi3 gpt_neox falcon gpt2 gpt_bigcode \
    bloom opt mpt starcoder2 stablelm cohere cohere2 granite olmo olmo2 olmo3 glm glm4 nemotron smollm3 seed_oss exaone4 baichuan \
    internlm2 mixtral qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 gpt_oss llama4 granitemoe olmoe phimoe glm4_moe minimax \
    ernie4_5_moe jamba mamba2 granitemoehybrid qwen3_next t5 whisper qwen2_vl qwen2_5_vl llava gemma3";

#[test]
fn common_families_are_known() {
    let families = Families::built_in().unwrap();
    for model_type in KNOWN.split_whitespace() {
        let family = families.of(&[model_type.to_owned()]).unwrap();
        assert!(!family.fallback, "{model_type}");
    }
}

/// The rows that each of two ranks holds of a tensor.
fn rows(checkpoint: &crate::support::headers::Headers, tensor: &str) -> Vec<Vec<(usize, usize)>> {
    let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
    shardwright(&["plan", text(&path), "--tp", "2", "-o", text(&plan)]).succeeded();
    slices(&plan, 2)
        .iter()
        .map(|rank| held(rank)[tensor].boxes.iter().map(|region| (region.start[0], region.stop[0])).collect())
        .collect()
}

#[test]
fn internlm2_keeps_each_groups_query_heads_with_their_key_and_value() {
    // 7B: 32 query and 8 key/value heads of 128; a group is 4 query heads, a key and a value.
    let config = json!({
        "model_type": "internlm2", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 92544, "tie_word_embeddings": false,
    });
    let mut modules = Modules::default();
    let of = |module: &str| format!("model.layers.0.{module}");
    modules.linear(&of("attention.wqkv"), Form::Bf16, (32 + 2 * 8) * 128, 4096);
    modules.linear(&of("attention.wo"), Form::Bf16, 4096, 4096);
    for (name, out, input) in [("w1", 14336, 4096), ("w3", 14336, 4096), ("w2", 4096, 14336)] {
        modules.linear(&of(&format!("feed_forward.{name}")), Form::Bf16, out, input);
    }
    for norm in ["attention_norm", "ffn_norm"] {
        modules.tensor(&of(&format!("{norm}.weight")), "BF16", &[4096]);
    }
    modules.tensor("model.tok_embeddings.weight", "BF16", &[92544, 4096]);
    modules.tensor("model.norm.weight", "BF16", &[4096]);
    modules.tensor("output.weight", "BF16", &[92544, 4096]);
    let checkpoint = modules.with(&config);
    assert_eq!(
        rows(&checkpoint, "model.layers.0.attention.wqkv.weight"),
        [vec![(0, 3072)], vec![(3072, 6144)]]
    );
    assert_eq!(rows(&checkpoint, "output.weight"), [vec![(0, 46272)], vec![(46272, 92544)]]);
    // A group cannot be parted: 16 ranks are too many.
    let path = checkpoint.path();
    shardwright(&["plan", text(&path), "--tp", "16"]).refused(1, &["8 fused kv groups do not divide by 16"]);
}

#[test]
fn baichuan_packs_queries_keys_and_values_one_after_the_other() {
    // 7B: 32 heads of 128, W_pack [3 · 4096, 4096].
    let config = json!({
        "model_type": "baichuan", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 1,
        "num_attention_heads": 32, "vocab_size": 64000, "tie_word_embeddings": false,
    });
    let mut modules = Modules::default();
    modules.linear("model.layers.0.self_attn.W_pack", Form::Bf16, 3 * 4096, 4096);
    modules.linear("model.layers.0.self_attn.o_proj", Form::Bf16, 4096, 4096);
    modules.feed_forward("model.layers.0.mlp", Form::Bf16, 4096, 11008);
    modules.tensor("model.layers.0.input_layernorm.weight", "BF16", &[4096]);
    modules.tensor("model.layers.0.post_attention_layernorm.weight", "BF16", &[4096]);
    modules.ends(64000, 4096);
    let pack = rows(&modules.with(&config), "model.layers.0.self_attn.W_pack.weight");
    assert_eq!(pack[0], [(0, 2048), (4096, 6144), (8192, 10240)]);
    assert_eq!(pack[1], [(2048, 4096), (6144, 8192), (10240, 12288)]);
}
