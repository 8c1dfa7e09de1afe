//! The simulated CUDA driver and NCCL (`tests/simcuda/`), for a run of the binary. No GPU has a part in this.

use super::{Outcome, command, finish, on_gpus::Gpus, simulated, text};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};
use tempfile::TempDir;

/// Under what name `cudarc` finds the driver.
const DRIVER: &str = "libcuda.so.1";

/// Under what name NCCL is found.
const NCCL: &str = "libnccl.so.2";

/// The simulated library.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| simulated::built("simcuda"))
}

/// A machine with simulated GPUs.
pub(crate) struct Machine {
    folder: TempDir,
    settings: BTreeMap<String, String>,
}

impl Machine {
    /// Four GPUs, a driver and NCCL.
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("lib")).unwrap();
        fs::copy(library(), folder.path().join("lib").join(DRIVER)).unwrap();
        // The same file, so that a process that opens both has one instance of it.
        fs::hard_link(folder.path().join("lib").join(DRIVER), folder.path().join("lib").join(NCCL)).unwrap();
        Self { folder, settings: BTreeMap::new() }
    }

    /// The same without NCCL.
    pub(crate) fn without_nccl(self) -> Self {
        fs::remove_file(self.folder.path().join("lib").join(NCCL)).unwrap();
        self
    }

    /// Sets one of the variables that the simulation reads.
    pub(crate) fn with(mut self, name: &str, value: &dyn ToString) -> Self {
        self.settings.insert(name.to_owned(), value.to_string());
        self
    }

    /// Switches a fault on.
    pub(crate) fn with_fault(self, fault: &str) -> Self {
        self.with("SIMCUDA_FAULT", &fault)
    }

    /// Loads, and gives what was printed and what the simulated driver counted, one document for each process.
    pub(crate) fn counted(&self, plan: &Path, args: &[&str]) -> (Outcome, Vec<Value>) {
        let prefix = self.folder.path().join("counts");
        let mut command = self.command(&[&["load", text(plan), "--device", "cuda"], args].concat());
        command.env("SIMCUDA_COUNTS", &prefix);
        let outcome = finish(command.spawn().unwrap());
        let files = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let counts = files.filter(|path| text(path).starts_with(&format!("{}.", text(&prefix))));
        let counts = counts.map(|path| serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap());
        (outcome, counts.collect())
    }
}

impl Gpus for Machine {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.env("LD_LIBRARY_PATH", self.folder.path().join("lib")).envs(&self.settings);
        for name in ["CUDA_VISIBLE_DEVICES", "NCCL_LIBRARY"] {
            if !self.settings.contains_key(name) {
                command.env_remove(name);
            }
        }
        command
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }
}
