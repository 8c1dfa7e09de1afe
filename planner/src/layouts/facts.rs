//! From decisions to the facts that memory and time follow from: what the first rank of each pipeline stage holds and does.
//!
//! Everything is dealt alike here, so the first rank holds as much as any, and the biases besides that are added once.

use crate::{
    cost::{self, Cache, Collective, placed_bytes},
    graph::Module,
    mesh::Mesh,
    model::{Config, ConfigError, Measures},
    partition::{Partition, PartitionError, Shares},
    plan::{CastDtype, LayerRange, Plan},
    planning::Prepared,
    rules::{Decisions, Role, StageRule},
    serving::{Model, Stage},
};
use std::ops::Range;

/// A checkpoint, decided over the ranks of a tensor-parallel group and those that share experts.
pub(super) struct Decided {
    pub(super) decisions: Decisions,
    parameters: Vec<Parameter>,
    cache: Cache,
    collectives: Vec<Collective>,
    activation_bytes: u64,
}

/// What the first rank holds of a tensor of each of its module's blocks.
struct Parameter {
    module: usize,
    stage: StageRule,
    role: Role,
    /// Bytes in its memory.
    bytes: u64,
    /// Whether it belongs to routed experts.
    of_experts: bool,
    /// Of how many blocks it holds one, where experts are dealt whole.
    one_of: (u64, u64),
    flops: f64,
}

impl Decided {
    pub(super) fn new(
        prepared: &Prepared,
        config: &Config,
        decisions: Decisions,
        (tp, ep): (&Shares, Option<&Shares>),
        cast: Option<CastDtype>,
        plan: &Plan,
    ) -> Result<Self, FactsError> {
        let mut parameters = Vec::new();
        let quantised = prepared.quantisation.is_some();
        for (number, (module, decision)) in prepared.modules.iter().zip(&decisions.of_modules).enumerate() {
            for (place, (parameter, partition)) in
                module.parameters.iter().zip(&decision.partitions).enumerate()
            {
                let axis = match (partition.axis(), ep) {
                    (crate::partition::Axis::Expert, Some(ep)) => ep,
                    _ => tp,
                };
                let slices = partition.slices(&parameter.shape, axis)?;
                let Some(slice) = slices.into_iter().next().flatten() else { continue };
                let loaded = cast.filter(|cast| cast.is_meant_for(module, place, quantised));
                let bits = loaded.map_or(parameter.dtype, Into::into).bitsize() as u64;
                let one_of = match partition {
                    Partition::Assigned(assigned) => {
                        let runs = assigned.numbers(axis)?;
                        (runs.first().map_or(0, |(start, stop)| stop - start), assigned.of)
                    }
                    _ => (1, 1),
                };
                let whole: u64 = parameter.shape.iter().product();
                let held = slice.elements() as f64 / whole.max(1) as f64;
                let matrix = decision.work.matrix.filter(|(weight, _)| *weight == place);
                parameters.push(Parameter {
                    module: number,
                    stage: decision.stage,
                    role: decision.role,
                    bytes: placed_bytes(slice.elements().saturating_mul(bits) / 8),
                    of_experts: decision.work.experts.is_some(),
                    one_of,
                    flops: matrix.map_or(0.0, |(_, numbers)| 2.0 * numbers as f64 * held),
                });
            }
        }
        let shared = cost::Shared {
            modules: &prepared.modules,
            decisions: &decisions.of_modules,
            layers: decisions.layers,
            tp,
            uneven: false,
        };
        let cache = Cache::of(&shared, config, prepared.family.vocabulary())?;
        let collectives = cost::collectives(plan);
        let activation_bytes = cost::activation_bytes(plan);
        Ok(Self { decisions, parameters, cache, collectives, activation_bytes })
    }

    /// Whether what is kept of tokens is but assumed.
    pub(super) fn cache_is_assumed(&self) -> bool {
        self.cache.assumed
    }

    /// The facts of the model with these pipeline stages, for sequences of `context_len` tokens.
    pub(super) fn model(
        &self,
        prepared: &Prepared,
        config: &Config,
        blocks: &Blocks,
        (mesh, stages): (Mesh, &[LayerRange]),
        context_len: u64,
    ) -> Result<Model, FactsError> {
        let spec = &prepared.spec;
        let measures = Measures::new(prepared.family.vocabulary(), config.text());
        let hidden = spec.hidden.unwrap_or(0);
        let features = spec.intermediate.unwrap_or(4 * hidden).div_ceil(mesh.tp().into());
        let counted = measures.size_if_any("layers")?.unwrap_or(u64::MAX);
        let count = u32::try_from(stages.len()).unwrap_or(u32::MAX);
        let of_stage = |(number, layers): (u32, &LayerRange)| {
            let layers = layers.start..layers.stop;
            // What predicts further tokens lies there, and neither runs nor keeps anything unless it is asked to.
            let run = layers.start..layers.end.min(counted).max(layers.start);
            let mut stage = Stage {
                layers: run.end - run.start,
                features,
                cache_per_sequence: self.cache.elements(run.clone(), context_len),
                ..Stage::default()
            };
            let is_last = number + 1 == count;
            for parameter in &self.parameters {
                let held = |layers: &Range<u64>| {
                    let times = match parameter.stage {
                        StageRule::Layer => blocks.in_layers(parameter.module, layers),
                        rule if rule.holds(number, count, None) => blocks.all(parameter.module),
                        _ => 0,
                    };
                    let (held, of) = parameter.one_of;
                    let times = u128::from(times) * u128::from(held) / u128::from(of.max(1));
                    u64::try_from(times).unwrap_or(u64::MAX)
                };
                let all = parameter.bytes.saturating_mul(held(&layers));
                stage.weight_bytes = stage.weight_bytes.saturating_add(all);
                let times = held(&run);
                let bytes = parameter.bytes.saturating_mul(times);
                // Of an embedding a step reads some rows, unless it is the head too.
                let is_lookup = parameter.role == Role::VocabParallelEmbedding
                    && !(parameter.stage == StageRule::FirstAndLast && is_last);
                let flops = parameter.flops * times as f64;
                match (parameter.of_experts, is_lookup) {
                    (_, true) => {}
                    (true, _) => {
                        stage.expert_bytes = stage.expert_bytes.saturating_add(bytes);
                        stage.expert_flops += flops;
                    }
                    (false, _) => {
                        stage.dense_bytes = stage.dense_bytes.saturating_add(bytes);
                        stage.dense_flops += flops;
                    }
                }
            }
            self.add_collectives(&mut stage, (number, count));
            stage
        };
        let stages = (0..).zip(stages).map(of_stage).collect();
        let experts = spec.experts.unwrap_or(1);
        Ok(Model {
            stages,
            hidden,
            vocabulary: spec.vocabulary.unwrap_or(0),
            query_heads: spec.query_heads.unwrap_or(0),
            head_size: spec.head_size.unwrap_or(0),
            experts,
            experts_per_token: measures.size_if_any("experts per token")?.unwrap_or(1).min(experts),
            activation_bytes: self.activation_bytes,
        })
    }

    /// Those of the layers in proportion to how many of them the stage has.
    fn add_collectives(&self, stage: &mut Stage, (number, count): (u32, u32)) {
        let layers = self.decisions.layers.max(1);
        for collective in &self.collectives {
            let times = match collective.stage {
                StageRule::Layer => collective.times * stage.layers / layers,
                rule if rule.holds(number, count, None) => collective.times,
                _ => 0,
            };
            if times == 0 {
                continue;
            }
            let of_token = (times, collective.bytes_per_token);
            match collective.kind {
                "all-reduce" => stage.all_reduces.push(of_token),
                "all-gather" => {
                    stage.has_head = true;
                    stage.all_gathers.push(of_token);
                }
                "all-to-all" => stage.all_to_alls += times,
                _ => {}
            }
        }
        stage.has_head |= number + 1 == count;
    }
}

/// How many blocks of each module are in which layers.
pub(super) struct Blocks {
    /// Of each module: how many blocks are in layers before each.
    before: Vec<Vec<u64>>,
}

impl Blocks {
    pub(super) fn of(modules: &[Module], layers: u64) -> Self {
        let layers = usize::try_from(layers).unwrap_or(0);
        let of_module = |module: &Module| {
            let mut count = vec![0; layers + 2];
            for block in &module.blocks {
                let layer = block.first().map_or(layers, |&layer| (layer as usize).min(layers));
                count[layer + 1] += 1;
            }
            for layer in 1..count.len() {
                count[layer] += count[layer - 1];
            }
            count
        };
        Self { before: modules.iter().map(of_module).collect() }
    }

    fn in_layers(&self, module: usize, layers: &Range<u64>) -> u64 {
        let before = &self.before[module];
        let place = |layer: u64| usize::try_from(layer).unwrap_or(usize::MAX).min(before.len() - 1);
        before[place(layers.end)] - before[place(layers.start)]
    }

    fn all(&self, module: usize) -> u64 {
        self.before[module].last().copied().unwrap_or(0)
    }
}

/// Why a model's facts could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A partition does not fit its tensor.
    #[error(transparent)]
    Partition(#[from] PartitionError),
}
