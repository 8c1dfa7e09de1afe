//! Layouts for people.

use super::Found;
use crate::{
    engines::Command,
    failure::Failure,
    figures,
    output::{escaped_line, print_table, table},
};
use shardwright_planner::{
    layouts::{Judged, Prices, per_million_tokens},
    quote::escaped,
    serving::{MemoryBudget, Workload},
    size::{Size, count},
};
use std::io::Write;

/// Layouts that are shown where nobody asks for all.
const MOST_ROWS: usize = 20;

/// What the rows are of.
fn head(found: &Found, workload: &Workload, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "{}", found.layouts.model)?;
    let sequences = count(workload.concurrency, "sequence");
    let (all, prompt) = (workload.context_len, workload.prompt_len);
    writeln!(out, "{sequences} at a time of {all} tokens, {prompt} of them prompt")?;
    Ok(())
}

/// All layouts on one machine.
pub(super) fn layouts(
    found: &Found,
    workload: &Workload,
    prices: &Prices,
    all: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    head(found, workload, out)?;
    writeln!(out, "on {}\n", escaped(found.machine.about()))?;
    let judged = &found.layouts.judged;
    let shown = if all { judged.len() } else { MOST_ROWS };
    let rows = judged.iter().take(shown).map(|judged| row(found, judged, prices));
    print_table(out, &table(HEAD, 0, rows))?;
    if judged.len() > shown {
        writeln!(out, "… and {} more: --all", judged.len() - shown)?;
    }
    if judged.iter().any(|judged| judged.pareto) {
        writeln!(out, "* no other is better in GPUs, ms/token or tokens/s and no worse in the others")?;
    }
    writeln!(out)?;
    let outs = &found.layouts.out;
    for one in outs.iter().take(shown) {
        let experts = one.ep.map_or(String::new(), |ep| format!(", whole experts on {ep} ranks"));
        writeln!(out, "out: tp {}{experts}: {}", one.tp, escaped(&one.reason))?;
    }
    if !outs.is_empty() {
        writeln!(out)?;
    }
    Ok(())
}

const HEAD: [&str; 12] = [
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
    "$/Mtoken",
    "",
];

fn row(found: &Found, judged: &Judged, prices: &Prices) -> [String; 12] {
    let layout = judged.layout;
    let MemoryBudget { weights, tokens, sequences, lacks, .. } = judged.memory;
    let number = |number: Option<f64>, decimals: usize| {
        number.map_or("-".to_owned(), |number| format!("{number:.decimals$}"))
    };
    let many = |number: u64| if number == u64::MAX { "any".to_owned() } else { number.to_string() };
    let verdict = match (lacks, judged.serves(), judged.pareto) {
        (1.., ..) => format!("lacks {}", Size(lacks)),
        (0, false, _) => "too few".to_owned(),
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
        number(judged.speed.map(|speed| speed.seconds_per_token * 1e3), 1),
        number(judged.speed.map(|speed| speed.tokens_per_second), 0),
        number(dollars(found, judged, prices), 2),
        verdict,
    ]
}

/// Dollars for a million tokens, where prices and times are known.
pub(super) fn dollars(found: &Found, judged: &Judged, prices: &Prices) -> Option<f64> {
    let per_hour = prices.of(&found.machine, judged.gpus())?;
    Some(per_million_tokens(per_hour, judged.speed?.tokens_per_second))
}

/// One layout, term by term.
pub(super) fn terms(best: &Judged, out: &mut dyn Write) -> Result<(), Failure> {
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
    writeln!(out)?;
    let Some(speed) = best.speed else { return Ok(()) };
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
        ("a prompt to its first token", speed.first_token),
    ];
    let rows = terms.map(|(what, seconds)| [format!("  {what}"), format!("{:.3}", seconds * 1e3)]);
    print_table(out, &table(["", "ms"], 1, rows))?;
    writeln!(out)?;
    Ok(())
}

/// How engines are told to run it.
pub(super) fn engines(commands: &[Command], out: &mut dyn Write) -> Result<(), Failure> {
    for Command { engine, line, remark } in commands {
        let remark = remark.as_ref().map_or(String::new(), |remark| format!(" ({remark})"));
        writeln!(out, "{engine}{remark}:\n  {}", escaped_line(line))?;
    }
    writeln!(out)?;
    Ok(())
}

/// What the best layout does, in one line.
pub(super) fn answer(
    found: &Found,
    best: &Judged,
    workload: &Workload,
    prices: &Prices,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let context = workload.context_len;
    let gpus = count(best.gpus().into(), "GPU");
    let does = match best.serves() {
        true => format!("{} of {context} tokens at a time", count(workload.concurrency, "sequence")),
        false => {
            let fit = count(best.memory.sequences, "sequence");
            format!("room for {fit} of {context} tokens at a time, not {}", workload.concurrency)
        }
    };
    let speed = best.speed.map_or(String::new(), |speed| {
        format!(
            ": {:.0} tokens/s in all, {:.1} of each",
            speed.tokens_per_second,
            1.0 / speed.seconds_per_token
        )
    });
    let price = dollars(found, best, prices)
        .map_or(String::new(), |dollars| format!(", {dollars:.2} dollars a million tokens"));
    writeln!(out, "on {gpus} {does}{speed}{price}")?;
    Ok(())
}

/// The best layout on each of several machines, the cheapest that serves first.
pub(super) fn machines(
    found: &[Found],
    workload: &Workload,
    prices: &Prices,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let Some(first) = found.first() {
        head(first, workload, out)?;
        writeln!(out)?;
    }
    let mut order: Vec<(&Found, Option<&Judged>)> =
        found.iter().map(|found| (found, cheapest(found, prices))).collect();
    let price = |(found, judged): &(&Found, Option<&Judged>)| {
        judged.and_then(|judged| prices.of(&found.machine, judged.gpus()))
    };
    let key = |one: &(&Found, Option<&Judged>)| {
        let serves = one.1.is_some_and(Judged::serves);
        (!serves, price(one).unwrap_or(f64::INFINITY), one.1.map_or(u32::MAX, Judged::gpus))
    };
    order.sort_by(|a, b| {
        let ((a_serves, a_price, a_gpus), (b_serves, b_price, b_gpus)) = (key(a), key(b));
        a_serves.cmp(&b_serves).then(a_price.total_cmp(&b_price)).then(a_gpus.cmp(&b_gpus))
    });
    let rows = order.iter().map(|one| {
        let (found, judged) = one;
        let name = escaped(found.machine.name());
        let Some(judged) = judged else {
            return [
                name,
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "-".into(),
                "does not fit".into(),
            ];
        };
        let layout = judged.layout;
        let experts = if layout.expert_parallel { ", whole experts" } else { "" };
        let number = |number: Option<f64>, decimals: usize| {
            number.map_or("-".to_owned(), |number| format!("{number:.decimals$}"))
        };
        [
            name,
            format!("tp {} × pp {} × dp {}{experts}", layout.tp, layout.pp, layout.dp),
            judged.gpus().to_string(),
            judged.memory.sequences.to_string(),
            number(judged.speed.map(|speed| speed.tokens_per_second), 0),
            number(price(one), 2),
            number(dollars(found, judged, prices), 2),
            if judged.serves() { String::new() } else { "too few".to_owned() },
        ]
    });
    let head = ["machine", "layout", "GPUs", "at a time", "tokens/s", "$/hour", "$/Mtoken", ""];
    print_table(out, &table(head, 2, rows))?;
    writeln!(out)?;
    match order.first().and_then(|(found, judged)| Some((found, judged.filter(|judged| judged.serves())?))) {
        Some((found, judged)) => {
            let by = if prices == &Prices::default() { "fewest GPUs" } else { "cheapest" };
            writeln!(
                out,
                "{by} that serves: {} of {}",
                count(judged.gpus().into(), "GPU"),
                escaped(found.machine.name())
            )?;
        }
        None => writeln!(out, "none of them serves {}", count(workload.concurrency, "sequence"))?,
    }
    Ok(())
}

/// Of the layouts of a machine that serve, the one that costs least: the fewest GPUs. Where none serves, the best.
pub(super) fn cheapest<'a>(found: &'a Found, prices: &Prices) -> Option<&'a Judged> {
    let cost = |judged: &Judged| prices.of(&found.machine, judged.gpus()).unwrap_or(f64::from(judged.gpus()));
    let serving = found.layouts.judged.iter().filter(|judged| judged.serves());
    serving.min_by(|a, b| cost(a).total_cmp(&cost(b))).or_else(|| found.best())
}
