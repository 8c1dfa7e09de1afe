//! A process that holds a plan's weights on GPUs, and others that open them.

use super::{Outcome, finish, job::signal, on_gpus::Gpus, text};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Child,
};

/// A process that holds a plan's weights.
pub(crate) struct Holder {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Holder {
    /// Loads and waits until the weights are held.
    pub(crate) fn start(machine: &dyn Gpus, plan: &Path, args: &[&str]) -> Self {
        let usual = ["load", text(plan), "--device", "cuda"];
        let mut command = machine.command(&[&usual, args].concat());
        let mut child = command.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap();
        let mut printed = BufReader::new(child.stdout.take().unwrap());
        let (mut line, mut all) = (String::new(), String::new());
        let socket = loop {
            line.clear();
            let read = printed.read_line(&mut line).unwrap();
            assert!(read > 0, "nothing is held: {all}{:?}", finish(child));
            all.push_str(&line);
            if let Some(rest) = line.strip_prefix("held at ") {
                break rest.split(';').next().unwrap().into();
            }
        };
        assert!(all.contains("verified: "), "{all}");
        // What it prints from now on is nobody's business, but its pipe stays open.
        std::thread::spawn(move || std::io::copy(&mut printed, &mut std::io::sink()));
        Self { child, socket }
    }

    /// Sends it a signal, and waits for its end.
    pub(crate) fn end(self, name: &str) -> Outcome {
        signal(&self.child, name);
        finish(self.child)
    }
}

/// `attach` with `args`, where [`Holder`]s hold.
pub(crate) fn attach(machine: &dyn Gpus, args: &[&str]) -> Outcome {
    let mut command = machine.command(&[&["attach"], args].concat());
    finish(command.env("XDG_RUNTIME_DIR", machine.folder()).spawn().unwrap())
}
