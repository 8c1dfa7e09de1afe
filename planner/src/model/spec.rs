//! The model's dimensions under the field's names.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The dimensions of a decoder, as its configuration declares them. Every number is at least 1, and the query heads are
/// a multiple of the key/value heads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `model_type`, by which a family is chosen.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden: u64,
    /// Width inside the feed-forward layer.
    pub intermediate: u64,
    /// Repeated blocks.
    pub layers: u64,
    /// Attention (query) heads.
    pub query_heads: u64,
    /// Key/value heads; fewer than query heads under grouped-query attention.
    pub kv_heads: u64,
    /// Elements in a head.
    pub head_size: u64,
    /// Rows of the embedding.
    pub vocabulary: u64,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
}

/// A dimension that a rule can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dimension {
    /// Width of the residual stream.
    Hidden,
    /// Width inside the feed-forward layer.
    Intermediate,
    /// All query heads one after the other.
    QueryHeads,
    /// All key/value heads one after the other.
    KvHeads,
    /// One head.
    HeadSize,
    /// Rows of the embedding.
    Vocabulary,
}

impl Dimension {
    /// Every dimension, in the order in which messages list them.
    pub const ALL: [Self; 6] =
        [Self::Hidden, Self::Intermediate, Self::QueryHeads, Self::KvHeads, Self::HeadSize, Self::Vocabulary];

    /// The words by which rules name it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Intermediate => "intermediate",
            Self::QueryHeads => "query heads",
            Self::KvHeads => "kv heads",
            Self::HeadSize => "head size",
            Self::Vocabulary => "vocabulary",
        }
    }
}

impl ModelSpec {
    /// Elements along `dimension`, with how they come about for messages: `8 kv heads × 128`.
    pub fn size_of(&self, dimension: Dimension) -> (u64, String) {
        let heads = |heads: u64| {
            let words = dimension.words();
            (heads * self.head_size, format!("{heads} {words} × {}", self.head_size))
        };
        match dimension {
            Dimension::Hidden => (self.hidden, format!("hidden {}", self.hidden)),
            Dimension::Intermediate => (self.intermediate, format!("intermediate {}", self.intermediate)),
            Dimension::QueryHeads => heads(self.query_heads),
            Dimension::KvHeads => heads(self.kv_heads),
            Dimension::HeadSize => (self.head_size, format!("head size {}", self.head_size)),
            Dimension::Vocabulary => (self.vocabulary, format!("vocabulary {}", self.vocabulary)),
        }
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} layers, hidden {}, intermediate {}, {} query and {} kv heads of {}, vocabulary {}{}",
            self.model_type.escape_debug(),
            self.layers,
            self.hidden,
            self.intermediate,
            self.query_heads,
            self.kv_heads,
            self.head_size,
            self.vocabulary,
            if self.tied_embeddings { ", tied embeddings" } else { "" },
        )
    }
}
