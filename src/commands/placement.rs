//! `shardwright placement`: on which GPUs the ranks of a plan run.

use crate::{
    cli,
    failure::{Failure, Kind},
    output::{print_json, print_table, table},
};
use serde_json::json;
use shardwright_planner::{
    plan::{Plan, RankPlace},
    size::count,
    topology::runs,
};
use std::{collections::BTreeMap, io::Write};

/// Most nodes that are shown one by one.
const MOST_ROWS: usize = 64;

pub(crate) fn run(args: &cli::Placement, out: &mut dyn Write) -> Result<(), Failure> {
    let plan = Plan::read(&args.plan)?;
    let mut nodes: BTreeMap<u32, Vec<&RankPlace>> = BTreeMap::new();
    for place in &plan.ranks {
        nodes.entry(place.node).or_default().push(place);
    }
    if let Some(node) = args.node {
        let places = nodes.get(&node).ok_or_else(|| {
            let message = format!("no rank of the plan runs on node {node}");
            let known: Vec<u32> = nodes.keys().copied().collect();
            Failure::new(Kind::Usage, message).with_help(format!("its ranks run on node {}", runs(&known)))
        })?;
        writeln!(out, "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES={}", devices(places))?;
        return Ok(());
    }
    if args.json {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|(node, places)| {
                json!({
                    "node": node,
                    "ranks": places.iter().map(|place| place.rank).collect::<Vec<_>>(),
                    "cuda_visible_devices": devices(places),
                })
            })
            .collect();
        return print_json(out, &json!({ "topology": plan.topology, "nodes": nodes }));
    }
    let rows = nodes.iter().take(MOST_ROWS).map(|(node, places)| {
        let ranks: Vec<u32> = places.iter().map(|place| place.rank).collect();
        [node.to_string(), runs(&ranks), devices(places)]
    });
    print_table(out, &table(["node", "ranks", "CUDA_VISIBLE_DEVICES"], 3, rows))?;
    if nodes.len() > MOST_ROWS {
        writeln!(out, "… and {} more; --json lists all", count((nodes.len() - MOST_ROWS) as u64, "node"))?;
    }
    writeln!(
        out,
        "device i of a node is GPU i under CUDA_DEVICE_ORDER=PCI_BUS_ID; ranks are in the order of the list"
    )?;
    Ok(())
}

/// The GPUs of a node in the order of its ranks.
fn devices(places: &[&RankPlace]) -> String {
    let devices: Vec<String> = places.iter().map(|place| place.device.to_string()).collect();
    devices.join(",")
}
