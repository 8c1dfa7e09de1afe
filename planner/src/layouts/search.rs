//! All layouts of a checkpoint on a machine.

use super::{
    Goal,
    connections::{Connections, Unknown},
    facts::{Blocks, Decided, FactsError},
    judged::Judged,
    order::{mark_pareto, order},
};
use crate::{
    checkpoint::{Catalog, Dtype},
    mesh::Mesh,
    model::{Config, ModelSpec},
    partition::Shares,
    placement::{PlacementError, place},
    plan::{CastDtype, CheckpointIdentity, LayerRange, PLAN_VERSION, Plan},
    planning::{BuildError, Prepared},
    rules::{Decisions, Families, Role, RuleError, UserRules},
    serving::{Assumptions, Deployment, Layout, Machine, Model, Workload},
    topology::{NumberKind, Topology},
};
use std::collections::BTreeMap;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct LayoutRequest<'a> {
    /// The checkpoint's tensors.
    pub catalog: &'a Catalog,
    /// Its configuration.
    pub config: &'a Config,
    /// The rules to choose from.
    pub families: &'a Families,
    /// The user's own rules.
    pub user: &'a UserRules,
    /// The machine.
    pub topology: &'a Topology,
    /// The dtype that floats are to be loaded in; `None` for that which each is stored in.
    pub cast: Option<CastDtype>,
    /// What is asked of the model.
    pub workload: &'a Workload,
    /// What is assumed.
    pub assumptions: &'a Assumptions,
    /// What is wanted most.
    pub goal: Goal,
}

/// All layouts of a checkpoint on a machine.
#[derive(Debug)]
pub struct Layouts {
    /// The model.
    pub model: ModelSpec,
    /// Those whose modules divide, best first: with those that do not fit at the end.
    pub judged: Vec<Judged>,
    /// Why the other numbers of ranks are out.
    pub out: Vec<Out>,
    /// What is odd and a person should know.
    pub notes: Vec<String>,
}

/// Numbers of ranks that no layout can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    /// Ranks of a tensor-parallel group.
    pub tp: u32,
    /// Ranks that would share experts, where that is why.
    pub ep: Option<u32>,
    /// Why, in one line.
    pub reason: String,
}

/// Why layouts could not be searched.
#[derive(Debug, thiserror::Error)]
pub enum LayoutsError {
    /// The checkpoint cannot be planned at all.
    #[error(transparent)]
    Rules(#[from] RuleError),
    /// The facts of the model do not hold together.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// Layers could not be cut into stages, or ranks placed.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// Ranks could not be placed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Sequences longer than the model's.
    #[error("a context of {wanted} tokens is longer than the model's: {most} (`{key}` in config.json)")]
    TooLong {
        /// Tokens that are asked for.
        wanted: u64,
        /// The model's own.
        most: u64,
        /// Where it says so.
        key: &'static str,
    },
}

impl LayoutsError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Rules(error) => error.help(),
            Self::Build(error) => error.help(),
            Self::Placement(error) => error.help(),
            Self::TooLong { most, .. } => Some(format!("--context-len is at most {most}")),
            Self::Facts(_) => None,
        }
    }
}

/// Ranks that share layers, and those that share experts where they hold whole ones.
type Sharing = (u32, Option<u32>);

/// All layouts, judged. Deterministic.
///
/// # Errors
/// [`LayoutsError`] when the checkpoint cannot be planned at all; a number of ranks that does not divide is no error.
pub fn layouts(request: &LayoutRequest<'_>) -> Result<Layouts, LayoutsError> {
    let LayoutRequest { config, topology, workload, .. } = *request;
    check_context(config, workload.context_len)?;
    let whole = Whole::new(request)?;
    let has_experts = whole.decisions.of_modules.iter().any(|decision| decision.work.experts.is_some());
    let mut search = Search::new(request, &whole);
    let gpus = u32::try_from(topology.gpus().len()).unwrap_or(u32::MAX);
    let mut judged = Vec::new();
    for tp in divisors(gpus) {
        for pp in divisors(gpus / tp).filter(|&pp| u64::from(pp) <= whole.decisions.layers.max(1)) {
            for dp in divisors(gpus / tp / pp) {
                let mesh = Mesh::new(dp, pp, tp).map_err(|_| PlacementError::TooFewGpus {
                    ranks: u32::MAX,
                    topology: topology.name().to_owned(),
                    gpus: topology.gpus().len(),
                    per_node: topology.gpus_per_node(),
                })?;
                judged.extend(search.judge(mesh, false)?);
                if has_experts && tp * dp > 1 {
                    judged.extend(search.judge(mesh, true)?);
                }
            }
        }
    }
    judged.sort_by(|a, b| order(request.goal, a, b));
    mark_pareto(&mut judged);
    let mut notes: Vec<String> =
        search.unknown.iter().map(|unknown| format!("{unknown}: times are not known")).collect();
    if search.decided.values().flatten().any(Decided::cache_is_assumed) {
        notes.push(
            "what the layers keep of tokens is assumed from config.json: the tensors do not tell".to_owned(),
        );
    }
    let model = ModelSpec { layers: whole.decisions.layers, ..whole.prepared.spec.clone() };
    Ok(Layouts { model, judged, out: search.out, notes })
}

/// The facts of one layout, which its memory and times follow from, with sequences of `context_len` tokens; `None` where the modules
/// do not divide.
///
/// # Errors
/// [`LayoutsError`] when the checkpoint cannot be planned, or the topology has too few GPUs.
pub fn facts(
    request: &LayoutRequest<'_>,
    mesh: Mesh,
    expert_parallel: bool,
    context_len: u64,
) -> Result<Option<(Model, Machine)>, LayoutsError> {
    let whole = Whole::new(request)?;
    let mut search = Search::new(request, &whole);
    let found = search.facts(mesh, expert_parallel, context_len)?;
    Ok(found.map(|(model, machine, _)| (model, machine)))
}

/// What is the same for all layouts of a checkpoint.
struct Whole {
    prepared: Prepared,
    /// For one rank: what cannot be planned for it cannot be planned at all.
    decisions: Decisions,
    blocks: Blocks,
    numbers: NumberKind,
}

impl Whole {
    fn new(request: &LayoutRequest<'_>) -> Result<Self, LayoutsError> {
        let prepared = Prepared::new(request.catalog, request.config, request.families)?;
        let decisions = prepared.decide(request.config, request.user, (&Shares::equal(1), None), false)?;
        let blocks = Blocks::of(&prepared.modules, decisions.layers);
        let numbers = numbers(&prepared, &decisions, request.cast);
        Ok(Self { prepared, decisions, blocks, numbers })
    }
}

/// A search under way, with what is the same for several layouts.
struct Search<'a> {
    request: &'a LayoutRequest<'a>,
    whole: &'a Whole,
    decided: BTreeMap<Sharing, Option<Decided>>,
    out: Vec<Out>,
    /// By the number of stages; bytes of layers do not depend on how they are shared.
    stages: BTreeMap<u32, Vec<LayerRange>>,
    connections: Connections<'a>,
    unknown: Option<Unknown>,
}

impl<'a> Search<'a> {
    fn new(request: &'a LayoutRequest<'a>, whole: &'a Whole) -> Self {
        Self {
            request,
            whole,
            decided: BTreeMap::new(),
            out: Vec::new(),
            stages: BTreeMap::new(),
            connections: Connections::new(request.topology),
            unknown: None,
        }
    }

    /// A layout, judged; `None` where the modules do not divide.
    fn judge(&mut self, mesh: Mesh, expert_parallel: bool) -> Result<Option<Judged>, LayoutsError> {
        let LayoutRequest { workload, assumptions, .. } = *self.request;
        let Some((model, machine, unknown)) = self.facts(mesh, expert_parallel, workload.context_len)? else {
            return Ok(None);
        };
        let layout = Layout { tp: mesh.tp(), pp: mesh.pp(), dp: mesh.dp(), expert_parallel };
        let mut served = Deployment { model, layout, machine, workload: workload.clone() };
        let memory = served.budget(assumptions);
        let running = workload.concurrency.min(memory.sequences);
        let timed = unknown.is_none() && memory.lacks == 0 && running > 0;
        self.unknown = self.unknown.take().or(unknown);
        served.workload.concurrency = running;
        let speed = timed.then(|| served.speed(assumptions));
        Ok(Some(Judged { layout, memory, speed, running, wanted: workload.concurrency, pareto: false }))
    }

    /// What a layout's memory and times follow from, and what the topology does not say of it.
    fn facts(
        &mut self,
        mesh: Mesh,
        expert_parallel: bool,
        context_len: u64,
    ) -> Result<Option<(Model, Machine, Option<Unknown>)>, LayoutsError> {
        let LayoutRequest { topology, config, .. } = *self.request;
        let Whole { prepared, blocks, numbers, .. } = self.whole;
        let sharing = (mesh.tp(), expert_parallel.then_some(mesh.tp() * mesh.dp()));
        self.decide(sharing, mesh)?;
        let Some(Some(decided)) = self.decided.get(&sharing) else { return Ok(None) };
        let stages = match self.stages.get(&mesh.pp()) {
            Some(stages) => stages.clone(),
            None => {
                let stages = prepared.stages(&decided.decisions, mesh.pp())?;
                self.stages.insert(mesh.pp(), stages.clone());
                stages
            }
        };
        let model = decided.model(prepared, config, blocks, (mesh, &stages), context_len)?;
        let placement = place(topology, mesh, &[])?;
        let (machine, unknown) = self.connections.machine(mesh, &placement, expert_parallel, *numbers);
        Ok(Some((model, machine, unknown)))
    }

    fn decide(&mut self, sharing: Sharing, mesh: Mesh) -> Result<(), LayoutsError> {
        if self.decided.contains_key(&sharing) {
            return Ok(());
        }
        let LayoutRequest { config, user, cast, topology, .. } = *self.request;
        let (tp, ep) = (Shares::equal(sharing.0), sharing.1.map(Shares::equal));
        let decided = match self.whole.prepared.decide(config, user, (&tp, ep.as_ref()), false) {
            Ok(decisions) => {
                let plan = self.plan(&decisions, mesh, cast, topology);
                Some(Decided::new(&self.whole.prepared, config, decisions, (&tp, ep.as_ref()), cast, &plan)?)
            }
            Err(error) => {
                let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
                self.out.push(Out { tp: sharing.0, ep: sharing.1, reason });
                None
            }
        };
        self.decided.insert(sharing, decided);
        Ok(())
    }

    /// A plan of one stage that nobody is placed in: what collectives are told by.
    fn plan(&self, decisions: &Decisions, mesh: Mesh, cast: Option<CastDtype>, topology: &Topology) -> Plan {
        let one_stage = Mesh::new(mesh.dp(), 1, mesh.tp()).unwrap_or(mesh);
        Plan {
            shardwright_plan: PLAN_VERSION,
            checkpoint: CheckpointIdentity { path: std::path::PathBuf::new(), files: Vec::new() },
            model: ModelSpec { layers: decisions.layers, ..self.whole.prepared.spec.clone() },
            family: self.whole.prepared.family.name.clone(),
            topology: topology.name().to_owned(),
            mesh: one_stage,
            weights: Vec::new(),
            placement: None,
            stages: vec![LayerRange { start: 0, stop: decisions.layers }],
            ranks: Vec::new(),
            tensors: self.whole.prepared.tensors(decisions, cast),
            warnings: Vec::new(),
        }
    }
}

/// The type of number that matrices are multiplied in: what the row-parallel ones are stored in, where it is a float of 8 bits or
/// more; 16 bits for packed ones, which kernels unpack first.
fn numbers(prepared: &Prepared, decisions: &Decisions, cast: Option<CastDtype>) -> NumberKind {
    let quantised = prepared.quantisation.is_some();
    let mut bytes: BTreeMap<u8, (u64, NumberKind)> = BTreeMap::new();
    for (module, decision) in prepared.modules.iter().zip(&decisions.of_modules) {
        let Some((weight, _)) = decision.work.matrix.filter(|_| decision.role == Role::RowParallel) else {
            continue;
        };
        let parameter = &module.parameters[weight];
        let loaded = cast.filter(|cast| cast.is_meant_for(module, weight, quantised));
        let kind = match loaded.map_or(parameter.dtype, Into::into) {
            Dtype::F8_E4M3 | Dtype::F8_E5M2 => NumberKind::Fp8,
            Dtype::F32 => NumberKind::Fp32,
            Dtype::F16 => NumberKind::Fp16,
            Dtype::I8 if quantised => NumberKind::Int8,
            _ => NumberKind::Bf16,
        };
        bytes.entry(kind as u8).or_insert((0, kind)).0 +=
            parameter.bytes_each().saturating_mul(module.count());
    }
    bytes.values().max_by_key(|(bytes, _)| *bytes).map_or(NumberKind::Bf16, |(_, kind)| *kind)
}

fn divisors(number: u32) -> impl Iterator<Item = u32> {
    (1..=number).filter(move |divisor| number.is_multiple_of(*divisor))
}

/// The longest sequence that the model can have, where its configuration says so, and the key that does.
pub fn longest_context(config: &Config) -> Option<(&'static str, u64)> {
    const KEYS: [&str; 4] = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"];
    let section = config.text();
    KEYS.iter().find_map(|key| Some((*key, section.get(key)?.as_u64()?)))
}

/// Checks that the model can have sequences of `wanted` tokens.
fn check_context(config: &Config, wanted: u64) -> Result<(), LayoutsError> {
    match longest_context(config) {
        Some((key, most)) if wanted > most => Err(LayoutsError::TooLong { wanted, most, key }),
        _ => Ok(()),
    }
}
