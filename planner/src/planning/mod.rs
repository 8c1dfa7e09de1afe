//! Making a plan.
//!
//! In come the catalog, the model, the families, the topology and a mesh; out comes a [`Plan`] that fits, or why there is none
//! and what would fit. It ties the rooms below together and decides nothing that they could.

mod stages;
mod warnings;

use self::stages::balance;
use crate::{
    checkpoint::Catalog,
    cost::{FitError, check_fit},
    graph::{ParameterGroup, group_parameters},
    mesh::Mesh,
    model::ModelSpec,
    placement::{Placement, PlacementError, group_path, place},
    plan::{
        CheckpointIdentity, LayerRange, PLAN_VERSION, PathWidth, Plan, PlanError, RankPlace, TensorGroup,
    },
    rules::{Decision, Families, RuleError, StageRule, decide},
    size::Size,
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
    /// The weights do not fit into the memory of the GPUs.
    #[error("{error}")]
    DoesNotFit {
        /// Which memory, with the numbers.
        error: FitError,
        /// What would fit.
        help: String,
    },
    /// The plan does not hold together.
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
            Self::DoesNotFit { help, .. } => Some(help.clone()),
            Self::Plan(error) => error.help(),
        }
    }

    /// Whether the input contradicts itself, rather than being sound and not plannable.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Rules(
                RuleError::ContradictsConfig { .. }
                    | RuleError::WrongLayers { .. }
                    | RuleError::MissingModule { .. }
            )
        )
    }
}

/// Plans a checkpoint. Deterministic: the same request gives the same plan.
///
/// # Errors
/// [`BuildError`] names the modules, ranks or GPUs and the numbers, and what would work.
pub fn build(request: &PlanRequest<'_>) -> Result<Plan, BuildError> {
    let plan = decided(request)?;
    check_fit(&plan).map_err(|error| BuildError::DoesNotFit { help: what_would_fit(request), error })?;
    Ok(plan)
}

/// The plan, whether it fits or not.
fn decided(request: &PlanRequest<'_>) -> Result<Plan, BuildError> {
    let PlanRequest { catalog, path, model, families, topology, mesh, uneven } = *request;
    let family = families.of(&model.model_type).ok_or_else(|| RuleError::UnknownModelType {
        model_type: model.model_type.clone(),
        known: families.model_types().map(str::to_owned).collect(),
    })?;
    let mut groups = group_parameters(catalog);
    // In the order of the family's rules, which is that of the model; a module's weight before its bias.
    groups.sort_by_cached_key(|group| {
        let order = family.rule(&group.module).map_or(usize::MAX, |(order, _, _)| order);
        (order, group.module.clone(), std::cmp::Reverse(group.parameter.clone()))
    });
    let decisions = decide(&groups, model, family, mesh.tp(), uneven)?;
    let stages = balanced_stages(&groups, &decisions, model, mesh)?;
    let placement = place(topology, mesh)?;
    let path_in_groups = narrowest_path(topology, mesh, &placement);
    let mut warnings = warnings::of_decisions(&groups, &decisions, mesh);
    warnings.extend(warnings::of_catalog(catalog));
    warnings.extend(path_in_groups.and_then(|path| warnings::of_path(topology, mesh, path)));

    let ranks = (0..mesh.world_size())
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
    let plan = Plan {
        shardwright_plan: PLAN_VERSION,
        checkpoint: CheckpointIdentity::of(catalog, path),
        model: model.clone(),
        family: family.name.clone(),
        topology: topology.name().to_owned(),
        mesh,
        narrowest_path: path_in_groups,
        stages,
        ranks,
        tensors: groups
            .into_iter()
            .zip(decisions)
            .map(|(group, decision)| as_written(group, decision))
            .collect(),
        warnings,
    };
    plan.check()?;
    Ok(plan)
}

/// The smallest larger tensor-parallel group that fits, or how many GPUs the weights need at least.
fn what_would_fit(request: &PlanRequest<'_>) -> String {
    let PlanRequest { catalog, topology, mesh, .. } = *request;
    let shared = topology.gpus().first().is_some_and(|gpu| topology.shared_pool(gpu).is_some());
    let gpus = u32::try_from(topology.gpus().len()).unwrap_or(u32::MAX);
    for tp in (mesh.tp() + 1)..=(gpus / (mesh.pp() * mesh.dp())) {
        let Ok(mesh) = Mesh::new(mesh.dp(), mesh.pp(), tp) else { break };
        let larger = PlanRequest { mesh, ..*request };
        if let Ok(plan) = decided(&larger)
            && check_fit(&plan).is_ok()
        {
            return format!("--tp {tp} fits on {}", topology.name());
        }
    }
    let total = catalog.tensor_bytes().saturating_mul(u64::from(mesh.dp()));
    let memory = topology.memory_bytes();
    if shared {
        return format!(
            "{} of weights need a machine with more memory than {}; `shardwright topology list` names some",
            Size(total),
            Size(memory)
        );
    }
    format!(
        "{} of weights need at least {} GPUs of {}: plan for more of them with --nodes, or for larger ones",
        Size(total),
        total.div_ceil(memory.max(1)),
        Size(memory)
    )
}

/// The narrowest of all paths inside tensor-parallel groups.
fn narrowest_path(topology: &Topology, mesh: Mesh, placement: &Placement) -> Option<PathWidth> {
    (0..mesh.world_size())
        .step_by(mesh.tp() as usize)
        .filter_map(|rank| group_path(topology, mesh, placement, rank))
        .min_by_key(|(bandwidth, _)| *bandwidth)
        .map(|(bytes_per_second, kind)| PathWidth { kind, bytes_per_second })
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
