//! Slices of checkpoints that `transformers` wrote, against what Python's own `safetensors` reads from them.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};
use support::{
    cut::{Held, Tensor, held, join, read_checkpoint},
    fixture, plan, slices,
};
use tempfile::TempDir;

/// A property that holds for each checkpoint, as a test for each.
macro_rules! for_each_checkpoint {
    ($property:ident) => {
        mod $property {
            #[test]
            fn llama_bf16() {
                super::$property("llama-bf16");
            }

            #[test]
            fn llama_odd_vocab_bf16() {
                super::$property("llama-odd-vocab-bf16");
            }

            #[test]
            fn mistral_f32() {
                super::$property("mistral-f32");
            }

            #[test]
            fn qwen2_bf16() {
                super::$property("qwen2-bf16");
            }

            #[test]
            fn qwen3_f32() {
                super::$property("qwen3-f32");
            }
        }
    };
}

for_each_checkpoint!(files_are_read_as_python_reads_them);
for_each_checkpoint!(every_slice_is_the_one_that_python_cuts);
for_each_checkpoint!(slices_of_all_ranks_give_each_tensor_back);
for_each_checkpoint!(stages_and_copies_hold_the_slices_of_their_place_in_the_group);

const TP_SIZES: [u64; 4] = [1, 2, 4, 8];

/// tp, pp and dp; pp is at most the layers of the smallest checkpoint.
const MESHES: [[u64; 3]; 5] = [[2, 2, 1], [1, 2, 1], [4, 2, 1], [2, 1, 2], [2, 2, 2]];

/// What the plainer implementation in `oracle.py` found.
fn expected(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/expected/{name}.json"));
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What each rank of a plan on this host holds.
fn held_by_ranks(name: &str, [tp, pp, dp]: [u64; 3]) -> Vec<BTreeMap<String, Held>> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let [tp_text, pp_text, dp_text] = [tp, pp, dp].map(|size| size.to_string());
    let args = ["--topology", "host", "--tp", &tp_text, "--pp", &pp_text, "--dp", &dp_text];
    plan(&fixture(name), &args, &file);
    slices(&file, tp * pp * dp).iter().map(held).collect()
}

fn names<T>(of: &BTreeMap<String, T>) -> BTreeSet<&str> {
    of.keys().map(String::as_str).collect()
}

fn names_of(of: &Value) -> BTreeSet<&str> {
    of.as_object().unwrap().keys().map(String::as_str).collect()
}

fn files_are_read_as_python_reads_them(name: &str) {
    let (tensors, expected) = (read_checkpoint(&fixture(name)), expected(name));
    assert_eq!(names(&tensors), names_of(&expected["tensors"]));
    for (tensor, read) in &tensors {
        let expected = &expected["tensors"][tensor];
        assert_eq!(expected["dtype"], read.dtype, "{tensor}");
        assert_eq!(expected["shape"], Value::from(read.shape.clone()), "{tensor}");
        assert_eq!(expected["sha256"], read.sha256(), "{tensor}");
    }
}

fn every_slice_is_the_one_that_python_cuts(name: &str) {
    let (tensors, expected) = (read_checkpoint(&fixture(name)), expected(name));
    for tp in TP_SIZES {
        let ranks = held_by_ranks(name, [tp, 1, 1]);
        let expected = expected["tp"][tp.to_string()].as_array().unwrap();
        assert_eq!(ranks.len(), expected.len());
        for (rank, (held, expected)) in ranks.iter().zip(expected).enumerate() {
            assert_eq!(names(held), names_of(expected), "tp {tp}, rank {rank}");
            for (tensor, held) in held {
                let what = format!("tp {tp}, rank {rank}, {tensor}");
                assert_eq!(expected[tensor]["shape"], Value::from(held.shape.clone()), "{what}");
                let cut = tensors[tensor].cut(held);
                assert_eq!(expected[tensor]["sha256"], cut.sha256(), "{what}");
            }
        }
    }
}

fn slices_of_all_ranks_give_each_tensor_back(name: &str) {
    let (tensors, expected) = (read_checkpoint(&fixture(name)), expected(name));
    for tp in TP_SIZES {
        let ranks = held_by_ranks(name, [tp, 1, 1]);
        for (tensor, whole) in &tensors {
            // Ranks that hold the same boxes count once; padding is no part of the tensor.
            let mut seen: Vec<&Held> = Vec::new();
            for held in ranks.iter().filter_map(|rank| rank.get(tensor)) {
                if !seen.iter().any(|other| other.boxes == held.boxes) {
                    seen.push(held);
                }
            }
            let parts: Vec<Tensor> = seen.into_iter().map(|held| whole.cut(&without_padding(held))).collect();
            let joined = join(&parts, &whole.shape);
            assert_eq!(joined.shape, whole.shape, "tp {tp}, {tensor}");
            assert_eq!(expected["tensors"][tensor]["sha256"], joined.sha256(), "tp {tp}, {tensor}");
        }
    }
}

fn without_padding(held: &Held) -> Held {
    let mut held = held.clone();
    held.shape[0] -= std::mem::take(&mut held.pad_rows);
    held
}

fn stages_and_copies_hold_the_slices_of_their_place_in_the_group(name: &str) {
    let layers = if name == "llama-bf16" { 4 } else { 2 };
    for mesh in MESHES.into_iter().chain([[1, layers, 1]]) {
        let [tp, pp, dp] = mesh;
        let of_group = held_by_ranks(name, [tp, 1, 1]);
        let ranks = held_by_ranks(name, mesh);
        let rank_at = |copy: u64, stage: u64, place: u64| {
            // tp is innermost.
            &ranks[usize::try_from((copy * pp + stage) * tp + place).unwrap()]
        };
        for (copy, place) in (0..dp).flat_map(|copy| (0..tp).map(move |place| (copy, place))) {
            let whole = &of_group[usize::try_from(place).unwrap()];
            let mut held_somewhere: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
            for stage in 0..pp {
                for (tensor, held) in rank_at(copy, stage, place) {
                    let what = format!("mesh {mesh:?}, copy {copy}, stage {stage}, place {place}, {tensor}");
                    assert_eq!(Some(held), whole.get(tensor), "{what}");
                    held_somewhere.entry(tensor).or_default().push(stage);
                }
            }
            assert_eq!(
                held_somewhere.keys().copied().collect::<BTreeSet<_>>(),
                names(whole),
                "mesh {mesh:?}"
            );
            for (tensor, stages) in held_somewhere {
                check_stages(name, tensor, &stages, pp, layers);
            }
        }
    }
}

/// Checks which stages hold a tensor: the ends of the model at the ends, a layer once and in order.
fn check_stages(name: &str, tensor: &str, stages: &[u64], pp: u64, layers: u64) {
    let last = pp - 1;
    match tensor.strip_prefix("model.layers.") {
        // A tied embedding is the head as well.
        None if tensor.contains("embed_tokens") && name == "qwen2-bf16" && pp > 1 => {
            assert_eq!(stages, [0, last], "{tensor}");
        }
        None if tensor.contains("embed_tokens") => assert_eq!(stages, [0], "{tensor}"),
        None => assert_eq!(stages, [last], "{tensor}"),
        // So small and even that each stage gets as many layers as any other.
        Some(rest) => {
            let layer: u64 = rest.split('.').next().unwrap().parse().unwrap();
            assert_eq!(stages, [layer * pp / layers], "{tensor}");
        }
    }
}
