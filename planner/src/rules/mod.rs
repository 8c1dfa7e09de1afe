//! From modules to partitions: families as data.
//!
//! In come the parameter groups and the model's dimensions; out goes a [`Decision`] for each group: its role, its
//! partition, the pipeline stage that holds it, and the reason. Which rule applies stands in `families/*.yaml`; the code
//! here knows roles and dimensions, and no model by name.

mod decide;
mod error;
mod family;
mod role;
mod rule;

pub use decide::{Decision, decide};
pub use error::{Failure, RuleError};
pub use family::{Families, Family, FamilyError};
pub use role::{Role, StageRule};
pub use rule::{Rule, RuleParseError};
