//! The folder as a checkpoint: its catalog, and a plan in which every tensor belongs to one rank.

use super::{CHECKPOINT_NAMES, ExportError, PLAN_NAME, RankRecord, export_id};
use crate::{
    checkpoint::{Catalog, RANK_PART},
    mesh::Mesh,
    partition::{Assigned, Axis, Partition, Remainder},
    plan::{CheckpointIdentity, LayerRange, Plan, PlanError, TensorGroup},
    rules::StageRule,
};
use std::{collections::BTreeMap, path::Path};

/// An export, ready to be checked and loaded.
pub struct Exported {
    /// The plan of the folder: each rank holds its own tensors whole.
    pub plan: Plan,
    /// The folder's tensors. Their names say whose they are.
    pub catalog: Catalog,
}

/// What ranks have in common that hold tensors in the same shapes: the shape, the layers, and the run of a number in the names, where
/// whole tensors are dealt by one.
type Alike = (Vec<u64>, (u64, u64), Option<(u64, u64)>);

/// Opens the export in `folder`: the files of all its ranks are there, whole, and of one export.
///
/// # Errors
/// [`ExportError`] names the rank whose files are missing, changed, or of another export.
pub fn open(folder: &Path) -> Result<Exported, ExportError> {
    let wrong = |source| ExportError::Plan { path: folder.to_owned(), source };
    let made_with = Plan::read(&folder.join(PLAN_NAME)).map_err(wrong)?;
    let world = made_with.mesh.world_size();
    let mut files = Vec::new();
    let mut records = Vec::new();
    for rank in 0..world {
        let record = RankRecord::read(folder, rank)?;
        if record.names != CHECKPOINT_NAMES {
            return Err(ExportError::ForEngine { folder: folder.to_owned(), names: record.names });
        }
        let id = export_id(&made_with, &record.names).map_err(wrong)?;
        if record.export != id || record.world_size != world {
            return Err(ExportError::OtherExport { folder: folder.to_owned(), rank });
        }
        files.extend(record.files.iter().map(|file| (rank, file.name.clone())));
        records.push(record);
    }
    let catalog =
        Catalog::of_ranks(folder, &files).map_err(|(rank, source)| ExportError::Files { rank, source })?;
    let found = CheckpointIdentity::of(&catalog, folder);
    for record in &records {
        if let Some(file) = record.files.iter().find(|file| !found.files.contains(file)) {
            return Err(ExportError::Changed { rank: record.rank, file: file.name.clone() });
        }
    }
    let plan = of_folder(&made_with, found).map_err(wrong)?;
    plan.check().map_err(wrong)?;
    plan.check_against(&catalog)
        .map_err(|source| ExportError::Stale { folder: folder.to_owned(), source })?;
    Ok(Exported { plan, catalog })
}

/// The plan of the folder `identity` that was exported with `made_with`.
fn of_folder(made_with: &Plan, identity: CheckpointIdentity) -> Result<Plan, PlanError> {
    let world = made_with.mesh.world_size();
    let mut tensors = Vec::new();
    for group in &made_with.tensors {
        for (alike, ranks) in ranks_alike(made_with, group)? {
            let (shape, (first, after), run) = alike;
            for pattern in &group.names {
                let mut held = Some(pattern.clone());
                if group.stage == StageRule::Layer {
                    held = held.and_then(|names| names.within(0, first..after));
                }
                if let (Partition::Assigned(assigned), Some((start, stop))) = (&group.partition, run) {
                    held = held.and_then(|names| names.within(assigned.number, start..stop));
                }
                let Some(held) = held else { continue };
                let number = held.numbers();
                tensors.push(TensorGroup {
                    names: vec![held.numbered(RANK_PART, &ranks)],
                    dtype: group.loaded_dtype(),
                    cast: None,
                    shape: shape.clone(),
                    role: group.role,
                    stage: stage_of(group.stage),
                    outputs: None,
                    partition: Partition::Assigned(Assigned {
                        number,
                        of: u64::from(world),
                        remainder: Remainder::Refuse,
                        axis: Axis::Tensor,
                    }),
                    why: "exported: the rank's own".to_owned(),
                });
            }
        }
    }
    let mesh = Mesh::new(1, 1, world).unwrap_or(made_with.mesh);
    let stages = match made_with.model.layers {
        0 => made_with.stages.iter().take(1).copied().collect(),
        layers => vec![LayerRange { start: 0, stop: layers }],
    };
    Ok(Plan {
        checkpoint: identity,
        mesh,
        weights: Vec::new(),
        placement: None,
        stages,
        tensors,
        warnings: Vec::new(),
        ..made_with.clone()
    })
}

/// The same turn, where there is one stage.
fn stage_of(rule: StageRule) -> StageRule {
    match rule {
        StageRule::Layer | StageRule::Last => rule,
        StageRule::First | StageRule::FirstAndLast | StageRule::Every => StageRule::First,
    }
}

/// The ranks that hold any of the group's tensors, by what they hold.
fn ranks_alike(plan: &Plan, group: &TensorGroup) -> Result<BTreeMap<Alike, Vec<u32>>, PlanError> {
    let slices = plan.slices_of(group)?;
    let mut alike: BTreeMap<Alike, Vec<u32>> = BTreeMap::new();
    for rank in 0..plan.mesh.world_size() {
        let place = plan.mesh.coordinates(rank);
        let on_axis = plan.place_on(slices.axis(), place);
        let Some(slice) = &slices.by_rank()[on_axis] else { continue };
        let layers = match group.stage {
            StageRule::Layer => match plan.stages.get(place.pp as usize) {
                Some(stage) => (stage.start, stage.stop),
                None => continue,
            },
            rule if rule.holds(place.pp, plan.mesh.pp(), None) => (0, 0),
            _ => continue,
        };
        let run = slices.assigned().map(|(_, runs)| runs[on_axis]);
        alike.entry((slice.shape.clone(), layers, run)).or_default().push(rank);
    }
    Ok(alike)
}
