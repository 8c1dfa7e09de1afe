//! The model's dimensions under the field's names.

use super::{
    config::{Config, ConfigError},
    dimensions::{Measures, Vocabulary},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a plan says of its model: the dimensions that its configuration declares, as far as it does. Every number is at
/// least 1, and the query heads are a multiple of the key/value heads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// `model_type`, by which a family is chosen.
    pub model_type: String,
    /// Width of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<u64>,
    /// Width inside the feed-forward layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intermediate: Option<u64>,
    /// Repeated blocks; 0 where there are none.
    pub layers: u64,
    /// Attention (query) heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_heads: Option<u64>,
    /// Key/value heads; fewer than query heads under grouped-query attention.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u64>,
    /// Elements in a head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_size: Option<u64>,
    /// Routed experts in a layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<u64>,
    /// Rows of the embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<u64>,
    /// Whether the output head is the embedding.
    pub tied_embeddings: bool,
    /// How the weights are quantised, in short; absent where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantised: Option<String>,
}

impl ModelSpec {
    /// What `config` says of the model.
    ///
    /// # Errors
    /// [`ConfigError`] names the key and the value of whatever is no dimension, or contradicts another.
    pub fn of(config: &Config, vocabulary: &Vocabulary) -> Result<Self, ConfigError> {
        let text = config.text();
        let measures = Measures::new(vocabulary, text);
        let size = |name: &str| measures.size(name);
        let (query_heads, kv_heads) = (size("heads")?, size("kv")?);
        if let (Some(query), Some(kv)) = (query_heads, kv_heads)
            && !query.is_multiple_of(kv)
        {
            return Err(config
                .contradiction(format!("{query} attention heads are no multiple of {kv} key/value heads")));
        }
        let hidden = size("hidden")?;
        // Of latent attention's heads, the part without positions and the part with them.
        let latent = size("latent head size")?;
        let head_size = if latent.is_some() { latent } else { size("head size")? };
        if let (Some(hidden), Some(heads), None) = (hidden, query_heads, head_size) {
            return Err(config.contradiction(format!(
                "hidden_size {hidden} is no multiple of {heads} attention heads, and there is no head_dim"
            )));
        }
        let model_type = config.model_types()?.swap_remove(0);
        Ok(Self {
            model_type,
            hidden,
            intermediate: size("intermediate")?,
            layers: size("layers")?.unwrap_or(0),
            query_heads,
            kv_heads,
            head_size,
            experts: size("experts")?,
            vocabulary: size("vocabulary")?,
            tied_embeddings: config
                .get("tie_word_embeddings")
                .and_then(serde_json::Value::as_bool)
                .unwrap_or(false),
            quantised: None,
        })
    }
}

impl fmt::Display for ModelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} layers", self.model_type.escape_debug(), self.layers)?;
        let mut number = |words: &str, number: Option<u64>| match number {
            Some(number) => write!(f, ", {words} {number}"),
            None => Ok(()),
        };
        number("hidden", self.hidden)?;
        number("intermediate", self.intermediate)?;
        if let (Some(query), Some(kv), Some(size)) = (self.query_heads, self.kv_heads, self.head_size) {
            write!(f, ", {query} query and {kv} kv heads of {size}")?;
        }
        if let Some(experts) = self.experts {
            write!(f, ", {experts} experts")?;
        }
        if let Some(vocabulary) = self.vocabulary {
            write!(f, ", vocabulary {vocabulary}")?;
        }
        if self.tied_embeddings {
            f.write_str(", tied embeddings")?;
        }
        if let Some(quantised) = &self.quantised {
            write!(f, ", {}", quantised.escape_debug())?;
        }
        Ok(())
    }
}
