//! What layers keep of the tokens they have seen is told by the tensors, whatever the model type.

use crate::support::headers::Headers;
use shardwright_planner::{
    checkpoint::Catalog,
    layouts::{Goal, Judged, LayoutRequest, layouts},
    model::{CONFIG_NAME, Config},
    rules::{Families, UserRules},
    serving::{Assumptions, Workload},
    topology::{HostFacts, Topology, builtin},
};

/// What one rank has in memory with a sequence of `tokens` tokens of 16 bits, how long a step takes it, and whether what it keeps
/// of tokens is but assumed.
fn judged(checkpoint: &Headers, families: &Families, tokens: u64) -> Result<(Judged, bool), String> {
    let catalog = Catalog::open(&checkpoint.path()).unwrap();
    let facts = HostFacts { devices: 1, memory_bytes: 1 << 40 };
    let topology = Topology::parse(builtin("host").unwrap(), "host", None, Some(facts)).unwrap();
    let config = Config::read(&checkpoint.path().join(CONFIG_NAME)).map_err(|error| error.to_string())?;
    let workload = Workload {
        context_len: tokens,
        prompt_len: 1,
        concurrency: 1,
        cache_bits: 16,
        utilization: 0.9,
        batched_tokens: None,
    };
    let found = layouts(&LayoutRequest {
        catalog: &catalog,
        config: &config,
        families,
        user: &UserRules::default(),
        topology: &topology,
        cast: None,
        workload: &workload,
        assumptions: &Assumptions::built_in().unwrap(),
        goal: Goal::Throughput,
    })
    .map_err(|error| error.to_string())?;
    let assumed = found.notes.iter().any(|note| note.contains("is assumed"));
    Ok((found.judged[0].clone(), assumed))
}

/// Bytes that such a sequence takes, and whether they are but assumed.
fn kept(checkpoint: &Headers, families: &Families, tokens: u64) -> Result<(u64, bool), String> {
    let (judged, assumed) = judged(checkpoint, families, tokens)?;
    Ok((judged.memory.bytes_per_sequence, assumed))
}

/// Model types of which the tensors do not tell: heads that are all alike are assumed.
const ASSUMED: [&str; 21] = [
    "codegen",
    "ctrl",
    "deepseek_v4",
    "diffllama",
    "distilbert",
    "doge",
    "doge-moe",
    "dots3_note_vision_encoder",
    "falcon-grouped",
    "falcon-multi-query",
    "gte",
    "hrm_text",
    "jetmoe",
    "kosmos-2",
    "modernbert",
    "musicflamingo",
    "nomic_bert",
    "xlnet",
    "zamba",
    "zamba2",
    "zaya",
];

/// Those that keep nothing, or of which nobody knows what they keep.
const NOTHING: [&str; 6] = ["albert", "deepseek_ocr2_vision", "falcon_mamba", "mamba", "moonshine", "rwkv"];

#[test]
fn the_tensors_tell_what_is_kept_of_tokens() {
    let families = Families::built_in().unwrap();
    let (mut assumed, mut nothing) = (Vec::new(), Vec::new());
    for (name, path) in crate::all() {
        let checkpoint = Headers::read(&path);
        let (four, is_assumed) =
            kept(&checkpoint, &families, 4).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (eight, _) = kept(&checkpoint, &families, 8).unwrap();
        assert!(four <= eight, "{name}");
        if is_assumed {
            assumed.push(name);
        } else if eight == 0 {
            nothing.push(name);
        }
    }
    assert_eq!(assumed, ASSUMED);
    assert_eq!(nothing, NOTHING);
}

#[test]
fn keys_values_latents_and_states_are_counted_as_the_configuration_has_them() {
    let families = Families::built_in().unwrap();
    // Numbers for each token, and for a sequence; as transformers' caches have them.
    let cases: [(&str, u64, u64); 12] = [
        ("llama", 2 * 2 * 2 * 16, 0),
        ("mixtral", 2 * 2 * 2 * 16, 0),
        // Query, key and value of a head lie together.
        ("gpt_neox", 2 * 2 * 64, 0),
        // One key and one value for all heads.
        ("gpt_bigcode", 2 * 2 * 8, 0),
        ("phi3", 2 * 2 * 2 * 8, 0),
        // A latent, and the part of the keys that has positions.
        ("deepseek_v3", 2 * (24 + 8), 0),
        ("qwen3_next", 2 * 2 * 16, 2 * 8 * 10 * 18),
        ("kimi_linear", 24 + 8, 8 * 18 * 18),
        ("bamba", 2 * 2 * 8, 8 * 24 * 20),
        ("mamba2", 0, 2 * 8 * 24 * 20),
        ("jamba", 2 * 2 * 8, 0),
        ("qwen3_moe", 2 * 2 * 2 * 16, 0),
    ];
    for (name, per_token, per_sequence) in cases {
        let checkpoint = Headers::read(&crate::zoo().join(format!("{name}.json")));
        for tokens in [1, 100] {
            let (bytes, _) = kept(&checkpoint, &families, tokens).unwrap();
            assert_eq!(bytes, 2 * (per_token * tokens + per_sequence), "{name}, {tokens} tokens");
        }
    }
}

#[test]
fn layers_with_a_window_keep_no_more_than_it() {
    let families = Families::built_in().unwrap();
    let of_layer = 2 * 2 * 16;
    let long = |fixture: &mut serde_json::Value| fixture["config"]["max_position_embeddings"] = 10_000.into();
    let read = |name: &str| Headers::read(&crate::zoo().join(format!("{name}.json"))).changed(long);
    let bytes = |checkpoint: &Headers| kept(checkpoint, &families, 10_000).unwrap().0;
    // `layer_types` says which of the two.
    assert_eq!(bytes(&read("gpt_oss")), 2 * of_layer * (10_000 + 128));
    assert_eq!(bytes(&read("gemma2")), 2 * of_layer * (10_000 + 4096));
    assert_eq!(bytes(&read("gemma3_text")), 2 * of_layer * 2 * 4096);
    assert_eq!(bytes(&read("mistral")), 2 * of_layer * 2 * 4096);
    // As these models are on the hub, without it: every second layer, and five of six.
    let without = |name: &str| {
        read(name).changed(|fixture| drop(fixture["config"].as_object_mut().unwrap().remove("layer_types")))
    };
    assert_eq!(bytes(&without("gemma2")), 2 * of_layer * (10_000 + 4096));
    assert_eq!(bytes(&without("gemma3_text")), 2 * of_layer * 2 * 4096);
    // A switch that is off.
    assert_eq!(bytes(&read("qwen3_moe")), 2 * of_layer * 2 * 10_000);
}

#[test]
fn layers_that_predict_further_tokens_lie_there_and_do_not_run() {
    let families = Families::built_in().unwrap();
    let without = Headers::read(&crate::zoo().join("deepseek_v3.json"));
    let with = Headers::read(&crate::zoo().join("deepseek_v3.json")).changed(|fixture| {
        let tensors = fixture["tensors"].as_object_mut().unwrap();
        let of_last = |(name, tensor): (&String, &serde_json::Value)| {
            Some((format!("model.layers.2.{}", name.strip_prefix("model.layers.1.")?), tensor.clone()))
        };
        let further: Vec<_> = tensors.iter().filter_map(of_last).collect();
        tensors.extend(further);
    });
    let [(without, _), (with, _)] = [without, with].map(|headers| judged(&headers, &families, 100).unwrap());
    assert!(with.memory.weights > without.memory.weights);
    assert_eq!(with.memory.bytes_per_sequence, without.memory.bytes_per_sequence);
}
