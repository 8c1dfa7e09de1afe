//! What is given for a tool's output, and is none or is damaged.

use crate::support::{listing, shardwright, text, topology_fixture};
use std::{fs, process::Command};
use tempfile::TempDir;

/// Checks that importing `contents` is refused with `parts` and a help, prints nothing and writes nothing.
fn refused(contents: &str, args: &[&str], parts: &[&str]) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("machine.txt");
    fs::write(&file, contents).unwrap();
    let output = folder.path().join("machine.yaml");
    let parts = [&["machine.txt", "\nhelp: "], parts].concat();
    for out in [&[][..], &["-o", text(&output)]] {
        shardwright(&[&["topology", "import", text(&file)], args, out].concat()).refused(3, &parts);
    }
    assert_eq!(listing(folder.path()), ["machine.txt"]);
}

fn fixture(name: &str) -> String {
    fs::read_to_string(topology_fixture(name)).unwrap()
}

/// A fixture's matrix in which `from` was replaced with `to` once.
fn edited(from: &str, to: &str, parts: &[&str]) {
    let matrix = fixture("matrix-4xl40s.txt");
    assert!(matrix.contains(from));
    refused(&matrix.replacen(from, to, 1), &["--gpu", "L40S"], parts);
}

#[test]
fn a_text_of_neither_kind_is_refused() {
    refused("", &[], &["neither an NCCL topology (XML) nor a matrix", "nvidia-smi topo -m"]);
    refused("topology: x\n", &[], &["neither"]);
}

#[test]
fn a_cut_matrix_is_named_with_what_is_missing() {
    let matrix = fixture("matrix-4xl40s.txt");
    let rows = |count| matrix.lines().take(count).collect::<Vec<_>>().join("\n");
    refused(&rows(3), &["--gpu", "L40S"], &["ends before the row of `GPU2`: 2 of 6 rows"]);
    let cut = rows(5);
    refused(&cut[..cut.len() - 60], &["--gpu", "L40S"], &["line 5", "`GPU3`", "cells for 6 columns"]);
    edited("GPU0    GPU1", "GPU1", &["line 2", "`X` stands where GPU1 is expected"]);
    edited("GPU1    GPU2", "GPU2", &["line 1", "`GPU2` stands where GPU1 is expected"]);
}

#[test]
fn a_matrix_that_disagrees_with_itself_is_named() {
    edited("GPU1    PIX", "GPU1    SYS", &["`GPU1` is PIX from `GPU0`, but SYS the other way round"]);
}

#[test]
fn an_unknown_word_is_named_with_its_place() {
    edited("SYS", "SIS", &["line 2", "`SIS` between `GPU0` and `GPU2`", "NODE"]);
    edited("SYS", "NV9999", &["`NV9999`"]);
    edited("SYS", "\u{7}x", &["`\\u{7}x`"]);
}

#[test]
fn gpus_that_nothing_names_are_refused_with_how_to_name_them() {
    let matrix = fixture("matrix-4xl40s.txt");
    refused(&matrix, &[], &["what GPU0 is", "--gpu 'H100 SXM5 80GB'", "--gpu-list"]);
    refused(&matrix, &["--gpu", "L4OS"], &["`L4OS`", "did you mean --gpu 'L40S'"]);
    refused(&matrix, &["--gpu", "Banana"], &["`Banana`", "--gpu-memory"]);
    let list = topology_fixture("gpus-4xl40s.txt");
    refused(
        &fixture("matrix-8xh100-tabs.txt"),
        &["--gpu-list", text(&list)],
        &["8 GPUs", "4 in", "gpus-4xl40s.txt"],
    );
    let no_list = topology_fixture("nccl-no-gpus.xml");
    let matrix = topology_fixture("matrix-4xl40s.txt");
    let args = ["topology", "import", text(&matrix), "--gpu-list", text(&no_list)];
    shardwright(&args).refused(3, &["nccl-no-gpus.xml", "GPU 0: NVIDIA H100", "\nhelp: ", "nvidia-smi -L"]);
    shardwright(&["topology", "import", text(&matrix), "--gpu-memory", "80"]).refused(2, &["80 GiB"]);
}

#[test]
fn xml_that_is_not_nccls_is_named_with_its_line() {
    refused("<html>\n<p>not found</p></html>", &[], &["line 1", "`html`", "`system`", "NCCL_TOPO_DUMP_FILE"]);
    refused("<system>\n<cpu>\n</system>", &[], &["line 3"]);
    refused(&fixture("nccl-no-gpus.xml"), &[], &["no GPUs", "--matrix"]);
}

#[test]
fn bombs_are_refused_quickly() {
    let bomb =
        "<!DOCTYPE lolz [<!ENTITY a \"lol\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>\n<system>&b;</system>";
    refused(bomb, &[], &["line 1"]);
    let deep: String = (0..40_000).map(|at| format!("<pci busid='{at:x}'>")).collect();
    refused(
        &format!("<system><cpu>{deep}{}</cpu></system>", "</pci>".repeat(40_000)),
        &[],
        &["nested deeper"],
    );
    refused(&"<a>".repeat(500_000), &[], &["line 1"]);
    let gpus: String = (0..1_000_000).map(|gpu| format!("GPU{gpu} ")).collect();
    refused(&gpus[..4_000_000], &["--gpu", "L40S"], &["129 GPUs, more than 128"]);
    refused(&" ".repeat(5 << 20), &[], &["more than 4194304"]);
}

#[test]
fn absurd_figures_are_named_with_what_would_do() {
    let xml = fixture("nccl-2xa6000-bridge.xml");
    for (from, to, parts) in [
        ("16.0 GT/s", "-16.0 GT/s", ["link_speed `-16.0 GT/s PCIe`", "64 GT/s"]),
        ("link_width=\"16\"", "link_width=\"1600\"", ["link_width `1600`", "from 1 to 32"]),
        ("speed=\"10000\"", "speed=\"-1\"", ["speed `-1`", "from 1 to 10000000"]),
        ("count=\"4\"", "count=\"999999999999\"", ["count `999999999999`", "from 1 to 256"]),
    ] {
        assert!(xml.contains(from));
        refused(&xml.replacen(from, to, 1), &[], &parts);
    }
    refused(&xml.replace("0000:61:00.0", "0000:41:00.0"), &[], &["`0000:41:00.0`", "twice"]);
}

#[test]
fn sources_of_two_machines_are_refused() {
    let xml = topology_fixture("nccl-8-cloud.xml");
    let matrix = topology_fixture("matrix-4xl40s.txt");
    let args = ["topology", "import", text(&xml), "--gpu", "L40S", "--matrix", text(&matrix)];
    shardwright(&args).refused(3, &["nccl-8-cloud.xml: 8 GPUs", "4 in", "matrix-4xl40s.txt", "\nhelp: "]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let folder = TempDir::new().unwrap();
    let missing = folder.path().join("none.txt");
    shardwright(&["topology", "import", text(&missing)]).refused(3, &["none.txt", "\nhelp: "]);
    shardwright(&["topology", "import", text(folder.path())]).refused(3, &["no file", "\nhelp: "]);
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    shardwright(&["topology", "import", text(&pipe)]).refused(3, &["no file"]);
    fs::write(folder.path().join("bytes"), [0xff, 0xfe, 0x00]).unwrap();
    shardwright(&["topology", "import", text(&folder.path().join("bytes"))])
        .refused(3, &["UTF-8", "\nhelp: "]);
}
