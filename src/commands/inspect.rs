//! `shardwright inspect`: what is in a checkpoint.

use crate::{
    cli::Inspect,
    failure::Failure,
    output::{print_json, print_table, table},
};
use serde_json::json;
use shardwright_planner::{
    checkpoint::Catalog,
    graph::{Module, Parameter, TensorGraph, modules},
    model::{CONFIG_NAME, Config, ModelSpec},
    quantisation::Quantisation,
    quote::escaped,
    rules::{Families, tensor_graph},
    size::{Size, count},
};
use std::{collections::BTreeMap, io::Write};

/// What is known of the model.
struct Model {
    spec: ModelSpec,
    family: String,
    quantisation: Option<Quantisation>,
}

pub(crate) fn run(args: &Inspect, out: &mut dyn Write) -> Result<(), Failure> {
    let catalog = Catalog::open(&args.checkpoint)?;
    let modules = modules(&catalog);
    // A checkpoint without a readable configuration can still be looked at; why it cannot be planned is said.
    let model = read_model(&catalog);
    let known = model.as_ref().ok();
    let quantisation = known.and_then(|model| model.quantisation.as_ref());
    let (_, graph) = tensor_graph(&modules, quantisation, known.and_then(|model| model.spec.hidden));
    if args.dot {
        write!(out, "{}", graph.dot(&modules))?;
        return Ok(());
    }
    if args.json {
        return print_json(out, &as_json(&catalog, &modules, &graph, known));
    }
    match &model {
        Ok(Model { spec, family, .. }) => writeln!(out, "{spec}\nfamily {}", escaped(family))?,
        Err(failure) => writeln!(out, "no model: {}", failure.message)?,
    }
    writeln!(out)?;
    let rows = parameters(&modules).map(|(module, parameter)| {
        [
            escaped(&parameter.collapsed),
            parameter.dtype.to_string(),
            format!("{:?}", parameter.shape),
            module.count().to_string(),
            Size(total(module, parameter)).to_string(),
        ]
    });
    print_table(out, &table(["tensors", "dtype", "shape", "count", "bytes"], 3, rows))?;
    print_flow(&modules, &graph, out)?;
    writeln!(
        out,
        "\n{} in {}: {}",
        count(catalog.tensors().len() as u64, "tensor"),
        count(catalog.files().len() as u64, "file"),
        Size(catalog.tensor_bytes()),
    )?;
    Ok(())
}

fn read_model(catalog: &Catalog) -> Result<Model, Failure> {
    let config = Config::read(&catalog.folder().join(CONFIG_NAME))?;
    let family = Families::built_in()?.of(&config.model_types()?)?;
    let quantisation = Quantisation::of(&config)?;
    let mut spec = ModelSpec::of(&config, family.vocabulary())?;
    spec.quantised = quantisation.as_ref().map(ToString::to_string);
    Ok(Model { spec, family: family.name, quantisation })
}

fn parameters(modules: &[Module]) -> impl Iterator<Item = (&Module, &Parameter)> {
    modules.iter().flat_map(|module| module.parameters.iter().map(move |parameter| (module, parameter)))
}

/// Prints the tensor graph, a line for each writer: what the modules that it reads give it.
fn print_flow(modules: &[Module], graph: &TensorGraph, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(width) = graph.width() else { return Ok(()) };
    let mut lines: BTreeMap<String, String> = BTreeMap::new();
    for writer in (0..modules.len()).filter(|&number| graph.writes(number)) {
        let producers = graph.producers(writer);
        if producers.is_empty() {
            continue;
        }
        let scope = escaped(modules[writer].scope());
        let last = |number: usize| escaped(modules[number].last_name());
        let read: Vec<String> = producers.iter().map(|&number| last(number)).collect();
        lines.insert(scope, format!("{} → {}", read.join(", "), last(writer)));
    }
    if !lines.is_empty() {
        writeln!(out, "\nresidual width {width}; blocks that read it and add to it")?;
    }
    for (scope, line) in lines {
        writeln!(out, "  {scope}: {line}")?;
    }
    Ok(())
}

fn total(module: &Module, parameter: &Parameter) -> u64 {
    parameter.bytes_each().saturating_mul(module.count())
}

fn as_json(
    catalog: &Catalog,
    modules: &[Module],
    graph: &TensorGraph,
    model: Option<&Model>,
) -> serde_json::Value {
    let groups: Vec<_> = parameters(modules)
        .map(|(module, parameter)| {
            json!({
                "tensors": parameter.collapsed,
                "names": module.names(parameter),
                "dtype": parameter.dtype,
                "shape": parameter.shape,
                "count": module.count(),
                "bytes": total(module, parameter),
            })
        })
        .collect();
    let flow: Vec<_> = (0..modules.len())
        .filter(|&number| graph.reads(number) || graph.writes(number) || !graph.producers(number).is_empty())
        .map(|number| {
            let names: Vec<&String> =
                graph.producers(number).into_iter().map(|producer| &modules[producer].name).collect();
            json!({
                "module": modules[number].name,
                "reads_residual": graph.reads(number),
                "writes_residual": graph.writes(number),
                "reads": names,
            })
        })
        .collect();
    json!({
        "model": model.map(|model| &model.spec),
        "family": model.map(|model| &model.family),
        "files": catalog.files().len(),
        "tensors": catalog.tensors().len(),
        "bytes": catalog.tensor_bytes(),
        "unlisted": catalog.unlisted(),
        "groups": groups,
        "residual_width": graph.width(),
        "flow": flow,
    })
}
