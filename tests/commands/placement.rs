//! `placement`: on which GPUs ranks run.

use crate::support::{fixture, shardwright, text};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

fn planned(args: &[&str]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("plan.yaml");
    let path = fixture("llama-bf16");
    shardwright(&[&["plan", text(&path), "-o", text(&file)], args].concat()).succeeded();
    (folder, file)
}

#[test]
fn bridged_cards_work_on_one_layer() {
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", "4xa100-pcie-bridged", "--tp", "2", "--pp", "2"];
    let shown = shardwright(&args).succeeded();
    assert!(shown.contains("tp groups {gpu0,2} {gpu1,3}: all-reduce at 300 GB/s over NVLink\n"), "{shown}");
    assert!(
        shown.contains("runner-up {gpu0-1} {gpu2-3}: at 31.5 GB/s\n") || shown.contains("at 16 GB/s\n"),
        "{shown}"
    );
}

#[test]
fn the_gpus_of_each_node_are_in_the_order_of_its_ranks() {
    let (_folder, file) = planned(&[
        "--topology",
        "4xa100-pcie-bridged",
        "--nodes",
        "2",
        "--tp",
        "2",
        "--pp",
        "2",
        "--dp",
        "2",
    ]);
    insta::assert_snapshot!("placement", shardwright(&["placement", text(&file)]).succeeded());
    let node = shardwright(&["placement", text(&file), "--node", "1"]).succeeded();
    assert_eq!(node, "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=0,2,1,3\n");
    let facts = shardwright(&["placement", text(&file), "--json"]).json();
    assert_eq!(facts["nodes"][1]["ranks"], serde_json::json!([4, 5, 6, 7]));
    assert_eq!(facts["nodes"][1]["cuda_visible_devices"], "0,2,1,3");
}

#[test]
fn a_node_without_ranks_is_refused() {
    let (_folder, file) = planned(&["--topology", "dgx-h100", "--tp", "2"]);
    shardwright(&["placement", text(&file), "--node", "3"]).refused(2, &["node 3", "help: ", "node 0"]);
}

#[test]
fn a_rack_of_one_nvlink_domain_holds_a_group_of_sixteen() {
    let machine = "topology: big\nabout: x\ngpu: { kind: GB200 }\ngpus: 4\nnodes: 4\nhubs:\n  - { name: nvlink, kind: nvswitch, gpus: 0-3, count: 18, bandwidth: 50 GB/s, spans: 4 }\n";
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("big.yaml");
    fs::write(&file, machine.replace("kind: GB200", "kind: X, memory: 1 GiB")).unwrap();
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", text(&file), "--tp", "4", "--dp", "4"];
    let shown = shardwright(&args).succeeded();
    assert!(shown.contains("all-reduce at 900 GB/s over NVLink"), "{shown}");
}

#[test]
fn unequal_gpus_get_ranks_that_fit() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("unequal.yaml");
    let machine = "topology: unequal\nabout: x\ngpu:\n  - { kind: Tiny, memory: 1 KiB, gpus: 0-1 }\n  - { kind: Roomy, memory: 1 GiB, gpus: 2-3 }\ngpus: 4\nhubs:\n  - { name: cpu, kind: host-bridge, gpus: 0-3, bandwidth: 10 GB/s }\n";
    fs::write(&file, machine).unwrap();
    let path = fixture("llama-bf16");
    let args = ["plan", text(&path), "--topology", text(&file), "--tp", "2"];
    let shown = shardwright(&args).succeeded();
    assert!(shown.contains("tp groups {gpu2-3}"), "{shown}");
    let both = ["plan", text(&path), "--topology", text(&file), "--tp", "4"];
    shardwright(&both).refused(1, &["does not fit"]);
}
