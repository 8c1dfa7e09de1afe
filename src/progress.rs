//! A bar on the terminal while ranks load or are exported.

use crate::{failure::Failure, figures};
use indicatif::{ProgressBar, ProgressStyle};
use shardwright_loader::{
    load::{LoadError, Progress},
    schedule::Schedule,
};
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Runs `load` while a bar on the terminal shows how far the ranks are.
pub(crate) fn with_bar<T>(
    doing: &str,
    plan: &Plan,
    catalog: &Catalog,
    ranks: &[u32],
    load: impl FnOnce(&Progress) -> Result<T, LoadError>,
) -> Result<T, Failure> {
    let progress = Progress::default();
    if !std::io::stderr().is_terminal() {
        return Ok(load(&progress)?);
    }
    let mut totals = Vec::with_capacity(ranks.len());
    for &rank in ranks {
        totals.push((rank, Schedule::new(plan, catalog, rank)?.copied_bytes()));
    }
    let total = totals.iter().map(|(_, bytes)| bytes).sum();
    let bar = ProgressBar::new(total);
    let style = format!(
        "{doing} {{bar:30}} {{bytes}}/{{total_bytes}}  {{binary_bytes_per_sec}}  {{eta}} left  {{msg}}"
    );
    if let Ok(style) = ProgressStyle::with_template(&style) {
        bar.set_style(style);
    }
    let begin = Instant::now();
    let done = AtomicBool::new(false);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bar.set_position(progress.bytes());
                bar.set_message(match progress.bytes() >= total {
                    true => "verifying".to_owned(),
                    false => message(&progress, &totals, begin.elapsed()),
                });
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let loaded = load(&progress);
        done.store(true, Ordering::Relaxed);
        loaded
    });
    bar.finish_and_clear();
    Ok(loaded?)
}

/// What stands behind the bar: how fast it was so far, and which rank has least.
fn message(progress: &Progress, totals: &[(u32, u64)], elapsed: Duration) -> String {
    let average = format!("{:.2} GB/s on average", figures::gb_per_second(progress.bytes(), elapsed));
    let have = progress.of_ranks();
    let percent = |&(rank, total): &(u32, u64)| {
        let bytes = have.get(&rank).copied().unwrap_or(0);
        ((u128::from(bytes) * 100).checked_div(u128::from(total)).unwrap_or(100), rank)
    };
    match totals.iter().map(percent).min() {
        Some((percent, rank)) if totals.len() > 1 => {
            format!("{average}; rank {rank} is slowest, {percent} %")
        }
        _ => average,
    }
}
