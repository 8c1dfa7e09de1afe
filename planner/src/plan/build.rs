//! Making a plan.

use super::{
    document::{CheckpointIdentity, LayerRange, PLAN_VERSION, Plan, RankPlace, TensorGroup},
    error::PlanError,
    stages::balance,
};
use crate::{
    checkpoint::Catalog,
    graph::{ParameterGroup, group_parameters},
    mesh::Mesh,
    model::ModelSpec,
    partition::Partition,
    placement::{PlacementError, place},
    rules::{Decision, Families, RuleError, StageRule, decide},
    topology::Topology,
};
use std::path::Path;

/// What a plan is made of.
#[derive(Debug)]
pub struct PlanRequest<'a> {
    /// The checkpoint's tensors.
    pub catalog: &'a Catalog,
    /// Where it lies, as the plan should say.
    pub path: &'a Path,
    /// Its dimensions.
    pub model: &'a ModelSpec,
    /// The rules to choose from.
    pub families: &'a Families,
    /// The machine.
    pub topology: &'a Topology,
    /// Sizes of the axes.
    pub mesh: Mesh,
    /// Deal what does not divide instead of refusing it.
    pub uneven: bool,
}

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The modules could not be given partitions.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// More pipeline stages than layers.
    #[error("cannot cut {layers} layers into {pp} pipeline stages")]
    TooManyStages {
        /// Layers of the model.
        layers: u64,
        /// Pipeline stages asked for.
        pp: u32,
    },
    /// The ranks could not be placed on GPUs.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The plan does not fit or does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl BuildError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Rules(error) => Some(error.help()),
            Self::TooManyStages { layers, .. } => Some(format!("--pp is at most {layers}")),
            Self::Placement(error) => error.help(),
            Self::Plan(error) => error.help(),
        }
    }

    /// Whether the input contradicts itself, rather than being sound and not plannable.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Rules(RuleError::ContradictsConfig { .. } | RuleError::WrongLayers { .. }))
    }
}

/// Plans a checkpoint. Deterministic: the same request gives the same plan.
///
/// # Errors
/// [`BuildError`] names the modules, ranks or GPUs and the numbers, and what would work.
pub fn build(request: &PlanRequest<'_>) -> Result<Plan, BuildError> {
    let PlanRequest { catalog, path, model, families, topology, mesh, uneven } = *request;
    let family = families.of(&model.model_type).ok_or_else(|| RuleError::UnknownModelType {
        model_type: model.model_type.clone(),
        known: families.model_types().map(str::to_owned).collect(),
    })?;
    let groups = group_parameters(catalog);
    let decisions = decide(&groups, model, family, mesh.tp(), uneven)?;
    let stages = balanced_stages(&groups, &decisions, model, mesh)?;
    let warnings = warnings(&groups, &decisions, catalog, mesh);

    let mut decided: Vec<(ParameterGroup, Decision)> = groups.into_iter().zip(decisions).collect();
    // In the order of the family's rules, which is that of the model; a module's weight before its bias.
    decided.sort_by(|(a, a_decision), (b, b_decision)| {
        (a_decision.order, &a.module, &b.parameter).cmp(&(b_decision.order, &b.module, &a.parameter))
    });
    let mut plan = Plan {
        shardwright_plan: PLAN_VERSION,
        checkpoint: CheckpointIdentity::of(catalog, path),
        model: model.clone(),
        family: family.name.clone(),
        topology: topology.name().to_owned(),
        mesh,
        stages,
        ranks: Vec::new(),
        tensors: decided.into_iter().map(|(group, decision)| as_written(group, decision)).collect(),
        warnings,
    };
    let placement = place(topology, mesh)?;
    plan.ranks = (0..mesh.world_size())
        .map(|rank| {
            let gpu = &topology.gpus()[placement.gpu_of_rank(rank)];
            RankPlace {
                rank,
                gpu: gpu.name.clone(),
                kind: gpu.kind.clone(),
                memory_bytes: topology.memory_bytes(),
                memory_pool: topology.shared_pool(gpu),
            }
        })
        .collect();
    plan.check()?;
    plan.check_fit()?;
    Ok(plan)
}

fn as_written(group: ParameterGroup, decision: Decision) -> TensorGroup {
    TensorGroup {
        names: group.names,
        dtype: group.dtype,
        shape: group.shape,
        role: decision.role,
        stage: decision.stage,
        partition: decision.partition,
        why: decision.reason,
    }
}

fn balanced_stages(
    groups: &[ParameterGroup],
    decisions: &[Decision],
    model: &ModelSpec,
    mesh: Mesh,
) -> Result<Vec<LayerRange>, BuildError> {
    // Bounded: every layer has tensors, the rules checked that.
    let mut layers = vec![0u64; usize::try_from(model.layers).unwrap_or(0)];
    let (mut first, mut last) = (0u64, 0u64);
    for (group, decision) in groups.iter().zip(decisions) {
        let bytes = group.bytes_each().saturating_mul(group.blocks.len() as u64);
        match decision.stage {
            StageRule::Layer => {
                for layer in group.blocks.iter().filter_map(|blocks| blocks.first()) {
                    if let Some(total) = layers.get_mut(*layer as usize) {
                        *total = total.saturating_add(group.bytes_each());
                    }
                }
            }
            StageRule::First => first = first.saturating_add(bytes),
            StageRule::Last => last = last.saturating_add(bytes),
            StageRule::FirstAndLast => {
                first = first.saturating_add(bytes);
                last = last.saturating_add(bytes);
            }
            StageRule::Every => {}
        }
    }
    balance(&layers, first, last, mesh.pp())
        .ok_or(BuildError::TooManyStages { layers: model.layers, pp: mesh.pp() })
}

/// Everything odd: what the rules say, slices that differ or are empty, padding, tensors that no index lists.
fn warnings(groups: &[ParameterGroup], decisions: &[Decision], catalog: &Catalog, mesh: Mesh) -> Vec<String> {
    let mut warnings = Vec::new();
    for (group, decision) in groups.iter().zip(decisions) {
        let name = group.collapsed();
        let total = group.bytes_each().saturating_mul(group.blocks.len() as u64);
        if let Some(warning) = &decision.warning {
            let cost = match decision.partition {
                Partition::Replicated if mesh.tp() > 1 => format!(" ({} on each rank)", in_mib(total)),
                _ => String::new(),
            };
            warnings.push(format!("{warning}{cost}"));
        }
        let Ok(slices) = decision.partition.slices(&group.shape, mesh.tp()) else { continue };
        let Partition::Split(split) = &decision.partition else { continue };
        let rows = |slice: &crate::partition::Slice| slice.shape[split.dim];
        let held: Vec<u64> = slices.iter().map(|slice| slice.as_ref().map_or(0, rows)).collect();
        let (most, least) = (held.iter().max().copied(), held.iter().min().copied());
        if most != least {
            let most = most.unwrap_or(0);
            let even = total / u64::from(mesh.tp());
            let largest = u128::from(total) * u128::from(most) / u128::from(group.shape[split.dim]);
            let more = u64::try_from(largest).unwrap_or(u64::MAX).saturating_sub(even);
            warnings.push(format!(
                "{name} is dealt unevenly: ranks hold {} to {most} of {} (the largest {} more than an even share)",
                least.unwrap_or(0),
                group.shape[split.dim],
                in_mib(more)
            ));
        }
        let padding: u64 = slices.iter().flatten().map(|slice| slice.padding).sum();
        if padding > 0 {
            warnings
                .push(format!("{name} is padded with {padding} rows of zeros to divide by tp {}", mesh.tp()));
        }
        let copies =
            slices.iter().flatten().flat_map(|slice| &slice.pieces).map(|piece| piece.replicas).max();
        if let Some(copies @ 2..) = copies {
            warnings.push(format!(
                "{name}: {copies} ranks hold each kv head, for there are fewer heads than ranks ({} in all instead of {})",
                in_mib(total.saturating_mul(u64::from(copies))),
                in_mib(total)
            ));
        }
    }
    if catalog.unlisted() > 0 {
        warnings.push(format!(
            "{} tensors in the files are not in the index and are left out",
            catalog.unlisted()
        ));
    }
    warnings
}

#[allow(clippy::cast_precision_loss)]
fn in_mib(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}
