//! What can be wrong with an adapter.

use crate::{cost::FitError, model::ConfigError, plan::PlanError, quote::quote};

/// Why an adapter could not be planned.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// `adapter_config.json` cannot be read.
    #[error(transparent)]
    Config(ConfigError),
    /// Not a LoRA adapter.
    #[error(
        "adapter_config.json says that the adapter is of type {}; LORA is what can be planned",
        quote(found)
    )]
    OtherType {
        /// `peft_type`.
        found: String,
    },
    /// A tensor that no LoRA adapter has.
    #[error("{} is no part of a LoRA adapter that is known", quote(tensor))]
    NotUnderstood {
        /// Its collapsed name.
        tensor: String,
    },
    /// The base has no such module.
    #[error("{} is for module {}, which the base's plan does not have", quote(tensor), quote(module))]
    NoSuchModule {
        /// The adapter's tensor, collapsed.
        tensor: String,
        /// The base module that it is for.
        module: String,
    },
    /// A tensor that does not go with the base module or with its other matrix.
    #[error("{} has shape {found:?}, which is not {expected}", quote(tensor))]
    WrongShape {
        /// Its collapsed name.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// What would go.
        expected: String,
    },
    /// For experts that lie in one tensor, of which each rank holds whole ones.
    #[error(
        "{} is for experts that lie in one tensor, of which each rank holds whole ones: the adapter cannot be cut to match",
        quote(tensor)
    )]
    WholeExperts {
        /// The adapter's tensor, collapsed.
        tensor: String,
    },
    /// It does not fit beside the base.
    #[error("beside the base model, the adapter {0}")]
    DoesNotFit(#[from] FitError),
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl AdapterError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Config(_) => {
                "an adapter's folder holds adapter_config.json beside its weights, as PEFT writes them"
            }
            Self::OtherType { .. } => return None,
            Self::WholeExperts { .. } => "plan its base without --expert-parallel",
            Self::NotUnderstood { .. } | Self::NoSuchModule { .. } | Self::WrongShape { .. } => {
                "give --base the plan of the model that the adapter was trained on"
            }
            Self::DoesNotFit(error) => return error.help(),
            Self::Plan(error) => return error.help(),
        };
        Some(help.to_owned())
    }

    /// Whether the input contradicts itself, rather than being sound and not plannable.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Config(_)
                | Self::NotUnderstood { .. }
                | Self::NoSuchModule { .. }
                | Self::WrongShape { .. }
        )
    }
}
