//! What is assumed, in words: each figure with the comment that stands above it in `planner/assumptions.yaml`, so that its source
//! is told in one place.

use super::Assumptions;
use std::collections::BTreeMap;

/// Figures that one comment explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explained {
    /// What they are, and their source.
    pub about: String,
    /// The figures.
    pub figures: Vec<Figure>,
}

/// One figure that is assumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figure {
    /// `memory.runtime`.
    pub key: String,
    /// `500 MiB`.
    pub value: String,
    /// What comes with the planner, where that is another.
    pub built_in: Option<String>,
}

impl Assumptions {
    /// Each figure, with what it is and where it comes from.
    ///
    /// # Errors
    /// None that is known: all of it is numbers, and the comments come with the planner.
    pub fn explained(&self) -> Result<Vec<Explained>, String> {
        let built_in = Self::built_in().map_err(|error| error.to_string())?;
        let (own, usual) = (figures(&self.to_yaml()?), figures(&built_in.to_yaml()?));
        let mut all: Vec<Explained> = Vec::new();
        for (about, key) in comments(include_str!("../../assumptions.yaml")) {
            let Some(value) = own.get(&key).cloned() else { continue };
            let built_in = usual.get(&key).filter(|usual| **usual != value).cloned();
            let figure = Figure { key, value, built_in };
            match all.last_mut().filter(|last| last.about == about) {
                Some(last) => last.figures.push(figure),
                None => all.push(Explained { about, figures: vec![figure] }),
            }
        }
        Ok(all)
    }
}

/// The keys of the document, each with the comment above it.
fn comments(text: &str) -> Vec<(String, String)> {
    let (mut section, mut about, mut found) = ("", String::new(), Vec::new());
    let mut is_new = true;
    for line in text.lines() {
        match (line.trim_start().strip_prefix("# "), line.split_once(':')) {
            (Some(words), _) if is_new => (about, is_new) = (words.to_owned(), false),
            (Some(words), _) => about = format!("{about} {words}"),
            (None, Some((key, ""))) => (section, is_new) = (key, true),
            (None, Some((key, _))) => {
                found.push((about.clone(), format!("{section}.{}", key.trim())));
                is_new = true;
            }
            (None, None) => {}
        }
    }
    found
}

/// The values of the document by their keys.
fn figures(yaml: &str) -> BTreeMap<String, String> {
    let mut section = "";
    let mut found = BTreeMap::new();
    for (key, value) in yaml.lines().filter_map(|line| line.split_once(':')) {
        match value.trim() {
            "" => section = key,
            value => drop(found.insert(format!("{section}.{}", key.trim()), value.to_owned())),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_explained_once() {
        let built_in = Assumptions::built_in().unwrap();
        let explained = built_in.explained().unwrap();
        let mut keys: Vec<&str> =
            explained.iter().flat_map(|one| &one.figures).map(|figure| figure.key.as_str()).collect();
        keys.sort_unstable();
        let all = figures(&built_in.to_yaml().unwrap());
        assert_eq!(keys, all.keys().map(String::as_str).collect::<Vec<_>>());
        assert!(explained.iter().all(|one| one.about.len() > 20), "{explained:?}");
        let block = &explained[0];
        assert!(block.about.starts_with("Tokens of a block"), "{}", block.about);
        assert_eq!(
            (block.figures[0].key.as_str(), block.figures[0].value.as_str()),
            ("memory.block_tokens", "16")
        );
    }

    #[test]
    fn what_is_assumed_otherwise_says_so() {
        let mut other = Assumptions::built_in().unwrap();
        other.memory.block_tokens = 32;
        let explained = other.explained().unwrap();
        let changed: Vec<&Figure> =
            explained.iter().flat_map(|one| &one.figures).filter(|one| one.built_in.is_some()).collect();
        assert_eq!(changed.len(), 1);
        assert_eq!((changed[0].value.as_str(), changed[0].built_in.as_deref()), ("32", Some("16")));
    }
}
