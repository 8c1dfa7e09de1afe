//! Whatever is odd about a plan and a person should know, with its cost.

use crate::{
    checkpoint::Catalog,
    graph::{Module, Parameter},
    model::ModelSpec,
    partition::Partition,
    plan::{Plan, PlanError},
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
pub(super) fn of_placement(topology: &Topology, plan: &Plan) -> Option<String> {
    let slowest = plan.placement.as_ref()?.slowest()?;
    let gpus = || 0..topology.gpus_per_node();
    let pairs = gpus().flat_map(|from| gpus().map(move |to| (from, to)));
    let paths = pairs.filter_map(|(from, to)| topology.widest_path(from, to));
    let widest = paths.max_by_key(|path| path.bytes_per_second)?;
    (slowest.bytes_per_second < widest.bytes_per_second).then(|| {
        let wide = |bytes: u64| Bandwidth::new(bytes).to_string();
        format!(
            "tp {} groups reach over {} at {} where neighbours have {} at {}: every all-reduce waits for it",
            plan.mesh.tp(),
            slowest.kind,
            wide(slowest.bytes_per_second),
            widest.kind,
            wide(widest.bytes_per_second)
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
    for (module, decision) in modules.iter().zip(decisions) {
        // What holds for the largest of a module's tensors holds for all that are dealt with it.
        let dealt = module.parameters.iter().zip(&decision.partitions);
        let dealt = dealt.filter(|(_, partition)| matches!(partition, Partition::Split(_)));
        let Some((parameter, partition)) = dealt.max_by_key(|(parameter, _)| parameter.bytes_each()) else {
            continue;
        };
        for what in of_dealing(module, parameter, partition, plan)? {
            say(what, &parameter.collapsed);
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

/// What is odd about how a module is dealt, of which `parameter` is the largest tensor; said of this tensor.
fn of_dealing(
    module: &Module,
    parameter: &Parameter,
    partition: &Partition,
    plan: &Plan,
) -> Result<Vec<String>, PlanError> {
    let mut odd = Vec::new();
    let Partition::Split(split) = partition else { return Ok(odd) };
    let shares = plan.shares(split.axis);
    let wrong = |source| PlanError::Partition { name: parameter.collapsed.clone(), source };
    let slices = partition.slices(&parameter.shape, &shares).map_err(wrong)?;
    let total = parameter.bytes_each().saturating_mul(module.count());
    let size = parameter.shape[split.dim];
    let part = |rows: u64| u64::try_from(u128::from(total) * u128::from(rows) / u128::from(size));
    let held: Vec<u64> =
        slices.iter().map(|slice| slice.as_ref().map_or(0, |slice| slice.shape[split.dim])).collect();
    let (most, least) = (held.iter().max().copied().unwrap_or(0), held.iter().min().copied().unwrap_or(0));
    // What is uneven because it was asked to be needs no word, unless ranks are left with nothing.
    if most != least && (plan.weights.is_empty() || least == 0) {
        let even = total / slices.len() as u64;
        let more = part(most).unwrap_or(u64::MAX).saturating_sub(even);
        let empty = held.iter().filter(|&&rows| rows == 0).count() as u64;
        let idle = match empty {
            0 => String::new(),
            1 => "; 1 rank holds nothing of it and waits for the others".to_owned(),
            _ => format!("; {empty} ranks hold nothing of it and wait for the others"),
        };
        odd.push(format!(
            "is dealt unevenly: ranks hold {least} to {most} of {size} (the largest {} more than an even share{idle})",
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
    let pieces = || slices.iter().flatten().flat_map(|slice| &slice.pieces).map(|piece| piece.replicas);
    if let (Some(least), Some(most @ 2..)) = (pieces().min(), pieces().max()) {
        let all: u64 = slices.iter().flatten().map(|slice| slice.shape[split.dim] - slice.padding).sum();
        let ranks = if least == most { format!("{most}") } else { format!("up to {most}") };
        odd.push(format!(
            "has fewer heads than there are ranks: {ranks} ranks hold each ({} in all, not {})",
            Size(part(all).unwrap_or(u64::MAX)),
            Size(total)
        ));
    }
    Ok(odd)
}
