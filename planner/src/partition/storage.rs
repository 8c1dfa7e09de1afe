//! From a module's logical partition to the partition of each tensor it is stored in.

use super::{
    deal::Remainder,
    segment::{Segment, SegmentError, lcm},
    slice::{Axis, Partition, Split},
};

/// A dimension of a module's logical matrices `[expert, out, in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Logical {
    /// Which expert, where the matrices of several lie in one tensor.
    Expert,
    /// Output features: rows of a linear layer's matrix, rows of an embedding.
    Out,
    /// Input features: columns of a linear layer's matrix, columns of an embedding.
    In,
}

/// How ranks share a module, in logical coordinates.
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
        /// The ranks that share it.
        axis: Axis,
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
    /// That many logical elements …
    pub elements: u64,
    /// … are that many stored ones, which belong together: 1 in 1 for a plain weight, 8 in 1 for 4-bit values in 32-bit
    /// words, 32 in 3 for 3-bit ones, 128 in 1 for a scale per block of 128.
    pub stored: u64,
}

impl StoredDimension {
    /// One stored element for each logical one.
    pub fn plain(logical: Logical) -> Self {
        Self { logical: Some(logical), elements: 1, stored: 1 }
    }

    /// One stored element for each block of `elements`.
    pub fn block(logical: Logical, elements: u64) -> Self {
        Self { logical: Some(logical), elements, stored: 1 }
    }

    /// A dimension that is never cut.
    pub fn whole() -> Self {
        Self { logical: None, elements: 1, stored: 1 }
    }
}

impl Storage {
    /// A plain tensor whose dimensions are `logical`.
    pub fn plain(logical: &[Logical]) -> Self {
        Self::of(logical.iter().map(|&logical| StoredDimension::plain(logical)).collect())
    }

    /// A tensor with these dimensions that is not added to the output.
    pub fn of(dimensions: Vec<StoredDimension>) -> Self {
        Self { dimensions, added_to_output: false }
    }

    /// A weight `[out, in]`.
    pub fn weight() -> Self {
        Self::plain(&[Logical::Out, Logical::In])
    }

    /// A bias `[out]`, added to the output.
    pub fn bias() -> Self {
        Self { added_to_output: true, ..Self::plain(&[Logical::Out]) }
    }

    /// Whether a dimension of this tensor runs along `dim`.
    pub fn has(&self, dim: Logical) -> bool {
        self.dimensions.iter().any(|stored| stored.logical == Some(dim))
    }

    /// Logical elements along `dim` that this tensor keeps together; 1 where it does not map `dim`. `None` when that
    /// cannot be counted.
    pub fn unit(&self, dim: Logical) -> Option<u64> {
        self.dimensions
            .iter()
            .filter(|stored| stored.logical == Some(dim))
            .try_fold(1, |unit, stored| lcm(unit, stored.elements))
    }

    /// The partition of this tensor when its module is partitioned by `logical`.
    ///
    /// A tensor that does not map the split dimension is replicated, but for one that is added to the output: where the
    /// split runs over the input features, each rank's output is a part of a sum, and only the first rank adds it.
    ///
    /// # Errors
    /// [`SegmentError::Storage`] when a unit is no multiple of what the tensor keeps together.
    pub fn project(&self, logical: &LogicalPartition) -> Result<Partition, SegmentError> {
        let LogicalPartition::Split { dim, segments, remainder, axis } = logical else {
            return Ok(Partition::Replicated);
        };
        let stored = self.dimensions.iter().position(|stored| stored.logical == Some(*dim));
        match stored {
            Some(number) => {
                let StoredDimension { elements, stored, .. } = self.dimensions[number];
                let segments = segments.iter().map(|segment| segment.in_stored(elements, stored));
                Ok(Partition::Split(Split {
                    dim: number,
                    segments: segments.collect::<Result<_, _>>()?,
                    remainder: *remainder,
                    multiple: None,
                    axis: *axis,
                }))
            }
            None if self.added_to_output && *dim == Logical::In => Ok(Partition::FirstRank),
            None => Ok(Partition::Replicated),
        }
    }
}
