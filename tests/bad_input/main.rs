//! Bad input: every case has its exit code and one message that names the thing; nothing is half-written.
#![allow(clippy::unwrap_used)]

mod checkpoint;
mod config;
mod import;
mod index;
mod output;
mod plan;
mod quantised;
mod rules;
mod stale;
#[path = "../support/mod.rs"]
mod support;
mod topology;

use std::{fs, path::Path};
use support::{listing, shardwright, text};
use tempfile::TempDir;

/// Checks that planning `checkpoint` is refused with `code` and the words in `parts`, and writes nothing: no plan, no
/// temporary file, and an older plan stays as it was. Gives what was said.
fn plan_is_refused(checkpoint: &Path, args: &[&str], code: i32, parts: &[&str]) -> String {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("plan.yaml");
    let all = [&["plan", text(checkpoint), "-o", text(&output)], args].concat();
    let outcome = shardwright(&all);
    outcome.refused(code, parts);
    assert_eq!(listing(folder.path()), [""; 0]);

    fs::write(&output, "an older plan").unwrap();
    assert_eq!(shardwright(&all).code, Some(code));
    assert_eq!(listing(folder.path()), ["plan.yaml"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "an older plan");
    outcome.stderr
}

/// Checks that `checkpoint` is refused as damaged by `plan` and by `inspect`, with a help.
fn checkpoint_is_damaged(checkpoint: &Path, parts: &[&str]) {
    let parts = [parts, &["\nhelp: "]].concat();
    plan_is_refused(checkpoint, &["--topology", "dgx-h100", "--tp", "2"], 3, &parts);
    shardwright(&["inspect", text(checkpoint)]).refused(3, &parts);
    shardwright(&["inspect", text(checkpoint), "--json"]).refused(3, &parts);
}
