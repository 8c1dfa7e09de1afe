//! Why a plan has no engine's names.

use crate::{plan::PlanError, quote::quote};

/// Why a plan has no engine's names.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No such engine.
    #[error("{} is no engine whose names are known", quote(engine))]
    NoSuchEngine {
        /// The engine.
        engine: String,
        /// Those that are.
        known: Vec<String>,
    },
    /// A family that was never tried with the engine.
    #[error("what {engine} calls the weights of {} was never proven", quote(model_type))]
    NotProven {
        /// The engine.
        engine: String,
        /// The model's type.
        model_type: String,
        /// Those that were.
        known: Vec<String>,
    },
    /// A document that comes with the planner cannot be read.
    #[error("the names in {name}: {reason}")]
    Document {
        /// The document.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A layout of which it is not known what the engine makes of it.
    #[error("how {engine} holds {what} was never proven")]
    Layout {
        /// The engine.
        engine: String,
        /// What.
        what: String,
    },
    /// A tensor that the engine's names do not know.
    #[error("{engine} has no known name for {}", quote(tensor))]
    UnknownTensor {
        /// The engine.
        engine: String,
        /// Its collapsed name.
        tensor: String,
    },
    /// A tensor that the plan cuts otherwise than the engine.
    #[error("{engine} holds {} {expected}, and the plan {found}", quote(tensor))]
    OtherCut {
        /// The engine.
        engine: String,
        /// Its collapsed name.
        tensor: String,
        /// What the engine does.
        expected: String,
        /// What the plan says.
        found: String,
    },
    /// A tensor of the engine of which a part is missing, or does not fit the others.
    #[error("{} of rank {rank} cannot be put together: {reason}", quote(tensor))]
    Incomplete {
        /// The rank.
        rank: u32,
        /// The engine's name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl EngineError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::NoSuchEngine { known, .. } => Some(format!("known: {}", known.join(", "))),
            Self::NotProven { known, .. } => Some(format!(
                "proven: {}; `--format shardwright` writes files with the checkpoint's own names",
                known.join(", ")
            )),
            Self::OtherCut { .. } => Some("plan without rules of your own, and without --uneven".to_owned()),
            _ => None,
        }
    }
}
