//! Whatever is odd about a plan and a person should know, with its cost.

use crate::{
    checkpoint::Catalog,
    graph::ParameterGroup,
    mesh::Mesh,
    partition::{Partition, Slice},
    plan::PathWidth,
    rules::Decision,
    size::Size,
    topology::{Bandwidth, Topology},
};

/// Tensors that no index lists.
pub(super) fn of_catalog(catalog: &Catalog) -> Option<String> {
    let unlisted = catalog.unlisted();
    (unlisted > 0).then(|| format!("{unlisted} tensors in the files are not in the index and are left out"))
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

/// What is odd about decisions: what the rules say, slices that differ or are empty, padding, heads that are shared.
pub(super) fn of_decisions(groups: &[ParameterGroup], decisions: &[Decision], mesh: Mesh) -> Vec<String> {
    let mut warnings = Vec::new();
    for (group, decision) in groups.iter().zip(decisions) {
        let name = group.collapsed();
        let total = group.bytes_each().saturating_mul(group.blocks.len() as u64);
        if let Some(warning) = &decision.warning {
            let cost = match decision.partition {
                Partition::Replicated if mesh.tp() > 1 => format!(" ({} on each rank)", Size(total)),
                _ => String::new(),
            };
            warnings.push(format!("{warning}{cost}"));
        }
        let Ok(slices) = decision.partition.slices(&group.shape, mesh.tp()) else { continue };
        let Partition::Split(split) = &decision.partition else { continue };
        let rows = |slice: &Slice| slice.shape[split.dim];
        let held: Vec<u64> = slices.iter().map(|slice| slice.as_ref().map_or(0, rows)).collect();
        let (most, least) = (held.iter().max().copied(), held.iter().min().copied());
        if most != least {
            let most = most.unwrap_or(0);
            let even = total / u64::from(mesh.tp());
            let largest = u128::from(total) * u128::from(most) / u128::from(group.shape[split.dim]);
            let more = u64::try_from(largest).unwrap_or(u64::MAX).saturating_sub(even);
            warnings.push(format!(
                "{name} is dealt unevenly: ranks hold {} to {most} of {} (the largest {} more than an even share)",
                least.unwrap_or(0),
                group.shape[split.dim],
                Size(more)
            ));
        }
        let padding: u64 = slices.iter().flatten().map(|slice| slice.padding).sum();
        if padding > 0 {
            warnings
                .push(format!("{name} is padded with {padding} rows of zeros to divide by tp {}", mesh.tp()));
        }
        let copies =
            slices.iter().flatten().flat_map(|slice| &slice.pieces).map(|piece| piece.replicas).max();
        if let Some(copies @ 2..) = copies {
            warnings.push(format!(
                "{name}: {copies} ranks hold each kv head, for there are fewer heads than ranks ({} in all instead of {})",
                Size(total.saturating_mul(u64::from(copies))),
                Size(total)
            ));
        }
    }
    warnings
}
