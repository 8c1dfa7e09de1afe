//! What lies in the memory of GPUs, term by term.

use super::{
    Chosen, GpuMemory, Report,
    chart::{Part, bar, swatch},
    numbers::{grouped, many, share},
};
use crate::figures::{gib, percent};
use maud::{Markup, html};
use shardwright_planner::{
    quote::escaped,
    serving::MemoryBudget,
    size::{Size, count},
};

/// One term of the memory of a GPU.
struct Term {
    class: &'static str,
    letter: char,
    name: &'static str,
    bytes: u64,
    about: String,
}

/// The section.
pub(super) fn section(report: &Report<'_>, chosen: &Chosen<'_>) -> Markup {
    let Some(fullest) = fullest(chosen) else { return html! {} };
    // Bars of GPUs of different sizes are comparable.
    let longest = chosen.memory.iter().map(|one| one.budget.total + one.budget.lacks).max().unwrap_or(1);
    html! {
        section aria-labelledby="memory" {
            h2 #memory { "Memory of a GPU" }
            @for one in &chosen.memory {
                (figure(report, chosen, one, longest))
            }
            @if chosen.memory.len() > 1 { (all(report, chosen)) }
            (terms_of(report, chosen, fullest))
        }
    }
}

/// The GPUs that count: with the fewest tokens left.
fn fullest<'a>(chosen: &'a Chosen<'_>) -> Option<&'a GpuMemory> {
    chosen.memory.iter().min_by_key(|one| (one.budget.tokens, std::cmp::Reverse(one.budget.lacks)))
}

fn figure(report: &Report<'_>, chosen: &Chosen<'_>, one: &GpuMemory, longest: u64) -> Markup {
    let budget = one.budget;
    let parts: Vec<Part> = terms(report, chosen, &budget).iter().map(|term| part(term, longest)).collect();
    let label = format!(
        "{}: {} of {} taken",
        of_which(chosen, one),
        Size(taken(chosen, &budget)),
        Size(budget.total)
    );
    let over = (budget.lacks > 0).then(|| share(budget.total - budget.reserved, longest));
    html! {
        figure.memory {
            figcaption {
                strong { (of_which(chosen, one)) }
                " " (count(one.gpus as u64, "GPU")) ", " (Size(budget.total)) " each"
                @if budget.lacks > 0 { ", " strong.bad { "lacks " (Size(budget.lacks)) } ": what may be used ends at the mark" }
                @else { ", room for " (many(budget.tokens)) " tokens" }
            }
            (bar(&label, &parts, over))
        }
    }
}

/// What all but free room and what may not be used come to.
fn taken(chosen: &Chosen<'_>, budget: &MemoryBudget) -> u64 {
    budget.total.saturating_sub(budget.reserved).saturating_sub(budget.cache)
        + running(chosen, budget)
        + budget.lacks
}

/// Stage, layers and kind of GPU, as far as they tell anything.
fn of_which(chosen: &Chosen<'_>, one: &GpuMemory) -> String {
    let stages = match one.stages {
        _ if chosen.judged.layout.pp == 1 => String::new(),
        (first, last) if first == last => format!("Stage {first}, "),
        (first, last) => format!("Stages {first}–{last}, "),
    };
    let layers = one.layers.filter(|layers| layers.stop > layers.start);
    let layers = layers
        .filter(|_| chosen.judged.layout.pp > 1)
        .map_or(String::new(), |layers| format!("layers {}–{}, ", layers.start, layers.stop - 1));
    format!("{stages}{layers}{}", escaped(&one.kind))
}

fn part(term: &Term, whole: u64) -> Part {
    Part {
        class: term.class,
        letter: term.letter,
        name: term.name,
        share: share(term.bytes, whole),
        value: format!("{} GiB", gib(term.bytes)),
    }
}

/// Sequences that run at a time in the copy of the model that has most of them.
fn of_copy(chosen: &Chosen<'_>) -> u64 {
    chosen.judged.running.div_ceil(u64::from(chosen.judged.layout.dp.max(1)))
}

/// Bytes of the cache that these take.
fn running(chosen: &Chosen<'_>, budget: &MemoryBudget) -> u64 {
    budget.bytes_per_sequence.saturating_mul(of_copy(chosen)).min(budget.cache)
}

/// The terms, in the order of the bar.
fn terms(report: &Report<'_>, chosen: &Chosen<'_>, budget: &MemoryBudget) -> [Term; 8] {
    let workload = report.workload;
    let running = running(chosen, budget);
    let term = |class, letter, name, bytes, about: String| Term { class, letter, name, bytes, about };
    let free = budget.cache - running;
    let more = free.checked_div(budget.bytes_per_sequence).unwrap_or(u64::MAX);
    [
        term(
            "weights",
            'W',
            "weights",
            budget.weights,
            "from the checkpoint's headers, exactly: the slices of the fullest rank".to_owned(),
        ),
        term(
            "activations",
            'A',
            "activations",
            budget.activations,
            "of the longest batch of a prefill, or logits where those are more".to_owned(),
        ),
        term(
            "runtime",
            'C',
            "CUDA context",
            budget.runtime,
            "the driver's, kernels and workspaces".to_owned(),
        ),
        term(
            "communicators",
            'N',
            "NCCL buffers",
            budget.communicators,
            "communicators' buffers, where there are several ranks".to_owned(),
        ),
        term("graphs", 'G', "CUDA graphs", budget.graphs, "what captured steps keep".to_owned()),
        term(
            "cache",
            'K',
            "KV cache",
            running,
            format!(
                "{} of {} tokens in each copy, {} each",
                count(of_copy(chosen), "sequence"),
                grouped(workload.context_len),
                Size(budget.bytes_per_sequence)
            ),
        ),
        term(
            "free",
            'F',
            "free",
            free,
            match budget.lacks {
                0 => format!("room for {} more such sequences in each copy's KV cache", many(more)),
                lacks => format!("nothing: {} are lacking", Size(lacks)),
            },
        ),
        term(
            "reserve",
            'R',
            "reserve",
            budget.reserved,
            format!("kept free: {:.0} % of what the driver leaves may be used", workload.utilization * 100.0),
        ),
    ]
}

/// The terms of the GPUs that count.
fn terms_of(report: &Report<'_>, chosen: &Chosen<'_>, fullest: &GpuMemory) -> Markup {
    let budget = fullest.budget;
    html! {
        div.scroll tabindex="0" role="region" aria-label="terms of the memory" {
            table.terms.about {
                caption {
                    @if chosen.memory.len() > 1 { "The fullest: " (of_which(chosen, fullest)) } @else { "Term by term" }
                }
                thead { tr { th scope="col" { "term" } th.number scope="col" { "GiB" } th.number scope="col" { "%" } } }
                tbody {
                    @for term in terms(report, chosen, &budget) {
                        tr {
                            th scope="row" {
                                div.named { (swatch(&part(&term, budget.total))) div { (term.name) small { (term.about) } } }
                            }
                            td.number { (gib(term.bytes)) }
                            td.number { (percent(term.bytes, budget.total)) }
                        }
                    }
                }
                tfoot { tr { th scope="row" { "a GPU" } td.number { (gib(budget.total)) } td.number { "100.0" } } }
            }
        }
    }
}

/// All GPUs that differ, in numbers.
fn all(report: &Report<'_>, chosen: &Chosen<'_>) -> Markup {
    let heads = chosen.memory.first().map(|one| terms(report, chosen, &one.budget));
    html! {
        details {
            summary { "All of them in numbers" }
            div.scroll tabindex="0" role="region" aria-label="memory of all stages" {
                table {
                    caption { "GiB of each GPU" }
                    thead {
                        tr {
                            th scope="col" { "GPUs" }
                            @for term in heads.iter().flatten() { th.number scope="col" { (term.name) } }
                            th.number scope="col" { "tokens" }
                        }
                    }
                    tbody {
                        @for one in &chosen.memory {
                            tr {
                                th scope="row" { (of_which(chosen, one)) }
                                @for term in terms(report, chosen, &one.budget) { td.number { (gib(term.bytes)) } }
                                td.number { (many(one.budget.tokens)) }
                            }
                        }
                    }
                }
            }
        }
    }
}
