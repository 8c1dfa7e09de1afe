//! One rule of a family file: `column [query heads, hidden]`.
//!
//! ```text
//! rule  = role [ "[" dims "]" ] [ ", first stage" | ", last stage" ]
//! dims  = dim [ ", " dim ]            the module's logical matrix [out, in]; one dim for a vector
//! dim   = term { " + " term }         a fused module is several segments, in their stored order
//! role  = "column" | "row" | "embedding" | "head" | "replicated"
//! term  = "hidden" | "intermediate" | "query heads" | "kv heads" | "head size" | "vocabulary"
//! ```

use super::role::{Role, StageRule};
use crate::{model::Dimension, quote::quote};
use std::str::FromStr;

/// What a family says about the modules that a glob matches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What the modules are for.
    pub role: Role,
    /// The logical matrix, `[out, in]` or `[out]`: each dimension as the segments it is made of. Empty: any shape.
    pub dimensions: Vec<Vec<Dimension>>,
    /// The stage it names, if it does.
    pub stage: Option<StageRule>,
    /// The rule as it is written.
    pub text: String,
}

/// A text that is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rule {}: {reason}", quote(text))]
pub struct RuleParseError {
    text: String,
    reason: String,
}

impl FromStr for Rule {
    type Err = RuleParseError;

    fn from_str(text: &str) -> Result<Self, RuleParseError> {
        parse(text).map_err(|reason| RuleParseError { text: text.to_owned(), reason })
    }
}

fn parse(text: &str) -> Result<Rule, String> {
    let (text_before_stage, stage) = if let Some(rest) = text.strip_suffix(", first stage") {
        (rest, Some(StageRule::First))
    } else if let Some(rest) = text.strip_suffix(", last stage") {
        (rest, Some(StageRule::Last))
    } else {
        (text, None)
    };
    let (word, dimensions) = match text_before_stage.split_once('[') {
        None => (text_before_stage, Vec::new()),
        Some((word, rest)) => {
            let inner = rest.strip_suffix(']').ok_or("the bracket is not closed")?;
            let dimensions = inner
                .split(',')
                .map(|dim| dim.split('+').map(|term| dimension(term.trim())).collect())
                .collect::<Result<Vec<Vec<_>>, String>>()?;
            (word, dimensions)
        }
    };
    let word = word.trim();
    let role =
        Role::WORDS.iter().find(|(known, _)| *known == word).map(|&(_, role)| role).ok_or_else(|| {
            let known: Vec<&str> = Role::WORDS.iter().map(|(word, _)| *word).collect();
            format!("{} is no role; roles are {}", quote(word), known.join(", "))
        })?;
    let needed = match role {
        Role::Replicated => 0..=2,
        Role::ColumnParallel => 1..=2,
        Role::RowParallel | Role::VocabParallelEmbedding | Role::VocabParallelHead => 2..=2,
    };
    if !needed.contains(&dimensions.len()) {
        return Err(format!("a {role} module has {} to {} dimensions", needed.start(), needed.end()));
    }
    Ok(Rule { role, dimensions, stage, text: text.to_owned() })
}

fn dimension(word: &str) -> Result<Dimension, String> {
    Dimension::ALL.into_iter().find(|dimension| dimension.words() == word).ok_or_else(|| {
        let known: Vec<&str> = Dimension::ALL.iter().map(|dimension| dimension.words()).collect();
        format!("{} is no dimension; dimensions are {}", quote(word), known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        let rule: Rule = "column [query heads + kv heads + kv heads, hidden]".parse().unwrap();
        assert_eq!(rule.role, Role::ColumnParallel);
        let fused = vec![Dimension::QueryHeads, Dimension::KvHeads, Dimension::KvHeads];
        assert_eq!(rule.dimensions, [fused, vec![Dimension::Hidden]]);
        let norm: Rule = "replicated [hidden], last stage".parse().unwrap();
        assert_eq!(norm.stage, Some(StageRule::Last));
        assert_eq!("replicated".parse::<Rule>().unwrap().dimensions.len(), 0);
    }

    #[test]
    fn what_is_wrong_with_a_rule_is_said() {
        for (text, expected) in [
            ("columns [hidden]", "`columns` is no role; roles are column, row"),
            ("column [heads, hidden]", "`heads` is no dimension; dimensions are hidden"),
            ("row [hidden]", "a row-parallel module has 2 to 2 dimensions"),
            ("column", "a column-parallel module has 1 to 2 dimensions"),
            ("column [hidden", "the bracket is not closed"),
        ] {
            let error = text.parse::<Rule>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
