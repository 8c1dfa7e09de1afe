//! Whether a plan holds together, and whether it is one for the checkpoint at hand.

use super::{
    document::{FileIdentity, PLAN_VERSION, Plan, TensorGroup},
    error::{PlanError, StaleError},
};
use crate::{
    checkpoint::Catalog,
    graph::{NamePattern, PatternPart},
    partition::{Partition, PartitionError},
    rules::StageRule,
};
use std::collections::{HashMap, HashSet};

/// Most tensors a plan may stand for; DeepSeek-V3 has 91,991.
pub const MAX_TENSORS: u64 = 4_000_000;

/// Most slices that are computed to check a plan: over all groups, those of each segment for each rank, those of many
/// dimensions counted several times.
const MAX_SLICES: u64 = 1 << 24;

/// Most bytes a tensor may have: no sum over [`MAX_TENSORS`] of them overflows.
const MAX_TENSOR_BYTES: u64 = 1 << 41;

/// Most dimensions a tensor may have.
const MAX_DIMENSIONS: usize = 64;

impl Plan {
    /// Checks every invariant that does not need the checkpoint.
    ///
    /// # Errors
    /// [`PlanError`] for the first that does not hold.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.shardwright_plan != PLAN_VERSION {
            return Err(PlanError::Version { found: self.shardwright_plan, known: PLAN_VERSION });
        }
        self.check_ranks()?;
        self.check_groups()?;
        self.check_weights()?;
        self.check_stages()?;
        let count = self.tensors.iter().map(TensorGroup::count).fold(0, u64::saturating_add);
        if count > MAX_TENSORS {
            return Err(PlanError::TooManyTensors { most: MAX_TENSORS });
        }
        // A slice costs as much as it has boxes, and a box as much as it has dimensions.
        let segments = |group: &TensorGroup| {
            let boxes = match &group.partition {
                Partition::Split(split) => 1 + split.segments.len() as u64,
                Partition::Replicated | Partition::FirstRank | Partition::Assigned(_) => 1,
            };
            boxes.saturating_mul(1 + group.shape.len() as u64 / 4)
        };
        let ranks = u64::from(self.mesh.tp()) * u64::from(self.mesh.dp());
        let slices = self.tensors.iter().map(segments).sum::<u64>().saturating_mul(ranks);
        if slices > MAX_SLICES {
            return Err(PlanError::TooManySlices { most: MAX_SLICES });
        }
        for group in &self.tensors {
            self.check_group(group)?;
        }
        let mut seen = HashSet::new();
        for pattern in self.tensors.iter().flat_map(|group| &group.names) {
            for (name, _) in pattern.names() {
                if let Some(name) = seen.replace(name) {
                    return Err(PlanError::NamedTwice { name });
                }
            }
        }
        Ok(())
    }

    fn check_ranks(&self) -> Result<(), PlanError> {
        let in_order = (0..).zip(&self.ranks).all(|(rank, place)| place.rank == rank);
        if !in_order || self.ranks.len() != self.mesh.world_size() as usize {
            return Err(PlanError::Ranks { found: self.ranks.len(), mesh: self.mesh });
        }
        let mut on: HashMap<&str, u32> = HashMap::new();
        let mut by_number: HashMap<(u32, u32), u32> = HashMap::new();
        for place in &self.ranks {
            let same_name = on.insert(&place.gpu, place.rank);
            if let Some(first) = same_name.or(by_number.insert((place.node, place.device), place.rank)) {
                return Err(PlanError::SharedGpu { first, second: place.rank, gpu: place.gpu.clone() });
            }
        }
        Ok(())
    }

    fn check_groups(&self) -> Result<(), PlanError> {
        let Some(placement) = &self.placement else { return Ok(()) };
        let groups = self.mesh.pp() * self.mesh.dp();
        match placement.groups.len() == groups as usize {
            true => Ok(()),
            false => Err(PlanError::Groups { found: placement.groups.len(), mesh: self.mesh }),
        }
    }

    fn check_weights(&self) -> Result<(), PlanError> {
        let sound =
            self.weights.len() == self.mesh.tp() as usize && self.weights.iter().all(|&weight| weight > 0);
        match sound || self.weights.is_empty() {
            true => Ok(()),
            false => Err(PlanError::Weights { found: self.weights.len(), tp: self.mesh.tp() }),
        }
    }

    fn check_stages(&self) -> Result<(), PlanError> {
        let mut next = 0;
        let in_order = self.stages.iter().all(|stage| {
            let follows = stage.start == next && (stage.start < stage.stop || self.model.layers == 0);
            next = stage.stop;
            follows
        });
        if !in_order || next != self.model.layers || self.stages.len() != self.mesh.pp() as usize {
            return Err(PlanError::Stages {
                found: self.stages.len(),
                layers: self.model.layers,
                pp: self.mesh.pp(),
            });
        }
        Ok(())
    }

    fn check_group(&self, group: &TensorGroup) -> Result<(), PlanError> {
        let name = group.collapsed();
        if let Some(cast) = group.cast.filter(|cast| !cast.is_cast_of(group.dtype)) {
            return Err(PlanError::Cast { name, from: group.dtype, to: cast.into() });
        }
        // What is cast is never less than a byte on either side.
        let bits = group.loaded_dtype().bitsize().max(group.dtype.bitsize()) as u64;
        let total = group.shape.iter().try_fold(bits, |total, &size| total.checked_mul(size));
        let sound = total.is_some_and(|total| total % 8 == 0 && total / 8 <= MAX_TENSOR_BYTES);
        if !sound || group.shape.len() > MAX_DIMENSIONS {
            return Err(PlanError::AbsurdShape { name, shape: group.shape.clone() });
        }
        if group.stage == StageRule::Layer {
            let layered = group.names.iter().all(|pattern| {
                let numbers = pattern.parts().iter().find_map(|part| match part {
                    PatternPart::Numbers(ranges) => ranges.last(),
                    PatternPart::Text(_) => None,
                });
                numbers.is_some_and(|last| u64::from(*last.end()) < self.model.layers)
            });
            if !layered {
                return Err(PlanError::NoLayer { name, layers: self.model.layers });
            }
        }
        if let Partition::Split(split) = &group.partition {
            let wrong = |source: PartitionError| PlanError::Partition { name: name.clone(), source };
            split.check(&group.shape).map_err(wrong)?;
            split.check_bytes(&group.shape, group.dtype.bitsize() as u64).map_err(wrong)?;
        }
        if let Partition::Assigned(assigned) = &group.partition {
            let numbered = group.names.iter().all(|pattern| {
                let mut numbers = pattern.parts().iter().filter_map(|part| match part {
                    PatternPart::Numbers(ranges) => ranges.last(),
                    PatternPart::Text(_) => None,
                });
                numbers.nth(assigned.number).is_some_and(|last| u64::from(*last.end()) < assigned.of)
            });
            if !numbered {
                return Err(PlanError::NoNumber { name, number: assigned.number, of: assigned.of });
            }
        }
        self.slices_of(group).map(drop)
    }

    /// Checks that the checkpoint is the one that was planned: the same files, and tensor by tensor what the plan says.
    ///
    /// # Errors
    /// [`StaleError`] names the first file or tensor that differs.
    pub fn check_against(&self, catalog: &Catalog) -> Result<(), StaleError> {
        let found: Vec<FileIdentity> = catalog.files().iter().map(FileIdentity::of).collect();
        check_files(&self.checkpoint.files, &found)?;
        let mut planned = vec![false; catalog.tensors().len()];
        for group in &self.tensors {
            for (name, _) in group.names.iter().flat_map(NamePattern::names) {
                let Some(number) = catalog.number_of(&name) else {
                    return Err(StaleError::NotThere { name });
                };
                let tensor = &catalog.tensors()[number];
                if tensor.dtype != group.dtype || *tensor.shape != *group.shape {
                    return Err(StaleError::Differs {
                        name,
                        found: format!("{} {:?}", tensor.dtype, tensor.shape),
                        planned: format!("{} {:?}", group.dtype, group.shape),
                    });
                }
                planned[number] = true;
            }
        }
        match catalog.tensors().iter().zip(planned).find(|(_, planned)| !planned) {
            Some((tensor, _)) => Err(StaleError::NotPlanned { name: tensor.name.to_string() }),
            None => Ok(()),
        }
    }
}

fn check_files(planned: &[FileIdentity], found: &[FileIdentity]) -> Result<(), StaleError> {
    let changed = |reason: String| Err(StaleError::Files { reason });
    for file in planned {
        let Some(now) = found.iter().find(|now| now.name == file.name) else {
            return changed(format!("{:?} is not there any more", file.name));
        };
        if now.bytes != file.bytes {
            return changed(format!("{:?} had {} bytes and has {} now", file.name, file.bytes, now.bytes));
        }
        if now.header_sha256 != file.header_sha256 {
            return changed(format!("the header of {:?} is another", file.name));
        }
    }
    match found.iter().find(|now| planned.iter().all(|file| file.name != now.name)) {
        Some(new) => changed(format!("{:?} was not there", new.name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plan of one rank with one tensor, in which `from` is replaced by `to`.
    fn edited(from: &str, to: &str) -> Result<Plan, PlanError> {
        let text = "shardwright_plan: 1
checkpoint: { path: /x, files: [] }
model: { model_type: llama, hidden: 8, layers: 1, tied_embeddings: false }
family: llama
topology: host
mesh: { tp: 1, pp: 1, dp: 1 }
stages: [{ start: 0, stop: 1 }]
ranks: [{ rank: 0, gpu: gpu0, node: 0, device: 0, kind: host, memory_bytes: 1 }]
tensors:
- { names: [a.w], dtype: F4, shape: [8, 8], role: column-parallel, stage: every, partition: { split: { dim: 1, segments: [{ groups: 4, unit: 2 }] } }, why: x }
";
        assert!(text.contains(from), "{from}");
        Plan::from_yaml(&text.replace(from, to))
    }

    #[test]
    fn a_sound_plan_is_read_and_written_alike() {
        let plan = edited("llama", "llama").unwrap();
        assert_eq!(Plan::from_yaml(&plan.to_yaml().unwrap()).unwrap(), plan);
        let mut moved = plan.clone();
        moved.checkpoint.path = "/y".into();
        assert_eq!(moved.digest().unwrap(), plan.digest().unwrap());
        moved.family = "other".to_owned();
        assert_ne!(moved.digest().unwrap(), plan.digest().unwrap());
    }

    #[test]
    fn more_work_than_any_plan_needs_is_refused_before_it_is_done() {
        let segments = "{ groups: 1 }, ".repeat(300);
        let world = 65_536;
        let ranks: Vec<String> = (0..world)
            .map(|rank| {
                format!("{{ rank: {rank}, gpu: g{rank}, node: 0, device: {rank}, kind: x, memory_bytes: 1 }}")
            })
            .collect();
        let text = edited("llama", "llama").unwrap().to_yaml().unwrap();
        let text = text.replace("  tp: 1", &format!("  tp: {world}"));
        let mut plan: Plan = crate::yaml::from_str(&text).unwrap();
        plan.ranks = crate::yaml::from_str(&format!("[{}]", ranks.join(","))).unwrap();
        plan.tensors[0].partition =
            crate::yaml::from_str(&format!("split: {{ dim: 1, segments: [{segments}] }}")).unwrap();
        assert!(matches!(plan.check(), Err(PlanError::TooManySlices { .. })));
    }

    #[test]
    fn weights_are_one_for_each_rank() {
        for weights in ["[1, 1]", "[0]"] {
            let wrong = edited("stages:", &format!("weights: {weights}\nstages:"));
            assert!(matches!(wrong, Err(PlanError::Weights { tp: 1, .. })), "{wrong:?}");
        }
        assert!(edited("stages:", "weights: [7]\nstages:").is_ok());
    }

    #[test]
    fn groups_are_placed_one_for_each() {
        let group = "{ gpus: gpu0, kind: nvlink, bytes_per_second: 1, hop_latency_ns: 1 }";
        let placed =
            |groups: &str| edited("stages:", &format!("placement: {{ groups: [{groups}] }}\nstages:"));
        assert!(placed(group).is_ok());
        assert!(matches!(placed(&format!("{group}, {group}")), Err(PlanError::Groups { found: 2, .. })));
    }

    #[test]
    fn a_tensor_is_assigned_by_a_number_that_its_name_has() {
        let assigned = |name: &str, of: u64| {
            let mut plan = edited("llama", "llama").unwrap();
            plan.tensors[0].names = vec![name.parse().unwrap()];
            let text = format!("assign: {{ number: 1, of: {of} }}");
            plan.tensors[0].partition = crate::yaml::from_str(&text).unwrap();
            plan.check()
        };
        assert!(assigned("l.{0-3}.experts.{0-7}.w", 8).is_ok());
        for (name, of) in [("l.{0-3}.experts.{0-7}.w", 7), ("l.{0-7}.w", 8), ("l.w", 8)] {
            assert!(matches!(assigned(name, of), Err(PlanError::NoNumber { number: 1, .. })), "{name}");
        }
        assert!(matches!(assigned("l.{0-3}.experts.{0-7}.w", 0), Err(PlanError::NoNumber { .. })));
    }

    #[test]
    fn only_floats_are_cast_and_only_to_what_they_are_not() {
        let cast = |dtype: &str, to: &str| edited("dtype: F4,", &format!("dtype: {dtype}, cast: {to},"));
        assert!(cast("F64", "F16").is_ok() && cast("BF16", "F32").is_ok());
        for (dtype, to) in [("F4", "BF16"), ("I32", "F32"), ("F8_E4M3", "BF16"), ("BF16", "BF16")] {
            assert!(matches!(cast(dtype, to), Err(PlanError::Cast { .. })), "{dtype} to {to}");
        }
        assert!(matches!(cast("F32", "F64"), Err(PlanError::NotAPlan { .. })));
    }

    #[test]
    fn a_cut_through_a_byte_is_refused() {
        let odd = edited("{ groups: 4, unit: 2 }", "{ groups: 8 }");
        assert!(matches!(odd, Err(PlanError::Partition { source: PartitionError::CutsByte { .. }, .. })));
    }
}
