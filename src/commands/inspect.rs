//! `shardwright inspect`: what is in a checkpoint.

use crate::{
    cli::Inspect,
    failure::Failure,
    output::{print_json, print_table, table},
};
use serde_json::json;
use shardwright_planner::{
    checkpoint::Catalog,
    graph::{ParameterGroup, group_parameters},
    model::{CONFIG_NAME, ModelSpec, read_config},
    quote::escaped,
    size::{Size, count},
};
use std::io::Write;

pub(crate) fn run(args: &Inspect, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.checkpoint)?;
    let groups = group_parameters(&catalog);
    // A checkpoint without a readable configuration can still be looked at; why it cannot be planned is said.
    let model = read_config(&catalog.folder().join(CONFIG_NAME));
    if args.json {
        return print_json(out, &as_json(&catalog, &groups, model.as_ref().ok()));
    }
    match &model {
        Ok(model) => writeln!(out, "{model}")?,
        Err(error) => writeln!(out, "no model: {error}")?,
    }
    writeln!(out)?;
    let rows = groups.iter().map(|group| {
        [
            escaped(&group.collapsed()),
            group.dtype.to_string(),
            format!("{:?}", group.shape),
            group.blocks.len().to_string(),
            Size(total(group)).to_string(),
        ]
    });
    print_table(out, &table(["tensors", "dtype", "shape", "count", "bytes"], 3, rows))?;
    writeln!(
        out,
        "\n{} in {}: {}",
        count(catalog.tensors().len() as u64, "tensor"),
        count(catalog.files().len() as u64, "file"),
        Size(catalog.tensor_bytes()),
    )?;
    Ok(())
}

fn total(group: &ParameterGroup) -> u64 {
    group.bytes_each().saturating_mul(group.blocks.len() as u64)
}

fn as_json(catalog: &Catalog, groups: &[ParameterGroup], model: Option<&ModelSpec>) -> serde_json::Value {
    let groups: Vec<_> = groups
        .iter()
        .map(|group| {
            json!({
                "tensors": group.collapsed(),
                "names": group.names,
                "dtype": group.dtype,
                "shape": group.shape,
                "count": group.blocks.len(),
                "bytes": total(group),
            })
        })
        .collect();
    json!({
        "model": model,
        "files": catalog.files().len(),
        "tensors": catalog.tensors().len(),
        "bytes": catalog.tensor_bytes(),
        "unlisted": catalog.unlisted(),
        "groups": groups,
    })
}
