//! `topology list` and `topology show`.

use crate::support::{fixture, shardwright, text};
use std::fs;
use tempfile::TempDir;

const BUILT_IN: [&str; 4] = ["dgx-h100", "dgx-a100-80gb", "hgx-h200", "8xl40s-pcie"];

#[test]
fn list_names_the_built_in_machines() {
    let shown = shardwright(&["topology", "list"]).succeeded();
    // This machine's memory is its own affair.
    let lines = shown.lines().map(|line| match line.starts_with("host ") {
        true => line.rsplit_once(' ').unwrap().0.trim_end(),
        false => line,
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

#[test]
fn show_draws_each_built_in_machine() {
    for name in BUILT_IN {
        insta::assert_snapshot!(format!("show_{name}"), shardwright(&["topology", "show", name]).succeeded());
    }
}

#[test]
fn show_counts_nodes() {
    let shown = shardwright(&["topology", "show", "dgx-h100", "--nodes", "2"]).succeeded();
    assert!(shown.contains("2 nodes of 8 H100 SXM5 80GB"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "wider than a terminal:\n{shown}");
}

#[test]
fn show_knows_this_host() {
    let shown = shardwright(&["topology", "show", "host"]).succeeded();
    assert!(shown.starts_with("host: this machine"), "{shown}");
}

#[test]
fn the_yaml_that_is_shown_is_read_again() {
    let folder = TempDir::new().unwrap();
    for name in BUILT_IN {
        let file = folder.path().join("machine.yaml");
        fs::write(&file, shardwright(&["topology", "show", name, "--yaml"]).succeeded()).unwrap();
        assert_eq!(
            shardwright(&["topology", "show", text(&file)]).succeeded(),
            shardwright(&["topology", "show", name]).succeeded()
        );
    }
}

#[test]
fn a_plan_is_drawn_on_its_machine_and_on_no_other() {
    let folder = TempDir::new().unwrap();
    let (plan, picture) = (folder.path().join("plan.yaml"), folder.path().join("machine.svg"));
    let checkpoint = fixture("llama-bf16");
    let machine = ["--topology", "4xa100-pcie-bridged"];
    let args = ["plan", text(&checkpoint), "--tp", "2", "--pp", "2", "-o", text(&plan)];
    shardwright(&[&args[..], &machine].concat()).succeeded();
    let show = ["topology", "show", "4xa100-pcie-bridged", "--plan", text(&plan)];
    insta::assert_snapshot!("show_with_plan", shardwright(&show).succeeded());
    let said = shardwright(&[&show[..], &["--svg", text(&picture)]].concat()).succeeded();
    assert_eq!(said, format!("picture written to {}\n", picture.display()));
    let drawn = fs::read_to_string(&picture).unwrap();
    assert!(drawn.contains("rank 3") && drawn.contains("tp group 1"), "{drawn}");
    let other = ["topology", "show", "2xh100-nvl", "--plan", text(&plan)];
    shardwright(&other).refused(1, &["4xa100-pcie-bridged", "2xh100-nvl", "help: "]);
}
