//! Exports: folders that have, for each rank of a plan, files with just what that rank holds.
//!
//! In comes a plan and what its ranks wrote; out goes the plan of the folder, in which every tensor belongs to one rank. So what was
//! exported is checked and loaded as any checkpoint is. It writes nothing.

mod error;
mod folder;
mod record;

pub use error::ExportError;
pub use folder::{Exported, open};
pub use record::{CHECKPOINT_NAMES, PLAN_NAME, RankRecord, export_id, is_export, record_name};
