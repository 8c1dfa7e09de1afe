//! LoRA adapters that PEFT wrote, planned for the plans of their base models: what each rank holds of `B · A` is what it
//! holds of the base's weight.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use support::{
    copy_folder,
    cut::{self, Held, Tensor, read_checkpoint},
    fixture,
    headers::Headers,
    shardwright, slices, text,
    tiny::write_tensors,
};
use tempfile::TempDir;

const PREFIX: &str = "base_model.model.";

fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adapters").join(name)
}

/// What each of `tp` ranks holds of the base and of the adapter.
fn planned(base: &str, name: &str, tp: u64) -> Vec<[BTreeMap<String, Held>; 2]> {
    let folder = TempDir::new().unwrap();
    let (of_base, of_adapter) = (folder.path().join("base.yaml"), folder.path().join("adapter.yaml"));
    support::plan(&fixture(base), &["--topology", "dgx-h100", "--tp", &tp.to_string()], &of_base);
    let path = adapter(name);
    shardwright(&["plan", text(&path), "--base", text(&of_base), "-o", text(&of_adapter)]).succeeded();
    assert!(shardwright(&["check", text(&of_adapter)]).succeeded().ends_with("the plan is good\n"));
    let loaded = shardwright(&["load", text(&of_adapter), "--device", "host"]).succeeded();
    assert!(loaded.contains("verified"), "{loaded}");
    let ranks = slices(&of_base, tp).into_iter().zip(slices(&of_adapter, tp));
    ranks.map(|(base, adapter)| [base, adapter].map(|printed: Value| cut::held(&printed))).collect()
}

/// A matrix of float32 values as `f64`.
fn matrix(tensor: &Tensor) -> (usize, usize, Vec<f64>) {
    assert_eq!((tensor.dtype.as_str(), tensor.shape.len()), ("F32", 2));
    let values = tensor.bytes.chunks(4).map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())));
    (tensor.shape[0], tensor.shape[1], values.collect())
}

/// `b · a`, row by row.
fn product(b: &Tensor, a: &Tensor) -> (usize, usize, Vec<f64>) {
    let ((rows, rank, b), (inner, columns, a)) = (matrix(b), matrix(a));
    assert_eq!(rank, inner);
    let at = |row: usize, column: usize| (0..rank).map(|k| b[row * rank + k] * a[k * columns + column]).sum();
    (rows, columns, (0..rows * columns).map(|n| at(n / columns, n % columns)).collect())
}

/// Checks that for each module with matrices A and B each rank's product is its part of the whole product, at the boxes that
/// it holds of the base's weight.
fn products_are_cut_like_the_base(base: &str, name: &str, tp: u64, modules: usize) {
    let tensors = read_checkpoint(&adapter(name));
    let ranks = planned(base, name, tp);
    let mut compared = 0;
    for (a_name, a) in &tensors {
        let Some(module) = a_name.strip_suffix(".lora_A.weight") else { continue };
        let b_name = format!("{module}.lora_B.weight");
        let (rows, columns, whole) = product(&tensors[&b_name], a);
        for [of_base, of_adapter] in &ranks {
            let weight = &of_base[&format!("{}.weight", module.strip_prefix(PREFIX).unwrap())];
            let part = product(&tensors[&b_name].cut(&of_adapter[&b_name]), &a.cut(&of_adapter[a_name]));
            assert_eq!([part.0, part.1], weight.shape[..], "{module}");
            let region = &weight.boxes[0];
            for row in region.start[0]..region.stop[0] {
                for column in region.start[1]..region.stop[1] {
                    let here = part.2[(row - region.start[0]) * part.1 + column - region.start[1]];
                    assert_eq!(here, whole[row * columns + column], "{module}, row {row} of {rows}");
                }
            }
        }
        compared += 1;
    }
    assert_eq!(compared, modules);
}

#[test]
fn products_of_all_linear_modules_are_cut_like_the_base() {
    // 4 layers of 7 modules; with 4 and 8 ranks the key/value heads are shared.
    for tp in [1, 2, 4, 8] {
        products_are_cut_like_the_base("llama-bf16", "llama-linear", tp, 28);
    }
}

#[test]
fn products_of_a_head_are_cut_by_rows() {
    products_are_cut_like_the_base("llama-bf16", "llama-embeddings", 4, 5);
}

#[test]
fn an_embeddings_adapter_is_cut_by_the_rows_that_it_looks_up() {
    for [of_base, of_adapter] in planned("llama-bf16", "llama-embeddings", 4) {
        let rows = &of_base["model.embed_tokens.weight"].boxes[0];
        let a = &of_adapter["base_model.model.model.embed_tokens.lora_embedding_A"].boxes[0];
        assert_eq!((a.start[1], a.stop[1]), (rows.start[0], rows.stop[0]));
        assert_eq!(of_adapter["base_model.model.model.embed_tokens.lora_embedding_B"].shape, [64, 2]);
    }
}

#[test]
fn magnitudes_and_biases_go_with_the_outputs() {
    for (rank, [of_base, of_adapter]) in planned("llama-bf16", "llama-dora", 4).iter().enumerate() {
        let of = |module: &str| {
            &of_adapter[&format!("base_model.model.model.layers.0.{module}.lora_magnitude_vector")]
        };
        let rows = of_base["model.layers.0.self_attn.v_proj.weight"].boxes[0].start[0];
        assert_eq!(
            (of("self_attn.v_proj").boxes[0].start[0], of("self_attn.v_proj").shape[0]),
            (rows, 8),
            "{rank}"
        );
        assert_eq!(of("mlp.down_proj").shape, [64]);
    }
    for (rank, [of_base, of_adapter]) in
        planned("llama-odd-vocab-bf16", "llama-bias-and-head", 4).iter().enumerate()
    {
        let bias = |module: &str| format!("base_model.model.model.layers.1.self_attn.{module}.lora_B.bias");
        assert_eq!(of_adapter[&bias("q_proj")].shape, [16]);
        // Added once, after the sum over ranks, like the bias of the base.
        assert_eq!(of_adapter.contains_key(&bias("o_proj")), rank == 0);
        // A whole head in place of the base's, padded like it.
        assert_eq!(of_adapter["base_model.model.lm_head.weight"], {
            let mut head = of_base["lm_head.weight"].clone();
            head.dtype = of_adapter["base_model.model.lm_head.weight"].dtype.clone();
            head
        });
    }
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.yaml");
    let refused = |name: &str, parts: &[&str]| {
        shardwright(&["plan", text(&adapter(name)), "--base", text(&base)]).refused(3, parts);
    };
    support::plan(&fixture("qwen3-f32"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    // Two layers instead of four.
    refused(
        "llama-linear",
        &["is for module `model.layers.*", "which the base's plan does not have", "help: give --base"],
    );
    support::plan(&fixture("llama-bf16"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    refused(
        "llama-bias-and-head",
        &["`base_model.model.lm_head.weight` has shape [99, 64]", "that of its base, [96, 64]"],
    );
}

#[test]
fn an_adapter_that_is_damaged_or_of_another_type_is_named() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.yaml");
    support::plan(&fixture("llama-bf16"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    let copy = folder.path().join("adapter");
    copy_folder(&adapter("llama-dora"), &copy);
    let config = copy.join("adapter_config.json");
    let args = ["plan", text(&copy), "--base", text(&base)];
    shardwright(&args).succeeded();
    fs::write(&config, r#"{"peft_type": "IA3"}"#).unwrap();
    shardwright(&args).refused(1, &["the adapter is of type `IA3`; LORA is what can be planned"]);
    fs::write(&config, "{").unwrap();
    shardwright(&args).refused(3, &["adapter_config.json", "not the JSON"]);
    fs::remove_file(&config).unwrap();
    shardwright(&args).refused(3, &["adapter_config.json is missing", "help: an adapter's folder"]);
}

#[test]
fn an_adapter_of_tensors_that_nobody_knows_is_named() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.yaml");
    support::plan(&fixture("llama-bf16"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    let copy = folder.path().join("adapter");
    copy_folder(&adapter("llama-dora"), &copy);
    let refused = |name: &str, shape: &[u64], parts: &[&str]| {
        write_tensors(&copy.join("adapter_model.safetensors"), &[(name.to_owned(), shape.to_vec())]);
        shardwright(&["plan", text(&copy), "--base", text(&base)]).refused(3, parts);
    };
    refused(
        "base_model.model.x.hada_w1_a",
        &[4, 4],
        &["hada_w1_a` is no part of a LoRA adapter that is known"],
    );
    let a = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight";
    // down_proj has 160 inputs.
    refused(a, &[4, 161], &["has shape [4, 161]", "that its base, [64, 160], has"]);
    refused(a, &[4], &["has shape [4]", "the low rank"]);
}

#[test]
fn an_adapter_that_does_not_fit_beside_its_base_is_refused() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.yaml");
    let facts = support::plan(&fixture("llama-bf16"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    let memory = facts["ranks"][0]["memory_bytes"].to_string();
    let just_the_base = facts["ranks"][0]["weight_bytes"].as_u64().unwrap() + 1024;
    let small = fs::read_to_string(&base).unwrap().replace(&memory, &just_the_base.to_string());
    fs::write(&base, small).unwrap();
    let parts =
        ["beside the base model, the adapter does not fit: `gpu0` has 1.00 KiB", "help: use more GPUs"];
    shardwright(&["plan", text(&adapter("llama-linear")), "--base", text(&base)]).refused(1, &parts);
}

#[test]
fn an_adapter_without_its_base_is_wrong_usage() {
    let path = adapter("llama-linear");
    shardwright(&["plan", text(&path)]).refused(2, &["holds an adapter, not a model", "--base PLAN"]);
    shardwright(&["plan", text(&path), "--base", "x", "--tp", "2"]).refused(2, &["--base"]);
}

#[test]
fn low_ranks_may_differ_from_layer_to_layer() {
    let folder = TempDir::new().unwrap();
    let base = folder.path().join("base.yaml");
    support::plan(&fixture("llama-bf16"), &["--topology", "dgx-h100", "--tp", "2"], &base);
    let copy = folder.path().join("adapter");
    copy_folder(&adapter("llama-dora"), &copy);
    let of =
        |layer: u32, part: &str| format!("{PREFIX}model.layers.{layer}.mlp.down_proj.lora_{part}.weight");
    let tensors = [
        (of(0, "A"), vec![4, 160]),
        (of(0, "B"), vec![64, 4]),
        (of(1, "A"), vec![8, 160]),
        (of(1, "B"), vec![64, 8]),
    ];
    write_tensors(&copy.join("adapter_model.safetensors"), &tensors);
    let plan = folder.path().join("adapter.yaml");
    shardwright(&["plan", text(&copy), "--base", text(&base), "-o", text(&plan)]).succeeded();
    let held = cut::held(&slices(&plan, 2)[1]);
    assert_eq!(held[&of(1, "A")].shape, [8, 80]);
    // But both matrices of one module have the same.
    let tensors = [(of(0, "A"), vec![4, 160]), (of(0, "B"), vec![64, 8])];
    write_tensors(&copy.join("adapter_model.safetensors"), &tensors);
    shardwright(&["plan", text(&copy), "--base", text(&base)])
        .refused(3, &["the low rank of its other matrix"]);
}

#[test]
fn an_adapter_for_experts_that_ranks_hold_whole_is_refused() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/zoo/gpt_oss.json");
    let checkpoint = Headers::read(&path);
    let folder = TempDir::new().unwrap();
    let (base, copy) = (folder.path().join("base.yaml"), folder.path().join("adapter"));
    let args = ["--topology", "dgx-h100", "--tp", "2", "--expert-parallel"];
    support::plan(&checkpoint.path(), &args, &base);
    copy_folder(&adapter("llama-dora"), &copy);
    let name = format!("{PREFIX}model.layers.0.mlp.experts.gate_up_proj.lora_A.weight");
    write_tensors(&copy.join("adapter_model.safetensors"), &[(name, vec![4, 64])]);
    let parts =
        ["gate_up_proj.lora_A.weight` is for experts that lie in one tensor", "without --expert-parallel"];
    shardwright(&["plan", text(&copy), "--base", text(&base)]).refused(1, &parts);
}
