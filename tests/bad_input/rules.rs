//! Rules files of the user's own: what is wrong with one is named with its line; what is right wins.

use crate::{
    plan_is_refused,
    support::{
        cut, shardwright, slices, text,
        tiny::{Checkpoint, Dims, TINY},
    },
};
use std::fs;

const ARGS: [&str; 4] = ["--topology", "dgx-h100", "--tp", "2"];

/// Checks that a rules file is refused with the words in `parts`.
fn refused(rules: &str, parts: &[&str]) {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("rules.yaml");
    fs::write(&file, rules).unwrap();
    let args = [&ARGS[..], &["--rules", text(&file)]].concat();
    let parts = [parts, &["rules.yaml", "\nhelp: "]].concat();
    plan_is_refused(&checkpoint.path, &args, 3, &parts);
}

#[test]
fn a_rule_that_matches_nothing_is_named_with_its_line() {
    let rules = "rules:\n  \"**.norm\": replicated\n  model.layers.*.mlp.upproj: replicated\n";
    refused(rules, &["line 3", "`model.layers.*.mlp.upproj` matches no module of the checkpoint"]);
}

#[test]
fn a_rule_that_another_one_contradicts_is_named_with_both_lines() {
    let rules = "rules:\n  \"**.mlp.*\": replicated\n  \"**.up_proj\": column [features, _]\n";
    refused(
        rules,
        &["line 3", "`column [features, _]` never counts", "already `replicated` by `**.mlp.*` in line 2"],
    );
    refused("rules:\n  a: replicated\n  a: replicated\n", &["repeated key `a`"]);
}

#[test]
fn what_is_no_rule_is_named_with_line_and_column() {
    refused(
        "rules:\n  \"**.up_proj\": colum [features, _]\n",
        &["line 2, column ", "`colum` is no role; roles are"],
    );
    refused("rules:\n  \"**.up_proj\": column [fetures, _]\n", &["line 2", "`fetures` is no dimension"]);
    refused("rules:\n  \"**.up_proj\": 7\n", &["line 2"]);
    refused("rules:\n  \"**[\": replicated\n", &["line 2", "is no glob"]);
    let deep = "{".repeat(300) + &"}".repeat(300);
    refused(&format!("rules:\n  \"{deep}\": replicated\n"), &["line 2", "is no glob: more than 8 braces"]);
    refused("rule: {}\n", &["line 1", "rule"]);
    refused("- 1\n", &["line 1"]);
    refused("", &["rules.yaml"]);
    refused("dimensions: { sizes: { x: 1 + } }\nrules: {}\n", &["the formula `1 +` of `x`"]);
}

#[test]
fn a_rule_that_does_not_fit_the_tensors_is_named() {
    let rules = "rules:\n  \"**.up_proj\": column [vocabulary, hidden]\n";
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("rules.yaml");
    fs::write(&file, rules).unwrap();
    let args = [&ARGS[..], &["--rules", text(&file)]].concat();
    plan_is_refused(
        &checkpoint.path,
        &args,
        3,
        &[
            "rules.yaml: line 2: `**.up_proj`",
            "does not fit `model.layers.*.mlp.up_proj`",
            "[32, 16]",
            "vocabulary 24",
        ],
    );
}

#[test]
fn a_rules_file_that_cannot_be_read_is_named() {
    let checkpoint = Checkpoint::tiny();
    let args = [&ARGS[..], &["--rules", "/nowhere/rules.yaml"]].concat();
    plan_is_refused(&checkpoint.path, &args, 3, &["/nowhere/rules.yaml: cannot be read"]);
    let args = [&ARGS[..], &["--rules", text(&checkpoint.path)]].concat();
    plan_is_refused(&checkpoint.path, &args, 3, &["is no file"]);
}

#[test]
fn a_glob_of_what_to_replicate_that_matches_nothing_is_named() {
    let long = "a".repeat(2000);
    let args = [&ARGS[..], &["--replicate", &long]].concat();
    let why = "is no glob: it has more than 1024 bytes";
    plan_is_refused(&Checkpoint::tiny().path, &args, 3, &["--replicate: `aaa", why]);
    let args = [&ARGS[..], &["--replicate", "visual.**"]].concat();
    plan_is_refused(&Checkpoint::tiny().path, &args, 3, &["--replicate: `visual.**` matches no module"]);
}

#[test]
fn the_users_rules_win_and_say_so() {
    let checkpoint = Checkpoint::new(Dims { intermediate: 33, ..TINY }, "llama");
    let (file, plan) = (checkpoint.beside("rules.yaml"), checkpoint.beside("plan.yaml"));
    // 33 features do not divide by 2: hold the feed-forward layers whole.
    fs::write(&file, "rules:\n  model.layers.*.mlp.*: replicated\n").unwrap();
    let args = ["plan", text(&checkpoint.path), "--rules", text(&file), "-o", text(&plan)];
    shardwright(&[&args[..], &ARGS].concat()).succeeded();
    let explained = shardwright(&["explain", text(&plan), "*.up_proj.*"]).succeeded();
    assert!(explained.contains("replicated: your rules: model.layers.*.mlp.* is replicated"), "{explained}");
    for rank in slices(&plan, 2) {
        let held = cut::held(&rank);
        assert_eq!(held["model.layers.1.mlp.down_proj.weight"].shape, [16, 33]);
        assert_eq!(held["model.layers.1.self_attn.q_proj.weight"].shape, [8, 16]);
    }
    // The same in one word.
    let whole = fs::read_to_string(&plan).unwrap();
    let args = ["plan", text(&checkpoint.path), "--replicate", "**.mlp.*", "-o", text(&plan)];
    shardwright(&[&args[..], &ARGS].concat()).succeeded();
    let glob = |text: &str| text.replace("model.layers.*.mlp.* is replicated", "**.mlp.* is replicated");
    assert_eq!(glob(&whole), fs::read_to_string(&plan).unwrap());
}

#[test]
fn the_users_own_dimensions_can_be_used() {
    let checkpoint = Checkpoint::tiny();
    let (file, plan) = (checkpoint.beside("rules.yaml"), checkpoint.beside("plan.yaml"));
    // In pairs of features.
    let rules = "dimensions:
  sizes: { pairs: intermediate / 2 }
  segmented: { paired features: { count: pairs, unit: 2 } }
rules:
  model.layers.*.mlp.{gate,up}_proj: column [paired features, hidden]
  model.layers.*.mlp.down_proj: row [hidden, paired features]
";
    fs::write(&file, rules).unwrap();
    let args = ["plan", text(&checkpoint.path), "--rules", text(&file), "-o", text(&plan)];
    shardwright(&[&args[..], &ARGS].concat()).succeeded();
    assert!(fs::read_to_string(&plan).unwrap().contains("- groups: 16\n        unit: 2\n"));
}

/// What `plan` prints with these rules, and what the last of so many ranks holds.
fn last_of(ranks: u64, args: &[&str]) -> (String, std::collections::BTreeMap<String, cut::Held>) {
    let checkpoint = Checkpoint::tiny();
    let plan = checkpoint.beside("plan.yaml");
    let always = ["plan", text(&checkpoint.path), "-o", text(&plan)];
    let shown = shardwright(&[&always[..], &ARGS, args].concat()).succeeded();
    (shown, cut::held(slices(&plan, ranks).last().unwrap()))
}

#[test]
fn what_the_users_rules_leave_half_cut_is_held_whole_or_warned_of() {
    // Nothing reads the heads by parts now.
    let (shown, held) = last_of(2, &["--replicate", "**.o_proj"]);
    assert!(shown.contains("is replicated: what reads its outputs is not cut alike"), "{shown}");
    assert_eq!(held["model.layers.1.self_attn.q_proj.weight"].shape, [16, 16]);
    assert_eq!(held["model.layers.1.mlp.up_proj.weight"].shape, [16, 16]);
    // The gate is cut still, and each rank needs but a part of this.
    let (shown, _) = last_of(2, &["--replicate", "**.up_proj"]);
    assert!(shown.contains("model.layers.*.mlp.up_proj.weight is held whole as your rules say"), "{shown}");
}

#[test]
fn what_is_held_whole_stays_on_its_pipeline_stage() {
    let (_, last) = last_of(4, &["--replicate", "lm_head", "--replicate", "**.embed_tokens", "--pp", "2"]);
    assert_eq!(last["lm_head.weight"].shape, [24, 16]);
    assert!(!last.contains_key("model.embed_tokens.weight"));
}

#[test]
fn heads_that_are_grouped_differently_are_not_dealt_unevenly() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("rules.yaml");
    let rules = "dimensions:
  segmented: { heads of one group: { count: heads, unit: head size, groups: 1 } }
rules:
  \"**.q_proj\": column [heads of one group, hidden]
";
    fs::write(&file, rules).unwrap();
    let args = ["--topology", "dgx-h100", "--tp", "3", "--rules", text(&file), "--uneven"];
    plan_is_refused(
        &checkpoint.path,
        &args,
        1,
        &["k_proj", "its heads are in 2 groups, those beside it in 1", "tp 1, 2 or 4 divide every module"],
    );
    // Where each rank gets as many heads, the groups do not matter.
    let (_, held) = last_of(2, &["--rules", text(&file), "--uneven"]);
    assert_eq!(held["model.layers.0.self_attn.q_proj.weight"].shape, [8, 16]);
}
