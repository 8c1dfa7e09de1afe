//! All layouts: a table that sorts, and why the rest are out.

use super::{
    Report, fits,
    numbers::{grouped, known, many},
    plot,
};
use crate::figures::gib;
use crate::output::escaped_line;
use maud::{Markup, html};
use shardwright_planner::{
    layouts::{Judged, Out},
    size::{Size, count},
};

/// A cell: what is shown, and what it is sorted by; nothing where it is unknown.
struct Cell {
    shown: String,
    key: Option<f64>,
}

impl Cell {
    fn number(number: Option<f64>, decimals: usize) -> Self {
        Self { shown: known(number, decimals), key: number }
    }

    fn count(number: impl Into<u64>) -> Self {
        let number = number.into();
        Self { shown: many(number), key: Some(as_f64(number)) }
    }
}

/// A column: its head, and whether more of it is better, so that it is sorted that way first.
type Column = (&'static str, bool);

/// The section.
pub(super) fn section(report: &Report<'_>) -> Markup {
    let judged = &report.layouts.judged;
    let serving = judged.iter().filter(|judged| judged.serves()).count();
    let pareto = judged.iter().filter(|judged| judged.pareto).count();
    html! {
        section aria-labelledby="layouts" {
            h2 #layouts { "All layouts" }
            @if !judged.is_empty() {
                p {
                    (count(judged.len() as u64, "layout")) ", " (serving) " with room for all sequences at a time, best first. "
                    "Pareto: no other is better in GPUs, ms/token or tokens/s and no worse in the others."
                }
                fieldset.show {
                    legend { "Show" }
                    label { input type="radio" name="show" value="all" checked; " all " (judged.len()) }
                    label { input #only-serving type="radio" name="show" value="serving"; " that serve: " (serving) }
                    label { input #only-pareto type="radio" name="show" value="pareto"; " Pareto: " (pareto) }
                }
                (plot::figure(report))
                (layouts(report))
                p.quiet role="status" #sorted {}
            }
            (out(&report.layouts.out))
        }
    }
}

fn layouts(report: &Report<'_>) -> Markup {
    let judged = &report.layouts.judged;
    let columns = columns(report);
    html! {
        div.scroll.tall tabindex="0" role="region" aria-label="all layouts" {
            table.layouts {
                thead {
                    tr {
                        @for (place, (head, more)) in columns.iter().enumerate() {
                            th.verdict[*head == "verdict"] scope="col" aria-sort=(if place == 0 { "ascending" } else { "none" }) data-first=(if *more { "descending" } else { "ascending" }) {
                                button type="button" { (head) }
                            }
                        }
                    }
                }
                tbody {
                    @for (number, judged) in judged.iter().enumerate() {
                        tr.serving[judged.serves()].pareto[judged.pareto].unfit[!fits(judged)] {
                            @for (cell, (head, _)) in cells(report, number, judged).iter().zip(&columns) {
                                td.number[*head != "verdict"].verdict[*head == "verdict"] data-key=(cell.key.map_or(String::new(), |key| key.to_string())) { (cell.shown) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn has_experts(report: &Report<'_>) -> bool {
    report.layouts.judged.iter().any(|judged| judged.layout.expert_parallel)
}

fn has_prices(report: &Report<'_>) -> bool {
    report.layouts.judged.iter().any(|judged| report.dollars(judged).is_some())
}

fn columns(report: &Report<'_>) -> Vec<Column> {
    let mut columns = vec![("#", false), ("tp", false), ("pp", false), ("dp", false)];
    columns.extend(has_experts(report).then_some(("experts", false)));
    columns.extend([
        ("GPUs", false),
        ("verdict", false),
        ("tokens/s", true),
        ("ms/token", false),
        ("first token ms", false),
    ]);
    columns.extend(has_prices(report).then_some(("$/Mtoken", false)));
    columns.extend([("KV tokens", true), ("at a time", true), ("weights GiB", false)]);
    columns
}

/// The cells of a row, as many as there are columns.
fn cells(report: &Report<'_>, number: usize, judged: &Judged) -> Vec<Cell> {
    let layout = judged.layout;
    let memory = judged.memory;
    let speed = judged.speed;
    let mut cells = vec![
        Cell::count(number as u64 + 1),
        Cell::count(layout.tp),
        Cell::count(layout.pp),
        Cell::count(layout.dp),
    ];
    cells.extend(has_experts(report).then(|| match layout.expert_parallel {
        true => Cell { shown: "whole".to_owned(), key: Some(1.0) },
        false => Cell { shown: "cut".to_owned(), key: Some(0.0) },
    }));
    cells.extend([
        Cell::count(judged.gpus()),
        verdict(judged),
        Cell::number(speed.map(|speed| speed.tokens_per_second), 0),
        Cell::number(speed.map(|speed| speed.seconds_per_token * 1e3), 1),
        Cell::number(speed.map(|speed| speed.first_token * 1e3), 0),
    ]);
    cells.extend(has_prices(report).then(|| Cell::number(report.dollars(judged), 2)));
    cells.extend([
        Cell::count(memory.tokens),
        Cell::count(memory.sequences),
        Cell { shown: gib(memory.weights), key: Some(as_f64(memory.weights)) },
    ]);
    cells
}

fn verdict(judged: &Judged) -> Cell {
    let (shown, key) = match (judged.memory.lacks, judged.serves()) {
        (lacks @ 1.., _) => (format!("out: lacks {}", Size(lacks)), 4.0),
        (0, false) if judged.memory.sequences == 0 => ("out: no room for a sequence".to_owned(), 3.0),
        (0, false) => {
            (format!("too few: {} of {}", many(judged.memory.sequences), grouped(judged.wanted)), 2.0)
        }
        (0, true) if judged.pareto => ("★ Pareto".to_owned(), 0.0),
        (0, true) => ("serves".to_owned(), 1.0),
    };
    Cell { shown, key: Some(key) }
}

/// Numbers of ranks that no layout can have.
fn out(outs: &[Out]) -> Markup {
    html! {
        @if !outs.is_empty() {
            details {
                summary { (count(outs.len() as u64, "number")) " of ranks left out, and why" }
                div.scroll tabindex="0" role="region" aria-label="numbers of ranks that are out" {
                    table {
                        thead { tr { th.number scope="col" { "tp" } th scope="col" { "experts" } th scope="col" { "why" } } }
                        tbody {
                            @for one in outs {
                                tr {
                                    th.number scope="row" { (one.tp) }
                                    td { @if let Some(ep) = one.ep { "whole, on " (ep) " ranks" } @else { "–" } }
                                    td { (escaped_line(&one.reason)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
