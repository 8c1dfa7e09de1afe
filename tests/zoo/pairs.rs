//! What a module's name does not tell: layouts of their own, and cuts of which there is but a half.

use super::zoo;
use crate::support::{cut::held, headers::Headers, shardwright, slices, text};

/// Spans of elements, half-open.
type Spans = &'static [(usize, usize)];

/// What the second of two ranks holds along the dimension that is cut, read off the modelling code of transformers.
const SECOND_OF_TWO: [(&str, &str, usize, Spans); 10] = [
    // A head is a pair of query heads, one of each half of the eight.
    ("diffllama", "model.layers.1.self_attn.q_proj.weight", 0, &[(32, 64), (96, 128)]),
    ("diffllama", "model.layers.1.self_attn.o_proj.weight", 1, &[(64, 128)]),
    // Gate, then up; GPT-OSS interleaves them.
    ("openai_privacy_filter", "layers.1.mlp.experts.gate_up_proj", 2, &[(80, 160), (240, 320)]),
    ("gpt_oss", "model.layers.1.mlp.experts.gate_up_proj", 2, &[(160, 320)]),
    // Norms over what is cut.
    ("bitnet", "model.layers.1.mlp.ffn_sub_norm.weight", 0, &[(80, 160)]),
    ("bitnet", "model.layers.1.self_attn.attn_sub_norm.weight", 0, &[(32, 64)]),
    // The first layer of a tower's feed-forward network is called 0, the second 1.
    ("kimi_k25", "vision_tower.encoder.blocks.0.mlp.fc1.weight", 1, &[(52, 104)]),
    ("internvl", "vision_tower.encoder.layer.0.attention.projection_layer.weight", 1, &[(24, 48)]),
    ("longt5", "encoder.block.1.layer.0.LocalSelfAttention.o.weight", 1, &[(64, 128)]),
    ("nllb-moe", "model.decoder.layers.1.cross_attention.out_proj.weight", 1, &[(32, 64)]),
];

/// Modules that are called like halves of a cut, though there is no other half.
const WHOLE: [(&str, &str); 6] = [
    // One layer from the tower to the residual stream.
    ("llama4", "multi_modal_projector.linear_1.weight"),
    // Half of its outputs gate the other half.
    ("aya_vision", "multi_modal_projector.linear_1.weight"),
    ("cohere2_vision", "model.multi_modal_projector.linear_2.weight"),
    // Queries are cut by name, but keys and values are fused and what reads them is not known.
    ("granite_speech", "encoder.layers.0.attn.to_q.weight"),
    ("gemma4", "model.audio_tower.layers.1.self_attn.q_proj.linear.weight"),
    // A parameter, not a projection.
    ("aria", "multi_modal_projector.query"),
];

fn second_of_two(name: &str) -> (std::collections::BTreeMap<String, crate::support::cut::Held>, String) {
    let checkpoint = Headers::read(&zoo().join(format!("{name}.json")));
    let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
    let shown = shardwright(&["plan", text(&path), "--tp", "2", "-o", text(&plan)]).succeeded();
    (held(&slices(&plan, 2)[1]), shown)
}

#[test]
fn layouts_of_their_own_are_cut_as_the_model_reads_them() {
    for (name, tensor, dim, expected) in SECOND_OF_TWO {
        let (rank, _) = second_of_two(name);
        let spans: Vec<(usize, usize)> =
            rank[tensor].boxes.iter().map(|region| (region.start[dim], region.stop[dim])).collect();
        assert_eq!(spans, expected, "{name}: {tensor}");
    }
}

#[test]
fn half_a_cut_is_none() {
    for (name, tensor) in WHOLE {
        let (rank, shown) = second_of_two(name);
        let whole = rank[tensor].boxes.len() == 1 && rank[tensor].boxes[0].stop == rank[tensor].shape;
        assert!(whole, "{name}: {tensor}: {:?}", rank[tensor]);
        let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
        let collapsed = module.replace(".0.", ".*.").replace(".1.", ".*.");
        assert!(shown.contains("is not cut alike") && shown.contains(&collapsed), "{name}: {shown}");
    }
}
