//! Whatever is odd about a plan and a person should know, with its cost.

use crate::{
    checkpoint::Catalog,
    graph::ParameterGroup,
    mesh::Mesh,
    partition::{Partition, Slice},
    plan::PathWidth,
    rules::Decision,
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

/// What is odd about decisions: what the rules say, slices that differ or are empty, padding, heads that are shared. What
/// is said of several tensors is said once.
pub(super) fn of_decisions(groups: &[ParameterGroup], decisions: &[Decision], mesh: Mesh) -> Vec<String> {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    for (group, decision) in groups.iter().zip(decisions) {
        for what in of_decision(group, decision, mesh) {
            match said.iter_mut().find(|(other, _)| *other == what) {
                Some((_, names)) => names.push(group.collapsed()),
                None => said.push((what, vec![group.collapsed()])),
            }
        }
    }
    said.into_iter()
        .map(|(what, names)| match names.as_slice() {
            [one] => format!("{one} {what}"),
            _ => format!("each of {} {what}", names.join(", ")),
        })
        .collect()
}

/// What is odd about one decision, said of its tensors.
fn of_decision(group: &ParameterGroup, decision: &Decision, mesh: Mesh) -> Vec<String> {
    let mut odd = Vec::new();
    let total = group.bytes_each().saturating_mul(group.blocks.len() as u64);
    if let Some(warning) = &decision.warning {
        let cost = match decision.partition {
            Partition::Replicated if mesh.tp() > 1 => format!(" ({} on each rank)", Size(total)),
            _ => String::new(),
        };
        odd.push(format!("{warning}{cost}"));
    }
    let Partition::Split(split) = &decision.partition else { return odd };
    let Ok(slices) = decision.partition.slices(&group.shape, mesh.tp()) else { return odd };
    let rows = |slice: &Slice| slice.shape[split.dim];
    let held: Vec<u64> = slices.iter().map(|slice| slice.as_ref().map_or(0, rows)).collect();
    let (most, least) = (held.iter().max().copied().unwrap_or(0), held.iter().min().copied().unwrap_or(0));
    if most != least {
        let even = total / u64::from(mesh.tp());
        let largest = u128::from(total) * u128::from(most) / u128::from(group.shape[split.dim]);
        let more = u64::try_from(largest).unwrap_or(u64::MAX).saturating_sub(even);
        odd.push(format!(
            "is dealt unevenly: ranks hold {least} to {most} of {} (the largest {} more than an even share)",
            group.shape[split.dim],
            Size(more)
        ));
    }
    let padding: u64 = slices.iter().flatten().map(|slice| slice.padding).sum();
    if padding > 0 {
        odd.push(format!("is padded with {} of zeros to divide by tp {}", count(padding, "row"), mesh.tp()));
    }
    let copies = slices.iter().flatten().flat_map(|slice| &slice.pieces).map(|piece| piece.replicas).max();
    if let Some(copies @ 2..) = copies {
        let all = Size(total.saturating_mul(u64::from(copies)));
        odd.push(format!(
            "has fewer heads than there are ranks: {copies} ranks hold each ({all} in all, not {})",
            Size(total)
        ));
    }
    odd
}
