//! What decisions are made of, and what they are.

use super::{
    family::Family,
    role::{Role, StageRule},
    user::UserRules,
};
use crate::{
    graph::Module,
    model::{Config, Keeps},
    partition::{Hand, Partition, Remainder, Segment, Shares, deal},
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
    /// What it does for a token.
    pub work: Work,
    /// Why, for `explain`.
    pub reason: String,
    /// What is odd about it, said of its tensors: `is replicated: …`.
    pub warning: Option<String>,
}

/// What a module does for each token, as far as its rule tells: what memory and time of a running model follow from.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Which of its tensors it computes with, and how many numbers its matrices have, those of all its experts together.
    pub matrix: Option<(usize, u64)>,
    /// How many routed experts there are in its layer, where it is one of them, or has their matrices.
    pub experts: Option<u64>,
    /// What its layer keeps of tokens because of it.
    pub kept: Vec<Kept>,
}

/// What a layer keeps of the tokens it has seen because of one dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Pieces of the dimension: heads.
    pub pieces: u64,
    /// What each keeps.
    pub keeps: Keeps,
    /// How the pieces are dealt to the ranks of a tensor-parallel group, with elements of a piece; `None` where every rank has
    /// all of them.
    pub dealt: Option<(Segment, u64)>,
}

impl Kept {
    /// The most pieces that a rank has.
    pub fn most_pieces(&self, shares: &Shares, uneven: bool) -> u64 {
        let Some((segment, unit)) = self.dealt else { return self.pieces };
        let remainder = if uneven { Remainder::Uneven } else { Remainder::Refuse };
        let Ok(hands) = deal(segment, shares, remainder) else { return self.pieces };
        let elements = |hand: &Hand| hand.runs.iter().map(|run| run.stop - run.start).sum::<u64>();
        hands.iter().map(|hand| elements(hand).div_ceil(unit.max(1))).max().unwrap_or(0)
    }
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
