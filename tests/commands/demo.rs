//! `demo`: everything it shows can be typed again, and it replaces nobody's folder.

use crate::support::{listing, shardwright, text};
use std::{fs, path::Path};
use tempfile::TempDir;

/// The words behind each `$ `, without the program.
fn commands(shown: &str) -> Vec<Vec<String>> {
    shown
        .lines()
        .filter_map(|line| line.strip_prefix("$ "))
        .map(|line| line.split(' ').skip(1).map(|word| word.trim_matches('\'').to_owned()).collect())
        .collect()
}

/// Writes about 256 MB.
#[test]
fn the_demo_shows_the_whole_way_and_that_it_can_fail() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("demo");
    let shown = shardwright(&["demo", "--dir", text(&root)]).succeeded();
    let commands = commands(&shown);
    let verbs: Vec<&str> = commands.iter().map(|words| words[0].as_str()).collect();
    assert_eq!(verbs, ["inspect", "plan", "check", "explain", "load", "load"], "{shown}");
    assert!(shown.contains("verified: the fingerprints summed over the ranks"), "{shown}");
    let (good, failing) = shown.split_once("And can it fail?").unwrap();
    assert!(!good.contains("WRONG") && !good.contains("error:"), "{good}");
    assert!(failing.contains("error: 1 tensor is not what the files say"), "{failing}");
    assert!(failing.contains("`: wrong on rank 2; "), "{failing}");
    assert!(failing.trim_end().ends_with("can be typed again as it stands."), "{failing}");

    // What was shown is repeated word for word, and answers the same.
    for words in commands.iter().filter(|words| ["inspect", "check", "explain"].contains(&words[0].as_str()))
    {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let again = shardwright(&words).succeeded();
        assert!(shown.contains(&again), "{words:?}: {again}");
    }
    assert_eq!(listing(folder.path()), ["demo"]);
}

fn is_refused(root: &Path) {
    let before = listing(root.parent().unwrap());
    shardwright(&["demo", "--dir", text(root)])
        .refused(2, &[text(root), "not made by the demo", "help: ", "--dir"]);
    assert_eq!(listing(root.parent().unwrap()), before);
}

#[test]
fn the_demo_does_not_replace_what_it_did_not_make() {
    let folder = TempDir::new().unwrap();
    let root = folder.path().join("mine");
    fs::create_dir(&root).unwrap();
    is_refused(&root);
    fs::write(root.join("precious"), "mine").unwrap();
    is_refused(&root);
    assert_eq!(fs::read_to_string(root.join("precious")).unwrap(), "mine");
    is_refused(&root.join("precious"));
}

#[test]
fn the_demo_says_when_it_cannot_write() {
    shardwright(&["demo", "--dir", "/proc/demo"]).refused(4, &["cannot write /proc/demo", "\nhelp: "]);
}
