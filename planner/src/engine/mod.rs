//! What engines call weights, and what their ranks hold of them.
//!
//! In come a plan and the name of an engine; out go, for each rank, the engine's tensors and the slices that each consists of. What
//! engines call them is data (`planner/engines/`), one document for each engine and kind of family; a family that has none, or a plan
//! that cuts otherwise than the engine does, is refused.

mod document;
mod error;
mod names;

pub use document::{EngineNames, engines};
pub use error::EngineError;
pub use names::{EngineContent, EngineTensor, HeldSlice};
