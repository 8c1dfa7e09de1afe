//! Simulated libraries, which the tests put in the place of the driver's.

use serde_json::Value;
use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

/// The library of a package of this workspace, built by the cargo that runs this test. `cargo test` alone does not build it, as
/// nothing links it.
pub(crate) fn built(package: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--package", package, "--locked", "--offline", "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let lines = String::from_utf8(built.stdout).unwrap();
    let messages = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut artifacts = messages.filter(|message| message["target"]["name"] == package);
    let file = artifacts.find_map(|message| message["filenames"][0].as_str().map(PathBuf::from));
    file.expect("cargo says where the library is")
}
