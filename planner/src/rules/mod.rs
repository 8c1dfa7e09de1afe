//! From modules to partitions: the user's rules, then families as data, then inference on the tensor graph.
//!
//! In come the modules, the model's configuration and how its weights are stored; out goes a [`Decision`] for each module:
//! its role, a partition for each of its tensors, the pipeline stage that holds it, and the reason. Which rule applies
//! stands in `families/*.yaml` and in the user's own file; the code here knows roles and dimensions, and no model by name.
//!
//! 1. [`Families`], [`UserRules`]: globs → [`Rule`]s
//! 2. `fit`: rule + module → which dimension is cut, and the segments that tile it
//! 3. `infer`: tensor graph → the same, for modules that no rule knows
//! 4. `pairs`: whether what is cut is read as it is cut; half a cut is none
//! 5. `spaces`: what may not be cut, agreed among all modules of a block
//! 6. `project`, `divide`: partitions of the stored tensors, and whether they divide by the ranks
//!
//! `decide` does all of it, in this order.

mod completeness;
mod decide;
mod decision;
mod divide;
mod error;
mod family;
mod fit;
mod infer;
mod pairs;
mod project;
mod role;
mod rule;
mod spaces;
mod user;

pub use decide::{decide, tensor_graph};
pub use decision::{Decision, DecisionRequest, Decisions, Kept, Work};
pub use error::{Failure, NotDivisible, RuleError};
pub use family::{Families, Family, FamilyError};
pub use role::{Role, StageRule};
pub use rule::{Rule, RuleParseError, Term, Word};
pub use user::{UserRules, UserRulesError};
