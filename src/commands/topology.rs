//! `shardwright topology`: the machines that are known, and what they look like.

use crate::{
    cli,
    commands::topology_import,
    failure::Failure,
    figures,
    inputs::{topology, topology_text},
    output::{print_json, print_table, table, write_whole},
    picture::{self, Overlay},
};
use serde_json::json;
use shardwright_planner::{
    plan::Plan,
    topology::{Bandwidth, Topology, VertexKind, builtins, json_schema},
};
use std::io::Write;

pub(crate) fn run(args: cli::Topology, out: &mut dyn Write) -> Result<(), Failure> {
    match args {
        cli::Topology::Schema => print_json(out, &json_schema()),
        cli::Topology::List { json } => list(json, out),
        cli::Topology::Import(args) => topology_import::run(&args, out),
        cli::Topology::Show { topology: name, yaml: true, .. } => {
            Ok(out.write_all(topology_text(&name)?.as_bytes())?)
        }
        cli::Topology::Show { topology: name, nodes, plan, svg, json, .. } => {
            let plan = plan.map(|path| Plan::read(&path)).transpose()?;
            let devices = plan.as_ref().map_or(1, |plan| plan.mesh.world_size());
            let machine = topology(&name, nodes, devices)?;
            let overlay = plan.map(|plan| Overlay::new(&plan, &machine)).transpose()?;
            match svg {
                Some(path) => {
                    write_whole(&path, &picture::svg(&machine, overlay.as_ref()))?;
                    Ok(writeln!(out, "picture written to {}", path.display())?)
                }
                None if json => show_json(&machine, overlay.as_ref(), out),
                None => picture::print(&machine, overlay.as_ref(), out),
            }
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

fn show_json(machine: &Topology, overlay: Option<&Overlay>, out: &mut dyn Write) -> Result<(), Failure> {
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
    let vertices: Vec<_> = machine
        .vertices()
        .map(|vertex| {
            let (kind, hub) = match vertex.kind {
                VertexKind::Gpu => ("gpu", None),
                VertexKind::Hub(hub) => ("hub", Some(hub)),
                VertexKind::Nic => ("nic", None),
                VertexKind::Network => ("network", None),
            };
            json!({ "name": vertex.name, "kind": kind, "hub": hub, "numa": vertex.numa, "spans": vertex.spans })
        })
        .collect();
    let gpus: Vec<_> = machine
        .gpus()
        .iter()
        .enumerate()
        .map(|(place, gpu)| {
            let kind = machine.kind_of(place);
            let mut gpu = json!({
                "name": gpu.name,
                "node": gpu.node,
                "index": gpu.index,
                "kind": kind.kind,
                "memory_bytes": kind.memory_bytes,
                "memory_bytes_per_second": kind.memory_bandwidth.map(Bandwidth::bytes_per_second),
            });
            if let Some(overlay) = overlay {
                gpu["rank"] = json!(overlay.rank(place));
            }
            gpu
        })
        .collect();
    let all: Vec<usize> = (0..machine.gpus().len()).collect();
    print_json(
        out,
        &json!({
            "name": machine.name(),
            "about": machine.about(),
            "network": machine.network(),
            "gpus": gpus,
            "node_things": vertices,
            "node_connections": edges,
            "rings": {
                "node": ring(machine, &all[..machine.gpus_per_node()]),
                "all": ring(machine, &all),
            },
        }),
    )
}

/// How well `gpus` reach each other all at once; null for one alone.
fn ring(machine: &Topology, gpus: &[usize]) -> serde_json::Value {
    let Some(ring) = machine.ring(gpus) else { return json!(null) };
    let bisection = machine.bisection(gpus);
    json!({
        "gpus": gpus.len(),
        "kind": ring.kind,
        "bytes_per_second": ring.bytes_per_second,
        "hop_latency_ns": ring.hop_latency_ns,
        "bisection_bytes_per_second": bisection.map(|bisection| bisection.bytes_per_second),
    })
}
