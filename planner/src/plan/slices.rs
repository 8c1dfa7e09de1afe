//! What each rank holds, derived from the plan.

use super::{
    cast::CastDtype,
    document::{Plan, TensorGroup},
    error::PlanError,
};
use crate::{
    checkpoint::Dtype,
    graph::{NamePattern, PatternPart},
    mesh::Coordinates,
    partition::{Axis, Partition, Shares, Slice},
    rules::StageRule,
};
use std::{ops::Range, sync::Arc};

/// When a model's forward pass comes to a tensor, as far as the plan knows: the order in which tensors are best loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Turn {
    /// Before all layers: embeddings, and what every stage has.
    First,
    /// In this layer.
    Layer(u32),
    /// After all layers: the last norm, the output head.
    Last,
}

impl Turn {
    fn of(rule: StageRule, blocks: &[u32]) -> Self {
        match rule {
            StageRule::Layer => blocks.first().map_or(Self::Last, |&layer| Self::Layer(layer)),
            StageRule::First | StageRule::FirstAndLast | StageRule::Every => Self::First,
            StageRule::Last => Self::Last,
        }
    }
}

/// A tensor and the ranks that hold any part of it.
#[derive(Debug, Clone)]
pub struct Holding {
    /// Its name.
    pub name: String,
    /// When its turn is.
    pub turn: Turn,
    /// The ranks, in order.
    pub ranks: Vec<u32>,
}

/// One tensor of which a rank holds a slice. There may be 100,000: what those of a group have in common they share.
#[derive(Debug, Clone)]
pub struct RankTensor<'a> {
    /// Its name.
    pub name: String,
    /// Its dtype, as it is stored.
    pub dtype: Dtype,
    /// The dtype that it is cast to as it is loaded, where that is another.
    pub cast: Option<CastDtype>,
    /// Its whole shape.
    pub shape: &'a [u64],
    /// When its turn is.
    pub turn: Turn,
    /// What the rank holds of it.
    pub slice: Arc<Slice>,
    /// Which of the `copies` this rank holds; the ranks with copy 0 answer for the tensor in sums over ranks.
    pub copy: u32,
    /// How many groups of ranks hold the tensor: one for each data-parallel copy, unless the copies share it, and stage
    /// that has it.
    pub copies: u32,
}

/// What the ranks of a group's axis hold of its tensors.
#[derive(Debug)]
pub struct GroupSlices {
    /// What each rank of the axis holds of a tensor that it holds at all.
    slices: Vec<Option<Slice>>,
    axis: Axis,
    /// Where ranks hold whole tensors by a number in their names: which number, and the run of each rank.
    assigned: Option<(usize, Vec<(u64, u64)>)>,
}

impl GroupSlices {
    /// What each rank of the axis holds, in order; `None` where a rank holds nothing. Where whole tensors are assigned to
    /// ranks it is what a rank holds of each of its own.
    pub fn by_rank(&self) -> &[Option<Slice>] {
        &self.slices
    }

    /// The ranks that share each tensor.
    pub fn axis(&self) -> Axis {
        self.axis
    }

    /// Where ranks hold whole tensors by a number in their names: which of the numbers, and the half-open run of each rank.
    pub fn assigned(&self) -> Option<(usize, &[(u64, u64)])> {
        self.assigned.as_ref().map(|(number, runs)| (*number, runs.as_slice()))
    }

    /// Whether the rank with this place on the axis holds the tensor with these numbers in its name.
    pub fn holds(&self, place: usize, blocks: &[u32]) -> bool {
        let run = self.assigned.as_ref().map(|(number, runs)| (*number, runs[place]));
        self.slices[place].is_some() && is_in_run(run, blocks)
    }
}

impl Plan {
    /// The ranks of `axis`, with what each is to hold.
    pub fn shares(&self, axis: Axis) -> Shares {
        let parts = match axis {
            Axis::Tensor => self.mesh.tp(),
            Axis::Expert => self.mesh.tp() * self.mesh.dp(),
        };
        Shares::weighted(parts, &self.weights)
    }

    /// The place on `axis` of the rank at `place` of the mesh.
    pub fn place_on(&self, axis: Axis, place: Coordinates) -> usize {
        let number = match axis {
            Axis::Tensor => place.tp,
            Axis::Expert => place.dp * self.mesh.tp() + place.tp,
        };
        number as usize
    }

    /// The slices of the ranks of the group's axis.
    ///
    /// # Errors
    /// [`PlanError::Partition`] when the partition does not fit the group's shape.
    pub fn slices_of(&self, group: &TensorGroup) -> Result<GroupSlices, PlanError> {
        let axis = group.partition.axis();
        let shares = self.shares(axis);
        let wrong = |source| PlanError::Partition { name: group.collapsed(), source };
        let slices = group.partition.slices(&group.shape, &shares).map_err(wrong)?;
        let assigned = match &group.partition {
            Partition::Assigned(assigned) => {
                Some((assigned.number, assigned.numbers(&shares).map_err(wrong)?))
            }
            _ => None,
        };
        Ok(GroupSlices { slices, axis, assigned })
    }

    /// The stage that holds layer `layer`.
    pub fn stage_of_layer(&self, layer: u32) -> Option<u32> {
        let holds = |stage: &&super::LayerRange| (stage.start..stage.stop).contains(&u64::from(layer));
        let stage = (0u32..).zip(&self.stages).find(|(_, stage)| holds(stage));
        stage.map(|(number, _)| number)
    }

    /// How many tensors of `group`, whose slices are `slices`, the rank at `place` of the mesh holds.
    pub fn tensors_held(&self, group: &TensorGroup, slices: &GroupSlices, place: Coordinates) -> u64 {
        let on_axis = self.place_on(slices.axis, place);
        if slices.slices[on_axis].is_none() {
            return 0;
        }
        let mut bounds: Vec<(usize, Range<u64>)> = Vec::new();
        match group.stage {
            StageRule::Layer => {
                let Some(layers) = self.stages.get(place.pp as usize) else { return 0 };
                bounds.push((0, layers.start..layers.stop));
            }
            rule if rule.holds(place.pp, self.mesh.pp(), None) => {}
            _ => return 0,
        }
        if let Some((number, runs)) = &slices.assigned {
            let (start, stop) = runs[on_axis];
            bounds.push((*number, start..stop));
        }
        group.names.iter().map(|pattern| count_within(pattern, &bounds)).fold(0, u64::saturating_add)
    }

    /// How many groups of ranks hold a tensor of `group` with these block numbers: one for each stage that has it, and, where
    /// these do not share it, for each data-parallel copy.
    pub fn copies_of(&self, group: &TensorGroup, blocks: &[u32]) -> u32 {
        let layer_stage = blocks.first().and_then(|&layer| self.stage_of_layer(layer));
        self.sharing_copies(group) * self.holding_stages(group, layer_stage, self.mesh.pp())
    }

    /// Data-parallel copies that each hold the tensors of `group`.
    fn sharing_copies(&self, group: &TensorGroup) -> u32 {
        match group.partition.axis() {
            Axis::Tensor => self.mesh.dp(),
            Axis::Expert => 1,
        }
    }

    /// How many stages before stage `end` hold a tensor of `group` whose layer, if it has one, lies on `layer_stage`.
    fn holding_stages(&self, group: &TensorGroup, layer_stage: Option<u32>, end: u32) -> u32 {
        let stages = self.mesh.pp();
        (0..end).map(|stage| u32::from(group.stage.holds(stage, stages, layer_stage))).sum()
    }

    /// Everything that `rank` holds, in the order of the plan.
    ///
    /// # Errors
    /// [`PlanError::Partition`] when a partition does not fit its tensors.
    pub fn rank_tensors(&self, rank: u32) -> Result<impl Iterator<Item = RankTensor<'_>>, PlanError> {
        let place = self.mesh.coordinates(rank);
        let mut held = Vec::new();
        for group in &self.tensors {
            let mut slices = self.slices_of(group)?;
            let on_axis = self.place_on(slices.axis, place);
            if let Some(slice) = slices.slices[on_axis].take() {
                let run = slices.assigned.map(|(number, runs)| (number, runs[on_axis]));
                held.push((group, Arc::new(slice), run));
            }
        }
        let stages = self.mesh.pp();
        Ok(held.into_iter().flat_map(move |(group, slice, run)| {
            let names = group.names.iter().flat_map(NamePattern::names);
            names.filter_map(move |(name, blocks)| {
                let layer_stage = blocks.first().and_then(|&layer| self.stage_of_layer(layer));
                if !group.stage.holds(place.pp, stages, layer_stage) || !is_in_run(run, &blocks) {
                    return None;
                }
                let before = self.holding_stages(group, layer_stage, place.pp);
                let copy = if self.sharing_copies(group) > 1 { place.dp } else { 0 };
                Some(RankTensor {
                    name,
                    dtype: group.dtype,
                    cast: group.cast,
                    shape: &group.shape,
                    turn: Turn::of(group.stage, &blocks),
                    slice: Arc::clone(&slice),
                    copy: copy * self.holding_stages(group, layer_stage, stages) + before,
                    copies: self.copies_of(group, &blocks),
                })
            })
        }))
    }

    /// Every tensor with the ranks that hold any part of it, in the order of the plan.
    ///
    /// # Errors
    /// [`PlanError::Partition`] when a partition does not fit its tensors.
    pub fn holdings(&self) -> Result<impl Iterator<Item = Holding>, PlanError> {
        let slices: Vec<GroupSlices> =
            self.tensors.iter().map(|group| self.slices_of(group)).collect::<Result<_, _>>()?;
        let places: Vec<_> =
            (0..self.mesh.world_size()).map(|rank| (rank, self.mesh.coordinates(rank))).collect();
        let places: Arc<[_]> = places.into();
        Ok(self.tensors.iter().zip(slices).flat_map(move |(group, slices)| {
            let places = Arc::clone(&places);
            let names = group.names.iter().flat_map(NamePattern::names);
            names.map(move |(name, blocks)| {
                let layer_stage = blocks.first().and_then(|&layer| self.stage_of_layer(layer));
                let holds = |place: Coordinates| {
                    group.stage.holds(place.pp, self.mesh.pp(), layer_stage)
                        && slices.holds(self.place_on(slices.axis, place), &blocks)
                };
                let ranks = places.iter().filter(|(_, place)| holds(*place)).map(|(rank, _)| *rank).collect();
                Holding { name, turn: Turn::of(group.stage, &blocks), ranks }
            })
        }))
    }
}

/// Whether a tensor with these numbers in its name belongs to who has those of `run`; to everybody where there is none.
fn is_in_run(run: Option<(usize, (u64, u64))>, blocks: &[u32]) -> bool {
    run.is_none_or(|(number, (start, stop))| {
        blocks.get(number).is_some_and(|&block| (start..stop).contains(&u64::from(block)))
    })
}

/// How many names of `pattern` have, for each of `bounds`, the number at that place within that range.
fn count_within(pattern: &NamePattern, bounds: &[(usize, Range<u64>)]) -> u64 {
    let numbers = pattern.parts().iter().filter_map(|part| match part {
        PatternPart::Numbers(ranges) => Some(ranges),
        PatternPart::Text(_) => None,
    });
    let mut count = 1u64;
    let mut places = 0;
    for (place, ranges) in numbers.enumerate() {
        places += 1;
        let within = |start: u64, stop: u64| {
            let bound = bounds.iter().filter(|(at, _)| *at == place);
            let (start, stop) =
                bound.fold((start, stop), |(start, stop), (_, b)| (start.max(b.start), stop.min(b.end)));
            stop.saturating_sub(start)
        };
        let each = ranges.iter().map(|range| within(u64::from(*range.start()), u64::from(*range.end()) + 1));
        count = count.saturating_mul(each.sum());
    }
    // A name without the number that is asked for is nobody's.
    if bounds.iter().all(|(at, _)| *at < places) { count } else { 0 }
}
