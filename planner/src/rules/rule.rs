//! One rule of a family file or a rules file: `column [query heads, hidden]`.
//!
//! ```text
//! rule  = role [ "[" dims "]" ] { ", " note }
//! dims  = dim { ", " dim }            the module's logical matrix [out, in], whatever way round it is stored;
//!                                     one dim for a vector; "experts" before them where one tensor has those of several
//! dim   = term { " + " term }         a fused module is several segments, in their stored order
//! role  = "column" | "row" | "embedding" | "head" | "norm" | "group norm" | "replicated"
//! term  = word [ " * " number ]       a word of `families/dimensions.yaml`; "* 2": each piece holds two, interleaved
//!       | "features" [ " * " number ] whatever size it has; cut alike with every dimension of that size in its block
//!       | "_"                         whatever size it has; never cut
//! note  = "transposed"                stored [in, out]
//!       | "first stage" | "last stage"
//! ```

use super::role::{Role, StageRule};
use crate::{model::Vocabulary, partition::Logical, quote::quote};
use serde::{Deserialize, Deserializer, de::Error};
use std::str::FromStr;

/// What a family or a user says about the modules that a glob matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the modules are for.
    pub role: Role,
    /// The logical matrix, `[out, in]` or `[out]`: each dimension as the segments it is made of. Empty: any shape.
    pub dimensions: Vec<Vec<Term>>,
    /// Whether the outermost stored dimension counts experts.
    pub experts: bool,
    /// Whether the matrix is stored `[in, out]`.
    pub transposed: bool,
    /// The stage it names, if it does.
    pub stage: Option<StageRule>,
    /// The rule as it is written.
    pub text: String,
}

/// A segment of a dimension, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    /// What it is.
    pub word: Word,
    /// How many elements stand for each one of it, side by side.
    pub times: u64,
}

/// The name of a dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// Any size, never cut.
    Any,
    /// Any size, cut alike in its block.
    Features,
    /// A word of the vocabulary.
    Named(String),
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {}: {reason}", quote(text))]
pub struct RuleParseError {
    text: String,
    reason: String,
}

impl Rule {
    /// The logical dimension that the role splits, with its place among [`Rule::dimensions`].
    pub fn split(&self) -> Option<(Logical, usize)> {
        match self.role {
            Role::ColumnParallel
            | Role::VocabParallelEmbedding
            | Role::VocabParallelHead
            | Role::ShardedNorm
            | Role::ShardedGroupNorm => Some((Logical::Out, 0)),
            Role::RowParallel => Some((Logical::In, 1)),
            Role::Replicated => None,
        }
    }

    /// Checks that `vocabulary` has every word of it.
    ///
    /// # Errors
    /// [`RuleParseError`] names the word, and those that there are.
    pub fn check_words(&self, vocabulary: &Vocabulary) -> Result<(), RuleParseError> {
        for term in self.dimensions.iter().flatten() {
            if let Word::Named(name) = &term.word
                && !vocabulary.knows(name)
            {
                let known: Vec<&str> = vocabulary.words().collect();
                let reason = format!("{} is no dimension; dimensions are {}", quote(name), known.join(", "));
                return Err(RuleParseError { text: self.text.clone(), reason });
            }
        }
        Ok(())
    }
}

impl FromStr for Rule {
    type Err = RuleParseError;

    fn from_str(text: &str) -> Result<Self, RuleParseError> {
        parse(text).map_err(|reason| RuleParseError { text: text.to_owned(), reason })
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

fn parse(text: &str) -> Result<Rule, String> {
    let (word, inner, notes) = match text.split_once('[') {
        None => {
            let (word, notes) = text.split_once(',').unwrap_or((text, ""));
            (word, "", notes)
        }
        Some((word, rest)) => {
            let (inner, notes) = rest.split_once(']').ok_or("the bracket is not closed")?;
            (word, inner, notes)
        }
    };
    let mut dimensions = Vec::new();
    if !inner.is_empty() {
        for dim in inner.split(',') {
            dimensions.push(dim.split('+').map(|term| parse_term(term.trim())).collect::<Result<_, _>>()?);
        }
    }
    let experts_first = |first: &Vec<Term>| matches!(&first[..], [Term { word: Word::Named(name), times: 1 }] if name == "experts");
    let experts = dimensions.first().is_some_and(experts_first);
    if experts {
        dimensions.remove(0);
    }
    let word = word.trim();
    let role =
        Role::WORDS.iter().find(|(known, _)| *known == word).map(|&(_, role)| role).ok_or_else(|| {
            let known: Vec<&str> = Role::WORDS.iter().map(|(word, _)| *word).collect();
            format!("{} is no role; roles are {}", quote(word), known.join(", "))
        })?;
    let mut rule = Rule { role, dimensions, experts, transposed: false, stage: None, text: text.to_owned() };
    for note in notes.split(',').map(str::trim).filter(|note| !note.is_empty()) {
        match note {
            "transposed" => rule.transposed = true,
            "first stage" => rule.stage = Some(StageRule::First),
            "last stage" => rule.stage = Some(StageRule::Last),
            _ => {
                let known = "transposed, first stage, last stage";
                return Err(format!("{} is no note; notes are {known}", quote(note)));
            }
        }
    }
    let needed = match role {
        Role::Replicated => 0,
        Role::ColumnParallel | Role::ShardedNorm | Role::ShardedGroupNorm => 1,
        Role::RowParallel | Role::VocabParallelEmbedding | Role::VocabParallelHead => 2,
    };
    if rule.dimensions.len() < needed {
        return Err(format!("a {role} module has at least {needed} dimensions"));
    }
    let split = rule.split().map_or(&[][..], |(_, place)| &rule.dimensions[place]);
    if split.iter().any(|term| term.word == Word::Any) {
        return Err("`_` is never cut, but the role cuts it; write `features`".to_owned());
    }
    Ok(rule)
}

fn parse_term(text: &str) -> Result<Term, String> {
    let (word, times) = match text.split_once('*') {
        None => (text, 1),
        Some((word, times)) => {
            let times = times.trim();
            let number = times.parse().ok().filter(|times| (1..=1024).contains(times));
            (word.trim(), number.ok_or_else(|| format!("{} is not a number from 1 to 1024", quote(times)))?)
        }
    };
    let word = match word {
        "" => return Err("a dimension is missing".to_owned()),
        "_" => Word::Any,
        "features" => Word::Features,
        name => Word::Named(name.to_owned()),
    };
    Ok(Term { word, times })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Term {
        Term { word: Word::Named(name.to_owned()), times: 1 }
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        let rule: Rule = "column [query heads + kv heads + kv heads, hidden]".parse().unwrap();
        assert_eq!(rule.role, Role::ColumnParallel);
        let fused = vec![named("query heads"), named("kv heads"), named("kv heads")];
        assert_eq!(rule.dimensions, [fused, vec![named("hidden")]]);
        let norm: Rule = "replicated [hidden], last stage".parse().unwrap();
        assert_eq!(norm.stage, Some(StageRule::Last));
        assert_eq!("replicated".parse::<Rule>().unwrap().dimensions.len(), 0);
        let fused: Rule = "column [experts, features * 2, _], transposed, first stage".parse().unwrap();
        assert!(fused.experts && fused.transposed && fused.stage == Some(StageRule::First));
        assert_eq!(fused.dimensions[0], [Term { word: Word::Features, times: 2 }]);
        assert_eq!("replicated, first stage".parse::<Rule>().unwrap().stage, Some(StageRule::First));
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        for (text, expected) in [
            ("columns [hidden]", "`columns` is no role; roles are column, row"),
            ("row [hidden]", "a row-parallel module has at least 2 dimensions"),
            ("column", "a column-parallel module has at least 1 dimensions"),
            ("column [hidden", "the bracket is not closed"),
            ("column [hidden], sideways", "`sideways` is no note; notes are transposed"),
            ("column [_]", "write `features`"),
            ("column [hidden * x]", "`x` is not a number"),
            ("column [hidden + ]", "a dimension is missing"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let unknown: Rule = "column [heads of state]".parse().unwrap();
        let error = unknown.check_words(&Vocabulary::default()).unwrap_err().to_string();
        assert!(error.contains("`heads of state` is no dimension; dimensions are"), "{error}");
    }
}
