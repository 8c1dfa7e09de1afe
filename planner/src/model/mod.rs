//! What the model is: the dimensions that `config.json` declares, and what they mean.
//!
//! In comes a `config.json` and a [`Vocabulary`] of what sizes are called in it; out go [`Measures`], by which rules name
//! dimensions, and a [`ModelSpec`] for people. It knows no tensor: whether the checkpoint's shapes agree is checked where
//! the rules meet the tensors.

mod config;
mod dimensions;
mod expression;
mod spec;

pub(crate) use config::read_object;
pub use config::{CONFIG_NAME, Config, ConfigError, Section};
pub(crate) use dimensions::VocabularyDocument;
pub use dimensions::{Dimension, Keeps, Measures, Vocabulary};
pub use spec::ModelSpec;

#[cfg(test)]
mod tests;
