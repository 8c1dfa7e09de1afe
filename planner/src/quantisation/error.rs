//! What can be wrong with quantised weights.

use crate::{graph::Parameter, quote::quote};

/// Why a module's stored tensors cannot be understood together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantisationError {
    /// An entry of `quantization_config` that no checkpoint has.
    #[error("quantization_config: `{key}` is {value}, not {expected}")]
    BadValue {
        /// The entry.
        key: String,
        /// What stands there, shortened.
        value: String,
        /// What could.
        expected: &'static str,
    },
    /// A tensor without which the weights mean nothing.
    #[error("{} is stored in {}, but its {} is missing", quote(module), quote(has), quote(lacks))]
    Missing {
        /// The module's collapsed name.
        module: String,
        /// The parameter that is there.
        has: String,
        /// The one that is not.
        lacks: String,
    },
    /// A scale, zero point or index of a shape that does not go with the weight's.
    #[error("{} has shape {found:?}, but {explained} makes {expected}", quote(tensor))]
    WrongShape {
        /// The tensor's collapsed name.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// What would fit, in words.
        expected: String,
        /// How that comes about.
        explained: String,
    },
    /// `quantization_config` and the tensors say different things.
    #[error("quantization_config and the tensors contradict each other: {reason}")]
    Contradiction {
        /// Which, with the module and the numbers.
        reason: String,
    },
}

impl QuantisationError {
    /// The error for `parameter`, whose shape does not go with `explained`, by which it would be `expected`.
    pub(super) fn shape(parameter: &Parameter, expected: &str, explained: &str) -> Self {
        Self::WrongShape {
            tensor: parameter.collapsed.clone(),
            found: parameter.shape.clone(),
            expected: expected.to_owned(),
            explained: explained.to_owned(),
        }
    }

    /// What the reader can do about it.
    pub fn help(&self) -> &'static str {
        "config.json belongs to another checkpoint, or the download is incomplete; fetch both again"
    }
}
