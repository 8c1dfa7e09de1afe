//! How the ranks of a job meet.
//!
//! In comes what one rank knows of itself and its job; out comes its end of the group, or an error that all ranks that came
//! end with alike. Rank 0 listens ([`gather`]); the others come and say who they are ([`come`]). Whoever says nothing, or
//! something else, is no rank: it is sent away and counted, and nobody waits for it.

mod come;
mod gather;
mod message;

use super::{Address, MAX_RANKS};
use crate::collective::{TcpCommunicator, one_line, seconds};
use serde::{Deserialize, Serialize};
use std::{fmt, io, time::Duration};

/// Longest name of a job, digest or version.
const MAX_TEXT_BYTES: usize = 256;

/// Ranks that a message lists before it counts the rest.
const LISTED_RANKS: usize = 8;

/// What a rank brings to where the ranks of its job meet.
#[derive(Debug, Clone)]
pub struct Rendezvous {
    /// Where rank 0 listens.
    pub address: Address,
    /// This rank.
    pub rank: u32,
    /// Ranks of the job.
    pub world: u32,
    /// Keeps jobs apart: only ranks with the same one meet. It is sent in the clear; it is no password.
    pub job: String,
    /// The plan's digest; all ranks have the same.
    pub plan_digest: String,
    /// This shardwright's version; all ranks have the same.
    pub version: String,
    /// What else is known of this rank.
    pub details: Details,
    /// How long a rank may give no sign of progress once all have met; `None` for as long as meeting may take.
    pub progress_within: Option<Duration>,
}

/// What else is known of a rank.
#[derive(Debug, Clone, Default)]
pub struct Details {
    /// The version of NCCL, as its library gives it; none where ranks go without. All ranks have the same.
    pub nccl: Option<u32>,
    /// Its host's name.
    pub host: String,
    /// Its device's name.
    pub device: String,
    /// Its process.
    pub pid: u32,
}

/// A text that is one short line without control characters, whoever wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct OneLine(String);

impl From<String> for OneLine {
    fn from(text: String) -> Self {
        Self(one_line(&text))
    }
}

impl From<&str> for OneLine {
    fn from(text: &str) -> Self {
        Self(one_line(text))
    }
}

impl fmt::Display for OneLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A rank, as messages name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// Its number.
    pub rank: u32,
    /// Its host.
    pub host: OneLine,
    /// Its device.
    pub device: OneLine,
    /// Its process.
    pub pid: u32,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} ({}, pid {}, {})", self.rank, self.host, self.pid, self.device)
    }
}

/// Why the ranks of a job cannot go on together. All that have come end with the same one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// A rank has been started in a job of another size.
    #[error("{who} is of a job of {its} ranks, and rank 0 of one of {world}")]
    World {
        /// The rank.
        who: Who,
        /// What it takes for the number of ranks.
        its: u32,
        /// What rank 0 does.
        world: u32,
    },
    /// A rank has a number that there is not.
    #[error("{who} is out of range: the ranks of this job are 0 to {}, and rank 0 is here", world.saturating_sub(1))]
    Range {
        /// The rank.
        who: Who,
        /// How many there are.
        world: u32,
    },
    /// Two processes are the same rank.
    #[error("rank {} was started twice: on {} as process {}, and on {} as process {}", first.rank, first.host, first.pid, second.host, second.pid)]
    Twice {
        /// Who came first.
        first: Who,
        /// Who came then.
        second: Who,
    },
    /// A rank has another plan.
    #[error("{who} has another plan than rank 0: its digest is {its}, and rank 0's {ours}")]
    Plan {
        /// The rank.
        who: Who,
        /// Its plan's digest.
        its: OneLine,
        /// Rank 0's.
        ours: OneLine,
    },
    /// A rank speaks otherwise.
    #[error(
        "rank {rank} speaks version {its} of shardwright's protocol, and rank 0 version {ours}\nhelp: start all ranks with the same version of shardwright"
    )]
    Protocol {
        /// The rank.
        rank: u32,
        /// Its version.
        its: u16,
        /// Rank 0's.
        ours: u16,
    },
    /// A rank is another version of shardwright.
    #[error(
        "{who} is shardwright {its}, and rank 0 is {ours}\nhelp: start all ranks with the same version of shardwright"
    )]
    Version {
        /// The rank.
        who: Who,
        /// Its version.
        its: OneLine,
        /// Rank 0's.
        ours: OneLine,
    },
    /// A rank has another NCCL.
    #[error("{who} has {}, and rank 0 has {}", nccl(*its), nccl(*ours))]
    Nccl {
        /// The rank.
        who: Who,
        /// Its version.
        its: Option<u32>,
        /// Rank 0's.
        ours: Option<u32>,
    },
    /// Ranks have not come.
    #[error("{} did not come to {address} within {}", list(ranks), seconds(*waited))]
    Missing {
        /// Which.
        ranks: Vec<u32>,
        /// Where they were awaited.
        address: OneLine,
        /// How long.
        waited: Duration,
    },
    /// A rank ended while it waited for others.
    #[error("{who} ended before all ranks had come")]
    Gone {
        /// The rank.
        who: Who,
    },
    /// Rank 0 was asked to stop.
    #[error("rank 0 was interrupted before all ranks had come")]
    Interrupted,
}

impl Refusal {
    /// The rank that is at fault and has been told so, where it is one that was there.
    fn rank(&self) -> Option<u32> {
        match self {
            Self::World { who, .. }
            | Self::Range { who, .. }
            | Self::Plan { who, .. }
            | Self::Version { who, .. }
            | Self::Nccl { who, .. }
            | Self::Gone { who } => Some(who.rank),
            Self::Twice { second, .. } => Some(second.rank),
            Self::Protocol { rank, .. } => Some(*rank),
            Self::Missing { .. } | Self::Interrupted => None,
        }
    }
}

/// Why a rank did not meet the others.
#[derive(Debug, thiserror::Error)]
pub enum RendezvousError {
    /// The ranks of the job cannot go on together.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such rank.
    #[error("rank {rank} of {world} is none: ranks are numbered from 0, and there are at most {MAX_RANKS}")]
    Rank {
        /// The rank.
        rank: u32,
        /// Ranks of the job.
        world: u32,
    },
    /// A text is longer than anything that names a job, plan or version.
    #[error("the {what} has {bytes} bytes; the longest may have {MAX_TEXT_BYTES}")]
    TooLong {
        /// Which.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Rank 0 cannot listen.
    #[error("rank 0 cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// Rank 0 cannot be reached.
    #[error("rank {rank} did not reach rank 0 at {address} within {}: {reason}", seconds(*waited))]
    Unreached {
        /// This rank.
        rank: u32,
        /// Where rank 0 should be.
        address: Address,
        /// How long it was tried.
        waited: Duration,
        /// What the last try gave.
        reason: OneLine,
    },
    /// Rank 0 was reached, but ended or fell silent before all ranks had come.
    #[error("rank 0 at {address} {} before all ranks had come", if *ended { "ended" } else { "fell silent" })]
    Lost {
        /// Where rank 0 was.
        address: Address,
        /// Whether it is gone, or only silent.
        ended: bool,
    },
    /// This rank was asked to stop.
    #[error("interrupted before all ranks had come")]
    Interrupted,
    /// The system gave no thread or refused a socket's settings.
    #[error("cannot speak with the other ranks: {0}")]
    System(#[source] io::Error),
}

impl Rendezvous {
    /// Meets the other ranks. Waits at most about `patience` for all to come, or twice as long where rank 0 came late itself.
    ///
    /// `interrupted` is asked several times a second whether to give up.
    ///
    /// # Errors
    /// [`RendezvousError`]; what concerns the whole job is a [`Refusal`], and the same on all ranks that have come.
    pub fn join(
        &self,
        patience: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<TcpCommunicator, RendezvousError> {
        self.check()?;
        match self.rank {
            0 => gather::gather(self, patience, interrupted),
            _ => come::come(self, patience, interrupted),
        }
    }

    fn check(&self) -> Result<(), RendezvousError> {
        if self.rank >= self.world || self.world > MAX_RANKS {
            return Err(RendezvousError::Rank { rank: self.rank, world: self.world });
        }
        for (what, text) in
            [("job's name", &self.job), ("plan's digest", &self.plan_digest), ("version", &self.version)]
        {
            if text.len() > MAX_TEXT_BYTES {
                return Err(RendezvousError::TooLong { what, bytes: text.len() });
            }
        }
        Ok(())
    }
}

/// `rank 3`, `ranks 2 and 5`, `ranks 1, 2 and 700 others`.
fn list(ranks: &[u32]) -> String {
    let mut words: Vec<String> = ranks.iter().take(LISTED_RANKS).map(ToString::to_string).collect();
    if ranks.len() > LISTED_RANKS {
        words.push(format!("{} others", ranks.len() - LISTED_RANKS));
    }
    match words.split_last() {
        None => "no rank".to_owned(),
        Some((only, [])) => format!("rank {only}"),
        Some((last, first)) => format!("ranks {} and {last}", first.join(", ")),
    }
}

/// NCCL's version as people write it. Since 2.9 its library counts it as 10000 × major + 100 × minor + patch.
fn nccl(version: Option<u32>) -> String {
    match version {
        None => "no NCCL".to_owned(),
        Some(version) => {
            format!("NCCL {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
        }
    }
}

#[cfg(test)]
mod tests;
