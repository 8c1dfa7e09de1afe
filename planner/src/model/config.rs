//! Reading `config.json`.

use serde_json::{Map, Value};
use std::{
    collections::HashMap,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The file that describes the model, in the checkpoint's folder.
pub const CONFIG_NAME: &str = "config.json";

/// Longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Largest number a dimension may have: beyond any model, and small enough that products of three never overflow.
pub(super) const MAX_DIMENSION: u64 = 1 << 20;

/// How deep sections are looked for: `thinker_config.text_config`.
const MAX_SECTION_DEPTH: usize = 3;

/// Where a multimodal model's configuration describes its language model.
const TEXT_SECTIONS: [&str; 4] = ["text_config", "llm_config", "language_config", "decoder"];

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is none.
    #[error("{} is missing", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not a JSON object, or too long for one.
    #[error("{} is not the JSON of a model's configuration: {reason}", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        reason: String,
    },
    /// A dimension is not there.
    #[error("{} has no `{key}`", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A dimension is not a number that a model can have.
    #[error("{}: `{key}` is {value}, not a number from 1 to {MAX_DIMENSION}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What stands there, shortened.
        value: String,
    },
    /// Two entries contradict each other.
    #[error("{}: {reason}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which, with their numbers.
        reason: String,
    },
}

impl ConfigError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Missing { .. } => {
                "the plan needs the model's dimensions; fetch config.json into the checkpoint's folder"
            }
            Self::Read { .. } => return None,
            Self::NotJson { .. } => "fetch config.json again",
            Self::MissingKey { .. } | Self::BadValue { .. } | Self::Contradiction { .. } => {
                "config.json is not that of this checkpoint, or it was edited; fetch it again"
            }
        };
        Some(help.to_owned())
    }
}

/// A `config.json`, as it is written.
#[derive(Debug, Clone)]
pub struct Config {
    path: PathBuf,
    top: Map<String, Value>,
    /// Where each section is, by its name: the keys that lead to it.
    sections: HashMap<String, Vec<String>>,
}

/// The part of a configuration that describes one part of the model: its language model, its vision tower.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    config: &'a Config,
    entries: &'a Map<String, Value>,
    /// What is different in one layer.
    of_layer: Option<&'a Map<String, Value>>,
    /// Whether what is not here is looked for at the top.
    falls_back: bool,
}

impl Config {
    /// Reads the configuration at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let top = read_object(path)?;
        let mut sections = HashMap::new();
        find_sections(&top, &mut Vec::new(), &mut sections);
        Ok(Self { path: path.to_owned(), top, sections })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The part that describes the language model: a section of its own in multimodal models, else the whole.
    pub fn text(&self) -> Section<'_> {
        self.section(&TEXT_SECTIONS).unwrap_or(Section {
            config: self,
            entries: &self.top,
            of_layer: None,
            falls_back: false,
        })
    }

    /// The first section with one of these names, at the top or inside another section.
    pub fn section(&self, names: &[impl AsRef<str>]) -> Option<Section<'_>> {
        let found = names.iter().find_map(|name| self.sections.get(name.as_ref()))?;
        let entries = found.iter().try_fold(&self.top, |entries, key| entries.get(key)?.as_object())?;
        let is_text = |name: &str| TEXT_SECTIONS.contains(&name);
        let falls_back = names.iter().any(|name| is_text(name.as_ref()));
        Some(Section { config: self, entries, of_layer: None, falls_back })
    }

    /// `model_type`s from the outermost to that of the language model.
    ///
    /// # Errors
    /// [`ConfigError`] when there is none, or one is no name.
    pub fn model_types(&self) -> Result<Vec<String>, ConfigError> {
        let mut types = Vec::new();
        for value in [self.top.get("model_type"), self.text().entries.get("model_type")].into_iter().flatten()
        {
            match value {
                Value::String(name) if name.len() <= 100 && !types.contains(name) => types.push(name.clone()),
                Value::String(name) if name.len() <= 100 => {}
                _ => return Err(self.contradiction("`model_type` is not a name".to_owned())),
            }
        }
        if types.is_empty() { Err(self.missing("model_type")) } else { Ok(types) }
    }

    /// The value of `key` at the top or in the language model's section; JSON `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        let top = self.top.get(key).filter(|value| !value.is_null());
        top.or_else(|| self.text().get(key))
    }

    pub(crate) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::MissingKey { path: self.path.clone(), key: key.to_owned() }
    }

    pub(crate) fn contradiction(&self, reason: String) -> ConfigError {
        ConfigError::Contradiction { path: self.path.clone(), reason }
    }
}

impl<'a> Section<'a> {
    /// The configuration it is a part of.
    pub fn config(self) -> &'a Config {
        self.config
    }

    /// The same for layer `layer`, where the configuration has entries for it alone (`per_layer_config`).
    pub fn of_layer(self, layer: u32) -> Self {
        let all = self.entries.get("per_layer_config").and_then(Value::as_object);
        let of_layer = all.and_then(|all| all.get(&layer.to_string())).and_then(Value::as_object);
        Self { of_layer, ..self }
    }

    /// The value of `key`, which may name an entry inside another: `ffn_config.ffn_hidden_size`. JSON `null` counts as
    /// absent.
    pub fn get(self, key: &str) -> Option<&'a Value> {
        let here =
            self.of_layer.and_then(|of_layer| lookup(of_layer, key)).or_else(|| lookup(self.entries, key));
        here.or_else(|| if self.falls_back { lookup(&self.config.top, key) } else { None })
    }

    /// The number under `key`, which must be one that a dimension can have, or 0. Where there is a list with one number for each
    /// layer, it must be the same for all; where it is not, there is no one number.
    ///
    /// # Errors
    /// [`ConfigError::BadValue`] for anything else.
    pub fn number(self, key: &str) -> Result<Option<u64>, ConfigError> {
        let value = match self.get(key) {
            None | Some(Value::Bool(false)) => return Ok(None),
            Some(Value::Array(values)) => match values.split_first() {
                Some((first, rest)) if rest.iter().all(|value| value == first) => first,
                _ => return Ok(None),
            },
            Some(value) => value,
        };
        match value.as_u64() {
            Some(number @ 0..=MAX_DIMENSION) => Ok(Some(number)),
            _ => Err(self.bad_value(key, value)),
        }
    }

    pub(super) fn bad_value(self, key: &str, value: &Value) -> ConfigError {
        ConfigError::BadValue {
            path: self.config.path.clone(),
            key: key.to_owned(),
            value: value.to_string().chars().take(40).collect(),
        }
    }

    /// Whether `key` is `true`.
    pub fn flag(self, key: &str) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
}

fn lookup<'a>(entries: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let mut parts = key.split('.');
    let first = entries.get(parts.next()?)?;
    parts.try_fold(first, |value, part| value.get(part)).filter(|value| !value.is_null())
}

/// Notes where the objects inside `entries` are, those further out first.
fn find_sections(
    entries: &Map<String, Value>,
    path: &mut Vec<String>,
    found: &mut HashMap<String, Vec<String>>,
) {
    let objects = || entries.iter().filter_map(|(name, value)| Some((name, value.as_object()?)));
    for (name, _) in objects() {
        let here = || path.iter().chain([name]).cloned().collect();
        found.entry(name.clone()).or_insert_with(here);
    }
    if path.len() + 1 < MAX_SECTION_DEPTH {
        for (name, object) in objects() {
            path.push(name.clone());
            find_sections(object, path, found);
            path.pop();
        }
    }
}

/// Reads a JSON object of bounded length from a regular file.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let read_error = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ConfigError::Missing { path: path.to_owned() },
        _ => ConfigError::Read { path: path.to_owned(), source },
    };
    let not_json = |reason: String| ConfigError::NotJson { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(read_error)?;
    if !meta.is_file() {
        return Err(not_json("it is not a regular file".to_owned()));
    }
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(read_error)?;
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(read_error)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(not_json(format!("it has more than {MAX_CONFIG_BYTES} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| not_json(error.to_string()))
}
