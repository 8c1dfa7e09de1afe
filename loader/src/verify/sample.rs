//! Which tensors are verified.

use crate::fingerprint::seed_of;
use shardwright_planner::{
    checkpoint::Catalog,
    graph::NamePattern,
    plan::{Plan, PlanError},
};

/// A sample has one tensor in this many of each kind, and at least one.
const ONE_IN: usize = 16;

/// Which tensors are verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    /// Every byte of every tensor.
    #[default]
    Full,
    /// Every byte of one tensor in 16 of those that repeat in all layers, at least one of each kind; which ones follows from the
    /// plan, and is the same on every rank. It finds what is wrong with all tensors of a kind, and may miss a single byte.
    Sample,
}

/// Whether each tensor is verified, by its number in the catalog.
///
/// # Errors
/// [`PlanError`] when the plan does not hold together.
pub fn chosen(plan: &Plan, catalog: &Catalog, extent: Extent) -> Result<Vec<bool>, PlanError> {
    let mut chosen = vec![extent == Extent::Full; catalog.tensors().len()];
    if extent == Extent::Full {
        return Ok(chosen);
    }
    let seed = seed_of(&plan.digest()?);
    for group in &plan.tensors {
        let names: Vec<String> =
            group.names.iter().flat_map(NamePattern::names).map(|(name, _)| name).collect();
        // Where the sample begins: a place among the first 16, so that at least one is met.
        let first =
            names.first().map_or(0, |name| seed ^ seed_of(name)) % names.len().clamp(1, ONE_IN) as u64;
        for name in names.iter().skip(usize::try_from(first).unwrap_or(0)).step_by(ONE_IN) {
            if let Some(chosen) = catalog.number_of(name).and_then(|id| chosen.get_mut(id)) {
                *chosen = true;
            }
        }
    }
    Ok(chosen)
}
