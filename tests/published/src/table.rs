//! What people read.

use crate::{halves::Compared, points::Kind};
use comfy_table::{CellAlignment, Table, presets};
use shardwright_planner::serving::Assumptions;

/// How far off each kind may be, half of its points: what was asked for.
const ASKED: [(Kind, f64); 5] = [
    (Kind::Weights, 0.01),
    (Kind::KvLayout, 0.05),
    (Kind::KvTokens, 0.05),
    (Kind::AllReduce, 0.20),
    (Kind::Decode, 0.20),
];

/// Prints how far off each kind is, and each point if `each` says so.
pub(crate) fn print((compared, fitted): &(Vec<Compared<'_>>, [Assumptions; 2]), each: bool) {
    if each {
        let head = ["point", "kind", "half", "measured", "as it comes", "off %", "fitted", "off %"];
        let rows = compared.iter().map(|one| {
            [
                one.point.id.clone(),
                one.point.kind.name().to_owned(),
                HALVES[one.half].to_owned(),
                figure(one.measured),
                figure(one.as_it_comes),
                percent(off(one.as_it_comes, one.measured)),
                figure(one.fitted),
                percent(off(one.fitted, one.measured)),
            ]
        });
        println!("{}\n", table(&head, 2, rows));
    }
    let head = ["what", "points", "sources", "asked", "as it comes", "fitted", "half A", "half B"];
    let rows = ASKED.iter().map(|&(kind, asked)| {
        let of_kind = || compared.iter().filter(move |one| one.point.kind == kind);
        let mut sources: Vec<&str> = of_kind().map(|one| one.point.source.as_str()).collect();
        sources.sort_unstable();
        sources.dedup();
        let middle = |half: Option<usize>, predicted: fn(&Compared<'_>) -> f64| {
            let counted = of_kind().filter(|one| half.is_none_or(|half| one.half == half));
            let middle = median(counted.map(|one| off(predicted(one), one.measured).abs()).collect());
            middle.map_or_else(|| "-".to_owned(), percent)
        };
        [
            kind.name().to_owned(),
            of_kind().count().to_string(),
            sources.len().to_string(),
            percent(asked),
            middle(None, |one| one.as_it_comes),
            middle(None, |one| one.fitted),
            middle(Some(0), |one| one.fitted),
            middle(Some(1), |one| one.fitted),
        ]
    });
    println!("{}", table(&head, 1, rows));
    for (half, Assumptions { memory, speed }) in HALVES.iter().zip(fitted) {
        println!(
            "\nfitted to half {half}: runtime {} MiB, links {:.2}, network {:.2}, collective {:.1} us, memory {:.2}, layer {:.1} us, step {:.0} us",
            memory.runtime.bytes() >> 20,
            speed.links,
            speed.network,
            speed.collective.nanoseconds() as f64 / 1e3,
            speed.memory,
            speed.layer.nanoseconds() as f64 / 1e3,
            speed.step.nanoseconds() as f64 / 1e3,
        );
    }
}

/// What the halves are called.
const HALVES: [&str; 2] = ["A", "B"];

fn table<const N: usize>(head: &[&str; N], left: usize, rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head).add_rows(rows);
    for (number, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if number == 0 { 0 } else { 1 }, 1));
        if number >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// By how much of what was measured the prediction is more than that.
fn off(predicted: f64, measured: f64) -> f64 {
    predicted / measured - 1.0
}

fn percent(share: f64) -> String {
    format!("{:.1}", share * 100.0)
}

fn figure(number: f64) -> String {
    format!("{number:.2}")
}

fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        count if count % 2 == 1 => numbers.get(middle).copied(),
        _ => Some((numbers[middle - 1] + numbers[middle]) / 2.0),
    }
}
