//! Boxes that several ranks hold: all must have the same fingerprint.

use super::{Batch, VerifyError};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
};
use shardwright_planner::{
    checkpoint::Catalog,
    graph::NamePattern,
    plan::{Plan, PlanError},
};
use std::{collections::HashMap, sync::Arc};

/// The boxes that several ranks hold, the same on all ranks: their first elements, by the tensors' numbers in the catalog, in order. There
/// may be 100,000.
#[derive(Debug, Default)]
pub struct Replicated(Vec<(usize, Starts)>);

/// The first elements of boxes; tensors that are partitioned alike have the same.
type Starts = Arc<[Vec<u64>]>;

impl Replicated {
    /// Finds them.
    ///
    /// # Errors
    /// [`PlanError`] when the plan does not hold together.
    pub fn new(plan: &Plan, catalog: &Catalog) -> Result<Self, PlanError> {
        let mut boxes = Vec::new();
        for group in &plan.tensors {
            let slices = plan.slices_of(group)?;
            let pieces = slices.by_rank().iter().flatten().flat_map(|slice| &slice.pieces);
            let starts: Vec<(u32, &[u64])> = pieces
                .filter(|piece| piece.replica == 0)
                .map(|piece| (piece.replicas, piece.region.start.as_slice()))
                .collect();
            let mut of_copies: HashMap<u32, Starts> = HashMap::new();
            for (name, blocks) in group.names.iter().flat_map(NamePattern::names) {
                let copies = plan.copies_of(group, &blocks);
                let held_by_several = || starts.iter().filter(|(replicas, _)| replicas * copies > 1);
                let starts = of_copies
                    .entry(copies)
                    .or_insert_with(|| held_by_several().map(|(_, start)| start.to_vec()).collect());
                if let (Some(id), false) = (catalog.number_of(&name), starts.is_empty()) {
                    boxes.push((id, Arc::clone(starts)));
                }
            }
        }
        boxes.sort_by_key(|(id, _)| *id);
        boxes.shrink_to_fit();
        Ok(Self(boxes))
    }

    /// The first elements of the tensor's boxes that several ranks hold.
    fn of_tensor(&self, id: usize) -> &[Vec<u64>] {
        self.0.binary_search_by_key(&id, |(id, _)| *id).map_or(&[], |at| &*self.0[at].1)
    }
}

/// The tensors of the batch of which two ranks hold the same box with different bytes, by their numbers in the catalog.
pub(super) fn compare(
    replicated: &Replicated,
    batch: &Batch<'_>,
    communicator: &mut dyn Communicator,
) -> Result<Vec<usize>, VerifyError> {
    const WIDTH: usize = Fingerprint::LIMBS;
    // Whoever does not hold a box changes neither the smallest nor the largest value.
    let (mut ids, mut least, mut most) = (Vec::new(), Vec::new(), Vec::new());
    for tensor in &batch.tensors {
        for start in replicated.of_tensor(tensor.id) {
            let own = tensor.own().and_then(|(held, own)| {
                let mut pieces = held.pieces().iter().zip(&own.pieces);
                pieces.find(|(piece, _)| piece.replicas > 1 && piece.region.start == *start)
            });
            let limbs = own.map(|(_, sum)| sum.to_limbs());
            ids.push(tensor.id);
            least.push(limbs.unwrap_or([u64::MAX; WIDTH]));
            most.push(limbs.unwrap_or([0; WIDTH]));
        }
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    communicator.all_reduce(least.as_flattened_mut(), Reduce::Min)?;
    communicator.all_reduce(most.as_flattened_mut(), Reduce::Max)?;
    let mut differ: Vec<usize> = Vec::new();
    for (&id, (least, most)) in ids.iter().zip(least.iter().zip(&most)) {
        // Nobody brought anything where the smallest value is still the largest there is.
        let brought = least.iter().any(|&limb| limb != u64::MAX);
        if least != most && brought && differ.last() != Some(&id) {
            differ.push(id);
        }
    }
    Ok(differ)
}
