//! What the words of the rules mean in a configuration.
//!
//! The words and their formulas are data (`families/dimensions.yaml`; a family may add its own): a *size* is a number, a
//! *segmented dimension* is so many pieces of so many elements, dealt to ranks by certain units.

use super::{
    config::{ConfigError, MAX_DIMENSION, Section},
    expression::{Expression, Names},
};
use crate::{quote::quote, unique_map::UniqueMap};
use serde::Deserialize;
use std::{cell::Cell, collections::BTreeMap};

/// How deep the formulas of sizes may lead into each other.
const MAX_DEPTH: u32 = 16;

/// Most formulas that are worked out for one size: formulas that lead into each other twice have no end otherwise.
const MAX_FORMULAS: u32 = 4096;

/// Most elements that a piece keeps: beyond any model, and small enough that products with counts never overflow.
const MAX_KEPT: u64 = 1 << 32;

/// The words and their formulas.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    sizes: BTreeMap<String, Expression>,
    segmented: BTreeMap<String, Segmented>,
}

/// A dimension made of pieces: heads, groups.
#[derive(Debug, Clone)]
struct Segmented {
    count: Expression,
    unit: Expression,
    of: Option<Expression>,
    groups: Option<Expression>,
    keeps: [Option<Expression>; 3],
}

/// The words as a file writes them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VocabularyDocument {
    sizes: Option<UniqueMap<String>>,
    segmented: Option<UniqueMap<SegmentedDocument>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentedDocument {
    count: String,
    unit: String,
    of: Option<String>,
    groups: Option<String>,
    /// What each piece keeps of every token.
    cache: Option<String>,
    /// What all pieces together keep of every token, on each rank that has any of them.
    latent: Option<String>,
    /// What each piece keeps of a sequence, however long it is.
    state: Option<String>,
}

/// A dimension of a model: `count` pieces of `unit` elements, dealt to ranks by `units` units in `groups` groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimension {
    /// The word for it.
    pub name: String,
    /// Pieces. Either a multiple of `units`, or fewer: pieces that units share.
    pub count: u64,
    /// Elements in each.
    pub unit: u64,
    /// What is dealt. Dimensions of one block with the same units are dealt alike.
    pub units: u64,
    /// Groups of units that ranks share only when there are fewer of them than ranks.
    pub groups: u64,
    /// What a layer keeps of the tokens it has seen because it has this dimension.
    pub keeps: Keeps,
}

/// Elements that a layer keeps of the tokens it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeps {
    /// For each piece, of every token: the key or the value of a head.
    pub cache: u64,
    /// For all pieces together, of every token: what the keys and values of all heads are made from again.
    pub latent: u64,
    /// For each piece, of a sequence however long: the state of a head.
    pub state: u64,
}

impl Dimension {
    /// A dimension that no configuration names: `count` pieces of `unit` elements, dealt one by one.
    pub fn of_any_size(name: &str, count: u64, unit: u64) -> Self {
        Self { name: name.to_owned(), count, unit, units: count, groups: count, keeps: Keeps::default() }
    }

    /// Elements in all.
    pub fn len(&self) -> u64 {
        self.count.saturating_mul(self.unit)
    }

    /// Whether it has no elements: never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `8 kv heads × 128`, `hidden 8192`.
    pub fn words(&self) -> String {
        match (self.unit, self.count) {
            (1, count) => format!("{} {count}", self.name),
            (unit, count) => format!("{count} {} × {unit}", self.name),
        }
    }
}

impl Vocabulary {
    /// The vocabulary of `document`, added to this one; what the document defines anew wins.
    pub(crate) fn extended(&self, document: &VocabularyDocument) -> Result<Self, String> {
        let mut all = self.clone();
        let parse = |name: &str, text: &str| {
            let parsed: Result<Expression, String> = text.parse();
            parsed.map_err(|reason| format!("the formula {} of {}: {reason}", quote(text), quote(name)))
        };
        for (name, text) in document.sizes.iter().flat_map(|UniqueMap(sizes)| sizes) {
            all.sizes.insert(name.clone(), parse(name, text)?);
        }
        for (name, text) in document.segmented.iter().flat_map(|UniqueMap(segmented)| segmented) {
            let optional = |text: &Option<String>| text.as_ref().map(|text| parse(name, text)).transpose();
            let segmented = Segmented {
                count: parse(name, &text.count)?,
                unit: parse(name, &text.unit)?,
                of: optional(&text.of)?,
                groups: optional(&text.groups)?,
                keeps: [optional(&text.cache)?, optional(&text.latent)?, optional(&text.state)?],
            };
            all.segmented.insert(name.clone(), segmented);
        }
        Ok(all)
    }

    /// Whether `name` is a word of it.
    pub fn knows(&self, name: &str) -> bool {
        self.sizes.contains_key(name) || self.segmented.contains_key(name)
    }

    /// All words, sorted.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        let all: std::collections::BTreeSet<&str> =
            self.sizes.keys().chain(self.segmented.keys()).map(String::as_str).collect();
        all.into_iter()
    }
}

/// A vocabulary in the light of one section of a configuration.
#[derive(Debug, Clone, Copy)]
pub struct Measures<'a> {
    vocabulary: &'a Vocabulary,
    section: Section<'a>,
}

impl<'a> Measures<'a> {
    /// What the words of `vocabulary` mean in `section`.
    pub fn new(vocabulary: &'a Vocabulary, section: Section<'a>) -> Self {
        Self { vocabulary, section }
    }

    /// The size called `name`; `None` when the configuration does not say.
    ///
    /// # Errors
    /// [`ConfigError`] when an entry that it depends on is no size.
    pub fn size(self, name: &str) -> Result<Option<u64>, ConfigError> {
        match Scope::of(self, &Cell::new(MAX_FORMULAS)).size(name)? {
            Some(size) if size > MAX_DIMENSION => {
                Err(self.section.bad_value(self.first_key(name), &size.into()))
            }
            Some(0) => Err(self.section.bad_value(self.first_key(name), &0.into())),
            size => Ok(size),
        }
    }

    /// The size called `name`, where 0 is as good as nothing.
    ///
    /// # Errors
    /// [`ConfigError`] when an entry that it depends on is no size.
    pub fn size_if_any(self, name: &str) -> Result<Option<u64>, ConfigError> {
        let size = Scope::of(self, &Cell::new(MAX_FORMULAS)).size(name)?;
        Ok(size.filter(|&size| size > 0))
    }

    /// The dimension called `name`; `None` when the configuration does not say.
    ///
    /// # Errors
    /// [`ConfigError`] when an entry that it depends on is no size, or entries contradict each other.
    pub fn dimension(self, name: &str) -> Result<Option<Dimension>, ConfigError> {
        let Some(form) = self.vocabulary.segmented.get(name) else {
            let size = self.size(name)?;
            return Ok(size.map(|size| Dimension {
                name: name.to_owned(),
                count: size,
                unit: 1,
                units: size,
                groups: size,
                keeps: Keeps::default(),
            }));
        };
        let budget = Cell::new(MAX_FORMULAS);
        let value = |expression: &Expression| expression.value(&Scope::of(self, &budget));
        let (Some(count), Some(unit)) = (value(&form.count)?, value(&form.unit)?) else { return Ok(None) };
        let of = form.of.as_ref().unwrap_or(&form.count);
        let Some(units) = value(of)? else { return Ok(None) };
        let groups = match &form.groups {
            Some(groups) => value(groups)?.unwrap_or(units),
            None => units,
        };
        let sound = [count, unit, units, groups].iter().all(|size| (1..=MAX_DIMENSION).contains(size));
        if !sound || !units.is_multiple_of(groups) || (count > units && !count.is_multiple_of(units)) {
            let reason =
                format!("{count} {name} of {unit} cannot be dealt by {units} units in {groups} groups");
            return Err(self.section.config().contradiction(reason));
        }
        let mut kept = [0; 3];
        for (kept, form) in kept.iter_mut().zip(&form.keeps) {
            // What the configuration does not say is not known to be kept.
            *kept = form.as_ref().map(value).transpose()?.flatten().unwrap_or(0);
        }
        let [cache, latent, state] = kept;
        if kept.iter().any(|&kept| kept > MAX_KEPT) {
            let reason =
                format!("{count} {name} of {unit} would keep {} elements", kept.iter().max().unwrap_or(&0));
            return Err(self.section.config().contradiction(reason));
        }
        let keeps = Keeps { cache, latent, state };
        Ok(Some(Dimension { name: name.to_owned(), count, unit, units, groups, keeps }))
    }

    /// The error for a word that the configuration does not give a size.
    pub fn missing(self, name: &str) -> ConfigError {
        self.section.config().missing(self.first_key(name))
    }

    /// The key that a word's size is looked for under first.
    fn first_key<'b>(self, name: &'b str) -> &'b str
    where
        'a: 'b,
    {
        let mut key = name;
        for _ in 0..MAX_DEPTH {
            let expression = self.vocabulary.sizes.get(key);
            let expression =
                expression.or_else(|| self.vocabulary.segmented.get(key).map(|segmented| &segmented.count));
            match expression.and_then(|expression| expression.names().first().copied()) {
                Some(first) if first != key => key = first,
                _ => break,
            }
        }
        key
    }
}

/// Names inside a formula: other words first, then keys of the configuration.
struct Scope<'a> {
    measures: Measures<'a>,
    depth: u32,
    /// The word whose formula this is: there its name means the key.
    within: Option<&'a str>,
    /// Formulas that may still be worked out.
    budget: &'a Cell<u32>,
}

impl<'a> Scope<'a> {
    fn of(measures: Measures<'a>, budget: &'a Cell<u32>) -> Self {
        Self { measures, depth: MAX_DEPTH, within: None, budget }
    }
}

impl Names for Scope<'_> {
    type Error = ConfigError;

    fn size(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        let Measures { vocabulary, section } = self.measures;
        match vocabulary.sizes.get_key_value(name).filter(|_| self.within != Some(name)) {
            Some((word, expression)) if self.depth > 0 && self.budget.get() > 0 => {
                self.budget.set(self.budget.get() - 1);
                let depth = self.depth - 1;
                expression.value(&Scope { depth, within: Some(word), ..*self })
            }
            Some(_) => Ok(None),
            None => section.number(name),
        }
    }

    fn flag(&self, key: &str) -> bool {
        self.measures.section.flag(key)
    }
}
