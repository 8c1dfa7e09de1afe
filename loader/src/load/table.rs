//! Which tensor lies where in a rank's memory.

use crate::schedule::{PlacedTensor, Schedule, TensorForm};
use shardwright_planner::checkpoint::Catalog;
use std::sync::Arc;

/// Where one tensor's slice lies in a rank's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Its name.
    pub name: Arc<str>,
    /// What the rank holds of it.
    pub held: Arc<TensorForm>,
    /// First byte in the rank's memory.
    pub offset: u64,
}

/// The tensors of a rank, found by name. All that outlives loading of its schedule. Ranks share names, and tensors what they have in
/// common: there may be 100,000 of each rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTensors {
    all: Vec<TensorPlace>,
    /// Numbers of `all` in the order of their names: a map would hold every name twice, and there may be 100,000.
    by_name: Vec<u32>,
}

impl PlacedTensors {
    /// A table of `all`, which stay in their order.
    pub(crate) fn new(all: Vec<TensorPlace>) -> Self {
        let mut by_name: Vec<u32> = (0u32..).zip(&all).map(|(at, _)| at).collect();
        by_name.sort_by(|&a, &b| all[a as usize].name.cmp(&all[b as usize].name));
        Self { all, by_name }
    }

    /// The table of what was loaded by `schedule`.
    pub(super) fn loaded(catalog: &Catalog, schedule: &Schedule) -> Self {
        let rank = schedule.rank;
        let name = |id: usize| match (catalog.own_name(id, rank), &catalog.tensors()[id].name) {
            (own, name) if own.len() == name.len() => Arc::clone(name),
            (own, _) => own.into(),
        };
        let place = |(number, tensor): (usize, PlacedTensor<'_>)| TensorPlace {
            name: name(tensor.id),
            held: Arc::clone(schedule.held(number)),
            offset: tensor.offset,
        };
        Self::new(schedule.tensors().enumerate().map(place).collect())
    }

    /// All of them, in the order they lie in.
    pub fn all(&self) -> &[TensorPlace] {
        &self.all
    }

    /// The one called `name`.
    pub fn named(&self, name: &str) -> Option<&TensorPlace> {
        let at = self.by_name.binary_search_by(|&at| (*self.all[at as usize].name).cmp(name)).ok()?;
        self.all.get(self.by_name[at] as usize)
    }

    /// A name that stands twice, for who made the table of something that may be wrong.
    pub(crate) fn repeated(&self) -> Option<&str> {
        let names = |at: u32| &*self.all[at as usize].name;
        self.by_name.windows(2).find(|pair| names(pair[0]) == names(pair[1])).map(|pair| names(pair[0]))
    }
}
