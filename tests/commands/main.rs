//! What people read and programs parse: every command's help, tables and JSON.
#![allow(clippy::unwrap_used)]

mod attach;
mod demo;
mod explain;
mod help;
mod import;
mod json;
mod large;
mod layouts;
mod placement;
mod plan;
mod report;
#[path = "../support/mod.rs"]
mod support;
mod topology;

use std::path::{Path, PathBuf};
use support::{fixture, shardwright, text};
use tempfile::TempDir;

/// A fixture's plan on eight H100, in a folder that is removed in the end.
fn planned(name: &str, args: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    support::plan(&fixture(name), &[&["--topology", "dgx-h100"], args].concat(), &file);
    (folder, file)
}

/// What a command prints, with `DIR` in place of `folder`.
fn printed(args: &[&str], folder: &Path) -> String {
    shardwright(args).succeeded().replace(text(folder), "DIR")
}
