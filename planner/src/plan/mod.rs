//! The plan: the one document that carries every decision from the planner to whoever executes it.
//!
//! In comes a document, made by `planning` or read from a file; out go its checks and the slices that follow from it. People
//! review it and diff it in git: the same inputs give the same bytes, and slices are derived from it, never stored. A plan
//! that was read is checked before anything is derived from it; whether it still fits its checkpoint is checked on demand.
//! It does not know how decisions are made.

mod cast;
mod check;
mod document;
mod error;
mod slices;

pub use cast::CastDtype;
pub use check::MAX_TENSORS;
pub use document::{
    CheckpointIdentity, FileIdentity, GroupPlace, Groups, LayerRange, PLAN_VERSION, Plan, RankPlace,
    RunnerUpGroups, TensorGroup,
};
pub use error::{PlanError, StaleError};
pub use slices::{GroupSlices, Holding, RankTensor, Turn};
