//! Reading `config.json`.

use super::ModelSpec;
use serde_json::{Map, Value};
use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

/// The file that describes the model, in the checkpoint's folder.
pub const CONFIG_NAME: &str = "config.json";

/// Longest configuration that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// Largest number a dimension may have: beyond any model, and small enough that products of three never overflow.
const MAX_DIMENSION: u64 = 1 << 20;

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
        key: &'static str,
    },
    /// A dimension is not a number that a model can have.
    #[error("{}: `{key}` is {value}, not a number from 1 to {MAX_DIMENSION}", path.display())]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What stands there, shortened.
        value: String,
    },
    /// Two dimensions contradict each other.
    #[error("{}: {reason}", path.display())]
    Contradiction {
        /// The file.
        path: PathBuf,
        /// Which, with their numbers.
        reason: String,
    },
    /// The weights are stored in a form that is not planned yet.
    #[error("{}: the weights are quantised by `{method}`, whose layout is not planned yet", path.display())]
    Quantised {
        /// The file.
        path: PathBuf,
        /// `quant_method`.
        method: String,
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
                "config.json is not that of a decoder with attention heads, or it was edited; fetch it again"
            }
            Self::Quantised { .. } => "plan the checkpoint with its original (bf16, f16 or f32) weights",
        };
        Some(help.to_owned())
    }
}

/// Reads the configuration at `path`; where the dimensions stand under `text_config`, they are taken from there.
///
/// # Errors
/// [`ConfigError`] names the file, the key and the value.
pub fn read_config(path: &Path) -> Result<ModelSpec, ConfigError> {
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
    let top: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| not_json(error.to_string()))?;
    Config::new(path, &top)?.spec()
}

/// A configuration's keys, with the file for messages.
struct Config<'a> {
    path: &'a Path,
    top: &'a Map<String, Value>,
    /// `text_config` where there is one: a multimodal model's decoder.
    text: &'a Map<String, Value>,
}

impl<'a> Config<'a> {
    fn new(path: &'a Path, top: &'a Map<String, Value>) -> Result<Self, ConfigError> {
        let text = top.get("text_config").and_then(Value::as_object).unwrap_or(top);
        let config = Self { path, top, text };
        if let Some(quantisation) = config.get("quantization_config") {
            let method =
                quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("an unnamed method");
            return Err(ConfigError::Quantised {
                path: path.to_owned(),
                method: method.chars().take(40).flat_map(char::escape_debug).collect(),
            });
        }
        Ok(config)
    }

    fn spec(&self) -> Result<ModelSpec, ConfigError> {
        let hidden = self.required("hidden_size")?;
        let query_heads = self.required("num_attention_heads")?;
        let kv_heads = self.number("num_key_value_heads")?.unwrap_or(query_heads);
        if !query_heads.is_multiple_of(kv_heads) {
            return Err(self.contradiction(format!(
                "{query_heads} attention heads are no multiple of {kv_heads} key/value heads"
            )));
        }
        let head_size = match self.number("head_dim")? {
            Some(head_size) => head_size,
            None if hidden.is_multiple_of(query_heads) => hidden / query_heads,
            None => {
                return Err(self.contradiction(format!(
                    "hidden_size {hidden} is no multiple of {query_heads} attention heads, and there is no head_dim"
                )));
            }
        };
        let model_type = match self.text.get("model_type").or_else(|| self.top.get("model_type")) {
            Some(Value::String(name)) if name.len() <= 100 => name.clone(),
            Some(_) => return Err(self.contradiction("`model_type` is not a name".to_owned())),
            None => return Err(self.missing("model_type")),
        };
        Ok(ModelSpec {
            model_type,
            hidden,
            intermediate: self.required("intermediate_size")?,
            layers: self.required("num_hidden_layers")?,
            query_heads,
            kv_heads,
            head_size,
            vocabulary: self.required("vocab_size")?,
            tied_embeddings: self.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The value of `key`, from the decoder's own configuration first; JSON `null` counts as absent.
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.text.get(key).or_else(|| self.top.get(key)).filter(|value| !value.is_null())
    }

    fn number(&self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(number @ 1..=MAX_DIMENSION) => Ok(Some(number)),
            _ => Err(ConfigError::BadValue {
                path: self.path.to_owned(),
                key,
                value: value.to_string().chars().take(40).collect(),
            }),
        }
    }

    fn required(&self, key: &'static str) -> Result<u64, ConfigError> {
        self.number(key)?.ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &'static str) -> ConfigError {
        ConfigError::MissingKey { path: self.path.to_owned(), key }
    }

    fn contradiction(&self, reason: String) -> ConfigError {
        ConfigError::Contradiction { path: self.path.to_owned(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ModelSpec, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFIG_NAME);
        std::fs::write(&path, json).unwrap();
        read_config(&path)
    }

    const PLAIN: &str = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":160,
        "num_hidden_layers":2,"num_attention_heads":8,"vocab_size":96}"#;

    #[test]
    fn absent_keys_have_their_defaults() {
        let spec = read(PLAIN).unwrap();
        assert_eq!((spec.kv_heads, spec.head_size, spec.tied_embeddings), (8, 8, false));
    }

    #[test]
    fn a_decoder_under_text_config_is_found() {
        let json = format!(r#"{{"model_type":"llava","tie_word_embeddings":true,"text_config":{PLAIN}}}"#);
        let spec = read(&json).unwrap();
        assert_eq!((spec.model_type.as_str(), spec.hidden), ("llama", 64));
        assert!(spec.tied_embeddings);
    }

    #[test]
    fn an_explicit_head_dim_wins_over_the_quotient() {
        let json = PLAIN.replace(r#""vocab_size""#, r#""head_dim":32,"num_key_value_heads":2,"vocab_size""#);
        let spec = read(&json).unwrap();
        assert_eq!((spec.head_size, spec.kv_heads), (32, 2));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_numbers() {
        let cases = [
            (PLAIN.replace("64", "0"), "`hidden_size` is 0"),
            (PLAIN.replace("64", "\"x\""), "`hidden_size` is \"x\""),
            (PLAIN.replace("64", "9999999999"), "`hidden_size` is 9999999999"),
            (PLAIN.replace("vocab_size", "vocab"), "has no `vocab_size`"),
            (PLAIN.replace(r#":8,"#, r#":7,"#), "hidden_size 64 is no multiple of 7"),
            (
                PLAIN.replace(r#""vocab"#, r#""num_key_value_heads":3,"vocab"#),
                "8 attention heads are no multiple of 3",
            ),
            (
                PLAIN.replace(r#""vocab"#, r#""quantization_config":{"quant_method":"gptq"},"vocab"#),
                "quantised by `gptq`",
            ),
            (PLAIN.replace("\"llama\"", "7"), "`model_type` is not a name"),
            ("[1]".to_owned(), "not the JSON"),
        ];
        for (json, expected) in cases {
            let error = read(&json).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(error.help().is_some());
        }
        let missing = read_config(Path::new("/nowhere/config.json")).unwrap_err();
        assert!(matches!(missing, ConfigError::Missing { .. }));
    }
}
