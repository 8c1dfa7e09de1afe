//! The plan: the one document that carries every decision from the planner to whoever executes it.
//!
//! In come the catalog, the model, the topology and a mesh; out comes a [`Plan`], which people read in review and diff in
//! git. The same inputs give the same bytes. Slices are derived from it, never stored. A plan that was read from a file is
//! checked before anything is derived from it; whether it still fits its checkpoint is checked on demand.

mod build;
mod check;
mod document;
mod error;
mod slices;
mod stages;
mod warnings;

pub use build::{BuildError, PlanRequest, build};
pub use check::MAX_TENSORS;
pub use document::{
    CheckpointIdentity, FileIdentity, LayerRange, PLAN_VERSION, PathWidth, Plan, RankPlace, TensorGroup,
};
pub use error::{PlanError, StaleError};
pub use slices::RankTensor;
