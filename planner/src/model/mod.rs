//! What the model is: the dimensions that `config.json` declares, and what they mean.
//!
//! In comes the text of a `config.json`; out goes a [`ModelSpec`], whose numbers are checked against each other. It knows
//! no tensor: whether the checkpoint's shapes agree is checked where the rules meet the tensors.

mod config;
mod spec;

pub use config::{CONFIG_NAME, ConfigError, read_config};
pub use spec::{Dimension, ModelSpec};
