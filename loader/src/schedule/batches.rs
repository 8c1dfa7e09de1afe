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
    tensors: Vec<Ordered>,
    batches: Vec<Range<usize>>,
    /// By a tensor's number in the catalog: its place in `tensors`.
    places: Vec<u32>,
    /// The sets of ranks that hold any part of a tensor. They are few.
    holders: Vec<Vec<u32>>,
}

/// A tensor in its turn. There may be 100,000 of them.
#[derive(Debug, Clone, Copy)]
struct Ordered {
    /// Its number in the catalog.
    id: u32,
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
        let ids = 0..u32::try_from(entries.len()).map_err(|_| ScheduleError::TooLarge { rank: 0 })?;
        // What no rank holds has its turn at the end: it is missed there.
        let mut turned: Vec<(Turn, Ordered)> =
            ids.map(|id| (Turn::Last, Ordered { id, holders: 0 })).collect();
        let mut known = HashMap::from([(Vec::new(), 0)]);
        for Holding { name, turn, ranks } in plan.holdings()? {
            let Some(id) = catalog.number_of(&name) else { return Err(ScheduleError::NotThere { name }) };
            let number = *known.entry(ranks).or_insert_with_key(|ranks| {
                holders.push(ranks.clone());
                // There are fewer sets than tensors, of which a plan has fewer than 2^32.
                u32::try_from(holders.len() - 1).unwrap_or(0)
            });
            turned[id].0 = turn;
            turned[id].1.holders = number;
        }
        // Those of no bytes are all in the same place.
        turned.sort_by_key(|(turn, tensor)| {
            let entry = &entries[tensor.id as usize];
            (*turn, entry.file, entry.bytes, tensor.id)
        });

        let mut batches = Vec::new();
        let (mut start, mut bytes) = (0, 0u64);
        for (place, (turn, tensor)) in turned.iter().enumerate() {
            bytes = bytes.saturating_add(entries[tensor.id as usize].bytes.len());
            let ends = turned.get(place + 1).is_none_or(|(next, _)| next != turn);
            let is_enough = bytes >= BATCH_BYTES || place + 1 - start >= BATCH_TENSORS;
            if ends && (is_enough || place + 1 == turned.len()) {
                batches.push(start..place + 1);
                (start, bytes) = (place + 1, 0);
            }
        }
        if batches.is_empty() {
            batches.push(0..0);
        }
        let tensors: Vec<Ordered> = turned.into_iter().map(|(_, tensor)| tensor).collect();
        let mut places = vec![0; tensors.len()];
        (0..).zip(&tensors).for_each(|(place, tensor)| places[tensor.id as usize] = place);
        Ok(Self { tensors, batches, places, holders })
    }

    /// How many batches there are; at least 1.
    pub fn count(&self) -> usize {
        self.batches.len()
    }

    /// The numbers in the catalog of the tensors of batch `number`, in order.
    pub fn tensors(&self, number: usize) -> impl Iterator<Item = usize> {
        self.tensors[self.batches[number].clone()].iter().map(|tensor| tensor.id as usize)
    }

    /// Which of the tensors of `schedule` are of batch `number`: they are in the same order.
    pub fn of_schedule(&self, number: usize, schedule: &Schedule) -> Range<usize> {
        let Range { start, end } = self.batches[number];
        let before = |place: usize| schedule.partition_point(|id| self.place(id) < place);
        before(start)..before(end)
    }

    /// The batch of the tensor with this number in the catalog.
    pub(super) fn batch_of(&self, id: usize) -> usize {
        let place = self.place(id);
        self.batches.partition_point(|batch| batch.end <= place)
    }

    /// Where the tensor with this number in the catalog stands in the order.
    fn place(&self, id: usize) -> usize {
        self.places[id] as usize
    }

    /// Whether no rank holds any part of the tensor.
    pub(super) fn is_unheld(&self, id: usize) -> bool {
        self.holders(id).is_empty()
    }

    /// All tensors that some rank holds, and all others where `unheld`: their numbers in the catalog, in order.
    pub(super) fn in_order(&self, unheld: bool) -> impl Iterator<Item = usize> {
        self.tensors
            .iter()
            .filter(move |tensor| unheld || tensor.holders != 0)
            .map(|tensor| tensor.id as usize)
    }

    /// The ranks that answer for the bytes of the tensor in the files: those that hold any part of it, in order; none where all do,
    /// because nobody holds it.
    fn holders(&self, id: usize) -> &[u32] {
        &self.holders[self.tensors[self.place(id)].holders as usize]
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
