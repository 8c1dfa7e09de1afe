//! Whatever is odd about a plan and a person should know, with its cost.

use crate::{
    checkpoint::Catalog,
    graph::Module,
    mesh::Mesh,
    model::ModelSpec,
    partition::{Partition, Slice},
    plan::{PathWidth, Plan, PlanError, TensorGroup},
    quote::quote,
    rules::{Decision, Family},
    size::{Size, count},
    topology::{Bandwidth, Topology},
};

/// Tensors that no index lists.
pub(super) fn of_catalog(catalog: &Catalog) -> Option<String> {
    let unlisted = catalog.unlisted();
    (unlisted > 0).then(|| {
        format!("left out: {} in the files that the index does not list", count(unlisted as u64, "tensor"))
    })
}

/// Says so when a tensor-parallel group is worse connected than GPUs of the machine can be.
pub(super) fn of_path(topology: &Topology, mesh: Mesh, path: PathWidth) -> Option<String> {
    let widest = (1..topology.gpus_per_node()).filter_map(|gpu| topology.widest_path(0, gpu)).max()?;
    (path.bytes_per_second < widest.0).then(|| {
        let wide = |bytes: u64| Bandwidth::new(bytes).to_string();
        format!(
            "tp {} groups reach over {} at {} where neighbours have {} at {}: every all-reduce waits for it",
            mesh.tp(),
            path.kind,
            wide(path.bytes_per_second),
            widest.1,
            wide(widest.0)
        )
    })
}

/// Says so when no family knows the model.
pub(super) fn of_family(family: &Family, model: &ModelSpec) -> Vec<String> {
    let guessed = format!(
        "no family knows model type {}: planned by common names and by the shapes of the tensors; what could not be \
         paired is replicated",
        quote(&model.model_type)
    );
    Vec::from_iter(family.fallback.then_some(guessed))
}

/// What is odd about decisions: what the rules say, slices that differ or are empty, padding, heads that are shared. What
/// is said of several tensors is said once.
pub(super) fn of_decisions(
    modules: &[Module],
    decisions: &[Decision],
    plan: &Plan,
) -> Result<Vec<String>, PlanError> {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    let mut say = |what: String, name: &str| match said.iter_mut().find(|(other, _)| *other == what) {
        Some((_, names)) if names.iter().any(|other| other == name) => {}
        Some((_, names)) => names.push(name.to_owned()),
        None => said.push((what, vec![name.to_owned()])),
    };
    for (module, decision) in modules.iter().zip(decisions) {
        if let Some(warning) = &decision.warning {
            let whole = decision.partitions.iter().all(|partition| *partition == Partition::Replicated);
            let cost = match whole && plan.mesh.tp() > 1 {
                true => format!(" ({} on each rank)", Size(module.bytes())),
                false => String::new(),
            };
            if whole && module.parameters.len() > 1 {
                say(format!("{warning}{cost}"), &module.name);
                continue;
            }
            for (parameter, partition) in module.parameters.iter().zip(&decision.partitions) {
                // Of a bias that is held once, only the bias is said to be.
                if whole || *partition == Partition::FirstRank {
                    say(format!("{warning}{cost}"), &parameter.collapsed);
                }
            }
        }
    }
    for group in &plan.tensors {
        for what in of_group(group, plan)? {
            say(what, &group.collapsed());
        }
    }
    Ok(said
        .into_iter()
        .map(|(what, names)| match names.as_slice() {
            [one] => format!("{one} {what}"),
            _ => format!("each of {} {what}", names.join(", ")),
        })
        .collect())
}

/// What is odd about how a group of tensors is dealt, said of its tensors.
fn of_group(group: &TensorGroup, plan: &Plan) -> Result<Vec<String>, PlanError> {
    let mut odd = Vec::new();
    let Partition::Split(split) = &group.partition else { return Ok(odd) };
    let slices = plan.slices_of(group)?;
    let slices = slices.by_rank();
    let each = group.shape.iter().product::<u64>() * group.dtype.bitsize() as u64 / 8;
    let total = each.saturating_mul(group.count());
    let rows = |slice: &Slice| slice.shape[split.dim];
    let held: Vec<u64> = slices.iter().map(|slice| slice.as_ref().map_or(0, rows)).collect();
    let (most, least) = (held.iter().max().copied().unwrap_or(0), held.iter().min().copied().unwrap_or(0));
    // What is uneven because it was asked to be needs no word.
    if most != least && plan.weights.is_empty() {
        let even = total / slices.len() as u64;
        let largest = u128::from(total) * u128::from(most) / u128::from(group.shape[split.dim]);
        let more = u64::try_from(largest).unwrap_or(u64::MAX).saturating_sub(even);
        let empty = held.iter().filter(|&&rows| rows == 0).count() as u64;
        let idle = match empty {
            0 => String::new(),
            _ => format!(
                "; {} nothing of it and {} idle meanwhile",
                holds(empty),
                if empty == 1 { "is" } else { "are" }
            ),
        };
        odd.push(format!(
            "is dealt unevenly: ranks hold {least} to {most} of {} (the largest {} more than an even share{idle})",
            group.shape[split.dim],
            Size(more)
        ));
    }
    let padding: u64 = slices.iter().flatten().map(|slice| slice.padding).sum();
    if padding > 0 {
        odd.push(format!(
            "is padded with {} of zeros to divide by tp {}",
            count(padding, "row"),
            plan.mesh.tp()
        ));
    }
    let copies = slices.iter().flatten().flat_map(|slice| &slice.pieces).map(|piece| piece.replicas).max();
    if let Some(copies @ 2..) = copies {
        let all: u64 = slices.iter().flatten().map(Slice::elements).sum();
        let bytes = (all * group.dtype.bitsize() as u64 / 8).saturating_mul(group.count());
        odd.push(format!(
            "has fewer heads than there are ranks: {copies} ranks hold each ({} in all, not {})",
            Size(bytes),
            Size(total)
        ));
    }
    Ok(odd)
}

fn holds(ranks: u64) -> String {
    format!("{} {}", count(ranks, "rank"), if ranks == 1 { "holds" } else { "hold" })
}
