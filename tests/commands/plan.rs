//! `inspect`, `plan`, `check` and `slices` on checkpoints that `transformers` wrote.

use crate::{
    planned, printed,
    support::{
        FIXTURES, fixture, shardwright, slices, text,
        tiny::{Checkpoint, LLAMA_70B},
    },
};
use std::fs;
use tempfile::TempDir;

#[test]
fn inspect_shows_what_is_in_a_checkpoint() {
    for name in FIXTURES {
        let path = fixture(name);
        insta::assert_snapshot!(format!("inspect_{name}"), printed(&["inspect", text(&path)], &path));
    }
}

#[test]
fn inspect_takes_a_folder_a_file_and_an_index() {
    let folder = fixture("qwen2-bf16");
    let whole = shardwright(&["inspect", text(&folder)]).succeeded();
    let index = folder.join("model.safetensors.index.json");
    assert_eq!(shardwright(&["inspect", text(&index)]).succeeded(), whole);
    let file = folder.join("model-00001-of-00004.safetensors");
    assert!(shardwright(&["inspect", text(&file)]).succeeded().contains(" in 1 file: "));
}

#[test]
fn plan_can_be_judged_at_a_glance() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    for name in FIXTURES {
        let path = fixture(name);
        let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "4", "-o", text(&file)];
        insta::assert_snapshot!(format!("plan_{name}_tp4"), printed(&args, folder.path()));
    }
}

#[test]
fn plan_shows_stages_and_copies() {
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "2", "--pp", "2", "--dp", "2"];
    insta::assert_snapshot!("plan_llama-bf16_tp2_pp2_dp2", printed(&args, &path));
}

#[test]
fn plan_warns_of_a_group_that_crosses_sockets() {
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", "8xl40s-pcie", "--tp", "8"];
    insta::assert_snapshot!("plan_llama-bf16_l40s_tp8", printed(&args, &path));
}

#[test]
fn plan_takes_the_first_layout_where_no_tp_is_given() {
    let checkpoint = Checkpoint::sharded(LLAMA_70B, 30);
    let path = text(&checkpoint.path);
    for (pp, tp) in [(1, 8), (2, 4)] {
        let args = ["plan", path, "--topology", "dgx-h100", "--pp", &pp.to_string()];
        let printed = shardwright(&args).succeeded();
        assert!(printed.contains(&format!("\ntp {tp} × pp {pp} × dp 1 = 8 ranks on ")), "{printed}");
        assert!(
            printed.contains("(tp not given: the first that `shardwright layouts` lists)\n"),
            "{printed}"
        );
        let listed = shardwright(&["layouts", path, "--topology", "dgx-h100", "--json"]).json();
        let layouts = listed["machines"][0]["layouts"].as_array().unwrap();
        let first = layouts.iter().find(|layout| layout["pp"] == pp && layout["dp"] == 1).unwrap();
        assert_eq!(first["tp"], tp);
    }
    // What is dealt unevenly is not searched for: the GPUs of a node.
    let printed = shardwright(&["plan", path, "--topology", "dgx-h100", "--uneven"]).succeeded();
    assert!(printed.contains("(tp not given: all GPUs of a node)\n"), "{printed}");
}

#[test]
fn plan_on_this_host_counts_memory_once() {
    let path = fixture("llama-bf16");
    let shown = printed(&["plan", text(&path), "--topology", "host", "--tp", "4"], &path);
    let (before, memory) = shown.rsplit_once(" of ").unwrap();
    assert!(memory.ends_with(" GiB together\n"), "{memory}");
    insta::assert_snapshot!("plan_llama-bf16_host_tp4", format!("{before} of …"));
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let whole = |args: &[&str]| {
        let (_folder, file) = planned("llama-odd-vocab-bf16", args);
        fs::read(file).unwrap()
    };
    for args in [&["--tp", "4"][..], &["--tp", "2", "--pp", "2", "--dp", "2"]] {
        assert_eq!(whole(args), whole(args));
    }
}

#[test]
fn a_plan_on_this_host_does_not_depend_on_what_else_runs() {
    let whole = || {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("plan.yaml");
        crate::support::plan(&fixture("llama-bf16"), &["--topology", "host", "--tp", "2"], &file);
        fs::read_to_string(file).unwrap()
    };
    let before = whole();
    // Memory that is taken meanwhile is no property of the machine.
    let taken = vec![1u8; 64 << 20];
    assert_eq!(whole(), before);
    assert_eq!(std::hint::black_box(taken)[0], 1);
}

#[test]
fn a_tied_embedding_gathers_logits_like_a_head_of_its_own() {
    let path = fixture("qwen2-bf16");
    let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "4", "--json"];
    let facts = shardwright(&args).json();
    let collectives = facts["collectives"].as_array().unwrap();
    let gather = collectives.iter().find(|collective| collective["kind"] == "all-gather");
    assert_eq!(gather.map(|gather| &gather["after"]), Some(&"model.embed_tokens.weight".into()), "{facts:#}");
}

#[test]
fn a_plan_reads_well() {
    let (_folder, file) = planned("qwen2-bf16", &["--tp", "2", "--pp", "2"]);
    let whole = fs::read_to_string(file).unwrap();
    let path = fixture("qwen2-bf16");
    insta::assert_snapshot!("plan_file", whole.replace(text(&path), "DIR"));
}

#[test]
fn check_says_what_holds() {
    let (_folder, file) = planned("llama-bf16", &["--tp", "4"]);
    insta::assert_snapshot!("check", digest_hidden(&printed(&["check", text(&file)], &file)));
}

/// The digest depends on more than is shown; that it is one is enough.
fn digest_hidden(text: &str) -> String {
    let (before, after) = text.split_once("digest ").unwrap();
    let (digest, rest) = after.split_once('\n').unwrap();
    assert!(digest.len() == 16 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()), "{digest}");
    format!("{before}digest …\n{rest}")
}

#[test]
fn slices_have_just_the_keys_of_the_contract() {
    let (_folder, file) = planned("llama-odd-vocab-bf16", &["--tp", "4"]);
    for (rank, printed) in slices(&file, 4).iter().enumerate() {
        let keys: Vec<&String> = printed.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["rank", "tensors", "world_size"]);
        for (name, held) in printed["tensors"].as_object().unwrap() {
            let padded =
                rank == 3 && ["lm_head.weight", "model.embed_tokens.weight"].contains(&name.as_str());
            let expected: &[&str] =
                if padded { &["boxes", "dtype", "pad_rows", "shape"] } else { &["boxes", "dtype", "shape"] };
            assert_eq!(held.as_object().unwrap().keys().collect::<Vec<_>>(), expected, "rank {rank}, {name}");
            for region in held["boxes"].as_array().unwrap() {
                assert_eq!(region.as_object().unwrap().keys().collect::<Vec<_>>(), ["start", "stop"]);
            }
        }
    }
    let with_flag = shardwright(&["slices", text(&file), "--rank", "3", "--json"]).succeeded();
    assert_eq!(with_flag, shardwright(&["slices", text(&file), "--rank", "3"]).succeeded());
    insta::assert_snapshot!("slices_of_the_last_rank", with_flag.replace("},\"", "},\n\""));
}
