//! Why ranks could not be loaded.

use super::LentError;
use crate::{
    collective::{CollectiveError, without_help},
    device::DeviceError,
    schedule::ScheduleError,
    source::SourceError,
    verify::VerifyError,
};
use std::io;

/// Why ranks could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan and the checkpoint do not go together.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Memory that was lent does not suit the rank.
    #[error(transparent)]
    Lent(#[from] LentError),
    /// The bytes could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A device failed.
    #[error("rank {rank}: {source}")]
    Device {
        /// The rank.
        rank: u32,
        /// What the device could not do.
        source: DeviceError,
    },
    /// Verification could not be carried out.
    #[error("rank {rank}: {source}")]
    Verify {
        /// The rank.
        rank: u32,
        /// Why.
        source: VerifyError,
    },
    /// The ranks do not get on together: one of them failed, or this one was given up.
    #[error("{source}")]
    Collective {
        /// The rank that says so.
        rank: u32,
        /// Which rank failed, and of what.
        source: CollectiveError,
    },
    /// Somebody asked to stop.
    #[error("rank {rank} was interrupted")]
    Interrupted {
        /// The rank.
        rank: u32,
    },
    /// The system gives no further thread.
    #[error("cannot start a thread to load with: {source}")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// A source came to its end with neither all bytes nor an error.
    #[error("reading ended before all bytes had come; this is a defect of shardwright")]
    Incomplete,
    /// A thread of a rank, or one that reads for it, panicked.
    #[error("rank {rank} ended unexpectedly; this is a defect of shardwright")]
    Panicked {
        /// The rank.
        rank: u32,
    },
}

impl LoadError {
    /// What ended the ranks' agreement, where that is what it is about.
    pub fn collective(&self) -> Option<&CollectiveError> {
        match self {
            Self::Verify { source: VerifyError::Collective(source), .. }
            | Self::Collective { source, .. } => Some(source),
            Self::Device { source: DeviceError::Collective(source), .. } => Some(source),
            _ => None,
        }
    }

    /// The rank whose error it is, where it is one rank's.
    pub fn rank(&self) -> Option<u32> {
        match self {
            Self::Device { rank, .. }
            | Self::Verify { rank, .. }
            | Self::Collective { rank, .. }
            | Self::Interrupted { rank }
            | Self::Panicked { rank } => Some(*rank),
            Self::Schedule(_) | Self::Lent(_) | Self::Source(_) | Self::Thread { .. } | Self::Incomplete => {
                None
            }
        }
    }

    /// Whether it only says that another rank failed.
    pub(super) fn is_consequence(&self) -> bool {
        self.collective().is_some_and(|failure| Some(failure.rank()) != self.rank())
    }

    /// What the other ranks are told: the cause, without the rank, which they know, and without what to do here.
    pub(super) fn cause(&self) -> String {
        let text = match self {
            Self::Device { source, .. } => source.to_string(),
            Self::Verify { source, .. } => source.to_string(),
            Self::Interrupted { .. } => "interrupted".to_owned(),
            other => other.to_string(),
        };
        without_help(&text).to_owned()
    }
}
