//! `--json`: the same facts for programs.

use crate::{
    planned,
    support::{fixture, shardwright, text},
};
use serde_json::Value;

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn inspect_gives_its_facts_as_json() {
    let path = fixture("llama-bf16");
    let facts = shardwright(&["inspect", text(&path), "--json"]).json();
    assert_eq!(
        keys(&facts),
        ["bytes", "family", "files", "flow", "groups", "model", "residual_width", "tensors", "unlisted"]
    );
    assert_eq!((&facts["tensors"], &facts["files"]), (&39.into(), &4.into()));
    assert_eq!(facts["model"]["kv_heads"], 2);
    let counted: u64 =
        facts["groups"].as_array().unwrap().iter().map(|group| group["count"].as_u64().unwrap()).sum();
    assert_eq!(counted, 39);
}

#[test]
fn plan_gives_its_facts_as_json() {
    let path = fixture("llama-odd-vocab-bf16");
    let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "4", "--pp", "2", "--json"];
    let facts = shardwright(&args).json();
    assert_eq!(
        keys(&facts),
        [
            "collectives",
            "digest",
            "family",
            "mesh",
            "model",
            "placement",
            "ranks",
            "stages",
            "topology",
            "warnings"
        ]
    );
    assert_eq!(facts["mesh"], serde_json::json!({"tp": 4, "pp": 2, "dp": 1}));
    let ranks = facts["ranks"].as_array().unwrap();
    assert_eq!(ranks.len(), 8);
    assert!(
        ranks.iter().zip(0u64..).all(|(rank, number)| rank["rank"] == number && rank["stage"] == number / 4)
    );
}

#[test]
fn check_gives_the_digest_that_plan_gave() {
    let (_folder, file) = planned("mistral-f32", &["--tp", "2"]);
    let checked = shardwright(&["check", text(&file), "--json"]).json();
    assert_eq!(keys(&checked), ["copied_bytes", "digest", "files", "ok", "ranks", "slices", "tensors"]);
    let path = fixture("mistral-f32");
    let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "2", "--json"];
    assert_eq!(checked["digest"], shardwright(&args).json()["digest"]);
    assert_eq!((&checked["ok"], &checked["ranks"]), (&true.into(), &2.into()));
}

#[test]
fn explain_gives_its_facts_as_json() {
    let (_folder, file) = planned("llama-odd-vocab-bf16", &["--tp", "4"]);
    let facts = shardwright(&["explain", text(&file), "*.o_proj.bias", "--json"]).json();
    let group = &facts["groups"][0];
    assert_eq!(
        keys(group),
        ["count", "dtype", "names", "partition", "role", "shape", "stage", "tp_ranks", "why"]
    );
    let held: Vec<bool> = group["tp_ranks"].as_array().unwrap().iter().map(|rank| !rank.is_null()).collect();
    assert_eq!(held, [true, false, false, false]);
}

#[test]
fn load_gives_its_facts_as_json() {
    let (_folder, file) = planned("qwen3-f32", &["--tp", "2"]);
    let facts = shardwright(&["load", text(&file), "--device", "host", "--json"]).json();
    let all = [
        "bytes",
        "files",
        "gb_per_second",
        "mismatches",
        "ranks",
        "seconds",
        "slowest_rank",
        "verified",
        "verified_tensors",
    ];
    assert_eq!(keys(&facts), all);
    assert!(facts["files"].as_str().unwrap().starts_with("reading "), "{facts}");
    assert_eq!(
        keys(&facts["ranks"][0]),
        ["bytes", "device", "gpu", "load_seconds", "memory_bytes", "rank", "tensors", "verify_seconds"]
    );
}

#[test]
fn topology_gives_its_facts_as_json() {
    let listed = shardwright(&["topology", "list", "--json"]).json();
    let known = listed["topologies"].as_array().unwrap();
    assert_eq!(known.len(), 22);
    for machine in known {
        let name = machine["name"].as_str().unwrap();
        let shown = shardwright(&["topology", "show", name, "--json"]).json();
        assert_eq!(
            keys(&shown),
            ["about", "gpus", "name", "network", "node_connections", "node_things", "rings"],
            "{name}"
        );
        assert_eq!(shown["name"], name);
    }
}
