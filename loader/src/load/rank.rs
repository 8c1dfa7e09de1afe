//! A rank that this process loaded.

use super::{LoadFigures, LoadedTensor, RankWeights};
use crate::{
    device::{DeviceMemory, Place},
    verify::Verified,
};

/// A rank that this process loaded: its weights, and how they came there.
pub struct LoadedRank {
    /// The rank.
    pub rank: u32,
    /// Its weights, which can be kept without the rest.
    pub weights: RankWeights,
    /// What loading took, of every rank that took part.
    pub of_all_ranks: Vec<(u32, LoadFigures)>,
    /// What verification found, where it was asked for.
    pub verified: Option<Verified>,
    /// The tensors that had values too large for the dtype that they were cast to, which became infinite, among all that the
    /// process read.
    pub too_large: Vec<String>,
}

impl LoadedRank {
    pub(crate) fn new(
        weights: RankWeights,
        of_all_ranks: Vec<(u32, LoadFigures)>,
        verified: Option<Verified>,
        too_large: Vec<String>,
    ) -> Self {
        Self { rank: weights.rank, weights, of_all_ranks, verified, too_large }
    }

    /// What loading it took.
    pub fn figures(&self) -> LoadFigures {
        let own = self.of_all_ranks.iter().find(|(rank, _)| *rank == self.rank);
        own.map(|(_, figures)| *figures).unwrap_or_default()
    }

    /// The memory all its tensors lie in.
    pub fn memory(&self) -> &dyn DeviceMemory {
        self.weights.memory()
    }

    /// Where that memory lies.
    pub fn place(&self) -> Place {
        self.weights.place()
    }

    /// The tensor called `name`, if the rank holds any of it.
    pub fn tensor(&self, name: &str) -> Option<LoadedTensor<'_>> {
        self.weights.tensor(name)
    }

    /// All its tensors, in the order of their addresses.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = LoadedTensor<'_>> {
        self.weights.tensors()
    }
}
