//! Which rank this process is, and how the ranks of a job find each other.
//!
//! In come the variables that launchers set (read by whoever calls, never here), and what the plan and the command line say;
//! out comes a [`TcpCommunicator`](crate::collective::TcpCommunicator) whose other ends are the other ranks of the same job,
//! with the same plan and the same versions. Nothing here knows what the ranks do afterwards.

mod address;
mod environment;
mod hosts;
mod rendezvous;

pub use address::{Address, AddressError};
pub use environment::{LaunchError, Launched, Launcher, launched};
pub use rendezvous::{Details, OneLine, Refusal, Rendezvous, RendezvousError, Who};

/// Most ranks that meet: rank 0 serves each with two threads.
pub const MAX_RANKS: u32 = 4096;
