//! Places that cannot be written to.

use crate::support::{fixture, listing, shardwright, text};
use std::fs;
use tempfile::TempDir;

/// Checks that a plan cannot be written to `output`.
fn cannot_write(output: &str) {
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", "dgx-h100", "--tp", "2", "-o", output];
    shardwright(&args).refused(4, &["cannot write", output]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let folder = TempDir::new().unwrap();
    cannot_write(text(&folder.path().join("no/such/plan.yaml")));
    assert_eq!(listing(folder.path()), [""; 0]);
}

#[test]
fn a_folder_in_place_of_the_file_stays() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("plan.yaml");
    fs::create_dir(&output).unwrap();
    cannot_write(text(&output));
    assert_eq!(listing(folder.path()), ["plan.yaml"]);
    assert!(output.is_dir());
}

#[test]
fn a_file_in_place_of_the_folder_stays() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    cannot_write(text(&file.join("plan.yaml")));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_folder_that_takes_no_files_is_named() {
    cannot_write("/proc/plan.yaml");
}

#[test]
fn an_older_plan_is_replaced_as_a_whole() {
    let folder = TempDir::new().unwrap();
    let (path, output) = (fixture("llama-bf16"), folder.path().join("plan.yaml"));
    fs::write(&output, "x".repeat(100_000)).unwrap();
    shardwright(&["plan", text(&path), "--topology", "dgx-h100", "--tp", "2", "-o", text(&output)])
        .succeeded();
    assert_eq!(listing(folder.path()), ["plan.yaml"]);
    assert!(fs::read_to_string(&output).unwrap().starts_with("shardwright_plan: 1\n"));
}
