//! Boxes that several ranks hold: all must have the same fingerprint.

use super::{Batch, Verification, VerifyError};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
};
use shardwright_planner::graph::NamePattern;
use std::{collections::HashMap, sync::Arc};

/// The boxes that several ranks hold, the same on all ranks: their first elements, by the tensor's number in the catalog.
#[derive(Debug, Default)]
pub(super) struct Replicated(HashMap<usize, Starts>);

/// The first elements of boxes; tensors that are partitioned alike have the same.
type Starts = Arc<[Vec<u64>]>;

impl Replicated {
    pub(super) fn new(this: &Verification<'_>) -> Result<Self, VerifyError> {
        let mut boxes = HashMap::new();
        for group in &this.plan.tensors {
            let slices = this.plan.slices_of(group)?;
            let pieces = slices.by_rank().iter().flatten().flat_map(|slice| &slice.pieces);
            let starts: Vec<(u32, &[u64])> = pieces
                .filter(|piece| piece.replica == 0)
                .map(|piece| (piece.replicas, piece.region.start.as_slice()))
                .collect();
            let mut of_copies: HashMap<u32, Starts> = HashMap::new();
            for (name, blocks) in group.names.iter().flat_map(NamePattern::names) {
                let copies = this.plan.copies_of(group, &blocks);
                let held_by_several = || starts.iter().filter(|(replicas, _)| replicas * copies > 1);
                let starts = of_copies
                    .entry(copies)
                    .or_insert_with(|| held_by_several().map(|(_, start)| start.to_vec()).collect());
                if let (Some(id), false) = (this.catalog.number_of(&name), starts.is_empty()) {
                    boxes.insert(id, Arc::clone(starts));
                }
            }
        }
        Ok(Self(boxes))
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
        for start in replicated.0.get(&tensor.id).into_iter().flat_map(|starts| starts.iter()) {
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
