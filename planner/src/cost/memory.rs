//! Bytes of weights on each rank.

use crate::plan::{Plan, PlanError};

/// Every tensor begins at a multiple of this many bytes in a rank's memory; what CUDA's own allocations are aligned to.
pub const TENSOR_ALIGNMENT: u64 = 256;

/// What one rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Tensors.
    pub tensors: u64,
    /// Bytes of the slices as they are placed, alignment included.
    pub weights: u64,
    /// Bytes of what other ranks of the same tensor-parallel group hold too.
    pub replicated: u64,
    /// Bytes of zeros that exist in no file.
    pub padding: u64,
}

/// Bytes that a slice of `bytes` bytes takes in a rank's memory.
pub fn placed_bytes(bytes: u64) -> u64 {
    bytes.next_multiple_of(TENSOR_ALIGNMENT)
}

/// What each rank of the plan holds, in the order of the ranks. Ranks of different data-parallel copies hold the same.
///
/// # Errors
/// [`PlanError`] when the plan does not hold together.
pub fn memory_per_rank(plan: &Plan) -> Result<Vec<MemoryUse>, PlanError> {
    let mesh = plan.mesh;
    let mut uses = vec![MemoryUse::default(); mesh.world_size() as usize];
    for group in &plan.tensors {
        let slices = plan.slices_of(group)?;
        let bits = group.loaded_dtype().bitsize() as u64;
        for (rank, used) in (0u32..).zip(&mut uses) {
            let place = mesh.coordinates(rank);
            let Some(slice) = &slices.by_rank()[plan.place_on(slices.axis(), place)] else { continue };
            let count = plan.tensors_held(group, &slices, place);
            let bytes = slice.elements() * bits / 8;
            let rows = slice.shape.get(slice.dim).copied().unwrap_or(1).max(1);
            used.tensors += count;
            used.weights = used.weights.saturating_add(placed_bytes(bytes).saturating_mul(count));
            used.padding += bytes / rows * slice.padding * count;
            let shared: u64 = slice
                .pieces
                .iter()
                .filter(|piece| piece.replicas > 1)
                .map(|piece| piece.region.elements() * bits / 8)
                .sum();
            used.replicated += shared * count;
        }
    }
    Ok(uses)
}
