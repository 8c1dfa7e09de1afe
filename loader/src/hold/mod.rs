//! Weights that stay loaded while the processes that use them come and go.
//!
//! In come [`LoadedRank`](crate::load::LoadedRank)s; out goes, over a Unix socket that only their owner can reach, one
//! [`Document`] that says where every tensor lies and how another process of this host opens the memory. [`serve`] hands it
//! out, [`connect`] takes it, and [`Attached::open`] makes [`RankWeights`](crate::load::RankWeights) of it. A connection that
//! stays open is the sign that somebody is attached. It knows no CUDA: who attaches brings what opens a handle, and no engine:
//! what is done with the weights is not its business.

mod client;
mod document;
mod error;
mod peer;
mod server;
mod socket;
mod wire;

pub use client::{Attached, connect};
pub use document::{Document, Facts, HeldGpu, HeldRank, memory_fingerprint};
pub use error::{DocumentError, HoldError, TensorFlaw};
pub use peer::uid;
pub use server::{Event, TurnedAway, serve};
pub use socket::{check_free, default_folder, default_socket, sockets_in};

/// Version of the document and of how it is handed out.
pub const PROTOCOL: u64 = 1;

/// Longest document that is read.
pub const MOST_DOCUMENT_BYTES: u64 = 256 << 20;

/// How many processes can be attached at once.
pub const MOST_ATTACHED: usize = 64;

/// What the first line of an answer begins with: `shardwright-hold PROTOCOL LENGTH`, and then the document, or
/// `shardwright-hold PROTOCOL full` when no more can attach.
const GREETING: &str = "shardwright-hold";

/// Longest first line of an answer.
const MOST_GREETING_BYTES: u64 = 64;

/// What stands for the length in the greeting of a holder to whom no more can attach.
const FULL: &str = "full";

#[cfg(test)]
mod tests;
