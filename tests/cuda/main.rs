//! Loading into GPUs, end to end: the binary as it is, on a simulated CUDA driver and NCCL (`tests/simcuda/`). No GPU has a part
//! in this: it shows the order of calls, lifetimes, faults and the protocol between ranks, and nothing of speed.
#![allow(clippy::unwrap_used)]

mod counts;
mod faults;
mod hold;
mod load;
mod processes;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use support::{plan, text};
use tempfile::TempDir;

/// A plan of `checkpoint` for this host, in a folder that is removed in the end.
fn planned(checkpoint: &Path, [tp, pp, dp]: [u32; 3]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let [tp, pp, dp] = [tp, pp, dp].map(|size| size.to_string());
    plan(checkpoint, &["--topology", "host", "--tp", &tp, "--pp", &pp, "--dp", &dp], &file);
    (folder, file)
}

/// The checkpoint of the demo, written once, and its plan for four ranks.
fn demo() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("demo");
    support::shardwright(&["demo", "--dir", text(&place)]).succeeded();
    let plan = place.join("plan.yaml");
    (folder, plan)
}
