//! `layouts`: every way to put a model on a machine, judged.

use crate::{
    printed,
    support::{
        fixture, shardwright, text,
        tiny::{Checkpoint, LLAMA_70B},
    },
};
use serde_json::Value;
use std::fs;

fn llama() -> Checkpoint {
    Checkpoint::sharded(LLAMA_70B, 30)
}

fn json(checkpoint: &Checkpoint, args: &[&str]) -> Value {
    shardwright(&[&["layouts", text(&checkpoint.path), "--json"], args].concat()).json()
}

/// The layouts of the first machine, as `(tp, pp, dp)`, in their order.
fn order(printed: &Value) -> Vec<[u64; 3]> {
    let layouts = printed["machines"][0]["layouts"].as_array().unwrap();
    layouts.iter().map(|layout| ["tp", "pp", "dp"].map(|axis| layout[axis].as_u64().unwrap())).collect()
}

#[test]
fn the_layouts_of_70b_on_eight_gpus_can_be_judged_at_a_glance() {
    let checkpoint = llama();
    let prices = checkpoint.beside("prices.yaml");
    fs::write(&prices, "H100 SXM5 80GB: 2.50\n").unwrap();
    let args = [
        "layouts",
        text(&checkpoint.path),
        "--topology",
        "dgx-h100",
        "--concurrency",
        "64",
        "--prices",
        text(&prices),
    ];
    insta::assert_snapshot!("layouts_70b", printed(&args, &checkpoint.path));
}

#[test]
fn machines_are_compared_by_what_they_cost() {
    let checkpoint = llama();
    let prices = checkpoint.beside("prices.yaml");
    fs::write(&prices, "H100 SXM5 80GB: 2.5\nA100 SXM4 80GB: 1.4\nH200 SXM 141GB: 3.2\n").unwrap();
    let others = "dgx-a100-80gb,hgx-h200,8xl4";
    let args = [
        "layouts",
        text(&checkpoint.path),
        "--topology",
        "dgx-h100",
        "--what-if",
        others,
        "--prices",
        text(&prices),
    ];
    insta::assert_snapshot!("layouts_machines", printed(&args, &checkpoint.path));
}

#[test]
fn every_layout_of_the_machine_is_there_once() {
    let checkpoint = llama();
    let mut found = order(&json(&checkpoint, &["--topology", "dgx-h100"]));
    found.sort_unstable();
    let mut all = Vec::new();
    for tp in [1, 2, 4, 8] {
        for pp in [1, 2, 4, 8] {
            all.extend([1, 2, 4, 8].into_iter().filter(|dp| tp * pp * dp <= 8).map(|dp| [tp, pp, dp]));
        }
    }
    assert_eq!(found, all);
}

#[test]
fn what_a_rank_holds_is_what_the_plan_says() {
    for (name, sizes) in
        [("llama-odd-vocab-bf16", [2, 2, 1]), ("qwen2-bf16", [4, 1, 2]), ("qwen3-f32", [1, 2, 4])]
    {
        let path = fixture(name);
        let args = ["layouts", text(&path), "--topology", "dgx-h100", "--json", "--context-len", "16"];
        let printed = shardwright(&args).json();
        let layouts = printed["machines"][0]["layouts"].as_array().unwrap();
        let [tp, pp, dp] = sizes;
        let found = layouts.iter().find(|one| one["tp"] == tp && one["pp"] == pp && one["dp"] == dp).unwrap();
        let [tp, pp, dp] = sizes.map(|size| size.to_string());
        let args =
            ["plan", text(&path), "--topology", "dgx-h100", "--tp", &tp, "--pp", &pp, "--dp", &dp, "--json"];
        let plan = shardwright(&args).json();
        // The stage with the fewest tokens left has the most weights, where caches are alike.
        let ranks = plan["ranks"].as_array().unwrap();
        let stage = &found["memory"]["stage"];
        let of_stage = ranks.iter().filter(|rank| &rank["stage"] == stage);
        let most = of_stage.map(|rank| rank["weight_bytes"].as_u64().unwrap()).max().unwrap();
        assert_eq!(found["memory"]["weight_bytes"].as_u64().unwrap(), most, "{name} {sizes:?}");
    }
}

#[test]
fn each_goal_has_its_own_first() {
    let checkpoint = llama();
    let args = |goal: &'static str| ["--topology", "dgx-h100", "--concurrency", "8", "--goal", goal];
    let best = |goal| json(&checkpoint, &args(goal))["machines"][0]["layouts"][0].clone();
    let all = json(&checkpoint, &args("latency"));
    let served: Vec<&Value> = all["machines"][0]["layouts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|layout| layout["serves"] == true)
        .collect();
    let number = |layout: &Value, key: &str| layout["speed"][key].as_f64().unwrap();
    let (latency, throughput, fewest) = (best("latency"), best("throughput"), best("fewest-gpus"));
    for layout in served {
        assert!(number(&latency, "seconds_per_token") <= number(layout, "seconds_per_token"));
        assert!(number(&throughput, "tokens_per_second") >= number(layout, "tokens_per_second"));
        assert!(fewest["gpus"].as_u64() <= layout["gpus"].as_u64());
    }
}

#[test]
fn fewer_bits_of_the_cache_leave_room_for_more_tokens() {
    let checkpoint = llama();
    let tokens = |args: &[&str]| {
        let printed = json(&checkpoint, &[&["--topology", "dgx-h100", "--goal", "latency"], args].concat());
        printed["machines"][0]["layouts"][0]["kv_tokens"].as_u64().unwrap()
    };
    let (half, byte) = (tokens(&[]), tokens(&["--kv-cache-dtype", "fp8"]));
    assert!((2 * half).abs_diff(byte) <= 32, "{half} {byte}");
    assert!(tokens(&["--gpu-memory-utilization", "0.8"]) < half);
    assert!(tokens(&["--dtype", "f32"]) < half);
}

#[test]
fn what_fits_nowhere_says_what_would() {
    let checkpoint = llama();
    let outcome = shardwright(&["layouts", text(&checkpoint.path), "--topology", "4xrtx4090"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.starts_with("error: does not fit: 131.42 GiB of weights"), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("help: weights alone need at least 6 GPUs of 23.99 GiB"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn commands_of_engines_are_told_whole() {
    let checkpoint = llama();
    let args = ["--topology", "dgx-h100", "--all", "--kv-cache-dtype", "fp8", "--dtype", "bf16"];
    let told = shardwright(&[&["layouts", text(&checkpoint.path)], &args[..]].concat()).succeeded();
    assert!(told.contains(" --kv-cache-dtype fp8_e4m3 --dtype bfloat16\n"), "{told}");
}

#[test]
fn bad_input_is_refused_with_what_would_do() {
    let checkpoint = llama();
    let path = text(&checkpoint.path);
    let refused = |args: &[&str], code: i32, parts: &[&str]| {
        shardwright(&[&["layouts", path, "--topology", "dgx-h100"], args].concat()).refused(code, parts);
    };
    // That fixture's model has 128 positions.
    let small = fixture("llama-bf16");
    let long = ["layouts", text(&small), "--topology", "dgx-h100", "--context-len", "1M"];
    shardwright(&long)
        .refused(2, &["1048576 tokens is longer than the model's: 128", "help: --context-len is at most"]);
    refused(
        &["--context-len", "8k", "--prompt-len", "9k"],
        2,
        &["a prompt of 9216 tokens does not go into a context of 8192"],
    );
    refused(&["--context-len", "many"], 2, &["not a number of tokens"]);
    refused(&["--gpu-memory-utilization", "1.5"], 2, &["not a share"]);
    let prices = checkpoint.beside("prices.yaml");
    fs::write(&prices, "H100 SXM5 80G: 2\n").unwrap();
    refused(
        &["--prices", text(&prices)],
        3,
        &["prices.yaml: `H100 SXM5 80G` is no kind of GPU; did you mean H100 SXM5 80GB", "help: "],
    );
    refused(&["--prices", "/nowhere"], 3, &["cannot read /nowhere"]);
    refused(&["--what-if", "dgx-h1000"], 3, &["`dgx-h1000` is no built-in topology"]);
}

#[test]
fn what_is_assumed_is_fitted_to_what_was_measured() {
    let checkpoint = llama();
    let [points, fitted] = ["points.yaml", "fitted.yaml"].map(|name| checkpoint.beside(name));
    let written = "
- all-reduce: { gpus: 8, bytes: 65536, us: 22 }
- all-reduce: { gpus: 8, bytes: 1073741824, us: 5200 }
- kv-tokens: { tp: 8, utilization: 0.9, tokens: 1300000 }
- tokens-per-second: { tp: 8, concurrency: 1, context-len: 1024, tokens-per-second: 80 }
- tokens-per-second: { tp: 8, concurrency: 64, context-len: 1024, tokens-per-second: 3800 }
";
    fs::write(&points, written).unwrap();
    let machine = ["--topology", "dgx-h100"];
    let args = ["--calibrate", text(&points), "--save-assumptions", text(&fitted)];
    let printed = json(&checkpoint, &[&machine[..], &args].concat());
    let errors = printed["calibration"].as_array().unwrap();
    let names: Vec<&Value> = errors.iter().map(|errors| &errors["what"]).collect();
    assert_eq!(names, ["all-reduce", "KV tokens", "tokens/s"]);
    for errors in errors {
        let (before, after) = (&errors["median_error_before"], &errors["median_error_after"]);
        assert!(after.as_f64() < before.as_f64() && after.as_f64() < Some(0.1), "{errors}");
    }
    // What was written is read again, and gives the same.
    let again = json(&checkpoint, &[&machine[..], &["--assumptions", text(&fitted)]].concat());
    assert_eq!(again["machines"], printed["machines"]);

    let args = ["layouts", text(&checkpoint.path), "--topology", "dgx-h100", "--calibrate", text(&points)];
    let told = shardwright(&args).succeeded();
    assert!(told.starts_with("measured    points  off % before  after\nall-reduce       2 "), "{told}");

    fs::write(
        &points,
        "- all-reduce: { gpus: 8, bytes: 8, us: 1 }\n- all-reduce: { gpus: 8, bytes: 8, us: 9 }\n",
    )
    .unwrap();
    shardwright(&args)
        .refused(3, &["points 1 and 2 are of the same thing and contradict each other: 1 and 9", "help: "]);
    fs::write(&points, "- all-reduce: { gpus: 9, bytes: 8, us: 1 }\n").unwrap();
    shardwright(&args).refused(1, &["9 ranks need 9 GPUs"]);
    fs::write(&fitted, "speed: {}\n").unwrap();
    let args = ["layouts", text(&checkpoint.path), "--topology", "dgx-h100", "--assumptions", text(&fitted)];
    shardwright(&args).refused(3, &["fitted.yaml: line "]);
}
