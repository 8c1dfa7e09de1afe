//! Why modules could not be given partitions.

use super::{family::FamilyError, fit::Misfit, user::UserRulesError};
use crate::{model::ConfigError, quantisation::QuantisationError, quote::quote, size::count};
use std::fmt;

/// A module that cannot be split evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its collapsed name.
    pub module: String,
    /// What does not divide by what.
    pub reason: String,
}

/// Why the rules could not decide every module.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    /// A family file that cannot be used.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// The user's rules cannot be used.
    #[error(transparent)]
    UserRules(#[from] UserRulesError),
    /// The configuration lacks a size, or has a wrong one.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Quantised weights that do not go together.
    #[error(transparent)]
    Quantisation(#[from] QuantisationError),
    /// A tensor's shape is not what the configuration says.
    #[error(
        "config.json and the tensors contradict each other: {} has shape {found:?}, but {explained} makes {expected:?}",
        quote(tensor)
    )]
    ContradictsConfig {
        /// The tensor's collapsed name.
        tensor: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that the configuration asks for.
        expected: Vec<u64>,
        /// How that comes about.
        explained: String,
    },
    /// Layers that the configuration counts are not there, or there are more.
    #[error("config.json and the tensors contradict each other: config.json counts {}, but {found}", count(*expected, "layer"))]
    WrongLayers {
        /// `num_hidden_layers`.
        expected: u64,
        /// What the tensors have.
        found: String,
    },
    /// A module without which the family's models do not run.
    #[error(
        "the checkpoint has no tensor of {}, which every model of family {} has",
        quote(module),
        quote(family)
    )]
    MissingModule {
        /// The family.
        family: String,
        /// The glob of its rule.
        module: String,
    },
    /// Modules that cannot be split over the ranks evenly.
    #[error("{0}")]
    NotDivisible(Box<NotDivisible>),
}

/// Modules that cannot be split over the ranks evenly, and what could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotDivisible {
    /// Each module that fails.
    pub failures: Vec<Failure>,
    /// Ranks in a tensor-parallel group.
    pub tp: u32,
    /// The model's dimensions in words.
    pub model: String,
    /// Sizes of the group that work for every module.
    pub divides: Vec<u32>,
    /// What dealing unevenly would give, for the help.
    pub uneven: Option<String>,
    /// Where all that fails runs before the layers: a glob for it.
    pub outside_layers: Option<String>,
}

impl fmt::Display for NotDivisible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Failure { module, reason } in &self.failures {
            writeln!(f, "cannot split {} over tp {}: {reason}", quote(module), self.tp)?;
        }
        write!(f, "({})", self.model)
    }
}

impl NotDivisible {
    fn help(&self) -> String {
        let mut help = match self.divides.as_slice() {
            [] => "no tp divides every module".to_owned(),
            [one] => format!("tp {one} divides every module"),
            several => format!("tp {} divide every module", join(several)),
        };
        if let Some(uneven) = &self.uneven {
            help.push_str(&format!("; or pass --uneven to deal {uneven}"));
        }
        if let Some(glob) = &self.outside_layers {
            help.push_str(&format!("; or pass --replicate '{glob}' to hold it whole"));
        }
        help
    }
}

impl RuleError {
    /// What is said of a rule that must fit a module and does not.
    pub(super) fn misfit(misfit: Misfit) -> Self {
        match misfit {
            Misfit::Unknown(error) => Self::Config(error),
            Misfit::Quantisation(error) => Self::Quantisation(error),
            Misfit::Sizes { tensor, found, expected, explained } => {
                Self::ContradictsConfig { tensor, found, expected, explained }
            }
        }
    }

    /// Whether the input contradicts itself, rather than being sound and not plannable.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::NotDivisible(_))
    }

    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Family(_) => return None,
            Self::UserRules(error) => error.help().to_owned(),
            Self::Config(error) => return error.help(),
            Self::Quantisation(error) => error.help().to_owned(),
            Self::ContradictsConfig { .. } | Self::WrongLayers { .. } | Self::MissingModule { .. } => {
                "config.json belongs to another checkpoint, or the download is incomplete; fetch both again"
                    .to_owned()
            }
            Self::NotDivisible(error) => error.help(),
        })
    }
}

/// `1, 2 or 4`.
fn join(numbers: &[u32]) -> String {
    let words: Vec<String> = numbers.iter().map(u32::to_string).collect();
    match words.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}
