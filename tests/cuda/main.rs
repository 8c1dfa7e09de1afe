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

use support::on_gpus::{demo, planned};
