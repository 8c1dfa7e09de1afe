//! A bar on the terminal while ranks load.

use crate::failure::Failure;
use indicatif::{ProgressBar, ProgressStyle};
use shardwright_loader::{
    load::{LoadError, Progress},
    schedule::Schedule,
};
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{
    io::IsTerminal,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

/// Runs `load` while a bar on the terminal shows how far the ranks are.
pub(super) fn with_bar<T>(
    plan: &Plan,
    catalog: &Catalog,
    ranks: &[u32],
    load: impl FnOnce(&Progress) -> Result<T, LoadError>,
) -> Result<T, Failure> {
    let progress = Progress::default();
    if !std::io::stderr().is_terminal() {
        return Ok(load(&progress)?);
    }
    let mut total = 0;
    for &rank in ranks {
        total += Schedule::new(plan, catalog, rank)?.copied_bytes();
    }
    let bar = ProgressBar::new(total);
    let style = "loading {bar:30} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    let done = AtomicBool::new(false);
    let loaded = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                bar.set_position(progress.bytes());
                if progress.bytes() >= total {
                    bar.set_message("verifying");
                }
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
