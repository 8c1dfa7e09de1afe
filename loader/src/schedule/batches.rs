//! The order in which tensors are loaded: the same for all ranks.

use super::{Schedule, ScheduleError};
use shardwright_planner::{
    checkpoint::Catalog,
    plan::{Holding, Plan, Turn},
};
use std::{collections::HashMap, ops::Range};

/// Bytes of the checkpoint that a batch has at least: enough that a collective a batch costs nothing, little enough that the
/// first tensors are ready long before the last.
const BATCH_BYTES: u64 = 256 << 20;

/// Tensors that are enough for a batch however small they are: what is known of each until it is verified takes memory.
const BATCH_TENSORS: usize = 1024;

/// All tensors of a checkpoint in the order of their turns, in batches of neighbouring turns. Every rank of a plan has the same
/// ones, whatever it holds itself.
#[derive(Debug)]
pub struct Batches {
    tensors: Vec<Turned>,
    batches: Vec<Range<usize>>,
    /// By a tensor's number in the catalog: its place in `tensors`.
    places: Vec<usize>,
    /// The sets of ranks that hold any part of a tensor. They are few.
    holders: Vec<Vec<u32>>,
}

/// There may be 100,000 of them.
#[derive(Debug, Clone, Copy)]
struct Turned {
    id: usize,
    turn: Turn,
    /// Which of [`Batches::holders`].
    holders: u32,
}

impl Batches {
    /// The batches of a plan.
    ///
    /// # Errors
    /// [`ScheduleError`] when the plan and the catalog are not of one checkpoint.
    pub fn new(plan: &Plan, catalog: &Catalog) -> Result<Self, ScheduleError> {
        let entries = catalog.tensors();
        let mut holders = vec![Vec::new()];
        let mut tensors: Vec<Turned> = (0..entries.len())
            // What no rank holds has its turn at the end: it is missed there.
            .map(|id| Turned { id, turn: Turn::Last, holders: 0 })
            .collect();
        let mut known = HashMap::from([(Vec::new(), 0)]);
        for Holding { name, turn, ranks } in plan.holdings()? {
            let Some(id) = catalog.number_of(&name) else { return Err(ScheduleError::NotThere { name }) };
            let number = *known.entry(ranks).or_insert_with_key(|ranks| {
                holders.push(ranks.clone());
                // There are fewer sets than tensors, of which a plan has fewer than 2^32.
                u32::try_from(holders.len() - 1).unwrap_or(0)
            });
            tensors[id] = Turned { id, turn, holders: number };
        }
        // Those of no bytes are all in the same place.
        tensors.sort_by_key(|tensor| {
            let entry = &entries[tensor.id];
            (tensor.turn, entry.file, entry.bytes, tensor.id)
        });

        let mut batches = Vec::new();
        let (mut start, mut bytes) = (0, 0u64);
        for (place, tensor) in tensors.iter().enumerate() {
            bytes = bytes.saturating_add(entries[tensor.id].bytes.len());
            let ends = tensors.get(place + 1).is_none_or(|next| next.turn != tensor.turn);
            let is_enough = bytes >= BATCH_BYTES || place + 1 - start >= BATCH_TENSORS;
            if ends && (is_enough || place + 1 == tensors.len()) {
                batches.push(start..place + 1);
                (start, bytes) = (place + 1, 0);
            }
        }
        if batches.is_empty() {
            batches.push(0..0);
        }
        let mut places = vec![0; tensors.len()];
        tensors.iter().enumerate().for_each(|(place, tensor)| places[tensor.id] = place);
        Ok(Self { tensors, batches, places, holders })
    }

    /// How many batches there are; at least 1.
    pub fn count(&self) -> usize {
        self.batches.len()
    }

    /// The numbers in the catalog of the tensors of batch `number`, in order.
    pub fn tensors(&self, number: usize) -> impl Iterator<Item = usize> {
        self.tensors[self.batches[number].clone()].iter().map(|tensor| tensor.id)
    }

    /// Which of the tensors of `schedule` are of batch `number`: they are in the same order.
    pub fn of_schedule(&self, number: usize, schedule: &Schedule) -> Range<usize> {
        let Range { start, end } = self.batches[number];
        let before = |place: usize| schedule.tensors.partition_point(|tensor| self.places[tensor.id] < place);
        before(start)..before(end)
    }

    /// The batch of the tensor with this number in the catalog.
    pub(super) fn batch_of(&self, id: usize) -> usize {
        let place = self.places[id];
        self.batches.partition_point(|batch| batch.end <= place)
    }

    /// Whether no rank holds any part of the tensor.
    pub(super) fn is_unheld(&self, id: usize) -> bool {
        self.holders(id).is_empty()
    }

    /// All tensors that some rank holds, and all others where `unheld`: their numbers in the catalog, in order.
    pub(super) fn in_order(&self, unheld: bool) -> impl Iterator<Item = usize> {
        self.tensors.iter().filter(move |tensor| unheld || tensor.holders != 0).map(|tensor| tensor.id)
    }

    /// The ranks that answer for the bytes of the tensor in the files: those that hold any part of it, in order; none where all do,
    /// because nobody holds it.
    fn holders(&self, id: usize) -> &[u32] {
        &self.holders[self.tensors[self.places[id]].holders as usize]
    }

    /// How many ranks of `world` answer for the bytes of the tensor in the files: those that hold any part of it, or all where nobody
    /// does.
    pub(super) fn answering(&self, id: usize, world: u32) -> usize {
        match self.holders(id) {
            [] => world as usize,
            holders => holders.len(),
        }
    }

    /// Which of those that answer for the tensor `rank` is.
    pub(super) fn answers_as(&self, id: usize, rank: u32) -> Option<usize> {
        match self.holders(id) {
            [] => Some(rank as usize),
            holders => holders.binary_search(&rank).ok(),
        }
    }
}
