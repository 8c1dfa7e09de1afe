//! Families: which rules apply to the modules of a model type.

use super::rule::Rule;
use crate::{
    quote::quote,
    unique_map::UniqueMap,
    yaml::{self, YamlError},
};
use globset::{GlobBuilder, GlobMatcher};
use serde::Deserialize;

/// The families that come with the planner.
const BUILT_IN: [(&str, &str); 4] = [
    ("llama.yaml", include_str!("../../families/llama.yaml")),
    ("mistral.yaml", include_str!("../../families/mistral.yaml")),
    ("qwen2.yaml", include_str!("../../families/qwen2.yaml")),
    ("qwen3.yaml", include_str!("../../families/qwen3.yaml")),
];

/// A family's rules, its own first and then those it extends.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: String,
    /// The `model_type`s it plans.
    pub model_types: Vec<String>,
    /// The name before the layer number: `model.layers`.
    pub layers: String,
    rules: Vec<(GlobMatcher, String, Rule)>,
}

/// All known families.
#[derive(Debug)]
pub struct Families(Vec<Family>);

/// A family file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct FamilyError {
    file: String,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    family: String,
    model_types: Vec<String>,
    extends: Option<String>,
    layers: Option<String>,
    rules: Option<UniqueMap<String>>,
}

impl Families {
    /// The families that come with the planner.
    ///
    /// # Errors
    /// [`FamilyError`] when one of the files is damaged; a test reads them all.
    pub fn built_in() -> Result<Self, FamilyError> {
        Self::read(&BUILT_IN)
    }

    /// Reads family files, given as name and text. A family may extend one that stands before it.
    ///
    /// # Errors
    /// [`FamilyError`] names the file, and the rule or the place.
    pub fn read(files: &[(&str, &str)]) -> Result<Self, FamilyError> {
        let mut families: Vec<Family> = Vec::new();
        for (file, text) in files {
            let family = read_one(text, &families)
                .map_err(|reason| FamilyError { file: (*file).to_owned(), reason })?;
            families.push(family);
        }
        Ok(Self(families))
    }

    /// The family that plans `model_type`.
    pub fn of(&self, model_type: &str) -> Option<&Family> {
        self.0.iter().find(|family| family.model_types.iter().any(|known| known == model_type))
    }

    /// Every model type that has a family.
    pub fn model_types(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|family| family.model_types.iter().map(String::as_str))
    }
}

impl Family {
    /// The first rule that matches the collapsed name `module`, with its place among the rules and its glob.
    pub fn rule(&self, module: &str) -> Option<(usize, &str, &Rule)> {
        let path = as_path(module);
        self.rules
            .iter()
            .enumerate()
            .find(|(_, (glob, _, _))| glob.is_match(&path))
            .map(|(place, (_, text, rule))| (place, text.as_str(), rule))
    }

    /// All rules that can apply, with their places and globs.
    pub fn rules(&self) -> impl Iterator<Item = (usize, &str, &Rule)> {
        self.rules.iter().enumerate().map(|(place, (_, text, rule))| (place, text.as_str(), rule))
    }

    /// Whether the collapsed name `module` lies in a layer.
    pub fn is_in_layers(&self, module: &str) -> bool {
        module.strip_prefix(self.layers.as_str()).is_some_and(|rest| rest.starts_with(".*.") || rest == ".*")
    }
}

fn read_one(text: &str, known: &[Family]) -> Result<Family, String> {
    let document: Document = yaml::from_str(text).map_err(|error: YamlError| error.to_string())?;
    let base = match &document.extends {
        None => None,
        Some(name) => Some(
            known
                .iter()
                .find(|family| family.name == *name)
                .ok_or_else(|| format!("extends {}, which is not known", quote(name)))?,
        ),
    };
    let UniqueMap(written) = document.rules.unwrap_or(UniqueMap(Vec::new()));
    let mut rules = Vec::with_capacity(written.len());
    for (glob, rule) in written {
        let matcher = GlobBuilder::new(&as_path(&glob))
            .literal_separator(true)
            .build()
            .map_err(|error| format!("{} is no glob: {}", quote(&glob), error.kind()))?
            .compile_matcher();
        let rule = rule.parse().map_err(|error| format!("{}: {error}", quote(&glob)))?;
        rules.push((matcher, glob, rule));
    }
    if let Some(base) = base {
        rules.extend(base.rules.iter().cloned());
    }
    Ok(Family {
        name: document.family,
        model_types: document.model_types,
        layers: document
            .layers
            .or_else(|| base.map(|base| base.layers.clone()))
            .ok_or("`layers` is missing: the name before the layer number")?,
        rules,
    })
}

/// Glob libraries separate by `/`, module names by `.`.
fn as_path(name: &str) -> String {
    name.replace('.', "/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_families_are_read() {
        let families = Families::built_in().unwrap();
        for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
            let family = families.of(model_type).unwrap();
            let (_, glob, rule) = family.rule("model.layers.*.self_attn.k_proj").unwrap();
            assert_eq!(glob, "model.layers.*.self_attn.{k,v}_proj");
            assert_eq!(rule.text, "column [kv heads, hidden]");
            assert!(family.is_in_layers("model.layers.*.mlp") && !family.is_in_layers("model.norm"));
        }
        assert!(families.of("qwen3").unwrap().rule("model.layers.*.self_attn.q_norm").is_some());
        assert!(families.of("llama").unwrap().rule("model.layers.*.self_attn.q_norm").is_none());
    }

    #[test]
    fn what_is_wrong_with_a_family_file_is_named() {
        let head = "family: x\nmodel_types: [x]\nlayers: l\n";
        let cases = [
            (format!("{head}rules:\n  a.b: colum [hidden]\n"), "`a.b`: rule `colum [hidden]`"),
            (format!("{head}rules:\n  a: row\n  a: row\n"), "repeated key `a`"),
            (format!("{head}rules:\n  'a[': replicated\n"), "`a[` is no glob"),
            (format!("{head}role: x\n"), "line 4"),
            (format!("{head}extends: y\n"), "extends `y`"),
            ("family: x\nmodel_types: [x]\n".to_owned(), "`layers` is missing"),
        ];
        for (text, expected) in cases {
            let error = Families::read(&[("x.yaml", &text)]).unwrap_err().to_string();
            assert!(error.starts_with("x.yaml: ") && error.contains(expected), "{error}");
        }
    }
}
