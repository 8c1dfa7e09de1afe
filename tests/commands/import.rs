//! `topology import`: what is made of what tools print.

use crate::support::{command, finish, listing, shardwright, text, topology_fixture};
use std::{fs, process::Stdio};
use tempfile::TempDir;

/// What importing a fixture prints, with the notes before it.
fn imported(name: &str, args: &[&str]) -> String {
    let outcome = shardwright(&[&["topology", "import", text(&topology_fixture(name))], args].concat());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    format!("{}{}", outcome.stderr, outcome.stdout)
}

#[test]
fn a_matrix_is_imported() {
    let list = topology_fixture("gpus-4xl40s.txt");
    insta::assert_snapshot!(
        "import_matrix_pcie",
        imported("matrix-4xl40s.txt", &["--gpu-list", text(&list)])
    );
    let args = ["--gpu", "H100 SXM5 80GB", "--name", "eight"];
    insta::assert_snapshot!("import_matrix_switched", imported("matrix-8xh100-tabs.txt", &args));
}

#[test]
fn a_file_of_nccl_is_imported() {
    insta::assert_snapshot!("import_nccl_bridged", imported("nccl-2xa6000-bridge.xml", &[]));
    insta::assert_snapshot!("import_nccl_cloud", imported("nccl-8-cloud.xml", &["--gpu", "A100 SXM4 40GB"]));
}

#[test]
fn a_matrix_beside_a_file_of_nccl_tells_the_links() {
    let folder = TempDir::new().unwrap();
    let matrix = folder.path().join("matrix.txt");
    let other = fs::read_to_string(topology_fixture("matrix-8xh100-tabs.txt")).unwrap();
    fs::write(&matrix, other.replace("NV18", "NV12")).unwrap();
    let shown = imported("nccl-8-cloud.xml", &["--gpu", "A100 SXM4 40GB", "--matrix", text(&matrix)]);
    assert!(shown.contains("kind: nvswitch") && !shown.contains("no links between GPUs"), "{shown}");
}

#[test]
fn what_is_imported_is_a_topology() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("machine.yaml");
    let matrix = topology_fixture("matrix-4xl40s.txt");
    let args = ["topology", "import", text(&matrix), "--gpu", "L40S", "-o", text(&file)];
    let outcome = shardwright(&args);
    assert_eq!((outcome.code, listing(folder.path())), (Some(0), vec!["machine.yaml".to_owned()]));
    assert_eq!(outcome.stdout, format!("wrote {}\n", text(&file)));
    // The notes stay with what they are about.
    for note in outcome.stderr.lines() {
        let comment = note.replacen("note: ", "# ", 1);
        assert!(fs::read_to_string(&file).unwrap().lines().any(|line| line == comment), "{note}");
    }
    let shown = shardwright(&["topology", "show", text(&file)]).succeeded();
    assert!(shown.contains("4 L40S") && shown.contains("mlx5_1"), "{shown}");
}

#[test]
fn a_text_on_stdin_is_imported() {
    let mut child = command(&["topology", "import", "-", "--gpu", "L40S"]);
    child.stdin(Stdio::from(fs::File::open(topology_fixture("matrix-4xl40s.txt")).unwrap()));
    let outcome = finish(child.spawn().unwrap());
    assert!(outcome.code == Some(0) && outcome.stdout.contains("topology: imported"), "{outcome:?}");
}
