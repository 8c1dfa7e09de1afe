//! What each rank of a tensor-parallel group holds of one stored tensor.

use super::{
    deal::{Hand, Indivisible, Remainder, Shares, deal, padded_to},
    segment::{Segment, gcd},
    tensor_box::TensorBox,
};
use serde::{Deserialize, Serialize};
use std::num::NonZero;

/// Most elements that padding makes a multiple of: what is padded then has no more bytes than can be counted.
const MOST_MULTIPLE: u32 = 1 << 16;

/// The ranks that share a tensor: an axis of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Axis {
    /// The ranks of a tensor-parallel group.
    #[default]
    #[serde(rename = "tp")]
    Tensor,
    /// The ranks of a pipeline stage, over all tensor-parallel groups and data-parallel copies: routed experts.
    #[serde(rename = "ep")]
    Expert,
}

impl Axis {
    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How the ranks of an axis share one stored tensor, in that tensor's own coordinates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub enum Partition {
    /// Every rank of a tensor-parallel group holds all of it.
    Replicated,
    /// Rank 0 of a tensor-parallel group holds all of it, the others nothing: a bias that is added once, after the sum
    /// over ranks.
    FirstRank,
    /// It is cut along one dimension.
    Split(Split),
    /// One rank holds all of it, by a number in its name: experts that are stored one by one.
    Assigned(Assigned),
}

/// A partition as it is written in a plan: `{whole: every-rank}`, `{whole: first-rank}`, `{split: …}` or `{assign: …}`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    whole: Option<Holders>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<Split>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    assign: Option<Assigned>,
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
        match (form.whole, form.split, form.assign) {
            (Some(Holders::EveryRank), None, None) => Ok(Self::Replicated),
            (Some(Holders::FirstRank), None, None) => Ok(Self::FirstRank),
            (None, Some(split), None) => Ok(Self::Split(split)),
            (None, None, Some(assigned)) => Ok(Self::Assigned(assigned)),
            _ => Err("a partition is one of `whole`, `split` and `assign`"),
        }
    }
}

impl From<Partition> for Form {
    fn from(partition: Partition) -> Self {
        let none = Self { whole: None, split: None, assign: None };
        match partition {
            Partition::Replicated => Self { whole: Some(Holders::EveryRank), ..none },
            Partition::FirstRank => Self { whole: Some(Holders::FirstRank), ..none },
            Partition::Split(split) => Self { split: Some(split), ..none },
            Partition::Assigned(assigned) => Self { assign: Some(assigned), ..none },
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
    /// What each rank holds, padding included, is a multiple of so many elements: as engines fill up a vocabulary before they cut it. Only
    /// with [`Remainder::Pad`], and where all ranks hold alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiple: Option<NonZero<u32>>,
    /// The ranks that share it.
    #[serde(default, skip_serializing_if = "Axis::is_default")]
    pub axis: Axis,
}

/// Whole tensors, each to one rank, in contiguous runs of a number in their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assigned {
    /// Which of the numbers in the name, from 0: in `layers.3.experts.7` the expert's is 1.
    pub number: usize,
    /// How many there are; every number is below it.
    pub of: u64,
    /// What happens where they do not divide.
    #[serde(default, skip_serializing_if = "Remainder::is_refuse")]
    pub remainder: Remainder,
    /// The ranks that share them.
    #[serde(default, skip_serializing_if = "Axis::is_default")]
    pub axis: Axis,
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
    /// What ranks hold is to be a multiple, and nothing is to be filled up, or far too much.
    #[error("a multiple of {multiple} elements is for what is padded, and at most {MOST_MULTIPLE}")]
    Multiple {
        /// Elements.
        multiple: NonZero<u32>,
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
    /// The slice of every rank of the axis, whose ranks hold in proportion to `shares`; `None` for a rank that holds
    /// nothing of it. Of tensors that are [`Partition::Assigned`] it is what a rank holds of each of its own.
    ///
    /// # Errors
    /// [`PartitionError`] when the partition does not fit a tensor of `shape` or does not deal.
    pub fn slices(&self, shape: &[u64], shares: &Shares) -> Result<Vec<Option<Slice>>, PartitionError> {
        let parts = shares.parts();
        let split = match self {
            Self::Replicated => {
                return Ok((0..parts).map(|rank| Some(Slice::whole(shape, rank, parts))).collect());
            }
            Self::FirstRank => {
                return Ok((0..parts).map(|rank| (rank == 0).then(|| Slice::whole(shape, 0, 1))).collect());
            }
            Self::Assigned(assigned) => {
                let numbers = assigned.numbers(shares)?;
                let holds = |(start, stop): &(u64, u64)| start < stop;
                return Ok(numbers.iter().map(|run| holds(run).then(|| Slice::whole(shape, 0, 1))).collect());
            }
            Self::Split(split) => split,
        };
        split.check(shape)?;
        let mut slices = vec![Slice::empty(shape, split.dim); parts as usize];
        let mut offset = 0;
        for &segment in &split.segments {
            let hands = match split.multiple {
                Some(multiple) => padded_to(segment, multiple, shares),
                None => deal(segment, shares, split.remainder)?,
            };
            for (slice, Hand { runs, padding }) in slices.iter_mut().zip(hands) {
                for run in runs {
                    slice.pieces.push(Piece {
                        region: TensorBox::band(shape, split.dim, offset + run.start, offset + run.stop),
                        replica: run.replica,
                        replicas: run.replicas,
                    });
                    slice.shape[split.dim] += run.stop - run.start;
                }
                slice.padding += padding;
                slice.shape[split.dim] += padding;
            }
            offset += segment.len();
        }
        Ok(slices.into_iter().map(|slice| (slice.shape[split.dim] > 0).then_some(slice)).collect())
    }

    /// The ranks that share it.
    pub fn axis(&self) -> Axis {
        match self {
            Self::Replicated | Self::FirstRank => Axis::Tensor,
            Self::Split(split) => split.axis,
            Self::Assigned(assigned) => assigned.axis,
        }
    }
}

impl Assigned {
    /// The numbers of each rank, as half-open runs.
    ///
    /// # Errors
    /// [`PartitionError`] when they do not deal, or there are none.
    pub fn numbers(&self, shares: &Shares) -> Result<Vec<(u64, u64)>, PartitionError> {
        let none = PartitionError::DoesNotTile { dim: self.number, segments: self.of, shape: Vec::new() };
        let segment = Segment::elements(self.of).map_err(|_| none)?;
        let hands = deal(segment, shares, self.remainder)?;
        Ok(hands.iter().map(|hand| hand.runs.first().map_or((0, 0), |run| (run.start, run.stop))).collect())
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
        if let Some(multiple) = self.multiple
            && (self.remainder != Remainder::Pad || multiple.get() > MOST_MULTIPLE)
        {
            return Err(PartitionError::Multiple { multiple });
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
