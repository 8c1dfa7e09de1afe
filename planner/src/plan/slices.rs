//! What each rank holds, derived from the plan.

use super::{
    document::{Plan, TensorGroup},
    error::PlanError,
};
use crate::{
    checkpoint::Dtype,
    graph::{NamePattern, PatternPart},
    partition::Slice,
    rules::StageRule,
};

/// One tensor of which a rank holds a slice.
#[derive(Debug, Clone)]
pub struct RankTensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its whole shape.
    pub shape: Vec<u64>,
    /// What the rank holds of it.
    pub slice: Slice,
    /// Which of the `copies` this rank holds; the ranks with copy 0 answer for the tensor in sums over ranks.
    pub copy: u32,
    /// How many tensor-parallel groups hold the tensor: one for each data-parallel copy and stage that has it.
    pub copies: u32,
}

impl Plan {
    /// The slice of each rank of a tensor-parallel group for the tensors of `group`; `None` where a rank holds nothing.
    ///
    /// # Errors
    /// [`PlanError::Partition`] when the partition does not fit the group's shape.
    pub fn slices_of(&self, group: &TensorGroup) -> Result<Vec<Option<Slice>>, PlanError> {
        group
            .partition
            .slices(&group.shape, self.mesh.tp())
            .map_err(|source| PlanError::Partition { name: group.collapsed(), source })
    }

    /// The stage that holds layer `layer`.
    pub fn stage_of_layer(&self, layer: u32) -> Option<u32> {
        let holds = |stage: &&super::LayerRange| (stage.start..stage.stop).contains(&u64::from(layer));
        let stage = (0u32..).zip(&self.stages).find(|(_, stage)| holds(stage));
        stage.map(|(number, _)| number)
    }

    /// How many tensors of `group` each pipeline stage holds.
    pub fn tensors_per_stage(&self, group: &TensorGroup) -> Vec<u64> {
        let stages = self.mesh.pp();
        (0..stages)
            .map(|stage| match group.stage {
                StageRule::Layer => self.layered_tensors(group, stage),
                rule if rule.holds(stage, stages, None) => group.count(),
                _ => 0,
            })
            .collect()
    }

    /// How many tensors of `group` lie in layers of `stage`.
    fn layered_tensors(&self, group: &TensorGroup, stage: u32) -> u64 {
        let Some(layers) = self.stages.get(stage as usize) else { return 0 };
        let mut total = 0;
        for pattern in &group.names {
            let layer_numbers = pattern.parts().iter().find_map(|part| match part {
                PatternPart::Numbers(ranges) => Some(ranges),
                PatternPart::Text(_) => None,
            });
            let (mut all, mut here) = (0, 0);
            for range in layer_numbers.into_iter().flatten() {
                let (start, stop) = (u64::from(*range.start()), u64::from(*range.end()) + 1);
                all += stop - start;
                here += stop.min(layers.stop).saturating_sub(start.max(layers.start));
            }
            total += pattern.count().checked_div(all).unwrap_or(0) * here;
        }
        total
    }

    /// How many tensor-parallel groups hold a tensor of `group` with these block numbers: one for each data-parallel copy
    /// and stage that has it.
    pub fn copies_of(&self, group: &TensorGroup, blocks: &[u32]) -> u32 {
        let layer_stage = blocks.first().and_then(|&layer| self.stage_of_layer(layer));
        self.mesh.dp() * self.holding_stages(group, layer_stage, self.mesh.pp())
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
    pub fn rank_tensors(&self, rank: u32) -> Result<Vec<RankTensor>, PlanError> {
        let place = self.mesh.coordinates(rank);
        let stages = self.mesh.pp();
        let mut tensors = Vec::new();
        for group in &self.tensors {
            let Some(slice) = self.slices_of(group)?.swap_remove(place.tp as usize) else {
                continue;
            };
            for (name, blocks) in group.names.iter().flat_map(NamePattern::names) {
                let layer_stage = blocks.first().and_then(|&layer| self.stage_of_layer(layer));
                if !group.stage.holds(place.pp, stages, layer_stage) {
                    continue;
                }
                let before = self.holding_stages(group, layer_stage, place.pp);
                tensors.push(RankTensor {
                    name,
                    dtype: group.dtype,
                    shape: group.shape.clone(),
                    slice: slice.clone(),
                    copy: place.dp * self.holding_stages(group, layer_stage, stages) + before,
                    copies: self.copies_of(group, &blocks),
                });
            }
        }
        Ok(tensors)
    }
}
