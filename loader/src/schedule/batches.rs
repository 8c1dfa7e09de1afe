//! The order in which tensors are loaded: the same for all ranks.

use super::ScheduleError;
use shardwright_planner::{
    checkpoint::Catalog,
    plan::{Plan, Turn},
};
use std::ops::Range;

/// Bytes of the checkpoint that a batch has at least: enough that a collective a batch costs nothing, little enough that the
/// first tensors are ready long before the last.
const BATCH_BYTES: u64 = 256 << 20;

/// All tensors of a checkpoint in the order of their turns, in batches of neighbouring turns. Every rank of a plan has the same
/// ones, whatever it holds itself.
#[derive(Debug)]
pub struct Batches {
    tensors: Vec<Turned>,
    batches: Vec<Range<usize>>,
    /// By a tensor's number in the catalog: its place in `tensors`.
    places: Vec<usize>,
}

#[derive(Debug)]
struct Turned {
    id: usize,
    turn: Turn,
    holders: Vec<u32>,
}

impl Batches {
    /// The batches of a plan.
    ///
    /// # Errors
    /// [`ScheduleError`] when the plan and the catalog are not of one checkpoint.
    pub fn new(plan: &Plan, catalog: &Catalog) -> Result<Self, ScheduleError> {
        let entries = catalog.tensors();
        let mut tensors: Vec<Turned> = (0..entries.len())
            // What no rank holds has its turn at the end: it is missed there.
            .map(|id| Turned { id, turn: Turn::Last, holders: Vec::new() })
            .collect();
        for holding in plan.holdings()? {
            let place = entries.binary_search_by(|entry| entry.name.as_str().cmp(&holding.name));
            let Ok(id) = place else { return Err(ScheduleError::NotThere { name: holding.name }) };
            tensors[id] = Turned { id, turn: holding.turn, holders: holding.ranks };
        }
        tensors.sort_by_key(|tensor| (tensor.turn, entries[tensor.id].file, entries[tensor.id].bytes));

        let mut batches = Vec::new();
        let (mut start, mut bytes) = (0, 0u64);
        for (place, tensor) in tensors.iter().enumerate() {
            bytes = bytes.saturating_add(entries[tensor.id].bytes.len());
            let ends = tensors.get(place + 1).is_none_or(|next| next.turn != tensor.turn);
            if ends && (bytes >= BATCH_BYTES || place + 1 == tensors.len()) {
                batches.push(start..place + 1);
                (start, bytes) = (place + 1, 0);
            }
        }
        if batches.is_empty() {
            batches.push(0..0);
        }
        let mut places = vec![0; tensors.len()];
        tensors.iter().enumerate().for_each(|(place, tensor)| places[tensor.id] = place);
        Ok(Self { tensors, batches, places })
    }

    /// How many batches there are; at least 1.
    pub fn count(&self) -> usize {
        self.batches.len()
    }

    /// The numbers in the catalog of the tensors of batch `number`, in order.
    pub fn tensors(&self, number: usize) -> impl Iterator<Item = usize> {
        self.tensors[self.batches[number].clone()].iter().map(|tensor| tensor.id)
    }

    /// The batch of the tensor with this number in the catalog.
    pub(super) fn batch_of(&self, id: usize) -> usize {
        let place = self.places[id];
        self.batches.partition_point(|batch| batch.end <= place)
    }

    /// Where the tensor stands in the order of all.
    pub(super) fn place_of(&self, id: usize) -> usize {
        self.places[id]
    }

    /// The ranks that answer for the bytes of the tensor in the files: those that hold any part of it, or all `world`, where
    /// nobody does.
    pub(super) fn answering(&self, id: usize, world: u32) -> Vec<u32> {
        let holders = &self.tensors[self.places[id]].holders;
        if holders.is_empty() { (0..world).collect() } else { holders.clone() }
    }

    /// Tensors that no rank holds.
    pub(super) fn unheld(&self) -> impl Iterator<Item = usize> {
        self.tensors.iter().filter(|tensor| tensor.holders.is_empty()).map(|tensor| tensor.id)
    }
}
