//! `attach`, to holders that this test plays: there is no GPU here, so what they hold cannot be opened.

use crate::support::{command, finish, shardwright, text};
use serde_json::{Value, json};
use std::{
    fs,
    io::{Read, Write},
    os::unix::{
        fs::DirBuilderExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    thread,
};
use tempfile::TempDir;

const PLAN: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// What somebody holds: two ranks on GPUs that do not exist.
fn document() -> Value {
    let rank = |rank: u32, uuid: &str| {
        json!({
            "rank": rank,
            "device": { "kind": "cuda", "uuid": uuid, "name": "NVIDIA H100 80GB HBM3" },
            "bytes": 3u64 << 30,
            "handle": "5a".repeat(64),
            "fingerprint": "0f".repeat(16),
            "tensors": [
                { "name": "lm_head.weight", "dtype": "BF16", "shape": [1024, 512], "offset": 0, "bytes": 1 << 20 },
                { "name": "norm.weight", "dtype": "BF16", "shape": [512], "offset": 1 << 20, "bytes": 1024 },
            ],
        })
    };
    json!({
        "protocol": 1,
        "shardwright": "0.1.0",
        "pid": 4242,
        "since": 1_785_542_399,
        "plan": PLAN,
        "checkpoint": "/models/some",
        "verified": "full",
        "ranks": [
            rank(0, "GPU-00000000-0000-0000-0000-000000000000"),
            rank(1, "GPU-11111111-1111-1111-1111-111111111111"),
        ],
    })
}

/// A folder for what is made while programs run, as the system gives each user one.
struct Runtime(TempDir);

impl Runtime {
    fn new() -> Self {
        let runtime = TempDir::new().unwrap();
        fs::DirBuilder::new().mode(0o700).create(runtime.path().join("shardwright")).unwrap();
        Self(runtime)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join("shardwright").join(name)
    }

    /// What `attach` with `args` prints, with `DIR` in place of the folder.
    fn attach(&self, args: &[&str]) -> crate::support::Outcome {
        let child =
            command(&[&["attach"], args].concat()).env("XDG_RUNTIME_DIR", self.0.path()).spawn().unwrap();
        let mut outcome = finish(child);
        for printed in [&mut outcome.stdout, &mut outcome.stderr] {
            *printed = printed.replace(text(self.0.path()), "DIR");
        }
        outcome
    }
}

/// Says `document` to everybody who connects to `socket`, until the test ends, and waits for each to leave.
fn hold(socket: &Path, document: &str) {
    let said = format!("shardwright-hold 1 {}\n{document}", document.len());
    let listener = UnixListener::bind(socket).unwrap();
    let answer = move |mut stream: UnixStream| {
        // Who had enough may be gone.
        let _ = stream.write_all(said.as_bytes());
        let _ = stream.read(&mut [0]);
    };
    thread::spawn(move || listener.incoming().for_each(|stream| answer(stream.unwrap())));
}

#[test]
fn what_is_held_is_shown() {
    let runtime = Runtime::new();
    let socket = runtime.socket("0011223344556677.sock");
    hold(&socket, &document().to_string());
    let shown = runtime.attach(&[]).succeeded();
    insta::assert_snapshot!("attach", shown);
    assert_eq!(runtime.attach(&[text(&socket)]).succeeded(), shown);

    let read = runtime.attach(&["--json"]).json();
    assert_eq!(
        (&read["pid"], &read["plan"], &read["verified"]),
        (&json!(4242), &json!(PLAN), &json!("full"))
    );
    assert_eq!(read["ranks"][1]["gpu"]["uuid"], "GPU-11111111-1111-1111-1111-111111111111");
    assert_eq!((&read["ranks"][0]["tensors"], &read["ranks"][0]["same"]), (&json!(2), &Value::Null));
}

#[test]
fn several_are_listed_and_dead_ones_are_not() {
    let runtime = Runtime::new();
    hold(&runtime.socket("one.sock"), &document().to_string());
    drop(UnixListener::bind(runtime.socket("dead.sock")).unwrap());
    insta::assert_snapshot!("attach", runtime.attach(&[]).succeeded());
    hold(&runtime.socket("two.sock"), &document().to_string());
    insta::assert_snapshot!("attach_several", runtime.attach(&[]).succeeded());
    assert_eq!(runtime.attach(&["--json"]).json().as_array().map(Vec::len), Some(2));
    runtime.attach(&["--verify"]).refused(2, &["held at 2", "one of", "two.sock"]);
}

#[test]
fn where_nobody_holds_it_says_how_to() {
    let runtime = Runtime::new();
    let help = "help: `shardwright load PLAN --hold`";
    runtime.attach(&[]).refused(4, &["nobody holds weights at DIR/shardwright", help]);
    let socket = runtime.socket("dead.sock");
    drop(UnixListener::bind(&socket).unwrap());
    runtime.attach(&[text(&socket)]).refused(4, &["nobody holds weights at DIR/shardwright/dead.sock", help]);
    let file = runtime.socket("file");
    fs::write(&file, "").unwrap();
    runtime.attach(&[text(&file)]).refused(3, &["is no socket"]);
}

#[test]
fn what_is_malformed_is_refused() {
    let runtime = Runtime::new();
    let mut wrong = document();
    wrong["ranks"][1]["tensors"][0]["offset"] = json!(3u64 << 30);
    wrong["ranks"][1]["tensors"][0]["name"] = json!("lm_head\u{1b}[2J");
    let socket = runtime.socket("wrong.sock");
    hold(&socket, &wrong.to_string());
    let named =
        "rank 1: tensor `lm_head\\u{1b}[2J` has 1048576 bytes at 3221225472, outside a memory of 3221225472";
    runtime.attach(&[text(&socket)]).refused(3, &[named]);
    let socket = runtime.socket("none.sock");
    hold(&socket, "hello");
    runtime.attach(&[text(&socket)]).refused(3, &["is no document of held weights"]);
}

#[test]
fn without_a_gpu_nothing_can_be_verified() {
    let runtime = Runtime::new();
    hold(&runtime.socket("one.sock"), &document().to_string());
    runtime.attach(&["--verify"]).refused(4, &[]);
    shardwright(&["attach", "one", "two"]).refused(2, &["unexpected argument"]);
}
