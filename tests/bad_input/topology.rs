//! Machines that are described wrongly, or are too small.

use crate::{
    plan_is_refused,
    support::{shardwright, text, tiny::Checkpoint},
};
use std::{fs, process::Command};

const SMALL: &str = "topology: small
about: a test's machine
gpu: { kind: Toy, memory: 1 GiB }
gpus: 2
hubs:
  - { name: switch, kind: pcie-switch, gpus: 0-1, bandwidth: 10 GB/s }
  - { name: bridge, kind: host-bridge }
links:
  - { kind: pcie, between: [switch, bridge], bandwidth: 10 GB/s }
";

/// Checks what planning and showing say of `SMALL` after `from` was replaced with `to`.
fn edited(from: &str, to: &str, parts: &[&str]) {
    assert!(SMALL.contains(from));
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    fs::write(&file, SMALL.replacen(from, to, 1)).unwrap();
    let parts = [parts, &["small.yaml", "\nhelp: "]].concat();
    plan_is_refused(&checkpoint.path, &["--topology", text(&file), "--tp", "2"], 3, &parts);
    shardwright(&["topology", "show", text(&file)]).refused(3, &parts);
}

#[test]
fn a_sound_topology_is_planned_on() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    fs::write(&file, SMALL).unwrap();
    shardwright(&["plan", text(&checkpoint.path), "--topology", text(&file), "--tp", "2"]).succeeded();
    shardwright(&["topology", "show", text(&file)]).succeeded();
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    edited("gpus: 2", "gpu_count: 2", &["line 4", "gpu_count"]);
    edited("kind: Toy,", "kind: Toy, colour: red,", &["line 3", "colour"]);
}

#[test]
fn a_missing_key_is_named() {
    edited("gpus: 2\n", "", &["gpus"]);
}

#[test]
fn a_text_that_is_not_yaml_is_named_with_its_line() {
    edited("gpus: 2", "gpus: [2", &["line "]);
}

#[test]
fn a_unit_that_is_none_is_named_with_an_example() {
    edited("1 GiB", "1 GX", &["line 3", "1 GX", "80 GiB"]);
    edited("bandwidth: 10 GB/s", "bandwidth: 10 GB", &["line 6", "10 GB", "450 GB/s"]);
}

#[test]
fn an_unknown_hub_is_named_with_the_nearest() {
    edited("[switch, bridge]", "[swich, bridge]", &["`swich`", "help: did you mean `switch`"]);
}

#[test]
fn the_word_that_was_meant_is_named() {
    edited("gpus: 2", "gpu: 2", &["gpu"]);
    edited("kind: pcie-switch", "kind: pcie-swich", &["line 6", "help: did you mean `pcie-switch`"]);
    edited("links:", "link:", &["line 8", "help: did you mean `links`"]);
    edited(
        "kind: Toy, memory: 1 GiB",
        "kind: H100 SXM 80GB",
        &["`memory`", "help: did you mean `H100 SXM5 80GB`"],
    );
}

#[test]
fn absurd_figures_are_refused_with_the_most_there_is() {
    edited("bandwidth: 10 GB/s", "bandwidth: -10 GB/s", &["line 6", "-10 GB/s"]);
    edited("bandwidth: 10 GB/s", "bandwidth: 10 PB/s", &["line 6", "at most 1000 TB/s"]);
    edited("bandwidth: 10 GB/s", "count: 9999, bandwidth: 10 GB/s", &["9999", "1 to 256"]);
    edited("gpus: 2", "gpus: 1000000", &["1000000 GPUs", "at most 128"]);
    edited("gpus: 2", "gpus: 2\nnodes: 1000000", &["1000000 nodes", "65536"]);
}

#[test]
fn hubs_that_are_on_each_other_are_named() {
    let cycle = "kind: pcie-switch, on: bridge, gpus: 0-1";
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    let text_of = SMALL
        .replace("kind: pcie-switch, gpus: 0-1", cycle)
        .replace("kind: host-bridge }", "kind: host-bridge, on: switch, bandwidth: 1 GB/s }");
    fs::write(&file, text_of).unwrap();
    shardwright(&["topology", "show", text(&file)]).refused(3, &["plugged into itself", "help: "]);
}

#[test]
fn a_name_given_twice_is_named() {
    edited("name: bridge", "name: switch", &["`switch`", "twice"]);
}

#[test]
fn gpus_that_are_not_connected_are_named() {
    edited("gpus: 0-1", "gpus: 0", &["gpu0", "gpu1"]);
}

#[test]
fn absurd_counts_are_refused() {
    edited("gpus: 2", "gpus: 4000000000", &["4000000000"]);
    edited("gpus: 2", "gpus: 0", &["0 GPUs"]);
    edited("gpus: 0-1", "gpus: 0-4000000000", &["0-4000000000"]);
    edited("1 GiB", "99999999999 TiB", &["99999999999 TiB"]);
}

#[test]
fn a_machine_that_is_neither_known_nor_a_file_is_named() {
    let checkpoint = Checkpoint::tiny();
    let parts = ["`dgx-h1000`", "no built-in topology", "help: ", "dgx-h100"];
    plan_is_refused(&checkpoint.path, &["--topology", "dgx-h1000"], 3, &parts);
    plan_is_refused(&checkpoint.path, &["--topology", text(&checkpoint.path)], 3, &["no topology file"]);
}

#[test]
fn a_pipe_in_place_of_a_topology_is_not_waited_for() {
    let checkpoint = Checkpoint::tiny();
    let pipe = checkpoint.beside("pipe.yaml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    plan_is_refused(&checkpoint.path, &["--topology", text(&pipe)], 3, &["pipe.yaml"]);
}

#[test]
fn too_few_gpus_are_named_with_what_would_do() {
    let checkpoint = Checkpoint::tiny();
    let parts = ["16 ranks need 16 GPUs, but dgx-h100 has 8", "help: ", "--nodes 2"];
    let args = ["--topology", "dgx-h100", "--tp", "2", "--dp", "8"];
    plan_is_refused(&checkpoint.path, &args, 1, &parts);
    let two = [&["plan", text(&checkpoint.path), "--nodes", "2"], &args[..]].concat();
    shardwright(&two).succeeded();
}

#[test]
fn too_little_memory_is_named_with_what_would_fit() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    let small = |memory: &str| fs::write(&file, SMALL.replace("1 GiB", memory)).unwrap();
    // About 10.6 KiB of weights: too much for one GPU of 8 KiB, not for two.
    small("8 KiB");
    let args = ["--topology", text(&file), "--tp", "1"];
    let said = plan_is_refused(&checkpoint.path, &args, 1, &["does not fit", "gpu0", "8.00 KiB", "rank 0"]);
    assert!(said.contains("help: --tp 2 fits on small"), "{said}");
    let larger = ["plan", text(&checkpoint.path), "--topology", text(&file), "--tp", "2"];
    shardwright(&larger).succeeded();

    small("1 KiB");
    let parts = ["does not fit", "1.00 KiB", "\nhelp: ", "GPUs"];
    plan_is_refused(&checkpoint.path, &["--topology", text(&file), "--tp", "2"], 1, &parts);
}

#[test]
fn memory_that_ranks_share_is_counted_once() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    fs::write(&file, SMALL.replace("memory: 1 GiB", "memory: 8 KiB, shared_memory: true")).unwrap();
    let args = ["--topology", text(&file), "--tp", "2"];
    plan_is_refused(&checkpoint.path, &args, 1, &["does not fit", "2 ranks", "8.00 KiB", "\nhelp: "]);
}

#[test]
fn several_nodes_without_a_network_are_refused() {
    let checkpoint = Checkpoint::tiny();
    let file = checkpoint.beside("small.yaml");
    fs::write(&file, SMALL).unwrap();
    let args = ["--topology", text(&file), "--nodes", "2", "--tp", "2"];
    plan_is_refused(&checkpoint.path, &args, 3, &["2 nodes", "network", "\nhelp: "]);
    plan_is_refused(&checkpoint.path, &["--topology", "dgx-h100", "--nodes", "0"], 2, &["'--nodes"]);
}
