//! A rank's weights: one piece of device memory, and what lies where in it.

use super::{PlacedTensors, TensorPlace};
use crate::device::{DeviceMemory, Place};
use shardwright_planner::checkpoint::Dtype;
use std::{any::Any, sync::Arc};

/// A rank's weights where they lie on its device, whether this process loaded them or opened those of another. They stay there
/// until it is dropped.
pub struct RankWeights {
    /// The rank.
    pub rank: u32,
    tensors: Arc<PlacedTensors>,
    // The order matters: what keeps the memory alive goes after it.
    memory: Arc<dyn DeviceMemory>,
    _kept_by: Option<Arc<dyn Any + Send + Sync>>,
}

/// A tensor's slice in a rank's memory.
///
/// The address is good for as long as the [`RankWeights`] that gave it live, which the borrow says; whoever keeps the number
/// longer has to keep them too.
#[derive(Debug, Clone, Copy)]
pub struct LoadedTensor<'a> {
    /// The tensor's name in the checkpoint.
    pub name: &'a str,
    /// Its dtype.
    pub dtype: Dtype,
    /// What the rank holds, padding included, in elements.
    pub shape: &'a [u64],
    /// Its first byte: a device pointer, or an address in this process; [`RankWeights::place`] says which. A multiple of
    /// 256, but in memory that somebody lent.
    pub address: u64,
    /// The same, counted from the beginning of the rank's memory.
    pub offset: u64,
    /// Its bytes, padding included.
    pub bytes: u64,
}

impl LoadedTensor<'_> {
    /// Elements from one index to the next, dimension by dimension: slices lie row by row without holes.
    pub fn strides(&self) -> Vec<u64> {
        let mut strides = vec![1; self.shape.len()];
        for dim in (1..self.shape.len()).rev() {
            strides[dim - 1] = strides[dim] * self.shape[dim];
        }
        strides
    }
}

impl RankWeights {
    /// The weights of `rank`: `tensors`, which lie inside `memory`.
    pub(crate) fn new(
        rank: u32,
        tensors: Arc<PlacedTensors>,
        memory: impl Into<Arc<dyn DeviceMemory>>,
    ) -> Self {
        Self { rank, tensors, memory: memory.into(), _kept_by: None }
    }

    /// Keeps `owner` until the memory is closed: without it, the memory would go.
    pub(crate) fn kept_by(self, owner: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _kept_by: Some(owner), ..self }
    }

    /// What lies where in it.
    pub(crate) fn table(&self) -> Arc<PlacedTensors> {
        Arc::clone(&self.tensors)
    }

    /// The memory all tensors lie in.
    pub fn memory(&self) -> &dyn DeviceMemory {
        self.memory.as_ref()
    }

    /// Where that memory lies.
    pub fn place(&self) -> Place {
        self.memory.place()
    }

    /// The tensor called `name`, if the rank holds any of it.
    pub fn tensor(&self, name: &str) -> Option<LoadedTensor<'_>> {
        let tensor = self.tensors.named(name)?;
        Some(tensor.in_memory(self.memory()))
    }

    /// All tensors, in the order of their addresses.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = LoadedTensor<'_>> {
        self.tensors.all().iter().map(|tensor| tensor.in_memory(self.memory()))
    }
}

impl TensorPlace {
    /// The tensor in `memory`.
    pub(super) fn in_memory(&self, memory: &dyn DeviceMemory) -> LoadedTensor<'_> {
        LoadedTensor {
            name: &self.name,
            dtype: self.held.dtype,
            shape: &self.held.shape,
            address: memory.address(self.offset),
            offset: self.offset,
            bytes: self.held.bytes,
        }
    }
}
