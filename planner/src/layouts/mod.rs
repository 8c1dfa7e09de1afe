//! Which layout? Every way to put a checkpoint on a machine, judged.
//!
//! In come a checkpoint, a machine, a workload and a goal; out go all layouts ([`Layouts`]), best first: what fits, how many tokens
//! are left for the cache, how fast sequences go on; and why the rest are out. Decisions are made once for each number of ranks that
//! share a layer; memory and time are those of `serving`. It writes no plan: whoever likes a layout plans it.

mod connections;
mod facts;
mod judged;
mod order;
mod prices;
mod search;

pub use connections::group;
pub use judged::Judged;
pub use order::Goal;
pub use prices::{Prices, PricesError, per_million_tokens};
pub use search::{LayoutRequest, Layouts, LayoutsError, Out, facts, layouts, longest_context};
