//! Whether a rule fits a module: its words against the module's logical sizes.

use super::{
    role::{Role, StageRule},
    rule::{Rule, Word},
};
use crate::{
    graph::Module,
    model::{ConfigError, Dimension, Keeps, Measures},
    partition::Logical,
    quantisation::{Orientation, Quantisation, QuantisationError, Stored, stored},
};

/// What was found out about a module.
#[derive(Debug, Clone)]
pub(super) struct Fitted {
    pub(super) role: Role,
    pub(super) stored: Stored,
    /// The dimension that is cut, and the segments that tile it.
    pub(super) split: Option<(Logical, Vec<Dimension>)>,
    /// The dimensions because of which its layer keeps something of the tokens it has seen.
    pub(super) kept: Vec<Dimension>,
    /// The stage that the rule names, if it does.
    pub(super) stage: Option<StageRule>,
    pub(super) reason: String,
    /// What a person should know of it.
    pub(super) warning: Option<String>,
}

/// Why a rule does not fit a module.
#[derive(Debug)]
pub(super) enum Misfit {
    /// The configuration has no size for a word of the rule.
    Unknown(ConfigError),
    /// The sizes differ.
    Sizes { tensor: String, found: Vec<u64>, expected: Vec<u64>, explained: String },
    /// The tensors do not go together.
    Quantisation(QuantisationError),
}

impl From<ConfigError> for Misfit {
    fn from(error: ConfigError) -> Self {
        Self::Unknown(error)
    }
}

/// Fits `rule` to `module`, whose dimensions `measures` knows.
pub(super) fn fit(
    module: &Module,
    rule: &Rule,
    measures: Measures<'_>,
    declared: Option<&Quantisation>,
    reason: String,
) -> Result<Fitted, Misfit> {
    let orientation = Orientation { experts: rule.experts, transposed: rule.transposed };
    let stored = match stored(module, declared, orientation) {
        // Of what is held whole whatever its shape, nothing need be understood.
        Err(_) if rule.role == Role::Replicated && rule.dimensions.is_empty() => Stored::whole(module, None),
        read => read.map_err(Misfit::Quantisation)?,
    };
    let fitted = |split, stored: Stored, kept| Fitted {
        role: rule.role,
        split,
        kept,
        stage: rule.stage,
        reason,
        warning: None,
        stored,
    };
    if let Some(why) = &stored.uncuttable {
        let warning = (rule.role != Role::Replicated).then(|| format!("is replicated: {why}"));
        let whole = fitted(None, stored, Vec::new());
        return Ok(Fitted { role: Role::Replicated, warning, ..whole });
    }
    // A module that has but a bias, or whose weight is one number for each feature, has only the first dimension.
    let sizes: Vec<u64> =
        [stored.out].into_iter().chain(stored.input).chain(stored.rest.iter().copied()).collect();
    let vector = sizes.len() == 1;
    let dimensions =
        if vector { &rule.dimensions[..rule.dimensions.len().min(1)] } else { &rule.dimensions[..] };
    let mut resolved = Vec::with_capacity(dimensions.len());
    for (place, terms) in dimensions.iter().enumerate() {
        resolved.push(resolve(terms, sizes.get(place).copied(), measures)?);
    }
    let expected: Vec<u64> =
        resolved.iter().map(|terms| terms.iter().map(Dimension::len).fold(0, u64::saturating_add)).collect();
    let experts = if rule.experts { measures.size("experts")? } else { None };
    if !rule.dimensions.is_empty() && (expected != sizes || (experts.is_some() && experts != stored.experts))
    {
        let mut words: Vec<String> = Vec::new();
        for dimension in resolved.iter().flatten().filter(|dimension| dimension.name != "_") {
            let text = dimension.words();
            if !words.contains(&text) {
                words.push(text);
            }
        }
        words.extend(experts.map(|experts| format!("{experts} experts")));
        let with_experts = |sizes: Vec<u64>, experts: Option<u64>| experts.into_iter().chain(sizes).collect();
        return Err(Misfit::Sizes {
            tensor: module.parameters.first().map_or(module.name.clone(), |first| first.collapsed.clone()),
            found: with_experts(sizes, stored.experts.filter(|_| rule.experts)),
            expected: with_experts(expected, experts),
            explained: words.join(", "),
        });
    }
    // What a column-parallel matrix gives for each token: keys, values, what heads make states of.
    let keeps = |dimension: &&Dimension| dimension.keeps != Keeps::default();
    let of_outputs = resolved.first().filter(|_| rule.role == Role::ColumnParallel && !vector);
    let kept: Vec<Dimension> = of_outputs.into_iter().flatten().filter(keeps).cloned().collect();
    let split = match rule.split() {
        // A vector beside a row-parallel matrix follows its outputs, which are not cut.
        Some((Logical::In, _)) if vector => Some((Logical::In, Vec::new())),
        Some((logical, place)) => Some((logical, std::mem::take(&mut resolved[place]))),
        None => None,
    };
    if let Some((logical, dimensions)) = &split
        && !dimensions.is_empty()
        && !stored.storages.iter().flatten().any(|storage| storage.has(*logical))
    {
        let warning = Some("is replicated: how it is stored is not known".to_owned());
        return Ok(Fitted { role: Role::Replicated, warning, ..fitted(None, stored, kept) });
    }
    Ok(fitted(split, stored, kept))
}

/// The dimensions that `terms` stand for in a dimension of `size` elements.
fn resolve(
    terms: &[super::rule::Term],
    size: Option<u64>,
    measures: Measures<'_>,
) -> Result<Vec<Dimension>, ConfigError> {
    let mut dimensions = Vec::with_capacity(terms.len());
    let mut open = Vec::new();
    for term in terms {
        dimensions.push(match &term.word {
            Word::Named(name) => {
                let dimension = measures.dimension(name)?.ok_or_else(|| measures.missing(name))?;
                let unit = dimension.unit.saturating_mul(term.times);
                Dimension { unit, ..dimension }
            }
            Word::Any | Word::Features => {
                open.push(dimensions.len());
                Dimension::of_any_size("_", 0, 1)
            }
        });
    }
    // What has no size of its own shares what is left.
    let known: u64 = dimensions.iter().map(Dimension::len).fold(0, u64::saturating_add);
    let pieces: u64 = open.iter().map(|&place| terms[place].times).sum();
    let left = size.unwrap_or(0).saturating_sub(known);
    for place in open {
        let times = terms[place].times;
        // One more than fits where it does not come out even, so that it is found not to fit.
        let count = (left.div_ceil(pieces)).max(1);
        let name = if terms[place].word == Word::Any { "_" } else { "features" };
        dimensions[place] = Dimension::of_any_size(name, count, times);
    }
    Ok(dimensions)
}
