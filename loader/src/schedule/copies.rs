//! From slices to copies.

use super::rows::Rows;
use shardwright_planner::{
    checkpoint::{Catalog, Dtype},
    cost::placed_bytes,
    partition::{Slice, TensorBox},
    plan::{Plan, PlanError, RankTensor},
    quote::quote,
};
use std::{ops::Range, sync::Arc};

/// Everything one rank has to copy, and where it goes.
#[derive(Debug)]
pub struct Schedule {
    /// The rank.
    pub rank: u32,
    /// Bytes of memory the rank needs.
    pub memory_bytes: u64,
    /// Where each tensor lies. There may be 100,000 for each rank: ranks that hold theirs alike share the list.
    places: Arc<[Placed]>,
    /// What slices have in common, by the numbers of `places`.
    forms: Vec<SliceForm>,
}

/// Where one tensor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    id: u32,
    form: u32,
    offset: u64,
}

/// One tensor's slice in a rank's memory.
#[derive(Debug, Clone, Copy)]
pub struct PlacedTensor<'a> {
    /// Its number in the catalog, the same on all ranks.
    pub id: usize,
    /// First byte in the rank's memory.
    pub offset: u64,
    /// What it has in common with others of its group.
    pub form: &'a SliceForm,
}

/// The slices that one rank holds of tensors that are partitioned alike. Places in memory are counted from a slice's first byte.
#[derive(Debug, Clone)]
pub struct SliceForm {
    /// What the rank holds of each.
    pub held: Arc<TensorForm>,
    /// What is copied into it.
    pub pieces: Vec<ScheduledPiece>,
    /// The rows of zeros in it that exist in no file, if there are any.
    pub padding: Option<Padding>,
}

/// What a rank holds of a tensor, padding included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorForm {
    /// Its dtype, as it is loaded.
    pub dtype: Dtype,
    /// Its shape, in elements.
    pub shape: Vec<u64>,
    /// Its bytes.
    pub bytes: u64,
}

/// Rows of zeros in a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    /// First byte, counted from the slice's.
    pub at: u64,
    /// Bytes from the beginning of one run to the next.
    pub stride: u64,
    /// Bytes of each run; at least 1.
    pub run_bytes: u64,
    /// How many runs; at least 1.
    pub runs: u64,
}

/// One box of a tensor's slice.
#[derive(Debug, Clone)]
pub struct ScheduledPiece {
    /// Which box of the whole tensor.
    pub region: TensorBox,
    /// Which of the ranks that hold this very box; the one with 0 answers for it in sums over ranks.
    pub replica: u32,
    /// How many ranks hold this very box.
    pub replicas: u32,
    /// Its bytes. They go to places in the slice.
    pub rows: Vec<Rows>,
}

/// Why a plan cannot be scheduled.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// No such rank.
    #[error("rank {rank} does not exist: the plan has ranks 0 to {}", world.saturating_sub(1))]
    NoSuchRank {
        /// The rank asked for.
        rank: u32,
        /// The plan's world size.
        world: u32,
    },
    /// A tensor of the plan that the checkpoint does not have.
    #[error("tensor {} of the plan is not in the checkpoint", quote(name))]
    NotThere {
        /// Its name.
        name: String,
    },
    /// A tensor of the plan that has another dtype or shape in the checkpoint, or a cut through a byte.
    #[error("tensor {} of the plan is another than the checkpoint's", quote(name))]
    Differs {
        /// Its name.
        name: String,
    },
    /// More bytes than any memory has.
    #[error("rank {rank} would hold more bytes than can be counted")]
    TooLarge {
        /// The rank.
        rank: u32,
    },
}

impl Schedule {
    /// Schedules what `rank` holds of the checkpoint.
    ///
    /// # Errors
    /// [`ScheduleError`] when the plan and the catalog are not of one checkpoint.
    pub fn new(plan: &Plan, catalog: &Catalog, rank: u32) -> Result<Self, ScheduleError> {
        let world = plan.mesh.world_size();
        if rank >= world {
            return Err(ScheduleError::NoSuchRank { rank, world });
        }
        let entries = catalog.tensors();
        let too_large = || ScheduleError::TooLarge { rank };
        let (mut found, mut forms) = (Vec::new(), Vec::<SliceForm>::new());
        // The tensors of a group come one after the other.
        let mut last: Option<RankTensor<'_>> = None;
        for tensor in plan.rank_tensors(rank)? {
            let Some(id) = catalog.number_of(&tensor.name) else {
                return Err(ScheduleError::NotThere { name: tensor.name });
            };
            if entries[id].dtype != tensor.dtype || *entries[id].shape != *tensor.shape {
                return Err(ScheduleError::Differs { name: tensor.name });
            }
            let is_like = last.as_ref().is_some_and(|last| {
                Arc::ptr_eq(&last.slice, &tensor.slice)
                    && (last.copy, last.copies) == (tensor.copy, tensor.copies)
            });
            if !is_like {
                forms.push(SliceForm::new(&tensor)?);
            }
            let number = |number: usize| u32::try_from(number).map_err(|_| too_large());
            found.push((tensor.turn, Placed { id: number(id)?, form: number(forms.len() - 1)?, offset: 0 }));
            last = Some(tensor);
        }
        found.sort_by_key(|(turn, placed)| {
            let entry = &entries[placed.id as usize];
            (*turn, entry.file, entry.bytes, placed.id)
        });

        let mut offset = 0u64;
        let mut places = Vec::with_capacity(found.len());
        for (_, placed) in found {
            places.push(Placed { offset, ..placed });
            let bytes = placed_bytes(forms[placed.form as usize].held.bytes);
            offset = offset.checked_add(bytes).ok_or_else(too_large)?;
        }
        Ok(Self { rank, memory_bytes: offset, places: places.into(), forms })
    }

    /// Shares with `other` where tensors lie, if both have them in the same places.
    pub(crate) fn share(&mut self, other: &Self) {
        if self.places == other.places {
            self.places = Arc::clone(&other.places);
        }
    }

    /// How many tensors the rank holds a part of.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether the rank holds nothing.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The tensor at place `number` of the schedule.
    pub fn tensor(&self, number: usize) -> PlacedTensor<'_> {
        self.placed(&self.places[number])
    }

    /// The tensors in the order of their turns, and within one of their bytes in the files; they lie in memory in the same order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = PlacedTensor<'_>> {
        self.places.iter().map(|placed| self.placed(placed))
    }

    /// The tensors at these places of the schedule.
    pub fn tensors_at(&self, places: Range<usize>) -> impl Iterator<Item = PlacedTensor<'_>> {
        self.places[places].iter().map(|placed| self.placed(placed))
    }

    /// The first place whose tensor is not before others, of tensors that are in that order.
    pub(super) fn partition_point(&self, is_before: impl Fn(usize) -> bool) -> usize {
        self.places.partition_point(|placed| is_before(placed.id as usize))
    }

    /// What the slices of the tensor at place `number` have in common with others, kept by whoever has it.
    pub(crate) fn held(&self, number: usize) -> &Arc<TensorForm> {
        &self.forms[self.places[number].form as usize].held
    }

    fn placed(&self, placed: &Placed) -> PlacedTensor<'_> {
        let Placed { id, form, offset } = *placed;
        PlacedTensor { id: id as usize, offset, form: &self.forms[form as usize] }
    }

    /// Has the tensor at place `number` a form of its own, to be changed.
    #[cfg(test)]
    pub(crate) fn change_form(&mut self, number: usize, change: impl FnOnce(&mut SliceForm)) {
        let mut places = self.places.to_vec();
        let mut form = self.forms[places[number].form as usize].clone();
        change(&mut form);
        places[number].form = u32::try_from(self.forms.len()).unwrap();
        self.forms.push(form);
        self.places = places.into();
    }

    /// Bytes that are read from files.
    pub fn copied_bytes(&self) -> u64 {
        self.tensors().flat_map(PlacedTensor::pieces).map(ScheduledPiece::bytes).sum()
    }
}

impl ScheduledPiece {
    /// Bytes of the box.
    pub fn bytes(&self) -> u64 {
        self.rows.iter().map(Rows::bytes).sum()
    }
}

impl<'a> PlacedTensor<'a> {
    /// What the rank holds of it.
    pub fn held(self) -> &'a TensorForm {
        &self.form.held
    }

    /// What is copied into it; places in memory are counted from its first byte.
    pub fn pieces(self) -> &'a [ScheduledPiece] {
        &self.form.pieces
    }

    /// The rows of one of its pieces, as they lie in the rank's memory.
    pub fn rows(self, piece: &'a ScheduledPiece) -> impl Iterator<Item = Rows> + use<'a> {
        piece.rows.iter().map(move |rows| Rows { to: self.offset + rows.to, ..*rows })
    }

    /// The same, of all pieces.
    pub fn all_rows(self) -> impl Iterator<Item = Rows> + use<'a> {
        self.pieces().iter().flat_map(move |piece| self.rows(piece))
    }

    /// What comes from these bytes of the tensor, as it lies in the rank's memory: of one piece.
    pub fn rows_out_of(
        self,
        piece: &'a ScheduledPiece,
        bytes: Range<u64>,
    ) -> impl Iterator<Item = Rows> + use<'a> {
        self.rows(piece).flat_map(move |rows| rows.out_of(bytes.start, bytes.end))
    }

    /// The same, of all pieces.
    pub fn all_rows_out_of(self, bytes: Range<u64>) -> impl Iterator<Item = Rows> + use<'a> {
        self.pieces().iter().flat_map(move |piece| self.rows_out_of(piece, bytes.clone()))
    }
}

impl SliceForm {
    fn new(tensor: &RankTensor<'_>) -> Result<Self, ScheduleError> {
        let RankTensor { dtype, cast, slice, copy, copies, .. } = tensor;
        let differs = || ScheduleError::Differs { name: tensor.name.clone() };
        let dtype = cast.map_or(*dtype, Dtype::from);
        let bits = dtype.bitsize() as u64;
        let mut pieces = Vec::with_capacity(slice.pieces.len());
        // Where the next box begins along the split dimension of the slice.
        let mut row = 0;
        for piece in &slice.pieces {
            let rows = rows_of(&piece.region, tensor.shape, &slice.shape, slice.dim, row, bits);
            pieces.push(ScheduledPiece {
                replica: copy * piece.replicas + piece.replica,
                replicas: copies * piece.replicas,
                region: piece.region.clone(),
                rows: rows.ok_or_else(differs)?,
            });
            row += piece.region.shape().get(slice.dim).copied().unwrap_or(0);
        }
        let padding = padding_of(slice, bits).ok_or_else(differs)?;
        let held = TensorForm { dtype, shape: slice.shape.clone(), bytes: slice.elements() * bits / 8 };
        Ok(Self { held: Arc::new(held), pieces, padding })
    }
}

/// Where the padding of a slice lies, if it has one: the last rows of its split dimension. `None` when a row of it does not begin
/// or end on a whole byte.
fn padding_of(slice: &Slice, bits: u64) -> Option<Option<Padding>> {
    if slice.padding == 0 {
        return Some(None);
    }
    let (outer, rest) = slice.shape.split_at_checked(slice.dim)?;
    let (&rows, inner) = rest.split_first()?;
    let row_bits = inner.iter().product::<u64>().checked_mul(bits).filter(|bits| bits % 8 == 0)?;
    let row_bytes = row_bits / 8;
    let padding = Padding {
        at: (rows - slice.padding) * row_bytes,
        stride: rows * row_bytes,
        run_bytes: slice.padding * row_bytes,
        runs: outer.iter().product(),
    };
    Some((padding.run_bytes > 0 && padding.runs > 0).then_some(padding))
}

/// The rows of one box of a tensor, which begins at index `row` of dimension `dim` of the slice.
///
/// A dimension that the box covers whole, in the tensor and in the slice, is one with the dimension before it. Of those that are
/// left the last makes up a run, the one before it the stride; further ones out, which a box has that is cut in more than two
/// dimensions, are enumerated. `None` when a run does not begin or end on a whole byte.
fn rows_of(
    region: &TensorBox,
    tensor_shape: &[u64],
    slice_shape: &[u64],
    dim: usize,
    row: u64,
    bits: u64,
) -> Option<Vec<Rows>> {
    if region.elements() == 0 {
        return Some(Vec::new());
    }
    let sizes = region.shape();
    let mut extents: Vec<Extent> = Vec::new();
    for (d, &size) in sizes.iter().enumerate() {
        let (tensor, slice) = (*tensor_shape.get(d)?, *slice_shape.get(d)?);
        match extents.last_mut() {
            Some(before) if size == tensor && size == slice => before.widen(size),
            _ => {
                let (from, to) = (*region.start.get(d)?, if d == dim { row } else { 0 });
                extents.push(Extent { size, tensor, slice, from, to });
            }
        }
    }
    let bytes = |elements: u64| elements.checked_mul(bits).filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    let run = extents.pop().unwrap_or(Extent { size: 1, tensor: 1, slice: 1, from: 0, to: 0 });
    let run_bytes = bytes(run.size)?;
    let (mut from_stride, mut to_stride) = (run.tensor, run.slice);
    let mut first = Rows {
        from: bytes(run.from)?,
        from_stride: run_bytes,
        to: bytes(run.to)?,
        to_stride: run_bytes,
        run_bytes,
        runs: 1,
    };
    if let Some(rows) = extents.pop() {
        first.from += bytes(rows.from * from_stride)?;
        first.to += bytes(rows.to * to_stride)?;
        (first.from_stride, first.to_stride) = (bytes(from_stride)?, bytes(to_stride)?);
        first.runs = rows.size;
        (from_stride, to_stride) = (from_stride * rows.tensor, to_stride * rows.slice);
    }
    let mut all = vec![first.joined()];
    while let Some(outer) = extents.pop() {
        let inner = std::mem::take(&mut all);
        for at in 0..outer.size {
            let (from, to) = (bytes((outer.from + at) * from_stride)?, bytes((outer.to + at) * to_stride)?);
            all.extend(inner.iter().map(|rows| Rows { from: rows.from + from, to: rows.to + to, ..*rows }));
        }
        (from_stride, to_stride) = (from_stride * outer.tensor, to_stride * outer.slice);
    }
    Some(all)
}

/// Elements of a box along one dimension, or along several that are one.
struct Extent {
    /// Of the box.
    size: u64,
    /// Of the tensor.
    tensor: u64,
    /// Of the slice.
    slice: u64,
    /// The first in the tensor.
    from: u64,
    /// The first in the slice.
    to: u64,
}

impl Extent {
    /// Makes one dimension of this and the next one in, of which the box has all `size`.
    fn widen(&mut self, size: u64) {
        for count in [&mut self.size, &mut self.tensor, &mut self.slice, &mut self.from, &mut self.to] {
            *count *= size;
        }
    }
}

#[cfg(test)]
mod tests;
