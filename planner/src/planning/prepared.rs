//! What is the same for every layout of a checkpoint: its modules, its family, how it is quantised.

use super::{BuildError, stages::balance};
use crate::{
    checkpoint::Catalog,
    graph::{Module, modules},
    model::{Config, ModelSpec},
    partition::{Partition, Shares},
    plan::{CastDtype, LayerRange, TensorGroup},
    quantisation::Quantisation,
    rules::{
        Decision, DecisionRequest, Decisions, Families, Family, Role, RuleError, StageRule, UserRules, decide,
    },
};

/// A checkpoint, ready to be decided over any number of ranks.
pub(crate) struct Prepared {
    pub(crate) family: Family,
    pub(crate) quantisation: Option<Quantisation>,
    /// Its dimensions; how many layers there are the decisions say.
    pub(crate) spec: ModelSpec,
    /// In the order of the model.
    pub(crate) modules: Vec<Module>,
}

impl Prepared {
    pub(crate) fn new(catalog: &Catalog, config: &Config, families: &Families) -> Result<Self, RuleError> {
        let family = families.of(&config.model_types()?)?;
        let quantisation = Quantisation::of(config)?;
        let mut spec = ModelSpec::of(config, family.vocabulary())?;
        spec.quantised = quantisation.as_ref().map(ToString::to_string);
        let mut modules = modules(catalog);
        in_order_of_rules(&mut modules, &family);
        Ok(Self { family, quantisation, spec, modules })
    }

    /// Decides every module over the ranks of a tensor-parallel group, and those that share experts.
    pub(crate) fn decide(
        &self,
        config: &Config,
        user: &UserRules,
        (tp, ep): (&Shares, Option<&Shares>),
        uneven: bool,
    ) -> Result<Decisions, RuleError> {
        decide(&DecisionRequest {
            modules: &self.modules,
            config,
            quantisation: self.quantisation.as_ref(),
            family: &self.family,
            user,
            tp,
            ep,
            uneven,
        })
    }

    /// The tensors as a plan writes them.
    pub(crate) fn tensors(&self, decisions: &Decisions, cast: Option<CastDtype>) -> Vec<TensorGroup> {
        let all = self.modules.iter().zip(&decisions.of_modules);
        all.flat_map(|(module, decision)| as_written(module, decision, cast, self.quantisation.is_some()))
            .collect()
    }

    /// The layers of each of `pp` pipeline stages, of about the same number of bytes.
    pub(crate) fn stages(&self, decisions: &Decisions, pp: u32) -> Result<Vec<LayerRange>, BuildError> {
        // Bounded: every layer has tensors, the rules checked that.
        let mut layers = vec![0u64; usize::try_from(decisions.layers).unwrap_or(0)];
        let (mut first, mut last) = (0u64, 0u64);
        for (module, decision) in self.modules.iter().zip(&decisions.of_modules) {
            match decision.stage {
                StageRule::Layer => {
                    for layer in module.blocks.iter().filter_map(|blocks| blocks.first()) {
                        if let Some(total) = layers.get_mut(*layer as usize) {
                            *total = total.saturating_add(module.bytes_each());
                        }
                    }
                }
                StageRule::First => first = first.saturating_add(module.bytes()),
                StageRule::Last => last = last.saturating_add(module.bytes()),
                StageRule::FirstAndLast => {
                    first = first.saturating_add(module.bytes());
                    last = last.saturating_add(module.bytes());
                }
                StageRule::Every => {}
            }
        }
        balance(&layers, first, last, pp).ok_or(BuildError::TooManyStages { layers: decisions.layers, pp })
    }
}

/// Sorts modules in the order of the model: what runs before the layers, the layers, what runs after; each in the order of
/// the family's rules.
fn in_order_of_rules(modules: &mut [Module], family: &Family) {
    modules.sort_by_cached_key(|module| {
        let rule = family.rules_for(&module.name).next();
        let role = rule.map(|(_, _, rule)| rule.role);
        let part = match role {
            _ if family.is_in_layers(&module.name) => 2,
            _ if family.is_before_layers(&module.name) => 0,
            Some(Role::VocabParallelEmbedding) => 1,
            Some(Role::VocabParallelHead) => 4,
            _ => 3,
        };
        let order = rule.map_or(usize::MAX, |(order, _, _)| order);
        (part, order, module.name.clone(), module.blocks.first().cloned())
    });
}

/// The tensors of a module as a plan writes them, the weight before the others.
fn as_written(
    module: &Module,
    decision: &Decision,
    cast: Option<CastDtype>,
    quantised: bool,
) -> Vec<TensorGroup> {
    let mut groups: Vec<TensorGroup> = module
        .parameters
        .iter()
        .zip(&decision.partitions)
        .enumerate()
        .map(|(number, (parameter, partition))| TensorGroup {
            names: module.names(parameter),
            dtype: parameter.dtype,
            cast: cast.filter(|cast| cast.is_meant_for(module, number, quantised)),
            shape: parameter.shape.clone(),
            role: decision.role,
            stage: decision.stage,
            outputs: decision.outputs.filter(|(weight, _)| *weight == number).map(|(_, outputs)| outputs),
            partition: partition.clone(),
            why: match partition {
                Partition::FirstRank => {
                    format!("{}; a bias is added once, after the sum over ranks", decision.reason)
                }
                _ => decision.reason.clone(),
            },
        })
        .collect();
    // By name, but a bias comes last.
    groups.sort_by_key(TensorGroup::is_bias);
    groups
}
