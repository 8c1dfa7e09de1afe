//! `--help`, and that the examples in it work.

use crate::support::{command, finish, fixture, shardwright, text, topology_fixture};
use std::fs;
use tempfile::TempDir;

const COMMANDS: [&[&str]; 17] = [
    &["inspect"],
    &["topology"],
    &["topology", "list"],
    &["topology", "show"],
    &["topology", "import"],
    &["topology", "detect"],
    &["topology", "schema"],
    &["layouts"],
    &["plan"],
    &["check"],
    &["explain"],
    &["slices"],
    &["placement"],
    &["load"],
    &["export"],
    &["attach"],
    &["demo"],
];

fn help(command: &[&str]) -> String {
    shardwright(&[command, &["--help"]].concat()).succeeded()
}

#[test]
fn help_reads_well() {
    insta::assert_snapshot!("help", help(&[]));
    for command in COMMANDS {
        insta::assert_snapshot!(format!("help_{}", command.join("_")), help(command));
    }
}

#[test]
fn help_is_no_wider_than_a_terminal() {
    for command in COMMANDS.into_iter().chain([&[][..]]) {
        let text = help(command);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}

#[test]
fn no_command_is_left_out() {
    let all = help(&[]);
    let listed: Vec<&str> = all
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let mut known: Vec<&str> = COMMANDS.iter().map(|words| words[0]).collect();
    known.dedup();
    assert_eq!(listed, known);
}

/// The commands behind `Example: `, without the program's name and as words.
fn examples(help: &str) -> Vec<Vec<String>> {
    help.lines()
        .filter_map(|line| line.trim().strip_prefix("Example: shardwright "))
        .map(|line| line.split(' ').map(|word| word.trim_matches('\'').to_owned()).collect())
        .collect()
}

/// The demo's own example is run in its test: it writes a large checkpoint. That of `topology detect` needs a driver, and what it
/// does is tested with a simulated one (`tests/detect.rs`); that of `attach` needs somebody who holds, and has tests of its own.
#[test]
fn every_example_works() {
    let folder = TempDir::new().unwrap();
    let mut run = Vec::new();
    for command_words in COMMANDS {
        if command_words == ["topology"] {
            continue;
        }
        let found = examples(&help(command_words));
        assert!(!found.is_empty(), "{command_words:?} has no example");
        run.extend(found);
    }
    // The plan comes first: others read it.
    run.sort_by_key(|words| words[0] != "plan");
    let checkpoint = fixture("llama-bf16");
    fs::copy(topology_fixture("matrix-4xl40s.txt"), folder.path().join("matrix.txt")).unwrap();
    let alone = |words: &&Vec<String>| {
        !matches!(words[0].as_str(), "demo" | "attach") && words.get(1).is_none_or(|word| word != "detect")
    };
    for words in run.iter().filter(alone) {
        let words: Vec<&str> = words
            .iter()
            .map(|word| if word.starts_with("./Llama") { text(&checkpoint) } else { word.as_str() })
            .collect();
        let child = command(&words).current_dir(folder.path()).spawn().unwrap();
        let mut outcome = finish(child);
        // What a matrix does not tell is noted.
        outcome.stderr = outcome.stderr.lines().filter(|line| !line.starts_with("note: ")).collect();
        assert!(!outcome.succeeded().is_empty(), "{words:?}");
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    let printed = shardwright(&["--version"]).succeeded();
    assert_eq!(printed, format!("shardwright {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    for args in [&["--help"][..], &["topology", "list"], &["inspect", text(&fixture("llama-bf16"))]] {
        let mut child = command(args).spawn().unwrap();
        drop(child.stdout.take());
        let outcome = finish(child);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}
