//! What decisions are made of, and what they are.

use super::{
    family::Family,
    role::{Role, StageRule},
    user::UserRules,
};
use crate::{
    graph::Module,
    model::Config,
    partition::{Partition, Shares},
    quantisation::Quantisation,
};

/// What was decided for a module.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What it is for.
    pub role: Role,
    /// How ranks share each of its tensors, in the order of [`Module::parameters`].
    pub partitions: Vec<Partition>,
    /// Which pipeline stages hold them.
    pub stage: StageRule,
    /// Which of its tensors it computes with, and its output features, where these go through a collective.
    pub outputs: Option<(usize, u64)>,
    /// Why, for `explain`.
    pub reason: String,
    /// What is odd about it, said of its tensors: `is replicated: …`.
    pub warning: Option<String>,
}

/// What decisions are made of.
#[derive(Debug, Clone, Copy)]
pub struct DecisionRequest<'a> {
    /// Every module of the checkpoint.
    pub modules: &'a [Module],
    /// The model's configuration.
    pub config: &'a Config,
    /// How its weights are quantised, if they are.
    pub quantisation: Option<&'a Quantisation>,
    /// The family that knows the model.
    pub family: &'a Family,
    /// The user's own rules.
    pub user: &'a UserRules,
    /// The ranks of a tensor-parallel group.
    pub tp: &'a Shares,
    /// The ranks that share experts, where they hold whole ones.
    pub ep: Option<&'a Shares>,
    /// Deal what does not divide instead of refusing it.
    pub uneven: bool,
}

/// The decisions, and what they say of the model.
#[derive(Debug)]
pub struct Decisions {
    /// One for each module.
    pub of_modules: Vec<Decision>,
    /// Repeated layers of the model.
    pub layers: u64,
}
