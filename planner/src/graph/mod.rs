//! The tensors of a checkpoint as modules, with repeated blocks collapsed.
//!
//! In comes the catalog; out go [`ParameterGroup`]s: all tensors whose names differ in numbers only (`model.layers.0.…`,
//! `model.layers.1.…`) and that have the same dtype and shape, so that 91,000 tensors are decided as some dozens. It knows
//! names and shapes, not what a module is for.

mod group;
mod name_pattern;

pub use group::{ParameterGroup, group_parameters};
pub use name_pattern::{NamePattern, NamePatternError, PatternPart};
