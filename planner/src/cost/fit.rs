//! Whether the weights fit.

use super::memory::memory_per_rank;
use crate::{
    plan::{Plan, PlanError},
    quote::quote,
    size::Size,
};
use std::collections::BTreeMap;

/// Why the weights of a plan do not fit.
#[derive(Debug, thiserror::Error)]
pub enum FitError {
    /// A memory too small for what is placed there.
    #[error("does not fit: {} has {}, but the weights of {who} need {}", quote(memory), Size(*has), Size(*needs))]
    DoesNotFit {
        /// The GPU, or the memory that several share.
        memory: String,
        /// `rank 3`, or how many ranks.
        who: String,
        /// Bytes of weights.
        needs: u64,
        /// Bytes of memory.
        has: u64,
    },
    /// The plan does not hold together.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl FitError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::DoesNotFit { .. } => {
                Some("use more GPUs (a larger --tp or --pp), or GPUs with more memory".to_owned())
            }
            Self::Plan(error) => error.help(),
        }
    }
}

/// Checks that the weights of all ranks fit the memories they are placed in.
///
/// # Errors
/// [`FitError::DoesNotFit`] names the first memory that is too small.
pub fn check_fit(plan: &Plan) -> Result<(), FitError> {
    let uses = memory_per_rank(plan)?;
    // Bytes needed, bytes there, and how many ranks.
    let mut pools: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for (place, used) in plan.ranks.iter().zip(&uses) {
        let Some(pool) = &place.memory_pool else {
            if used.weights > place.memory_bytes {
                return Err(FitError::DoesNotFit {
                    memory: place.gpu.clone(),
                    who: format!("rank {}", place.rank),
                    needs: used.weights,
                    has: place.memory_bytes,
                });
            }
            continue;
        };
        let (needs, has, ranks) = pools.entry(pool).or_insert((0, place.memory_bytes, 0));
        *needs = needs.saturating_add(used.weights);
        *has = (*has).min(place.memory_bytes);
        *ranks += 1;
    }
    for (pool, (needs, has, ranks)) in pools {
        if needs > has {
            let who = if ranks == 1 { "1 rank".to_owned() } else { format!("{ranks} ranks") };
            return Err(FitError::DoesNotFit { memory: pool.to_owned(), who, needs, has });
        }
    }
    Ok(())
}
