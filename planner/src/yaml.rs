//! Reading and writing YAML: the only module that names `serde_yaml`, so that replacing it touches one file.
//!
//! `serde_yaml` bounds the depth of nesting and the expansion of aliases itself; callers bound the size of the text.

use crate::nearest::nearest;
use serde::{
    Serialize,
    de::{DeserializeOwned, Visitor},
};
use std::{fmt, marker::PhantomData, str::FromStr};

/// Why a text is not the YAML that was expected, with the place where the parser noticed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub(crate) struct YamlError {
    /// 1-based; 0 when the parser does not know.
    pub(crate) line: usize,
    /// 1-based; 0 when the parser does not know.
    pub(crate) column: usize,
    /// What is wrong, without the place.
    pub(crate) message: String,
}

impl From<serde_yaml::Error> for YamlError {
    fn from(error: serde_yaml::Error) -> Self {
        let (line, column) = error.location().map_or((0, 0), |place| (place.line(), place.column()));
        let text = error.to_string();
        // The library appends the place to its text; it stands in fields here.
        let message = match text.rfind(" at line ") {
            Some(end) => text[..end].to_owned(),
            None => text,
        };
        Self { line, column, message: shortened(&message) }
    }
}

impl YamlError {
    /// The word that was probably meant, where the parser names an unknown word and those it expected.
    pub(crate) fn nearest_word(&self) -> Option<String> {
        let (_, rest) = self
            .message
            .split_once("unknown field `")
            .or_else(|| self.message.split_once("unknown variant `"))?;
        let (word, expected) = rest.split_once("`, expected ")?;
        nearest(word, expected.split('`').skip(1).step_by(2))
    }
}

/// Reads a text that is parsed further, so that what is wrong with it is found at its own place: an error after the text was
/// taken out of the document would have the place of what it stands in.
pub(crate) struct Parsed<T> {
    what: &'static str,
    parsed: PhantomData<T>,
}

impl<T> Parsed<T> {
    /// `what` it is, for other things in its place.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, parsed: PhantomData }
    }
}

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Parsed<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", self.what)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

/// A message in which a text of any length may stand.
fn shortened(message: &str) -> String {
    const LONGEST: usize = 400;
    match message.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message.to_owned(),
    }
}

/// Parses `text` as one YAML document of type `T`.
pub(crate) fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_yaml::from_str(text).map_err(YamlError::from)
}

/// Writes `value` as YAML, in the order of its fields: the same value gives the same text.
pub(crate) fn to_string<T: Serialize>(value: &T) -> Result<String, YamlError> {
    serde_yaml::to_string(value).map_err(YamlError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_place() {
        let error = from_str::<Vec<u32>>("- 1\n- two\n").unwrap_err();
        assert_eq!((error.line, error.column), (2, 3));
        assert!(!error.message.contains("at line"), "{error}");
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let previous = format!("*a{}, ", level - 1).repeat(9);
            text.push_str(&format!("a{level}: &a{level} [{previous}]\n"));
        }
        type Nested = std::collections::BTreeMap<String, serde_yaml::Value>;
        assert!(from_str::<Nested>(&text).is_err());
    }
}
