//! What all of it rests on: the workload, facts of the machine, what is assumed and where that comes from.

use super::{Report, numbers::grouped};
use maud::{Markup, html};
use shardwright_planner::{
    layouts::Goal,
    quote::escaped,
    size::{Size, count},
};

/// The section.
pub(super) fn section(report: &Report<'_>) -> Markup {
    html! {
        section aria-labelledby="basis" {
            h2 #basis { "What it rests on" }
            h3 { "The workload" }
            dl.facts { @for (what, value) in workload(report) { div { dt { (what) } dd { (value) } } } }
            h3 { "The machine" }
            p { "From the topology " bdi { (escaped(report.machine.name())) } "; bandwidths and FLOP/s that it does not give are data sheets', of dense matrices." }
            (kinds(report))
            h3 { "What is assumed" }
            p { (report.assumed) "." }
            (assumptions(report))
        }
    }
}

fn workload(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let workload = report.workload;
    vec![
        ("sequences at a time", grouped(workload.concurrency)),
        ("tokens of each", grouped(workload.context_len)),
        ("of these, prompt", grouped(workload.prompt_len)),
        ("KV cache", format!("{} bits a number", workload.cache_bits)),
        ("GPU memory that may be used", format!("{:.0} %", workload.utilization * 100.0)),
        ("floats loaded as", report.cast.map_or("they are stored".to_owned(), |cast| format!("{cast:?}"))),
        (
            "wanted most",
            match report.goal {
                Goal::Latency => "the next token of each sequence soon",
                Goal::Throughput => "many tokens a second in all",
                Goal::FewestGpus => "few GPUs",
            }
            .to_owned(),
        ),
    ]
}

fn kinds(report: &Report<'_>) -> Markup {
    html! {
        ul.assumed {
            @for kind in report.machine.kinds() {
                li {
                    strong { bdi { (escaped(&kind.kind)) } } " " (Size(kind.memory_bytes)) ", "
                    @if let Some(rate) = kind.memory_bandwidth { "read at " (rate) } @else { "read at an unknown rate" }
                    p {
                        @if kind.flops.is_empty() { "FLOP/s unknown" }
                        @for (place, (numbers, rate)) in kind.flops.iter().enumerate() {
                            @if place > 0 { ", " }
                            (format!("{numbers:?}").to_uppercase()) " " (rate)
                        }
                    }
                }
            }
        }
    }
}

fn assumptions(report: &Report<'_>) -> Markup {
    let changed =
        report.explained.iter().flat_map(|one| &one.figures).filter(|one| one.built_in.is_some()).count();
    html! {
        @if changed > 0 { p { (count(changed as u64, "figure")) " are not those that come with shardwright." } }
        ul.assumed {
            @for one in &report.explained {
                li {
                    @for figure in &one.figures {
                        span.figure {
                            code { (figure.key) } " " strong { (figure.value) }
                            @if let Some(usual) = &figure.built_in { " (built in: " (usual) ")" }
                        }
                    }
                    p { (with_code(&one.about)) }
                }
            }
        }
    }
}

/// A text in which words between backticks are code.
fn with_code(text: &str) -> Markup {
    html! {
        @for (place, part) in text.split('`').enumerate() {
            @if place % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}
