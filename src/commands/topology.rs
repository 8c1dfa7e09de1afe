//! `shardwright topology`: the machines that are known, and what they look like.

use crate::{
    cli,
    commands::topology_import,
    failure::Failure,
    figures,
    inputs::{topology, topology_text},
    output::{print_json, print_table, table},
};
use serde_json::json;
use shardwright_planner::{
    quote::escaped,
    size::{Size, count},
    topology::{Topology, builtins, json_schema},
};
use std::io::Write;

/// Most GPUs of a node for which every pair is shown.
const MOST_IN_MATRIX: usize = 8;

pub(crate) fn run(args: cli::Topology, out: &mut dyn Write) -> Result<(), Failure> {
    match args {
        cli::Topology::Schema => print_json(out, &json_schema()),
        cli::Topology::List { json } => list(json, out),
        cli::Topology::Import(args) => topology_import::run(&args, out),
        cli::Topology::Show { topology: name, yaml: true, .. } => {
            Ok(out.write_all(topology_text(&name)?.as_bytes())?)
        }
        cli::Topology::Show { topology: name, nodes, json, .. } => {
            let machine = topology(&name, nodes, 1)?;
            if json { show_json(&machine, out) } else { show(&machine, out) }
        }
        cli::Topology::Detect(args) => super::topology_detect::run(args, out),
    }
}

fn list(as_json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let known = builtins().map(|(name, _)| topology(name, None, 1)).collect::<Result<Vec<_>, _>>()?;
    if as_json {
        let list: Vec<_> =
            known.iter().map(|known| json!({"name": known.name(), "about": known.about()})).collect();
        return print_json(out, &json!({ "topologies": list }));
    }
    let rows = known.iter().map(|known| {
        let gpus = if known.name() == "host" { "any".to_owned() } else { known.gpus().len().to_string() };
        [known.name().to_owned(), known.about().to_owned(), gpus, figures::gib(known.least_memory_bytes())]
    });
    print_table(out, &table(["topology", "about", "GPUs", "GiB each"], 2, rows))
}

fn show(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    writeln!(out, "{}: {}", escaped(machine.name()), escaped(machine.about()))?;
    let nodes = count(u64::from(machine.nodes()), "node");
    writeln!(out, "{nodes} of {}", escaped(&machine.kinds_in_words()))?;
    for kind in machine.kinds() {
        let bandwidth = kind.memory_bandwidth.map_or(String::new(), |bandwidth| format!(" at {bandwidth}"));
        writeln!(out, "{}: {} of memory each{bandwidth}", escaped(&kind.kind), Size(kind.memory_bytes))?;
    }
    writeln!(out, "\nconnections of a node, one direction")?;
    let names: Vec<&str> = machine.vertices().map(|vertex| vertex.name.as_str()).collect();
    let edges = machine.edges().map(|(from, to, edge)| {
        [
            escaped(names[from]),
            escaped(names[to]),
            edge.kind.to_string(),
            gb_per_second(edge.bytes_per_second()),
        ]
    });
    print_table(out, &table(["from", "to", "kind", "GB/s"], 3, edges))?;

    let per_node = machine.gpus_per_node();
    let width = |from, to| {
        machine.widest_path(from, to).map_or("-".to_owned(), |path| gb_per_second(path.bytes_per_second))
    };
    if (2..=MOST_IN_MATRIX).contains(&per_node) {
        writeln!(out, "\nwidest path between the GPUs of a node, GB/s")?;
        for from in 0..per_node {
            let row: String = (0..per_node).map(|to| format!("{:>8}", width(from, to))).collect();
            writeln!(out, "{:<6}{row}", format!("gpu{from}"))?;
        }
    }
    if machine.nodes() > 1 {
        writeln!(out, "\nwidest path between GPUs of different nodes: {} GB/s", width(0, per_node))?;
    }
    Ok(())
}

fn show_json(machine: &Topology, out: &mut dyn Write) -> Result<(), Failure> {
    let names: Vec<&str> = machine.vertices().map(|vertex| vertex.name.as_str()).collect();
    let edges: Vec<_> = machine
        .edges()
        .map(|(from, to, edge)| {
            json!({
                "from": names[from],
                "to": names[to],
                "kind": edge.kind,
                "count": edge.count,
                "bytes_per_second": edge.bytes_per_second(),
                "latency_ns": edge.latency_ns,
            })
        })
        .collect();
    let gpus: Vec<_> = machine
        .gpus()
        .iter()
        .map(|gpu| json!({"name": gpu.name, "node": gpu.node, "index": gpu.index, "kind": machine.kinds()[gpu.kind].kind, "memory_bytes": machine.kinds()[gpu.kind].memory_bytes}))
        .collect();
    print_json(
        out,
        &json!({
            "name": machine.name(),
            "about": machine.about(),
            "gpus": gpus,
            "node_connections": edges,
        }),
    )
}

#[allow(clippy::cast_precision_loss)]
fn gb_per_second(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e9)
}
