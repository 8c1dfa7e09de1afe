//! Folders as they lie on disk, whole and broken.

use super::*;
use std::fs;

/// A safetensors file with one U8 tensor of four bytes for each name.
fn data_file(names: &[&str]) -> Vec<u8> {
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(number, name)| {
            let (start, stop) = (4 * number, 4 * number + 4);
            format!(r#""{name}":{{"dtype":"U8","shape":[4],"data_offsets":[{start},{stop}]}}"#)
        })
        .collect();
    let json = format!("{{{}}}", entries.join(","));
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + 4 * names.len(), 7);
    bytes
}

fn index(pairs: &[(&str, &str)]) -> String {
    let entries: Vec<String> = pairs.iter().map(|(tensor, file)| format!("{tensor:?}:{file:?}")).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

const INDEX: &str = "model.safetensors.index.json";

fn with_index(pairs: &[(&str, &str)]) -> tempfile::TempDir {
    folder(&[
        (INDEX, index(pairs).as_bytes()),
        ("one.safetensors", &data_file(&["a", "b"])),
        ("two.safetensors", &data_file(&["b", "c"])),
    ])
}

fn error(folder: &tempfile::TempDir) -> String {
    let error = Catalog::open(folder.path()).unwrap_err();
    assert!(error.help().is_some(), "{error}");
    error.to_string()
}

#[test]
fn the_index_says_which_file_counts() {
    let folder = with_index(&[("a", "one.safetensors"), ("b", "two.safetensors")]);
    let catalog = Catalog::open(folder.path()).unwrap();
    let names: Vec<_> = catalog.tensors().iter().map(|t| (&*t.name, t.file)).collect();
    assert_eq!(names, [("a", 0), ("b", 1)]);
    assert_eq!(catalog.unlisted(), 2);
    assert!(catalog.tensor("a").is_some() && catalog.tensor("c").is_none());
}

#[test]
fn a_folder_one_file_and_an_index_can_be_opened() {
    let folder = folder(&[("x.safetensors", &data_file(&["a"]))]);
    assert_eq!(Catalog::open(folder.path()).unwrap().tensors().len(), 1);
    let file = Catalog::open(&folder.path().join("x.safetensors")).unwrap();
    assert_eq!(file.folder(), folder.path());
    let folder = with_index(&[("a", "one.safetensors")]);
    let index = Catalog::open(&folder.path().join(INDEX)).unwrap();
    assert_eq!(index.tensors().len(), 1);
}

#[test]
fn the_usual_name_wins_over_others_without_an_index() {
    let folder = folder(&[
        ("consolidated.safetensors", &data_file(&["tok"])),
        ("model.safetensors", &data_file(&["a"])),
    ]);
    assert_eq!(Catalog::open(folder.path()).unwrap().tensors()[0].name.as_ref(), "a");
}

#[test]
fn a_tensor_in_two_files_without_an_index_is_named() {
    let folder = with_index(&[]);
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    assert!(error(&folder).contains("tensor `b` is in both `one.safetensors` and `two.safetensors`"));
}

#[test]
fn what_the_index_says_and_the_files_lack_is_named() {
    let missing_file = with_index(&[("a", "three.safetensors")]);
    assert!(error(&missing_file).contains("`three.safetensors`, which is not in the folder"));
    let missing_tensor = with_index(&[("c", "one.safetensors")]);
    assert!(error(&missing_tensor).contains("`c` is in `one.safetensors`, but that file does not"));
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let outside = folder(&[("model.safetensors", &data_file(&["a"]))]);
    let target = outside.path().join("model.safetensors");
    for name in ["../x.safetensors", "/etc/passwd", "", "a/../../x", target.to_str().unwrap()] {
        let text = error(&with_index(&[("a", name)]));
        assert!(text.contains("outside the checkpoint's folder"), "{name}: {text}");
    }
    let linked = with_index(&[("a", "link.safetensors")]);
    std::os::unix::fs::symlink(&target, linked.path().join("link.safetensors")).unwrap();
    assert!(error(&linked).contains("outside the checkpoint's folder"));
}

#[test]
fn a_hub_cache_snapshot_may_link_into_its_own_blobs() {
    let cache = tempfile::tempdir().unwrap();
    let snapshot = cache.path().join("models--a--b/snapshots/0123");
    let blobs = cache.path().join("models--a--b/blobs");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("ffff"), data_file(&["a"])).unwrap();
    std::os::unix::fs::symlink("../../blobs/ffff", snapshot.join("model.safetensors")).unwrap();
    assert_eq!(Catalog::open(&snapshot).unwrap().tensors().len(), 1);
}

#[test]
fn an_index_that_is_none_is_refused() {
    for (text, word) in [
        ("{", "EOF"),
        (r#"{"weight_map":{}}"#, "names no tensor"),
        (r#"{"weight_map":{"a":"x","a":"y"}}"#, "repeated key `a`"),
        (r#"{"other":1}"#, "weight_map"),
    ] {
        let folder = folder(&[(INDEX, text.as_bytes())]);
        let text = error(&folder);
        assert!(text.contains(word), "{text}");
    }
    let two = folder(&[("a.safetensors.index.json", b"{}"), ("b.safetensors.index.json", b"{}")]);
    assert!(error(&two).contains("has 2 safetensors indexes"));
}

#[test]
fn an_empty_folder_a_missing_path_and_a_pipe_are_refused() {
    let empty = folder(&[]);
    assert!(error(&empty).contains("no safetensors file in"));
    let missing = Catalog::open(&empty.path().join("nowhere")).unwrap_err();
    assert!(missing.to_string().contains("cannot read"));
    fs::create_dir(empty.path().join("model.safetensors")).unwrap();
    assert!(error(&empty).contains("not a regular file"));
}

#[test]
fn a_truncated_file_is_named() {
    let mut bytes = data_file(&["a", "b"]);
    bytes.truncate(bytes.len() - 1);
    let folder = folder(&[("model.safetensors", &bytes)]);
    let text = error(&folder);
    assert!(text.contains("model.safetensors: tensor `b` ends at byte"), "{text}");
}
