//! Ranks that are processes, on one host or many, each with one connection to rank 0.
//!
//! In come connections on which every rank has said who it is (`launch::rendezvous`); out comes a [`TcpCommunicator`] a
//! process. Rank 0's process is the [`hub`]: it holds a local group, in which a proxy stands for each other rank and relays
//! its [`frame`]s. The others are [`spoke`]s. Neither knows what the numbers mean, or how the ranks found each other.
//!
//! ```text
//!  rank 1's process                        rank 0's process
//!  all_reduce ─► sender ══ parts, beats ══► reader ─► worker: all_reduce in the local group ◄─ rank 0's all_reduce
//!           ◄─ reader ◄══ results, beats, failures ══╯
//! ```
//!
//! Both ends say several times a second that they are there. A rank that stops running, or runs and gets nowhere, is told
//! apart from one that is slow; one that ends without a word is known by its connection; and whoever fails first is what all
//! others hear within a fraction of a second, busy or waiting. Nothing is encrypted, as in NCCL's own connections: the network
//! between the ranks must be one that only they and the trusted are on.

mod frame;
mod hub;
mod line;
mod spoke;

use super::{CollectiveError, Communicator, Lifeline, Reduce};
use frame::MAX_VALUES;
use hub::Hub;
use spoke::Spoke;
use std::{io, net::TcpStream, time::Duration};

/// The version of what ranks say to each other; other versions are refused when they meet.
pub(crate) const PROTOCOL: u16 = 1;

/// Ranks say that they are there ten times a second; nobody is given up for missing that a few times.
const LEAST_PATIENCE: Duration = Duration::from_secs(1);

/// One rank's end of a group of processes.
///
/// Dropping it says good-bye, for which the other ends get a few seconds at most; what has been reduced has then reached them.
#[derive(Debug)]
pub struct TcpCommunicator {
    seat: Seat,
    notes: Vec<String>,
}

#[derive(Debug)]
enum Seat {
    Hub(Hub),
    Spoke(Spoke),
}

impl TcpCommunicator {
    /// Rank 0 of a group whose other ranks, from 1 on, are at the other ends of `peers`.
    pub(crate) fn hub(peers: Vec<TcpStream>, patience: Duration, notes: Vec<String>) -> io::Result<Self> {
        Ok(Self { seat: Seat::Hub(Hub::new(peers, patience.max(LEAST_PATIENCE))?), notes })
    }

    /// Rank `rank` of `world`, with rank 0 at the other end of `hub`.
    pub(crate) fn spoke(rank: u32, world: u32, hub: TcpStream, patience: Duration) -> io::Result<Self> {
        let seat = Seat::Spoke(Spoke::new(rank, world, hub, patience.max(LEAST_PATIENCE))?);
        Ok(Self { seat, notes: Vec::new() })
    }

    /// What people should know of how the ranks met; on rank 0.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl Communicator for TcpCommunicator {
    fn rank(&self) -> u32 {
        match &self.seat {
            Seat::Hub(_) => 0,
            Seat::Spoke(spoke) => spoke.rank(),
        }
    }

    fn world_size(&self) -> u32 {
        match &self.seat {
            Seat::Hub(hub) => hub.world_size(),
            Seat::Spoke(spoke) => spoke.world_size(),
        }
    }

    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        if values.len() > MAX_VALUES {
            let reason = format!("it asked to reduce {} numbers; {MAX_VALUES} go at once", values.len());
            return Err(self.lifeline().fail_with(CollectiveError::lost(self.rank(), &reason)));
        }
        match &mut self.seat {
            Seat::Hub(hub) => hub.all_reduce(values, reduce),
            Seat::Spoke(spoke) => spoke.all_reduce(values, reduce),
        }
    }

    fn lifeline(&self) -> Lifeline {
        match &self.seat {
            Seat::Hub(hub) => hub.lifeline(),
            Seat::Spoke(spoke) => spoke.lifeline(),
        }
    }
}

#[cfg(test)]
mod tests;
