//! A box of a tensor.

use serde::{Deserialize, Serialize};

/// A half-open hyper-rectangle of a tensor: `start[d]..stop[d]` for each dimension, `start[d] <= stop[d]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorBox {
    /// First index of each dimension.
    pub start: Vec<u64>,
    /// One past the last index of each dimension.
    pub stop: Vec<u64>,
}

impl TensorBox {
    /// The box that is the whole of a tensor of `shape`.
    pub fn whole(shape: &[u64]) -> Self {
        Self { start: vec![0; shape.len()], stop: shape.to_vec() }
    }

    /// All of a tensor of `shape` but for dimension `dim`, of which it is `start..stop`.
    pub fn band(shape: &[u64], dim: usize, start: u64, stop: u64) -> Self {
        let mut band = Self::whole(shape);
        band.start[dim] = start;
        band.stop[dim] = stop;
        band
    }

    /// Size of each dimension.
    pub fn shape(&self) -> Vec<u64> {
        self.start.iter().zip(&self.stop).map(|(start, stop)| stop - start).collect()
    }

    /// Elements in it; 1 for a tensor without dimensions.
    pub fn elements(&self) -> u64 {
        self.shape().iter().product()
    }
}
