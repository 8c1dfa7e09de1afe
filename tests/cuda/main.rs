//! Loading into GPUs, end to end: the binary as it is, on a simulated CUDA driver and NCCL (`tests/simcuda/`). No GPU has a part
//! in this: it shows the order of calls, lifetimes, faults and the protocol between ranks, and nothing of speed.
#![allow(clippy::unwrap_used)]

mod counts;
mod faults;
mod hold;
mod lent;
mod load;
mod processes;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use support::text;
use tempfile::TempDir;

/// The checkpoint of the demo, written once, and its plan for four ranks.
fn demo() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("demo");
    support::shardwright(&["demo", "--dir", text(&place)]).succeeded();
    let plan = place.join("plan.yaml");
    (folder, plan)
}
