//! Families: which rules apply to the modules of a model type.

use super::{
    role::{Role, StageRule},
    rule::Rule,
};
use crate::{
    glob::Glob,
    graph::unwrapped,
    model::{Vocabulary, VocabularyDocument},
    quote::quote,
    unique_map::UniqueMap,
    yaml::{self, YamlError},
};
use serde::{
    Deserialize, Deserializer,
    de::{self, SeqAccess, Visitor},
};
use std::fmt;

/// The family whose rules are those of common names: for model types that no family knows.
const FALLBACK: &str = "decoder";

/// The words that every family knows.
const DIMENSIONS: (&str, &str) = ("dimensions.yaml", include_str!("../../families/dimensions.yaml"));

macro_rules! families {
    ($($name:literal)*) => {
        [$(($name, include_str!(concat!("../../families/", $name)))),*]
    };
}

/// The families that come with the planner.
const BUILT_IN: &[(&str, &str)] = &families! {
    "baichuan.yaml"
    "bitnet.yaml"
    "decoder.yaml"
    "deepseek.yaml"
    "deepseek_v4.yaml"
    "diffllama.yaml"
    "doge.yaml"
    "falcon.yaml"
    "gemma2.yaml"
    "gemma3.yaml"
    "gpt2.yaml"
    "gpt_bigcode.yaml"
    "gpt_neox.yaml"
    "gpt_oss.yaml"
    "granitemoe.yaml"
    "internlm2.yaml"
    "kimi_linear.yaml"
    "kosmos.yaml"
    "lfm2.yaml"
    "llama.yaml"
    "llama4.yaml"
    "mamba.yaml"
    "mamba2.yaml"
    "minimax.yaml"
    "mistral.yaml"
    "mpt.yaml"
    "phi3.yaml"
    "qwen2.yaml"
    "qwen3.yaml"
    "qwen3_next.yaml"
    "recurrent_gemma.yaml"
    "seq2seq.yaml"
    "transformer.yaml"
    "vibevoice.yaml"
    "zaya.yaml"
};

/// A family's rules, its own first and then those it extends.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// Whether every model of it has a module for each rule that names dimensions.
    pub complete: bool,
    /// Whether it is the one for model types that no family knows: then its rules are guesses.
    pub fallback: bool,
    vocabulary: Vocabulary,
    layers: Vec<Glob>,
    first_stage: Vec<Glob>,
    experts: Vec<Glob>,
    towers: Vec<(Glob, Vec<String>)>,
    rules: Vec<(Glob, Vec<Rule>)>,
}

/// All known families.
#[derive(Debug)]
pub struct Families {
    vocabulary: Vocabulary,
    documents: Vec<(String, Document)>,
}

/// A family file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct FamilyError {
    file: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    family: String,
    #[serde(default)]
    model_types: Vec<String>,
    extends: Option<String>,
    #[serde(default)]
    complete: Option<bool>,
    layers: Option<Vec<String>>,
    first_stage: Option<Vec<String>>,
    experts: Option<Vec<String>>,
    towers: Option<Vec<Tower>>,
    #[serde(default)]
    dimensions: Option<VocabularyDocument>,
    rules: Option<UniqueMap<Alternatives>>,
}

/// Modules whose dimensions stand in a section of their own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tower {
    at: String,
    config: Vec<String>,
}

/// One rule, or several of which the first counts whose dimensions the tensors have.
#[derive(Debug)]
struct Alternatives(Vec<Rule>);

impl<'de> Deserialize<'de> for Alternatives {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;
        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Alternatives;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rule or a list of rules")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Alternatives, E> {
                Ok(Alternatives(vec![text.parse().map_err(E::custom)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Alternatives, A::Error> {
                let mut rules = Vec::new();
                while let Some(rule) = sequence.next_element()? {
                    rules.push(rule);
                }
                Ok(Alternatives(rules))
            }
        }
        deserializer.deserialize_any(OneOrSeveral)
    }
}

impl Families {
    /// The families that come with the planner.
    ///
    /// # Errors
    /// [`FamilyError`] when one of the files is damaged; a test reads them all.
    pub fn built_in() -> Result<Self, FamilyError> {
        Self::read(DIMENSIONS, BUILT_IN)
    }

    /// Reads the words that all families know and the family files, given as name and text.
    ///
    /// # Errors
    /// [`FamilyError`] names the file, and the rule or the place.
    pub fn read(dimensions: (&str, &str), files: &[(&str, &str)]) -> Result<Self, FamilyError> {
        let failed = |file: &str, reason: String| FamilyError { file: file.to_owned(), reason };
        let words: VocabularyDocument = yaml::from_str(dimensions.1)
            .map_err(|error: YamlError| failed(dimensions.0, error.to_string()))?;
        let vocabulary =
            Vocabulary::default().extended(&words).map_err(|reason| failed(dimensions.0, reason))?;
        let mut documents = Vec::with_capacity(files.len());
        for (file, text) in files {
            let document: Document =
                yaml::from_str(text).map_err(|error: YamlError| failed(file, error.to_string()))?;
            documents.push(((*file).to_owned(), document));
        }
        Ok(Self { vocabulary, documents })
    }

    /// The family that plans `model_types`, given from the outermost to the language model's own: the first that has one,
    /// but for a language model inside another only one that leaves names open; else the one for model types without a
    /// family.
    ///
    /// # Errors
    /// [`FamilyError`] when its file cannot be used.
    pub fn of(&self, model_types: &[String]) -> Result<Family, FamilyError> {
        let name = model_types
            .iter()
            .enumerate()
            .find_map(|(depth, model_type)| {
                let plans = |(_, document): &&(String, Document)| {
                    document.model_types.contains(model_type)
                        && (depth == 0 || document.complete != Some(true))
                };
                self.documents.iter().find(plans)
            })
            .map_or(FALLBACK, |(_, document)| document.family.as_str());
        self.family(name)
    }

    /// The family called `name`.
    ///
    /// # Errors
    /// [`FamilyError`] when there is none, or its file cannot be used.
    pub fn family(&self, name: &str) -> Result<Family, FamilyError> {
        self.with_bases(name, self.documents.len())
    }

    /// The names of all families.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().map(|(_, document)| document.family.as_str())
    }

    /// Every model type that has a family.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        self.documents.iter().flat_map(|(_, document)| document.model_types.iter().map(String::as_str))
    }

    /// The words that all families know.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    fn with_bases(&self, name: &str, depth: usize) -> Result<Family, FamilyError> {
        let found = self.documents.iter().find(|(_, document)| document.family == name);
        let failed = |file: &str, reason: String| FamilyError { file: file.to_owned(), reason };
        let Some((file, document)) = found else {
            return Err(failed(name, "there is no family of this name".to_owned()));
        };
        let base = match (&document.extends, depth.checked_sub(1)) {
            (None, _) => None,
            (Some(base), Some(depth)) if self.names().any(|known| known == base) => {
                Some(self.with_bases(base, depth)?)
            }
            (Some(base), _) => {
                return Err(failed(file, format!("extends {}, which is not known", quote(base))));
            }
        };
        compile(document, base, &self.vocabulary).map_err(|reason| failed(file, reason))
    }
}

impl Family {
    /// The rules whose globs match the collapsed name `module`, in order, each with its place among the rules and its glob;
    /// of alternatives under one glob, each.
    pub fn rules_for(&self, module: &str) -> impl Iterator<Item = (usize, &str, &Rule)> {
        let name = unwrapped(module);
        self.rules
            .iter()
            .enumerate()
            .filter(move |(_, (pattern, _))| pattern.matches(name))
            .flat_map(|(place, (pattern, rules))| rules.iter().map(move |rule| (place, pattern.text(), rule)))
    }

    /// The role of `module` by the first rule for its name, whether that fits or not.
    pub(super) fn role_of(&self, module: &str) -> Option<Role> {
        self.rules_for(module).next().map(|(_, _, rule)| rule.role)
    }

    /// The stage of `module` by the rules for its name, where these name one or its role has one.
    pub(super) fn stage_of(&self, module: &str) -> Option<StageRule> {
        let named = self.rules_for(module).find_map(|(_, _, rule)| rule.stage);
        named.or(match self.role_of(module)? {
            _ if self.is_in_layers(module) || self.is_before_layers(module) => None,
            Role::VocabParallelEmbedding => Some(StageRule::First),
            Role::VocabParallelHead => Some(StageRule::Last),
            _ => None,
        })
    }

    /// All rules that can apply, with their places and globs.
    pub fn rules(&self) -> impl Iterator<Item = (usize, &str, &Rule)> {
        self.rules
            .iter()
            .enumerate()
            .flat_map(|(place, (pattern, rules))| rules.iter().map(move |rule| (place, pattern.text(), rule)))
    }

    /// Whether the collapsed name `module` lies in a layer: then its first number is the layer's.
    pub fn is_in_layers(&self, module: &str) -> bool {
        let prefix = module.split_once(".*").map(|(prefix, _)| prefix);
        prefix.is_some_and(|prefix| any(&self.layers, prefix)) && !self.is_before_layers(module)
    }

    /// Whether the module belongs to what runs before the layers: a vision tower, an encoder.
    pub fn is_before_layers(&self, module: &str) -> bool {
        any(&self.first_stage, module)
    }

    /// Where the layers are, for messages.
    pub fn layers(&self) -> &str {
        self.layers.first().map_or("", Glob::text)
    }

    /// For a module of one of several experts, which of the numbers in its name is the expert's.
    pub fn expert_number(&self, module: &str) -> Option<usize> {
        let mut numbers = 0;
        let mut end = 0;
        for part in module.split('.') {
            end += part.len();
            if part == "*" {
                if any(&self.experts, &module[..end]) {
                    return Some(numbers);
                }
                numbers += 1;
            }
            end += 1;
        }
        None
    }

    /// The names of the configuration's section that describes `module`; `None` for the language model's.
    pub fn section_of(&self, module: &str) -> Option<&[String]> {
        let tower = self.towers.iter().find(|(pattern, _)| pattern.matches(module));
        tower.map(|(_, config)| config.as_slice())
    }

    /// The words it knows.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

fn any(patterns: &[Glob], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

fn compile(document: &Document, base: Option<Family>, words: &Vocabulary) -> Result<Family, String> {
    let patterns = |texts: &Option<Vec<String>>, inherited: fn(&Family) -> &Vec<Glob>| match texts {
        Some(texts) => texts.iter().map(|text| Glob::of_parts(text)).collect::<Result<Vec<_>, _>>(),
        None => Ok(base.as_ref().map(|base| inherited(base).clone()).unwrap_or_default()),
    };
    let words = base.as_ref().map_or(words, |base| &base.vocabulary);
    let vocabulary = match &document.dimensions {
        Some(own) => words.extended(own)?,
        None => words.clone(),
    };
    let layers = patterns(&document.layers, |base| &base.layers)?;
    if layers.is_empty() {
        return Err("`layers` is missing: the names before the layer number".to_owned());
    }
    let mut rules = Vec::new();
    for (glob, alternatives) in document.rules.iter().flat_map(|UniqueMap(rules)| rules) {
        let Alternatives(alternatives) = alternatives;
        for rule in alternatives {
            rule.check_words(&vocabulary).map_err(|error| format!("{}: {error}", quote(glob)))?;
        }
        rules.push((Glob::of_parts(glob)?, alternatives.clone()));
    }
    let towers = match &document.towers {
        Some(towers) => towers
            .iter()
            .map(|tower| Ok((Glob::of_parts(&tower.at)?, tower.config.clone())))
            .collect::<Result<_, String>>()?,
        None => base.as_ref().map(|base| base.towers.clone()).unwrap_or_default(),
    };
    Ok(Family {
        name: document.family.clone(),
        complete: document.complete.unwrap_or_else(|| base.as_ref().is_some_and(|base| base.complete)),
        fallback: document.family == FALLBACK,
        vocabulary,
        first_stage: patterns(&document.first_stage, |base| &base.first_stage)?,
        experts: patterns(&document.experts, |base| &base.experts)?,
        layers,
        towers,
        rules: {
            rules.extend(base.map(|base| base.rules).unwrap_or_default());
            rules
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_families_are_read() {
        let families = Families::built_in().unwrap();
        for name in families.names() {
            families.family(name).unwrap();
        }
        for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
            let family = families.of(&[model_type.to_owned()]).unwrap();
            assert!(family.complete && !family.fallback);
            let (_, glob, rule) = family.rules_for("model.layers.*.self_attn.k_proj").next().unwrap();
            assert_eq!(glob, "model.layers.*.self_attn.{k,v}_proj");
            assert_eq!(rule.text, "column [kv heads, hidden]");
            assert!(family.is_in_layers("model.layers.*.mlp") && !family.is_in_layers("model.norm"));
        }
        let norm = |family: &str| {
            families.family(family).unwrap().rules_for("model.layers.*.self_attn.q_norm").next().is_some()
        };
        assert!(norm("qwen3") && !norm("llama"));
        assert!(families.of(&["unknown".to_owned()]).unwrap().fallback);
    }

    #[test]
    fn no_model_type_has_two_families() {
        let families = Families::built_in().unwrap();
        let mut types: Vec<&str> = families.model_types().collect();
        types.sort_unstable();
        assert!(types.windows(2).all(|pair| pair[0] != pair[1]), "{types:?}");
    }

    #[test]
    fn an_experts_number_is_found_among_the_numbers_of_a_name() {
        let family = Families::built_in().unwrap().family(FALLBACK).unwrap();
        assert_eq!(family.expert_number("model.layers.*.mlp.experts.*.up_proj"), Some(1));
        assert_eq!(family.expert_number("model.layers.*.mlp.shared_experts.up_proj"), None);
        assert_eq!(family.expert_number("model.layers.*.mlp.experts.gate_up_proj"), None);
    }

    #[test]
    fn what_is_wrong_with_a_family_file_is_named() {
        let head = "family: x\nmodel_types: [x]\nlayers: [l]\n";
        let cases = [
            (format!("{head}rules:\n  a.b: colum [hidden]\n"), "rule `colum [hidden]`: `colum` is no role"),
            (format!("{head}rules:\n  a.b: colum [hidden]\n"), "line 5"),
            (
                format!("{head}rules:\n  a.b: column [hiden]\n"),
                "`a.b`: rule `column [hiden]`: `hiden` is no dimension",
            ),
            (format!("{head}rules:\n  a: row\n  a: row\n"), "at least 2 dimensions"),
            (format!("{head}rules:\n  a: replicated\n  a: replicated\n"), "repeated key `a`"),
            (format!("{head}rules:\n  'a[': replicated\n"), "`a[` is no glob"),
            (format!("{head}role: x\n"), "line 4"),
            (format!("{head}extends: y\n"), "extends `y`"),
            (format!("{head}extends: x\n"), "extends `x`"),
            (format!("{head}dimensions: {{ sizes: {{ a: 1 + }} }}\n"), "the formula `1 +` of `a`"),
            ("family: x\nmodel_types: [x]\n".to_owned(), "`layers` is missing"),
        ];
        for (text, expected) in cases {
            let words = ("words.yaml", "sizes: { hidden: hidden_size }");
            let error = Families::read(words, &[("x.yaml", &text)])
                .and_then(|families| families.family("x"))
                .unwrap_err()
                .to_string();
            assert!(error.starts_with("x.yaml: ") && error.contains(expected), "{error}");
        }
    }
}
