//! The tensors of a checkpoint as modules, with repeated blocks collapsed, and how data flows between them.
//!
//! In comes the catalog; out go [`Module`]s: all tensors whose names differ in numbers only (`model.layers.0.…`,
//! `model.layers.1.…`) and that are stored alike, so that 91,000 tensors are decided as some dozens. From their logical
//! shapes follows the [`TensorGraph`]: which modules read the residual stream, which add to it, and which read what others
//! of their block computed. It knows names and shapes, not what a module is for.

mod flow;
mod module;
mod name_pattern;

pub use flow::{Matrix, TensorGraph};
pub use module::{Module, Parameter, modules};
pub(crate) use module::{module_of, unwrapped};
pub(crate) use name_pattern::collapse;
pub use name_pattern::{NamePattern, NamePatternError, PatternPart};
