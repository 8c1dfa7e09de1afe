//! `shardwright layouts`: every way to put a model on a machine, best first.

use crate::{
    cli::{self, CacheDtype, GoalChoice},
    failure::{Failure, Kind},
    figures,
    inputs::{config, topology},
    output::{print_json, print_notes, print_table, table},
};
use serde_json::json;
use shardwright_planner::{
    checkpoint::Catalog,
    layouts::{Goal, Judged, LayoutRequest, Layouts, layouts},
    plan::CastDtype,
    quote::escaped,
    rules::{Families, UserRules},
    serving::{Assumptions, MemoryBudget, Workload},
    size::{Size, count},
    topology::Topology,
};
use std::io::Write;

/// Layouts that are shown where nobody asks for all.
const MOST_ROWS: usize = 20;

/// A prompt, where nobody says how long it is.
const PROMPT_LEN: u64 = 1024;

pub(crate) fn run(args: &cli::Layouts, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.checkpoint)?;
    let config = config(&catalog)?;
    let user = args.rules.as_deref().map_or_else(|| Ok(UserRules::default()), UserRules::read)?;
    let user = user.with_replicated(&args.replicate)?;
    let families = Families::built_in()?;
    let machine = topology(&args.topology, args.nodes, 1)?;
    let assumptions = Assumptions::built_in().map_err(|error| {
        Failure::new(Kind::Environment, format!("the assumptions that are built in: {error}"))
    })?;
    let prompt_len = args.prompt_len.unwrap_or_else(|| PROMPT_LEN.min(args.context_len.div_ceil(2)));
    if prompt_len > args.context_len {
        let message =
            format!("a prompt of {prompt_len} tokens does not go into a context of {}", args.context_len);
        return Err(Failure::new(Kind::Usage, message));
    }
    let workload = Workload {
        context_len: args.context_len,
        prompt_len,
        concurrency: args.concurrency,
        cache_bits: match args.kv_cache_dtype {
            CacheDtype::Fp8 => 8,
            CacheDtype::Auto | CacheDtype::Bf16 => 16,
            CacheDtype::F32 => 32,
        },
        utilization: args.gpu_memory_utilization,
    };
    let found = layouts(&LayoutRequest {
        catalog: &catalog,
        config: &config,
        families: &families,
        user: &user,
        topology: &machine,
        cast: args.dtype.map(CastDtype::from),
        workload: &workload,
        assumptions: &assumptions,
        goal: match args.goal {
            GoalChoice::Latency => Goal::Latency,
            GoalChoice::Throughput => Goal::Throughput,
            GoalChoice::FewestGpus => Goal::FewestGpus,
        },
    })?;
    print_notes(&found.notes);
    if args.json {
        return print_json(out, &as_json(&found, &workload));
    }
    print_layouts(&found, &machine, &workload, args.all, out)?;
    match found.judged.first().filter(|best| best.memory.lacks == 0) {
        Some(best) => print_best(best, &workload, out),
        None => Err(nowhere(&found, &catalog, &machine)),
    }
}

fn print_layouts(
    found: &Layouts,
    machine: &Topology,
    workload: &Workload,
    all: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    writeln!(out, "{}", found.model)?;
    writeln!(
        out,
        "on {}: {} at a time of {} tokens, {} of them prompt\n",
        escaped(machine.about()),
        count(workload.concurrency, "sequence"),
        workload.context_len,
        workload.prompt_len,
    )?;
    let shown = if all { found.judged.len() } else { MOST_ROWS };
    let rows = found.judged.iter().take(shown).map(row);
    let head = [
        "tp",
        "pp",
        "dp",
        "experts",
        "GPUs",
        "weights GiB",
        "KV tokens",
        "at a time",
        "ms/token",
        "tokens/s",
        "first s",
        "",
    ];
    print_table(out, &table(head, 0, rows))?;
    if found.judged.len() > shown {
        writeln!(out, "… and {} more: --all", found.judged.len() - shown)?;
    }
    if found.judged.iter().any(|judged| judged.pareto) {
        writeln!(out, "* no other is better in GPUs, ms/token or tokens/s and no worse in the others")?;
    }
    writeln!(out)?;
    for one in &found.out {
        let experts = one.ep.map_or(String::new(), |ep| format!(" with whole experts on {ep} ranks"));
        writeln!(out, "out: tp {}{experts}: {}", one.tp, escaped(&one.reason))?;
    }
    if !found.out.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

fn row(judged: &Judged) -> [String; 12] {
    let layout = judged.layout;
    let MemoryBudget { weights, tokens, sequences, lacks, .. } = judged.memory;
    let time = |number: Option<f64>, decimals: usize| {
        number.map_or("-".to_owned(), |number| format!("{number:.decimals$}"))
    };
    let many = |number: u64| if number == u64::MAX { "any".to_owned() } else { number.to_string() };
    let verdict = match (lacks, judged.serves(), judged.pareto) {
        (1.., ..) => format!("lacks {}", Size(lacks)),
        (0, false, _) => "too few at a time".to_owned(),
        (0, true, true) => "*".to_owned(),
        (0, true, false) => String::new(),
    };
    [
        layout.tp.to_string(),
        layout.pp.to_string(),
        layout.dp.to_string(),
        if layout.expert_parallel { "whole" } else { "-" }.to_owned(),
        judged.gpus().to_string(),
        figures::gib(weights),
        many(tokens),
        many(sequences),
        time(judged.speed.map(|speed| speed.seconds_per_token * 1e3), 1),
        time(judged.speed.map(|speed| speed.tokens_per_second), 0),
        time(judged.speed.map(|speed| speed.first_token), 2),
        verdict,
    ]
}

/// The first layout, term by term.
fn print_best(best: &Judged, workload: &Workload, out: &mut dyn Write) -> Result<(), Failure> {
    let layout = best.layout;
    let experts = if layout.expert_parallel { ", whole experts on each rank" } else { "" };
    writeln!(out, "tp {} × pp {} × dp {}{experts}:", layout.tp, layout.pp, layout.dp)?;
    let memory = best.memory;
    let terms = [
        ("memory of a GPU", memory.total),
        ("kept free", memory.reserved),
        ("weights", memory.weights),
        ("activations", memory.activations),
        ("runtime", memory.runtime),
        ("communicators", memory.communicators),
        ("CUDA graphs", memory.graphs),
        ("KV cache", memory.cache),
    ];
    print_table(
        out,
        &table(["", "GiB"], 1, terms.map(|(what, bytes)| [format!("  {what}"), figures::gib(bytes)])),
    )?;
    if let Some(speed) = best.speed {
        let step = speed.decode;
        let terms = [
            ("reading weights", step.weights),
            ("reading the KV cache", step.cache),
            ("multiplying, meanwhile", step.compute),
            ("collectives", step.collectives),
            ("tokens to experts and back", step.experts),
            ("to the next stage", step.send),
            ("starting kernels, the engine", step.overhead),
            ("a decode step of the slowest stage", step.total()),
        ];
        writeln!(out)?;
        print_table(
            out,
            &table(
                ["", "ms"],
                1,
                terms.map(|(what, seconds)| [format!("  {what}"), format!("{:.3}", seconds * 1e3)]),
            ),
        )?;
    }
    writeln!(out)?;
    let answer = match best.serves() {
        true => format!(
            "serves {} of {} tokens at a time",
            count(workload.concurrency, "sequence"),
            workload.context_len
        ),
        false => format!(
            "holds {} of {} tokens at a time, not {}",
            count(best.memory.sequences, "sequence"),
            workload.context_len,
            workload.concurrency
        ),
    };
    let speed = best.speed.map_or(String::new(), |speed| {
        format!(
            "; {:.0} tokens/s in all, {:.1} of each",
            speed.tokens_per_second,
            1.0 / speed.seconds_per_token
        )
    });
    writeln!(out, "{answer}{speed}")?;
    Ok(())
}

/// Nothing fits: what would.
fn nowhere(found: &Layouts, catalog: &Catalog, machine: &Topology) -> Failure {
    let least = found.judged.iter().map(|judged| judged.memory.lacks).min();
    let message = match least {
        Some(lacks) => format!(
            "does not fit: {} of weights, and the best layout on {} lacks {} on each GPU",
            Size(catalog.tensor_bytes()),
            machine.name(),
            Size(lacks)
        ),
        None => format!("no layout: no number of ranks that {} has divides every module", machine.name()),
    };
    let each = machine.least_memory_bytes().max(1);
    let help = format!(
        "weights alone need at least {} of {}: more nodes (--nodes), larger GPUs (`shardwright topology list`), or a checkpoint in fewer bits",
        count(catalog.tensor_bytes().div_ceil(each), "GPU"),
        Size(each)
    );
    Failure::new(Kind::No, message).with_help(help)
}

fn as_json(found: &Layouts, workload: &Workload) -> serde_json::Value {
    let judged = found.judged.iter().map(|judged| {
        let memory = judged.memory;
        json!({
            "tp": judged.layout.tp,
            "pp": judged.layout.pp,
            "dp": judged.layout.dp,
            "expert_parallel": judged.layout.expert_parallel,
            "gpus": judged.gpus(),
            "serves": judged.serves(),
            "pareto": judged.pareto,
            "memory": {
                "total_bytes": memory.total,
                "reserved_bytes": memory.reserved,
                "weight_bytes": memory.weights,
                "activation_bytes": memory.activations,
                "runtime_bytes": memory.runtime,
                "communicator_bytes": memory.communicators,
                "graph_bytes": memory.graphs,
                "cache_bytes": memory.cache,
                "lacking_bytes": memory.lacks,
                "stage": memory.stage,
                "bytes_per_sequence": memory.bytes_per_sequence,
            },
            "kv_tokens": memory.tokens,
            "sequences": memory.sequences,
            "speed": judged.speed.map(|speed| json!({
                "sequences": judged.running,
                "seconds_per_token": speed.seconds_per_token,
                "tokens_per_second": speed.tokens_per_second,
                "first_token_seconds": speed.first_token,
                "decode_step": {
                    "weights": speed.decode.weights,
                    "cache": speed.decode.cache,
                    "compute": speed.decode.compute,
                    "collectives": speed.decode.collectives,
                    "experts": speed.decode.experts,
                    "send": speed.decode.send,
                    "overhead": speed.decode.overhead,
                    "total": speed.decode.total(),
                },
            })),
        })
    });
    json!({
        "model": found.model,
        "context_len": workload.context_len,
        "prompt_len": workload.prompt_len,
        "concurrency": workload.concurrency,
        "layouts": judged.collect::<Vec<_>>(),
        "out": found.out.iter().map(|out| json!({"tp": out.tp, "ep": out.ep, "reason": out.reason})).collect::<Vec<_>>(),
        "notes": found.notes,
    })
}
