//! What the end-to-end tests share: running the built binary, small checkpoints, and a plain way to cut slices.
#![allow(dead_code)] // Each test crate uses its part.

pub(crate) mod cut;
pub(crate) mod headers;
pub(crate) mod holder;
pub(crate) mod job;
pub(crate) mod modules;
pub(crate) mod on_gpus;
pub(crate) mod simcuda;
pub(crate) mod simulated;
pub(crate) mod tiny;

use serde_json::Value;
use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The checkpoints that `transformers` wrote.
pub(crate) const FIXTURES: [&str; 5] =
    ["llama-bf16", "llama-odd-vocab-bf16", "mistral-f32", "qwen2-bf16", "qwen3-f32"];

/// A run that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The folder of one of [`FIXTURES`].
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints").join(name)
}

/// What a tool printed of a machine, or would have.
pub(crate) fn topology_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/topologies").join(name)
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// How a run of the binary ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with `args`, as a script would start it: no terminal, no input.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shardwright"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("COLUMNS");
    command
}

/// Runs the binary with `args` to its end.
pub(crate) fn shardwright(args: &[&str]) -> Outcome {
    finish(command(args).spawn().unwrap())
}

/// Waits for `child`, and ends it when it hangs.
pub(crate) fn finish(mut child: Child) -> Outcome {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let (code, stdout, stderr) = std::thread::scope(|scope| {
        let out = scope.spawn(|| read_all(out));
        let err = scope.spawn(|| read_all(err));
        let begin = Instant::now();
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            if begin.elapsed() > PATIENCE {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("the command hangs");
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        (code, out.join().unwrap(), err.join().unwrap())
    });
    assert!(!stderr.contains("panicked"), "{stderr}");
    Outcome { code, stdout, stderr }
}

fn read_all(stream: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        stream.read_to_end(&mut bytes).unwrap();
    }
    String::from_utf8(bytes).unwrap()
}

impl Outcome {
    /// Checks that all went well, with nothing on stderr, and gives what was printed.
    pub(crate) fn succeeded(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// What was printed, as JSON.
    pub(crate) fn json(self) -> Value {
        serde_json::from_str(&self.succeeded()).unwrap()
    }

    /// Checks that the answer is `code` with one message that has each of `parts`, and nothing on stdout.
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "");
        assert!(self.stderr.starts_with("error: "), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
    }
}

/// Plans `checkpoint` with further `args` into `plan`, and gives what `--json` prints.
pub(crate) fn plan(checkpoint: &Path, args: &[&str], plan: &Path) -> Value {
    let all = [&["plan", text(checkpoint), "-o", text(plan), "--json"], args].concat();
    shardwright(&all).json()
}

/// A plan of `checkpoint` for this host, in a folder that is removed in the end.
pub(crate) fn planned(checkpoint: &Path, [tp, pp, dp]: [u32; 3]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let [tp, pp, dp] = [tp, pp, dp].map(|size| size.to_string());
    plan(checkpoint, &["--topology", "host", "--tp", &tp, "--pp", &pp, "--dp", &dp], &file);
    (folder, file)
}

/// What `slices` prints for each rank of `plan`.
pub(crate) fn slices(plan: &Path, ranks: u64) -> Vec<Value> {
    let of = |rank: u64| {
        let printed = shardwright(&["slices", text(plan), "--rank", &rank.to_string()]).json();
        assert_eq!((printed["rank"].as_u64(), printed["world_size"].as_u64()), (Some(rank), Some(ranks)));
        printed
    };
    (0..ranks).map(of).collect()
}

/// The names of what lies in `folder`, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Copies the files of `from` into the new folder `to`.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for name in listing(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}
