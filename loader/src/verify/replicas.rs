//! Boxes that several ranks hold: all must have the same fingerprint.

use super::{Verification, VerifyError, own::OwnSums};
use crate::{
    collective::{Communicator, Reduce},
    fingerprint::Fingerprint,
};
use shardwright_planner::{graph::NamePattern, plan::Plan};
use std::collections::HashMap;

/// The numbers in the catalog of tensors of which two ranks hold the same box with different bytes.
pub(super) fn compare(
    this: &Verification<'_>,
    own: &[Option<OwnSums>],
    communicator: &mut dyn Communicator,
) -> Result<Vec<usize>, VerifyError> {
    let slots = slots(this)?;
    if slots.ids.is_empty() {
        return Ok(Vec::new());
    }
    let width = Fingerprint::LIMBS;
    // Whoever does not hold a box changes neither the smallest nor the largest value.
    let mut least = vec![u64::MAX; slots.ids.len() * width];
    let mut most = vec![0; slots.ids.len() * width];
    for (tensor, own) in this.schedule.tensors.iter().zip(own) {
        // Tensors that are left out of a sample leave both values as they are, on every rank.
        let Some(own) = own else { continue };
        for (piece, sum) in tensor.pieces.iter().zip(&own.pieces).filter(|(piece, _)| piece.replicas > 1) {
            let Some(&slot) = slots.of.get(&(tensor.id, piece.region.start.as_slice())) else { continue };
            let limbs = sum.to_limbs();
            least[slot * width..][..width].copy_from_slice(&limbs);
            most[slot * width..][..width].copy_from_slice(&limbs);
        }
    }
    communicator.all_reduce(&mut least, Reduce::Min)?;
    communicator.all_reduce(&mut most, Reduce::Max)?;
    let mut differ: Vec<usize> = slots
        .ids
        .iter()
        .enumerate()
        .filter(|(slot, _)| {
            let (least, most) = (&least[slot * width..][..width], &most[slot * width..][..width]);
            // Nobody brought anything where the smallest value is still the largest there is.
            least != most && least.iter().any(|&limb| limb != u64::MAX)
        })
        .map(|(_, &id)| id)
        .collect();
    differ.dedup();
    Ok(differ)
}

/// A place in the reduced arrays for every box that several ranks hold, the same on all ranks.
struct Slots<'a> {
    /// By the tensor's number in the catalog and the box's first element.
    of: HashMap<(usize, &'a [u64]), usize>,
    /// The tensor of each place.
    ids: Vec<usize>,
}

fn slots<'a>(this: &'a Verification<'_>) -> Result<Slots<'a>, VerifyError> {
    // A rank's own pieces give the keys, the plan gives the numbering: all ranks walk the plan alike.
    let mine: HashMap<usize, Vec<&[u64]>> = this
        .schedule
        .tensors
        .iter()
        .map(|tensor| (tensor.id, tensor.pieces.iter().map(|piece| piece.region.start.as_slice()).collect()))
        .collect();
    let mut slots = Slots { of: HashMap::new(), ids: Vec::new() };
    for (id, starts) in replicated_boxes(this.plan, this)? {
        for start in starts {
            let slot = slots.ids.len();
            slots.ids.push(id);
            let own = mine.get(&id).into_iter().flatten().find(|&&own| own == start);
            if let Some(own) = own {
                slots.of.insert((id, own), slot);
            }
        }
    }
    Ok(slots)
}

/// A tensor's number in the catalog, and the first elements of boxes of it.
type ReplicatedBoxes = (usize, Vec<Vec<u64>>);

/// Every tensor with the first elements of its boxes that several ranks hold, in the order of the plan.
fn replicated_boxes(plan: &Plan, this: &Verification<'_>) -> Result<Vec<ReplicatedBoxes>, VerifyError> {
    let mut boxes = Vec::new();
    for group in &plan.tensors {
        let slices = plan.slices_of(group)?;
        let pieces = slices
            .by_rank()
            .iter()
            .flatten()
            .flat_map(|slice| &slice.pieces)
            .filter(|piece| piece.replica == 0);
        let starts: Vec<(u32, Vec<u64>)> =
            pieces.map(|piece| (piece.replicas, piece.region.start.clone())).collect();
        for (name, blocks) in group.names.iter().flat_map(NamePattern::names) {
            let copies = plan.copies_of(group, &blocks);
            let starts: Vec<Vec<u64>> = starts
                .iter()
                .filter(|(replicas, _)| replicas * copies > 1)
                .map(|(_, start)| start.clone())
                .collect();
            let place = this.catalog.tensors().binary_search_by(|entry| entry.name.as_str().cmp(&name));
            if let (Ok(id), false) = (place, starts.is_empty()) {
                boxes.push((id, starts));
            }
        }
    }
    Ok(boxes)
}
