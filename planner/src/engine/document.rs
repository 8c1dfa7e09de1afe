//! The documents: one for each engine and kind of family.

use super::EngineError;
use crate::{checkpoint::Dtype, yaml};
use serde::Deserialize;
use std::num::NonZero;

macro_rules! documents {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../../engines/", $name)))),*]
    };
}

/// The documents that come with the planner.
const BUILT_IN: &[(&str, &str)] = &documents! {
    "sglang/decoder.yaml"
    "sglang/deepseek_v3.yaml"
    "sglang/gemma3.yaml"
    "sglang/mixtral.yaml"
    "sglang/qwen3_moe.yaml"
    "vllm/decoder.yaml"
    "vllm/deepseek_v3.yaml"
    "vllm/gemma2.yaml"
    "vllm/gemma3.yaml"
    "vllm/gpt_neox.yaml"
    "vllm/mixtral.yaml"
    "vllm/qwen3_moe.yaml"
};

/// What an engine calls the weights of some families, and what its ranks hold of them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineNames {
    /// The engine.
    pub engine: String,
    /// Its versions that were tried.
    pub tested: Vec<String>,
    /// The families, by `model_type`.
    pub model_types: Vec<String>,
    /// How weights may be quantised; not at all, where none is said.
    #[serde(default)]
    pub(super) quantised: Vec<Quantised>,
    /// How layers are cut into pipeline stages; not known, where none is said.
    #[serde(default)]
    pub(super) pipeline: Option<Pipeline>,
    /// What the rows of vocabulary-parallel weights are filled up to a multiple of, before they are cut.
    pub(super) vocabulary_multiple: NonZero<u32>,
    /// Numbers of experts with which the engine holds them otherwise.
    #[serde(default)]
    pub(super) unproven_experts: Vec<u64>,
    /// What the embedding is called where it is the output head too; never, where there is a head and none is said.
    #[serde(default)]
    pub(super) tied: Option<String>,
    pub(super) weights: Vec<Weight>,
    #[serde(default)]
    pub(super) constants: Vec<Constant>,
}

/// A way of quantising that was tried.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Quantised {
    /// In the words that a plan has for it.
    pub(super) how: String,
    /// What the weights are stored in.
    pub(super) dtype: Dtype,
    /// What the engine has beside them then.
    #[serde(default)]
    pub(super) constants: Vec<Constant>,
}

/// Tensors of the checkpoint, and what they become. A `*` stands for a number. Where `into` has one less, tensors that differ in their last
/// number are stacked in its order.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Weight {
    /// In the order in which they follow one another.
    pub(super) from: Vec<String>,
    pub(super) into: String,
    /// Whole on every rank, where it is absent.
    #[serde(default)]
    pub(super) cut: Option<Cut>,
    /// Of how many parts the checkpoint has fused it, each of which is cut by itself.
    #[serde(default = "one")]
    pub(super) segments: usize,
    /// Every pipeline stage has it, though few need it.
    #[serde(default)]
    pub(super) every_stage: bool,
}

/// How an engine cuts layers into pipeline stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Pipeline {
    /// As evenly as it goes: of the stages before the last, the latest have one more.
    LastHasLeast,
}

impl Pipeline {
    /// How many of `layers` each of `stages` has.
    pub(super) fn counts(self, layers: u64, stages: u32) -> Vec<u64> {
        let stages = u64::from(stages.max(1));
        let (each, more) = (layers / stages, layers % stages);
        match self {
            Self::LastHasLeast => (0..stages)
                .map(|stage| each + u64::from(stage + 1 < stages && stage + more + 1 >= stages))
                .collect(),
        }
    }
}

fn one() -> usize {
    1
}

/// How a tensor of the checkpoint is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(super) enum Cut {
    /// Along this dimension, evenly.
    Dim(usize),
    /// As vocabularies are.
    Named(NamedCut),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum NamedCut {
    /// Along the first dimension, filled up.
    Vocabulary,
    /// Not at all, though the plan does.
    WholeVocabulary,
}

/// A number in single precision that no checkpoint has, one for each layer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Constant {
    pub(super) name: String,
    pub(super) value: f32,
    /// One number, in however many dimensions.
    #[serde(default)]
    pub(super) shape: Vec<u64>,
}

/// The engines that have documents.
pub fn engines() -> Vec<String> {
    let mut names: Vec<String> =
        BUILT_IN.iter().filter_map(|(name, _)| Some(name.split_once('/')?.0.to_owned())).collect();
    names.sort();
    names.dedup();
    names
}

impl EngineNames {
    /// What `engine` calls the weights of models of type `model_type`.
    ///
    /// # Errors
    /// [`EngineError`] when no document tells.
    pub fn of(engine: &str, model_type: &str) -> Result<Self, EngineError> {
        let mut known = Vec::new();
        for (name, text) in BUILT_IN.iter().filter(|(name, _)| name.split('/').next() == Some(engine)) {
            let document: Self = yaml::from_str(text).map_err(|error| EngineError::Document {
                name: (*name).to_owned(),
                reason: error.to_string(),
            })?;
            if document.model_types.iter().any(|known| known == model_type) {
                return Ok(document);
            }
            known.extend(document.model_types);
        }
        known.sort();
        if known.is_empty() {
            return Err(EngineError::NoSuchEngine { engine: engine.to_owned(), known: engines() });
        }
        Err(EngineError::NotProven { engine: engine.to_owned(), model_type: model_type.to_owned(), known })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_cut_as_vllm_cuts_them() {
        // `get_pp_indices` of vLLM 0.32 gives these.
        let counts = |layers, stages| Pipeline::LastHasLeast.counts(layers, stages);
        assert_eq!(counts(32, 1), [32]);
        assert_eq!(counts(32, 4), [8, 8, 8, 8]);
        assert_eq!(counts(61, 2), [31, 30]);
        assert_eq!(counts(61, 4), [15, 15, 16, 15]);
        assert_eq!(counts(62, 4), [15, 16, 16, 15]);
        assert_eq!(counts(63, 4), [16, 16, 16, 15]);
    }

    #[test]
    fn every_document_is_read_and_names_each_tensor_once() {
        for (name, text) in BUILT_IN {
            let document: EngineNames = yaml::from_str(text).unwrap();
            assert!(name.starts_with(&document.engine));
            let mut from: Vec<&String> = document.weights.iter().flat_map(|weight| &weight.from).collect();
            let all = from.len();
            from.sort();
            from.dedup();
            assert_eq!(from.len(), all, "{name}");
            for weight in &document.weights {
                let stars = |text: &str| text.split('.').filter(|part| *part == "*").count();
                let into = stars(&weight.into);
                assert!(
                    weight.from.iter().all(|from| (into..=into + 1).contains(&stars(from))),
                    "{name}: {weight:?}"
                );
            }
            for model_type in &document.model_types {
                assert_eq!(EngineNames::of(&document.engine, model_type).unwrap(), document);
            }
        }
        assert!(matches!(EngineNames::of("vllm", "bert"), Err(EngineError::NotProven { .. })));
        assert!(matches!(EngineNames::of("sglang", "gemma2"), Err(EngineError::NotProven { .. })));
        assert!(matches!(EngineNames::of("tgi", "llama"), Err(EngineError::NoSuchEngine { .. })));
    }
}
