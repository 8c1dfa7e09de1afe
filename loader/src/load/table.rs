//! Which tensor lies where in a rank's memory.

use crate::schedule::{PlacedTensor, Schedule};
use shardwright_planner::checkpoint::Dtype;

/// Where one tensor's slice lies in a rank's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// What the rank holds, padding included, in elements.
    pub shape: Vec<u64>,
    /// First byte in the rank's memory.
    pub offset: u64,
    /// Bytes in the rank's memory, padding included.
    pub bytes: u64,
}

/// The tensors of a rank, found by name. All that outlives loading of its schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedTensors {
    all: Vec<TensorPlace>,
    /// Numbers of `all` in the order of their names: a map would hold every name twice, and there may be 100,000.
    by_name: Vec<usize>,
}

impl PlacedTensors {
    /// A table of `all`, which stay in their order.
    pub(crate) fn new(all: Vec<TensorPlace>) -> Self {
        let mut by_name: Vec<usize> = (0..all.len()).collect();
        by_name.sort_by(|&a, &b| all[a].name.cmp(&all[b].name));
        Self { all, by_name }
    }

    /// All of them, in the order they lie in.
    pub fn all(&self) -> &[TensorPlace] {
        &self.all
    }

    /// The one called `name`.
    pub fn named(&self, name: &str) -> Option<&TensorPlace> {
        let at = self.by_name.binary_search_by(|&at| self.all[at].name.as_str().cmp(name)).ok()?;
        self.all.get(self.by_name[at])
    }

    /// A name that stands twice, for who made the table of something that may be wrong.
    pub(crate) fn repeated(&self) -> Option<&str> {
        let names = |at: usize| self.all[at].name.as_str();
        self.by_name.windows(2).find(|pair| names(pair[0]) == names(pair[1])).map(|pair| names(pair[0]))
    }
}

impl From<&Schedule> for PlacedTensors {
    fn from(schedule: &Schedule) -> Self {
        Self::new(schedule.tensors.iter().map(TensorPlace::from).collect())
    }
}

impl From<&PlacedTensor> for TensorPlace {
    fn from(tensor: &PlacedTensor) -> Self {
        let PlacedTensor { name, dtype, shape, offset, bytes, .. } = tensor;
        Self { name: name.clone(), dtype: *dtype, shape: shape.clone(), offset: *offset, bytes: *bytes }
    }
}
