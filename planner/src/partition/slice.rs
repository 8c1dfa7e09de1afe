//! What each rank of a tensor-parallel group holds of one stored tensor.

use super::{
    deal::{Indivisible, Remainder, deal},
    segment::{Segment, gcd},
    tensor_box::TensorBox,
};
use serde::{Deserialize, Serialize};

/// How the ranks of a tensor-parallel group share one stored tensor, in that tensor's own coordinates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Partition {
    /// Every rank holds all of it.
    Replicated,
    /// Rank 0 of the group holds all of it, the others nothing: a bias that is added once, after the sum over ranks.
    FirstRank,
    /// It is cut along one dimension.
    Split(Split),
}

/// A partition as it is written in a plan: `{whole: every-rank}`, `{whole: first-rank}` or `{split: …}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<Holders>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
}

/// Who holds a tensor that is not cut.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Holders {
    EveryRank,
    FirstRank,
}

impl TryFrom<Form> for Partition {
    type Error = &'static str;

    fn try_from(form: Form) -> Result<Self, &'static str> {
        match (form.whole, form.split) {
            (Some(Holders::EveryRank), None) => Ok(Self::Replicated),
            (Some(Holders::FirstRank), None) => Ok(Self::FirstRank),
            (None, Some(split)) => Ok(Self::Split(split)),
            _ => Err("a partition is either `whole` or `split`"),
        }
    }
}

impl From<Partition> for Form {
    fn from(partition: Partition) -> Self {
        match partition {
            Partition::Replicated => Self { whole: Some(Holders::EveryRank), split: None },
            Partition::FirstRank => Self { whole: Some(Holders::FirstRank), split: None },
            Partition::Split(split) => Self { whole: None, split: Some(split) },
        }
    }
}

/// A cut along one dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Which dimension, counted from the outermost.
    pub dim: usize,
    /// The segments that tile it, in order.
    pub segments: Vec<Segment>,
    /// What happens where the units do not divide.
    #[serde(default, skip_serializing_if = "Remainder::is_refuse")]
    pub remainder: Remainder,
}

/// All that one rank holds of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The boxes it holds, laid one after the other along the split dimension.
    pub pieces: Vec<Piece>,
    /// What the rank holds, padding included.
    pub shape: Vec<u64>,
    /// The dimension along which the pieces are laid; 0 where nothing is split.
    pub dim: usize,
    /// Rows of zeros after the pieces, along the split dimension, that exist in no file.
    pub padding: u64,
}

/// A box that one rank holds. Boxes of different ranks that come of one segment are the same or disjoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The box, in the coordinates of the whole tensor.
    pub region: TensorBox,
    /// Which of the ranks of the group that hold this very box; the one with 0 answers for it in sums over ranks.
    pub replica: u32,
    /// How many ranks of the group hold this very box.
    pub replicas: u32,
}

/// A partition that does not fit its tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartitionError {
    /// The tensor has no such dimension.
    #[error("dimension {dim} of a tensor of shape {shape:?} does not exist")]
    NoSuchDimension {
        /// The dimension that is split.
        dim: usize,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// The segments do not tile the dimension.
    #[error("segments of {segments} elements do not tile dimension {dim} of shape {shape:?}")]
    DoesNotTile {
        /// The dimension that is split.
        dim: usize,
        /// Elements of all segments.
        segments: u64,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// Padding is only defined at the end of one segment.
    #[error("{segments} segments cannot be padded")]
    PaddedSegments {
        /// How many segments there are.
        segments: usize,
    },
    /// A cut would go through a byte.
    #[error("units of {unit} elements of {bits} bits do not end on a whole byte")]
    CutsByte {
        /// Elements in a unit, inner dimensions included.
        unit: u64,
        /// Bits of an element.
        bits: u64,
    },
    /// The units do not divide by the ranks.
    #[error(transparent)]
    Indivisible(#[from] Indivisible),
}

impl Partition {
    /// The slice of every rank of a group of `parts` ranks; `None` for a rank that holds nothing of it.
    ///
    /// # Errors
    /// [`PartitionError`] when the partition does not fit a tensor of `shape` or does not deal.
    pub fn slices(&self, shape: &[u64], parts: u32) -> Result<Vec<Option<Slice>>, PartitionError> {
        let split = match self {
            Self::Replicated => {
                return Ok((0..parts).map(|rank| Some(Slice::whole(shape, rank, parts))).collect());
            }
            Self::FirstRank => {
                return Ok((0..parts).map(|rank| (rank == 0).then(|| Slice::whole(shape, 0, 1))).collect());
            }
            Self::Split(split) => split,
        };
        split.check(shape)?;
        let mut slices = vec![Slice::empty(shape, split.dim); parts as usize];
        let mut offset = 0;
        for &segment in &split.segments {
            let runs = deal(segment, parts, split.remainder)?;
            for (slice, run) in slices.iter_mut().zip(runs) {
                if run.stop > run.start {
                    let (start, stop) = (offset + run.start, offset + run.stop);
                    slice.pieces.push(Piece {
                        region: TensorBox::band(shape, split.dim, start, stop),
                        replica: run.replica,
                        replicas: run.replicas,
                    });
                }
                slice.padding += run.padding;
                slice.shape[split.dim] += run.stop - run.start + run.padding;
            }
            offset += segment.len();
        }
        Ok(slices.into_iter().map(|slice| (slice.shape[split.dim] > 0).then_some(slice)).collect())
    }

    /// Whether ranks may hold slices of different shapes.
    pub fn is_uneven(&self) -> bool {
        matches!(self, Self::Split(split) if split.remainder == Remainder::Uneven)
    }
}

impl Split {
    /// Checks that the segments tile the dimension of a tensor of `shape`.
    pub(crate) fn check(&self, shape: &[u64]) -> Result<(), PartitionError> {
        let Some(&size) = shape.get(self.dim) else {
            return Err(PartitionError::NoSuchDimension { dim: self.dim, shape: shape.to_vec() });
        };
        let segments = self
            .segments
            .iter()
            .try_fold(0u64, |sum, segment| sum.checked_add(segment.len()))
            .unwrap_or(u64::MAX);
        if segments != size {
            return Err(PartitionError::DoesNotTile { dim: self.dim, segments, shape: shape.to_vec() });
        }
        if self.remainder == Remainder::Pad && self.segments.len() != 1 {
            return Err(PartitionError::PaddedSegments { segments: self.segments.len() });
        }
        Ok(())
    }

    /// How many indices of `dim` belong together so that a cut between them falls on a whole byte, for a tensor of
    /// `shape` with elements of `bits` bits.
    pub fn byte_unit(shape: &[u64], dim: usize, bits: u64) -> u64 {
        let inner: u64 = shape.iter().skip(dim + 1).product();
        8 / gcd(8, inner.wrapping_mul(bits) % 8)
    }

    /// Checks that no cut goes through a byte of a tensor of `shape` with elements of `bits` bits.
    ///
    /// # Errors
    /// [`PartitionError::CutsByte`] for sub-byte dtypes whose units do not fill bytes.
    pub fn check_bytes(&self, shape: &[u64], bits: u64) -> Result<(), PartitionError> {
        let byte_unit = Self::byte_unit(shape, self.dim, bits);
        match self.segments.iter().find(|segment| !segment.unit().is_multiple_of(byte_unit)) {
            Some(segment) => Err(PartitionError::CutsByte { unit: segment.unit(), bits }),
            None => Ok(()),
        }
    }
}

impl Slice {
    fn whole(shape: &[u64], replica: u32, replicas: u32) -> Self {
        Self {
            pieces: vec![Piece { region: TensorBox::whole(shape), replica, replicas }],
            shape: shape.to_vec(),
            dim: 0,
            padding: 0,
        }
    }

    fn empty(shape: &[u64], dim: usize) -> Self {
        let mut shape = shape.to_vec();
        shape[dim] = 0;
        Self { pieces: Vec::new(), shape, dim, padding: 0 }
    }

    /// The boxes with neighbours along the split dimension joined: the fewest that say the same.
    pub fn boxes(&self) -> Vec<TensorBox> {
        let mut boxes: Vec<TensorBox> = Vec::with_capacity(self.pieces.len());
        for piece in &self.pieces {
            let region = &piece.region;
            match boxes.last_mut() {
                Some(last)
                    if last.stop.get(self.dim) == region.start.get(self.dim) && !region.start.is_empty() =>
                {
                    last.stop[self.dim] = region.stop[self.dim];
                }
                _ => boxes.push(region.clone()),
            }
        }
        boxes
    }

    /// Elements held, padding included.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
