//! A Llama 3.1 70B skeleton: true headers, the data a hole.

use crate::{
    printed,
    support::{
        cut::{Box, held},
        plan, shardwright, slices, text,
        tiny::{Checkpoint, LLAMA_70B},
    },
};
use std::collections::BTreeMap;

fn skeleton() -> Checkpoint {
    Checkpoint::sharded(LLAMA_70B, 30)
}

#[test]
fn a_70b_over_one_node_is_planned() {
    let checkpoint = skeleton();
    let file = checkpoint.beside("plan.yaml");
    let root = file.parent().unwrap();
    insta::assert_snapshot!("large_inspect", printed(&["inspect", text(&checkpoint.path)], root));

    let args = ["plan", text(&checkpoint.path), "--topology", "dgx-h100", "--tp", "8", "-o", text(&file)];
    insta::assert_snapshot!("large_plan_tp8", printed(&args, root));
    let explain = ["explain", text(&file), "*.self_attn.*"];
    insta::assert_snapshot!("large_explain_tp8", shardwright(&explain).succeeded());

    let facts = plan(&checkpoint.path, &["--topology", "dgx-h100", "--tp", "8"], &file);
    let ranks = facts["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 8);
    for rank in ranks {
        let bytes = rank["weight_bytes"].as_u64().unwrap();
        let hundredths = (bytes * 100 + (1 << 29)) >> 30;
        assert_eq!((rank["tensors"].as_u64(), hundredths), (Some(723), 1643));
    }
    shardwright(&["check", text(&file)]).succeeded();
}

#[test]
fn a_70b_over_two_stages_is_planned() {
    let checkpoint = skeleton();
    let root = checkpoint.beside("");
    let args = ["plan", text(&checkpoint.path), "--topology", "dgx-h100", "--tp", "4", "--pp", "2"];
    insta::assert_snapshot!("large_plan_tp4_pp2", printed(&args, &root));
}

#[test]
fn a_70b_is_cut_where_it_is_known_to_be() {
    let checkpoint = skeleton();
    let file = checkpoint.beside("plan.yaml");
    plan(&checkpoint.path, &["--topology", "dgx-h100", "--tp", "4"], &file);
    let all = slices(&file, 4);
    let of_rank = held(&all[1]);
    assert_eq!(of_rank.len(), 723);
    let expected = BTreeMap::from([
        ("self_attn.o_proj", ([8192, 2048], [0, 2048], [8192, 4096])),
        ("self_attn.q_proj", ([2048, 8192], [2048, 0], [4096, 8192])),
        ("self_attn.k_proj", ([256, 8192], [256, 0], [512, 8192])),
        ("self_attn.v_proj", ([256, 8192], [256, 0], [512, 8192])),
        ("mlp.gate_proj", ([7168, 8192], [7168, 0], [14336, 8192])),
        ("mlp.up_proj", ([7168, 8192], [7168, 0], [14336, 8192])),
        ("mlp.down_proj", ([8192, 7168], [0, 7168], [8192, 14336])),
    ]);
    for (module, (shape, start, stop)) in expected {
        for layer in [0, 79] {
            let held = &of_rank[&format!("model.layers.{layer}.{module}.weight")];
            assert_eq!(
                (held.dtype.as_str(), &held.shape[..], held.pad_rows),
                ("BF16", &shape[..], 0),
                "{module}"
            );
            assert_eq!(held.boxes, [Box { start: start.to_vec(), stop: stop.to_vec() }], "{module}");
        }
    }
    let embedding = &of_rank["model.embed_tokens.weight"];
    assert_eq!(embedding.boxes, [Box { start: vec![32064, 0], stop: vec![64128, 8192] }]);
}
