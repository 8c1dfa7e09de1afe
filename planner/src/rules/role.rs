//! What a module is for, and which pipeline stages hold it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A module's role, from which its partition and its collectives follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Split on the output features; each rank computes a part of the outputs.
    ColumnParallel,
    /// Split on the input features; the outputs are summed over ranks.
    RowParallel,
    /// An embedding split on its rows; what is looked up is summed over ranks.
    VocabParallelEmbedding,
    /// An output head split on its rows; the logits are gathered from the ranks.
    VocabParallelHead,
    /// A norm over features that ranks share: cut with them; the ranks' sums of squares are added up.
    ShardedNorm,
    /// A norm over each group of features: cut with them; ranks that share a group add up their squares, and where each has
    /// whole groups nothing is added up.
    ShardedGroupNorm,
    /// Held whole by every rank.
    Replicated,
}

impl Role {
    /// The words by which family files name it.
    pub(super) const WORDS: [(&'static str, Self); 7] = [
        ("column", Self::ColumnParallel),
        ("row", Self::RowParallel),
        ("embedding", Self::VocabParallelEmbedding),
        ("head", Self::VocabParallelHead),
        ("norm", Self::ShardedNorm),
        ("group norm", Self::ShardedGroupNorm),
        ("replicated", Self::Replicated),
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ColumnParallel => "column-parallel",
            Self::RowParallel => "row-parallel",
            Self::VocabParallelEmbedding => "vocab-parallel embedding",
            Self::VocabParallelHead => "vocab-parallel head",
            Self::ShardedNorm => "sharded norm",
            Self::ShardedGroupNorm => "sharded group norm",
            Self::Replicated => "replicated",
        })
    }
}

/// Which pipeline stages hold a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageRule {
    /// The stage of its layer, whose number is the first number in its name.
    Layer,
    /// The first stage.
    First,
    /// The last stage.
    Last,
    /// The first and the last stage: an embedding that is also the output head.
    FirstAndLast,
    /// Every stage.
    Every,
}

impl StageRule {
    /// Whether stage `stage` of `stages` holds a tensor whose layer, if it has one, lies on `layer_stage`.
    pub fn holds(self, stage: u32, stages: u32, layer_stage: Option<u32>) -> bool {
        let (first, last) = (stage == 0, stage + 1 == stages);
        match self {
            Self::Layer => layer_stage == Some(stage),
            Self::First => first,
            Self::Last => last,
            Self::FirstAndLast => first || last,
            Self::Every => true,
        }
    }
}
