//! The user's own rules: a YAML file of globs and rules, which win over those of families.
//!
//! ```yaml
//! rules:
//!   "visual.**": replicated
//!   model.layers.*.mlp.up_proj: column [features, hidden]
//! ```

use super::{
    family::Pattern,
    rule::{Rule, RuleParseError},
};
use crate::{
    graph::Module,
    model::{Vocabulary, VocabularyDocument},
    quote::quote,
    unique_map::UniqueMap,
    yaml::{self, YamlError},
};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Longest rules file that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Rules of the user's own, in the order in which they are written.
#[derive(Debug, Default)]
pub struct UserRules {
    file: PathBuf,
    rules: Vec<UserRule>,
    words: VocabularyDocument,
}

#[derive(Debug)]
struct UserRule {
    pattern: Pattern,
    rule: Rule,
    /// Where it stands in the file; 0 where it was given otherwise.
    line: usize,
}

/// A rules file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", file.display())]
pub struct UserRulesError {
    file: PathBuf,
    reason: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    dimensions: VocabularyDocument,
    rules: UniqueMap<Rule>,
}

impl UserRules {
    /// Reads the rules file at `path`.
    ///
    /// # Errors
    /// [`UserRulesError`] names the file, with line and column where they are known.
    pub fn read(path: &Path) -> Result<Self, UserRulesError> {
        let failed = |reason: String| UserRulesError { file: path.to_owned(), reason };
        let meta = std::fs::metadata(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        if !meta.is_file() || meta.len() > MAX_BYTES {
            return Err(failed(format!("is no file, or has more than {MAX_BYTES} bytes")));
        }
        let text =
            std::fs::read_to_string(path).map_err(|error| failed(format!("cannot be read: {error}")))?;
        Self::parse(&text, path)
    }

    /// Reads rules from `text`, which stands in `file`.
    ///
    /// # Errors
    /// As [`UserRules::read`].
    pub fn parse(text: &str, file: &Path) -> Result<Self, UserRulesError> {
        let failed = |reason: String| UserRulesError { file: file.to_owned(), reason };
        let document: Document =
            yaml::from_str(text).map_err(|error: YamlError| failed(error.to_string()))?;
        let UniqueMap(written) = document.rules;
        let rules = written
            .into_iter()
            .map(|(glob, rule)| {
                let line = line_of(text, &glob);
                let pattern =
                    Pattern::new(&glob).map_err(|reason| failed(format!("line {line}: {reason}")))?;
                Ok(UserRule { pattern, rule, line })
            })
            .collect::<Result<_, UserRulesError>>()?;
        Ok(Self { file: file.to_owned(), rules, words: document.dimensions })
    }

    /// The same rules after those that hold whole whatever `globs` match.
    ///
    /// # Errors
    /// [`UserRulesError`] when one is no glob.
    pub fn with_replicated(mut self, globs: &[String]) -> Result<Self, UserRulesError> {
        let failed = |reason: String| UserRulesError { file: PathBuf::from("--replicate"), reason };
        let rule: Rule = "replicated".parse().map_err(|error: RuleParseError| failed(error.to_string()))?;
        let first = globs.iter().map(|glob| {
            let pattern = Pattern::new(glob).map_err(failed)?;
            Ok(UserRule { pattern, rule: rule.clone(), line: 0 })
        });
        self.rules.splice(0..0, first.collect::<Result<Vec<_>, UserRulesError>>()?);
        Ok(self)
    }

    /// The words of `vocabulary` and the user's own.
    ///
    /// # Errors
    /// [`UserRulesError`] when a formula is none, or a rule names a word that does not exist.
    pub fn vocabulary(&self, vocabulary: &Vocabulary) -> Result<Vocabulary, UserRulesError> {
        let failed = |reason: String| UserRulesError { file: self.file.clone(), reason };
        let extended = vocabulary.extended(&self.words).map_err(failed)?;
        for UserRule { rule, line, .. } in &self.rules {
            rule.check_words(&extended).map_err(|error| failed(format!("line {line}: {error}")))?;
        }
        Ok(extended)
    }

    /// The first rule that matches the collapsed name `module`, with its place and its glob.
    pub fn rule_for(&self, module: &str) -> Option<(usize, &str, &Rule)> {
        let found = self.rules.iter().enumerate().find(|(_, rule)| rule.pattern.matches(module));
        found.map(|(place, rule)| (place, rule.pattern.text.as_str(), &rule.rule))
    }

    /// Checks that every rule is the one that counts for some of `modules`.
    ///
    /// # Errors
    /// [`UserRulesError`] names the line of a rule that matches nothing, or whose modules another rule already takes.
    pub fn check_used(&self, modules: &[Module]) -> Result<(), UserRulesError> {
        let mut used = vec![false; self.rules.len()];
        for module in modules {
            if let Some((place, _, _)) = self.rule_for(&module.name) {
                used[place] = true;
            }
        }
        let Some((_, unused)) = self.rules.iter().enumerate().find(|(place, _)| !used[*place]) else {
            return Ok(());
        };
        let glob = quote(&unused.pattern.text);
        let taken = modules.iter().find(|module| unused.pattern.matches(&module.name));
        let before = taken.and_then(|module| self.rule_for(&module.name)).map(|(before, _, _)| before);
        let reason = match before {
            Some(before) => {
                let UserRule { pattern, rule, line } = &self.rules[before];
                format!(
                    "{glob} is {} never counts: every module it matches is already {} by {}{}",
                    quote(&unused.rule.text),
                    quote(&rule.text),
                    quote(&pattern.text),
                    if *line > 0 { format!(" in line {line}") } else { String::new() },
                )
            }
            None => format!("{glob} matches no module of the checkpoint"),
        };
        Err(match unused.line {
            0 => UserRulesError { file: PathBuf::from("--replicate"), reason },
            line => UserRulesError { file: self.file.clone(), reason: format!("line {line}: {reason}") },
        })
    }
}

impl UserRulesError {
    /// What the reader can do about it.
    pub fn help(&self) -> &'static str {
        "`shardwright inspect` shows the modules' names; rules look like \"model.layers.*.mlp.up_proj\": column [features, _]"
    }
}

/// The line in which the key `glob` stands, counted from 1.
fn line_of(text: &str, glob: &str) -> usize {
    let is_key = |line: &str| {
        let line = line.trim_start();
        let line = line.strip_prefix(['"', '\'']).unwrap_or(line);
        line.strip_prefix(glob).is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(is_key).map_or(0, |line| line + 1)
}
