//! From a module's logical partition to the partition of each tensor it is stored in.

use super::{
    deal::Remainder,
    segment::{Segment, SegmentError},
    slice::{Partition, Split},
};

/// A dimension of a module's logical matrix `[out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Logical {
    /// Output features: rows of a linear layer's matrix, rows of an embedding.
    Out,
    /// Input features: columns of a linear layer's matrix, columns of an embedding.
    In,
}

/// How the ranks of a tensor-parallel group share a module, in logical coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogicalPartition {
    /// Every rank holds all of it.
    Replicated,
    /// It is cut along one logical dimension.
    Split {
        /// Which one.
        dim: Logical,
        /// The segments that tile it, in logical elements.
        segments: Vec<Segment>,
        /// What happens where the units do not divide.
        remainder: Remainder,
    },
}

/// How one stored tensor of a module lies in the module's logical coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// What each stored dimension maps to, outermost first.
    pub dimensions: Vec<StoredDimension>,
    /// Whether the tensor is added to the module's output: held once, where the output is a sum over ranks.
    pub added_to_output: bool,
}

/// What one stored dimension maps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredDimension {
    /// The logical dimension; `None` for one that is never cut.
    pub logical: Option<Logical>,
    /// Logical elements in one stored one: 1 for a plain weight, 8 for 4-bit values packed into 32-bit words, 128 for a
    /// scale per block of 128.
    pub factor: u64,
}

impl Storage {
    /// A plain weight `[out, in]`.
    pub fn weight() -> Self {
        Self::plain(&[Logical::Out, Logical::In], false)
    }

    /// A vector of `[out]` that scales or shifts each output feature.
    pub fn vector() -> Self {
        Self::plain(&[Logical::Out], false)
    }

    /// A bias `[out]`, added to the output.
    pub fn bias() -> Self {
        Self::plain(&[Logical::Out], true)
    }

    fn plain(logical: &[Logical], added_to_output: bool) -> Self {
        Self {
            dimensions: logical
                .iter()
                .map(|&logical| StoredDimension { logical: Some(logical), factor: 1 })
                .collect(),
            added_to_output,
        }
    }

    /// Logical elements along `dim` that this tensor keeps together; 1 where it does not map `dim`.
    pub fn unit(&self, dim: Logical) -> u64 {
        self.dimensions
            .iter()
            .filter(|stored| stored.logical == Some(dim))
            .map(|stored| stored.factor)
            .max()
            .unwrap_or(1)
    }

    /// The partition of this tensor when its module is partitioned by `logical`.
    ///
    /// A tensor that does not map the split dimension is replicated, but for one that is added to the output: where the
    /// split runs over the input features, each rank's output is a part of a sum, and only the first rank adds it.
    ///
    /// # Errors
    /// [`SegmentError::Storage`] when a unit is no multiple of what the tensor keeps together.
    pub fn project(&self, logical: &LogicalPartition) -> Result<Partition, SegmentError> {
        let LogicalPartition::Split { dim, segments, remainder } = logical else {
            return Ok(Partition::Replicated);
        };
        let stored = self.dimensions.iter().position(|stored| stored.logical == Some(*dim));
        match stored {
            Some(number) => Ok(Partition::Split(Split {
                dim: number,
                segments: segments
                    .iter()
                    .map(|segment| segment.stored(self.dimensions[number].factor))
                    .collect::<Result<_, _>>()?,
                remainder: *remainder,
            })),
            None if self.added_to_output && *dim == Logical::In => Ok(Partition::FirstRank),
            None => Ok(Partition::Replicated),
        }
    }
}
