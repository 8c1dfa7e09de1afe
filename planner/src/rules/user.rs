//! The user's own rules: a YAML file of globs and rules, which win over those of families.
//!
//! ```yaml
//! rules:
//!   "visual.**": replicated
//!   model.layers.*.mlp.up_proj: column [features, hidden]
//! ```

use super::{
    fit::Misfit,
    rule::{Rule, RuleParseError},
};
use crate::{
    glob::Glob,
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
    pattern: Glob,
    rule: Rule,
    origin: Origin,
}

/// Where a rule was written.
#[derive(Debug, Clone, Copy)]
enum Origin {
    /// In this line of the file, counted from 1; 0 where the line is not known.
    File { line: usize },
    /// On the command line.
    Replicate,
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
                    Glob::of_parts(&glob).map_err(|reason| failed(format!("line {line}: {reason}")))?;
                Ok(UserRule { pattern, rule, origin: Origin::File { line } })
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
            let pattern = Glob::of_parts(glob).map_err(failed)?;
            Ok(UserRule { pattern, rule: rule.clone(), origin: Origin::Replicate })
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
        for UserRule { rule, origin, .. } in &self.rules {
            rule.check_words(&extended).map_err(|error| self.failed(*origin, error.to_string()))?;
        }
        Ok(extended)
    }

    /// The first rule that matches the collapsed name `module`, with its place and its glob.
    pub fn rule_for(&self, module: &str) -> Option<(usize, &str, &Rule)> {
        let found = self.rules.iter().enumerate().find(|(_, rule)| rule.pattern.matches(module));
        found.map(|(place, rule)| (place, rule.pattern.text(), &rule.rule))
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
        let glob = quote(unused.pattern.text());
        let taken = modules.iter().find(|module| unused.pattern.matches(&module.name));
        let before = taken.and_then(|module| self.rule_for(&module.name)).map(|(before, _, _)| before);
        let reason = match before {
            Some(before) => {
                let UserRule { pattern, rule, origin } = &self.rules[before];
                format!(
                    "{glob} is {} never counts: every module it matches is already {} by {}{}",
                    quote(&unused.rule.text),
                    quote(&rule.text),
                    quote(pattern.text()),
                    match origin {
                        Origin::File { line } => format!(" in line {line}"),
                        Origin::Replicate => " of --replicate".to_owned(),
                    },
                )
            }
            None => format!("{glob} matches no module of the checkpoint"),
        };
        Err(self.failed(unused.origin, reason))
    }

    /// Says of the rule in `place` that it does not fit a module.
    pub(super) fn misfit(&self, place: usize, module: &str, misfit: Misfit) -> UserRulesError {
        let UserRule { pattern, rule, origin } = &self.rules[place];
        let why = match misfit {
            Misfit::Unknown(error) => error.to_string(),
            Misfit::Quantisation(error) => error.to_string(),
            Misfit::Sizes { found, expected, explained, .. } => {
                let explained = if explained.is_empty() { "the rule".to_owned() } else { explained };
                format!("its matrix is {found:?}, but {explained} makes {expected:?}")
            }
        };
        let (glob, rule) = (quote(pattern.text()), quote(&rule.text));
        self.failed(*origin, format!("{glob} is {rule} does not fit {}: {why}", quote(module)))
    }

    fn failed(&self, origin: Origin, reason: String) -> UserRulesError {
        match origin {
            Origin::Replicate => UserRulesError { file: PathBuf::from("--replicate"), reason },
            Origin::File { line } => {
                UserRulesError { file: self.file.clone(), reason: format!("line {line}: {reason}") }
            }
        }
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
