//! Plans of models that differ most, executed: every slice arrives, and its bytes are those of the files.

use super::zoo;
use crate::support::{headers::Headers, shardwright, text};

/// One for each way of cutting: fused and interleaved heads, transposed matrices, latent attention, state-space layers, linear
/// attention, encoders, towers, experts in one tensor, norms over ranks.
const TYPES: [&str; 14] = [
    "gpt_neox",
    "gpt2",
    "gpt_bigcode",
    "falcon-multi-query",
    "phi3",
    "deepseek_v3",
    "olmo2",
    "mamba2",
    "jamba",
    "qwen3_next",
    "whisper",
    "qwen2_5_vl",
    "llama4",
    "minimax",
];

#[test]
fn what_is_planned_is_loaded_and_verified() {
    for name in TYPES {
        let checkpoint = Headers::read(&zoo().join(format!("{name}.json"))).filled();
        let (path, plan) = (checkpoint.path(), checkpoint.beside("plan.yaml"));
        for args in [&["--tp", "2"][..], &["--tp", "2", "--dp", "2"], &["--tp", "3", "--uneven"]] {
            shardwright(&[&["plan", text(&path), "-o", text(&plan)], args].concat()).succeeded();
            let loaded = shardwright(&["load", text(&plan), "--device", "host", "--json"]).json();
            assert_eq!(loaded["verified"], true, "{name}, {args:?}");
            // And a wrong byte is found, wherever it is.
            let flipped = shardwright(&["load", text(&plan), "--device", "host", "--flip-byte", "1"]);
            assert_eq!(flipped.code, Some(1), "{name}, {args:?}: {flipped:?}");
        }
    }
}
