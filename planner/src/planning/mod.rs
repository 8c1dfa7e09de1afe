//! Making a plan.
//!
//! In come the catalog, the model, the families, the topology and a mesh; out comes a [`Plan`] that fits, or why there is none
//! and what would fit. It ties the rooms below together and decides nothing that they could.

mod prepared;
mod stages;
mod warnings;

pub(crate) use prepared::Prepared;

use crate::{
    checkpoint::Catalog,
    cost::{FitError, check_fit, memory_per_rank},
    mesh::Mesh,
    model::{Config, ModelSpec},
    partition::Shares,
    placement::{Placement, PlacementError, place},
    plan::{
        CastDtype, CheckpointIdentity, GroupPlace, Groups, PLAN_VERSION, Plan, PlanError, RankPlace,
        RunnerUpGroups,
    },
    rules::{Families, RuleError, UserRules},
    size::Size,
    topology::{Ring, Topology},
};
use std::{collections::HashMap, path::Path};

/// What a plan is made of.
#[derive(Debug, Clone, Copy)]
pub struct PlanRequest<'a> {
    /// The checkpoint's tensors.
    pub catalog: &'a Catalog,
    /// Where it lies, as the plan should say.
    pub path: &'a Path,
    /// Its configuration.
    pub config: &'a Config,
    /// The rules to choose from.
    pub families: &'a Families,
    /// The user's own rules.
    pub user: &'a UserRules,
    /// The machine.
    pub topology: &'a Topology,
    /// Sizes of the axes.
    pub mesh: Mesh,
    /// How ranks are to share.
    pub sharing: &'a Sharing,
    /// The dtype that floats are to be loaded in; `None` for that which each is stored in.
    pub cast: Option<CastDtype>,
}

/// How ranks are to share what they cannot share alike.
#[derive(Debug, Clone, Default)]
pub struct Sharing {
    /// Deal what does not divide instead of refusing it.
    pub uneven: bool,
    /// What each rank of a tensor-parallel group is to hold, in proportion to the others; empty where all hold alike.
    pub weights: Vec<u32>,
    /// Whole experts on each rank, instead of a part of each.
    pub expert_parallel: bool,
}

/// Why no plan could be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not one weight for each rank.
    #[error("{found} weights do not go with tp {tp}")]
    Weights {
        /// How many weights there are.
        found: usize,
        /// Ranks in a tensor-parallel group.
        tp: u32,
    },
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
            Self::Rules(error) => error.help(),
            Self::Weights { tp, .. } => {
                Some(format!("--weights takes {tp} numbers from 1, one for each rank"))
            }
            Self::TooManyStages { layers, .. } => Some(format!("--pp is at most {layers}")),
            Self::Placement(error) => error.help(),
            Self::DoesNotFit { help, .. } => Some(help.clone()),
            // It was just made, so there is nothing to make anew.
            Self::Plan(_) => None,
        }
    }

    /// Whether the input contradicts itself, rather than being sound and not plannable.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Rules(error) if error.is_bad_input())
    }
}

/// Plans a checkpoint. Deterministic: the same request gives the same plan.
///
/// # Errors
/// [`BuildError`] names the modules, ranks or GPUs and the numbers, and what would work.
pub fn build(request: &PlanRequest<'_>) -> Result<Plan, BuildError> {
    let plan = decided(request)?;
    check_fit(&plan)
        .map_err(|error| BuildError::DoesNotFit { help: what_would_fit(request, &plan), error })?;
    Ok(plan)
}

/// The plan, whether it fits or not.
fn decided(request: &PlanRequest<'_>) -> Result<Plan, BuildError> {
    let PlanRequest { catalog, path, config, families, user, topology, mesh, sharing, cast } = *request;
    let weights = &sharing.weights;
    if !weights.is_empty() && (weights.len() != mesh.tp() as usize || weights.contains(&0)) {
        return Err(BuildError::Weights { found: weights.len(), tp: mesh.tp() });
    }
    let prepared = Prepared::new(catalog, config, families)?;
    let tp = Shares::weighted(mesh.tp(), weights);
    let ep = sharing.expert_parallel.then(|| Shares::weighted(mesh.tp() * mesh.dp(), weights));
    let decisions = prepared.decide(config, user, (&tp, ep.as_ref()), sharing.uneven)?;
    let stages = prepared.stages(&decisions, mesh.pp())?;
    let (modules, family) = (&prepared.modules, &prepared.family);
    let mut plan = Plan {
        shardwright_plan: PLAN_VERSION,
        checkpoint: CheckpointIdentity::of(catalog, path),
        model: ModelSpec { layers: decisions.layers, ..prepared.spec.clone() },
        family: family.name.clone(),
        topology: topology.name().to_owned(),
        mesh,
        weights: if tp.are_equal() { Vec::new() } else { weights.clone() },
        placement: None,
        stages,
        ranks: Vec::new(),
        tensors: prepared.tensors(&decisions, cast),
        warnings: Vec::new(),
    };
    // Only unequal GPUs must be chosen by what they hold.
    let needs: Vec<u64> = match topology.kinds().len() {
        1 => Vec::new(),
        _ => memory_per_rank(&plan)?.iter().map(|used| used.weights).collect(),
    };
    let placement = place(topology, mesh, &needs)?;
    plan.ranks = (0..mesh.world_size()).map(|rank| place_of(rank, topology, &placement)).collect();
    plan.placement = groups(topology, mesh, &placement);
    plan.check()?;
    let mut all = warnings::of_family(family, &plan.model);
    all.extend(warnings::of_decisions(modules, &decisions.of_modules, &plan)?);
    all.extend(warnings::of_catalog(catalog));
    all.extend(warnings::of_placement(topology, &plan));
    plan.warnings = all;
    Ok(plan)
}

/// Most layouts that are tried in search of one that fits.
const MOST_TRIED: usize = 16;

/// The smallest larger tensor-parallel group that fits, or how many GPUs the weights need at least.
fn what_would_fit(request: &PlanRequest<'_>, too_large: &Plan) -> String {
    let PlanRequest { topology, mesh, .. } = *request;
    let shared = topology.gpus().first().is_some_and(|gpu| topology.shared_pool(gpu).is_some());
    let gpus = u32::try_from(topology.gpus().len()).unwrap_or(u32::MAX);
    let most = gpus / (mesh.pp() * mesh.dp());
    let usual = ((mesh.tp() + 1)..=most).filter(|tp| tp.is_power_of_two() || most.is_multiple_of(*tp));
    for tp in usual.take(MOST_TRIED) {
        let Ok(mesh) = Mesh::new(mesh.dp(), mesh.pp(), tp) else { break };
        let larger = PlanRequest { mesh, ..*request };
        if let Ok(plan) = decided(&larger)
            && check_fit(&plan).is_ok()
        {
            return format!("--tp {tp} fits on {}", topology.name());
        }
    }
    let weights = too_large.tensors.iter().map(|group| group.loaded_bytes().saturating_mul(group.count()));
    let total = weights.fold(0, u64::saturating_add).saturating_mul(u64::from(mesh.dp()));
    let memory = topology.least_memory_bytes();
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

fn place_of(rank: u32, topology: &Topology, placement: &Placement) -> RankPlace {
    let gpu = &topology.gpus()[placement.gpu_of_rank(rank)];
    let kind = topology.kind_of(placement.gpu_of_rank(rank));
    RankPlace {
        rank,
        gpu: gpu.name.clone(),
        node: gpu.node,
        device: gpu.index,
        kind: kind.kind.clone(),
        memory_bytes: kind.memory_bytes,
        memory_pool: topology.shared_pool(gpu),
    }
}

/// Where the tensor-parallel groups are, as a plan says it.
fn groups(topology: &Topology, mesh: Mesh, placement: &Placement) -> Option<Groups> {
    // Nodes are alike: a set of one is as fast as the same set of another.
    let mut known: HashMap<Vec<usize>, Option<Ring>> = HashMap::new();
    let per_node = topology.gpus_per_node();
    let mut of_set = |gpus: &[usize]| {
        let in_one_node = gpus.iter().all(|gpu| gpu / per_node == gpus[0] / per_node);
        let ring = match in_one_node {
            true => {
                let set: Vec<usize> = gpus.iter().map(|gpu| gpu % per_node).collect();
                known.entry(set).or_insert_with_key(|set| topology.ring(set)).clone()
            }
            false => topology.ring(gpus),
        }?;
        Some(GroupPlace {
            gpus: topology.names_of(gpus),
            kind: ring.kind,
            bytes_per_second: ring.bytes_per_second,
            hop_latency_ns: ring.hop_latency_ns,
        })
    };
    let groups: Option<Vec<GroupPlace>> = placement.groups(mesh).map(&mut of_set).collect();
    let runner_up = placement.runner_up().map(|second| RunnerUpGroups {
        gpus: second.groups.iter().map(|group| topology.names_of(group)).collect(),
        bytes_per_second: second.bytes_per_second,
    });
    Some(Groups { groups: groups?, runner_up })
}
