//! What a reader wants first: the layout, what it does, what to look out for, and how to run it.

use super::{
    Report, in_words,
    numbers::{grouped, known, many, time},
};
use crate::output::escaped_line;
use maud::{Markup, html};
use shardwright_planner::{
    layouts::{Goal, Judged},
    quote::escaped,
    size::{Size, count},
};

/// The page's title.
pub(super) fn title(report: &Report<'_>) -> String {
    format!("{} on {}", escaped(report.checkpoint), escaped(report.machine.name()))
}

/// What the page is about.
pub(super) fn header(report: &Report<'_>) -> Markup {
    let workload = report.workload;
    let nodes = match report.machine.nodes() {
        1 => String::new(),
        nodes => format!("{nodes} × "),
    };
    html! {
        header {
            h1 { "Which layout for " bdi { (escaped(report.checkpoint)) } "?" }
            p { (nodes) bdi { (escaped(report.machine.about())) } }
            p { (report.layouts.model.to_string()) }
            p {
                (count(workload.concurrency, "sequence")) " at a time of "
                (grouped(workload.context_len)) " tokens, " (grouped(workload.prompt_len)) " of them prompt"
            }
        }
    }
}

/// The first layout, and what it does.
pub(super) fn answer(report: &Report<'_>) -> Markup {
    let Some(chosen) = &report.chosen else {
        return html! {
            section.answer.no aria-labelledby="answer" {
                h2 #answer { "No layout" }
                p { "No number of ranks that this machine has divides every module; why is told below." }
            }
        };
    };
    let judged = chosen.judged;
    html! {
        section.answer.no[!chosen.fits()] aria-labelledby="answer" {
            h2 #answer { @if chosen.fits() { (in_words(judged.layout)) } @else { "Does not fit" } }
            p { (verdict(report, judged)) }
            @if chosen.fits() { (figures(report, judged)) }
        }
    }
}

/// Whether it does what is asked, in a sentence.
fn verdict(report: &Report<'_>, judged: &Judged) -> String {
    let gpus = count(judged.gpus().into(), "GPU");
    let memory = judged.memory;
    if memory.lacks > 0 {
        return format!(
            "The best layout, {} on {gpus}, lacks {} on each.",
            in_words(judged.layout),
            Size(memory.lacks)
        );
    }
    if memory.sequences == 0 {
        return format!(
            "The best layout, {} on {gpus}, has no room for one sequence of {} beside the weights.",
            in_words(judged.layout),
            Size(memory.bytes_per_sequence)
        );
    }
    let wanted = match report.goal {
        Goal::FewestGpus => "the one with fewest GPUs",
        _ if judged.speed.is_none() => "the first; how fast they are is not known",
        Goal::Latency => "the one with the next token of each sequence soonest",
        Goal::Throughput => "the one with most tokens a second",
    };
    match judged.serves() {
        true => format!("On {gpus}: of all layouts with room for these sequences, {wanted}."),
        false => format!(
            "On {gpus}: no layout has room for all of these sequences at a time. This one has room for {} of {}.",
            many(memory.sequences),
            grouped(judged.wanted)
        ),
    }
}

fn figures(report: &Report<'_>, judged: &Judged) -> Markup {
    let mut figures = Vec::new();
    if let Some(speed) = judged.speed {
        figures.extend([
            ("tokens/s in all", known(Some(speed.tokens_per_second), 0)),
            ("tokens/s of each sequence", format!("{:.1}", 1.0 / speed.seconds_per_token)),
            ("to the next token", time(speed.seconds_per_token)),
            ("from a prompt to its first token", time(speed.first_token)),
        ]);
    }
    figures.extend([
        ("sequences fit at a time", many(judged.memory.sequences)),
        ("tokens fit into each copy's KV cache", many(judged.memory.tokens)),
    ]);
    if let Some(dollars) = report.dollars(judged) {
        figures.push(("dollars a million tokens", format!("{dollars:.2}")));
    }
    html! {
        dl.figures {
            @for (what, value) in figures { div { dt { (what) } dd { (value) } } }
        }
    }
}

/// What is odd and a person should know.
pub(super) fn warnings(report: &Report<'_>) -> Markup {
    let (mut warnings, mut refusal) = (&[][..], None);
    match report.chosen.as_ref().map(|chosen| (&chosen.plan, chosen.fits())) {
        Some((Ok(plan), _)) => warnings = &plan.warnings,
        // What does not fit has no plan, and that is said already.
        Some((Err(why), true)) => refusal = Some(format!("no plan: {}", escaped_line(why))),
        Some((Err(_), false)) | None => {}
    }
    let told = report.layouts.notes.iter().chain(warnings).map(|text| escaped_line(text));
    let all: Vec<String> = told.chain(refusal).collect();
    html! {
        @if all.is_empty() { section.none aria-labelledby="warnings" { h2.small #warnings { "No warnings" } } }
        @else {
            section.warnings aria-labelledby="warnings" {
                h2 #warnings { (count(all.len() as u64, "warning")) }
                ul { @for one in all { li { (one) } } }
            }
        }
    }
}

/// How engines are told to run it.
pub(super) fn engines(report: &Report<'_>) -> Markup {
    let commands = report.chosen.as_ref().map_or(&[][..], |chosen| &chosen.commands);
    html! {
        @if !commands.is_empty() {
            section aria-labelledby="engines" {
                h2 #engines { "How engines are told" }
                @for command in commands {
                    h3 { (command.engine) }
                    @if let Some(remark) = &command.remark { p { (remark) } }
                    pre tabindex="0" { code { (escaped_line(&command.line)) } }
                }
            }
        }
    }
}
