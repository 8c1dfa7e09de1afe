//! Why weights could not be held, or not be attached to.

use super::{MOST_ATTACHED, MOST_DOCUMENT_BYTES, PROTOCOL};
use crate::device::DeviceError;
use shardwright_planner::{quote::quote, size::count};
use std::{io, path::PathBuf, time::Duration};

/// Why weights could not be held, or not be attached to.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// There is no socket, or nobody listens on it.
    #[error("nobody holds weights at {}", path.display())]
    NobodyHolds {
        /// Where somebody was looked for.
        path: PathBuf,
    },
    /// Somebody else holds there.
    #[error("{} is held already by {}", path.display(), pid_text(*pid))]
    HeldAlready {
        /// The socket.
        path: PathBuf,
        /// Who holds, where this process can see it.
        pid: Option<u32>,
    },
    /// Something else lies where the socket is or would be.
    #[error("{} is no socket", path.display())]
    NotASocket {
        /// What it is.
        path: PathBuf,
    },
    /// A folder is another user's, or no folder.
    #[error("{} is not a folder of this user's own", path.display())]
    NotOurFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Others may look into the folder.
    #[error("{} is open to other users: its mode is {mode:o}", path.display())]
    OpenFolder {
        /// The folder.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Another process keeps the folder locked.
    #[error("another process keeps the folder {} locked, after {} s", path.display(), waited.as_secs_f64())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The socket is another user's.
    #[error("{} is held by another user, {uid}", path.display())]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// The user.
        uid: u32,
    },
    /// As many are attached as can be.
    #[error("{} cannot be attached to: {MOST_ATTACHED} processes are", path.display())]
    Full {
        /// The socket.
        path: PathBuf,
    },
    /// Whoever holds does not answer.
    #[error("{} does not answer after {} s", path.display(), waited.as_secs_f64())]
    Silent {
        /// The socket.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// What was sent is not what a holder sends.
    #[error("what was read from {} is no document of held weights: {source}", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// The document would be longer than is read.
    #[error("{} in {} are too many to hold: their description has {bytes} bytes, at most {MOST_DOCUMENT_BYTES} are read", count(*tensors, "tensor"), count(*ranks, "rank"))]
    TooMuch {
        /// Tensors of all ranks.
        tensors: u64,
        /// Ranks.
        ranks: u64,
        /// The document's length.
        bytes: u64,
    },
    /// The rank is not held.
    #[error("rank {rank} is not held at {}: {}", path.display(), rank_list(held))]
    NoSuchRank {
        /// The socket.
        path: PathBuf,
        /// The rank asked for.
        rank: u32,
        /// Those that are.
        held: Vec<u32>,
    },
    /// A rank's memory cannot be opened by another process.
    #[error("rank {rank} lies in memory that other processes cannot open")]
    NotShareable {
        /// The rank.
        rank: u32,
    },
    /// A rank that was verified is wrong.
    #[error("rank {rank} does not verify, {} wrong: it is not held", count(*tensors as u64, "tensor"))]
    DoesNotVerify {
        /// The rank.
        rank: u32,
        /// How many tensors are wrong.
        tensors: usize,
    },
    /// A device failed.
    #[error("rank {rank}: {source}")]
    Device {
        /// The rank.
        rank: u32,
        /// What it could not do.
        source: DeviceError,
    },
    /// What was opened has another length than what is held.
    #[error("rank {rank}: {found} bytes were opened, {bytes} are held")]
    OtherLength {
        /// The rank.
        rank: u32,
        /// Bytes that are held.
        bytes: u64,
        /// Bytes that were opened.
        found: u64,
    },
    /// What was opened is not what is held.
    #[error(
        "rank {rank}: the memory that was opened has the fingerprint {found}, the holder's is {expected}"
    )]
    Differs {
        /// The rank.
        rank: u32,
        /// The holder's fingerprint.
        expected: String,
        /// That of what was opened.
        found: String,
    },
    /// A call of the system failed.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The first line is another program's.
    #[error("it does not begin as one")]
    NotOne,
    /// The document ended early.
    #[error("it ends after {found} of {bytes} bytes")]
    Cut {
        /// Bytes that were announced.
        bytes: u64,
        /// Bytes that came.
        found: u64,
    },
    /// Another version of the protocol.
    #[error("it is of protocol {found}, this shardwright reads protocol {PROTOCOL}")]
    Protocol {
        /// Its version.
        found: u64,
    },
    /// Longer than is read.
    #[error("it announces {bytes} bytes, at most {MOST_DOCUMENT_BYTES} are read")]
    TooLong {
        /// Its length.
        bytes: u64,
    },
    /// No JSON, or not the fields that there must be.
    #[error("{}", shown(.0))]
    Json(#[from] serde_json::Error),
    /// More ranks than a process holds.
    #[error("it has {found} ranks, at most {most} are read")]
    TooManyRanks {
        /// How many.
        found: usize,
        /// How many can be.
        most: usize,
    },
    /// A field that is not what it must be.
    #[error("{}`{field}` must be {rule}", rank.map_or(String::new(), |rank| format!("rank {rank}: ")))]
    Field {
        /// The rank, where it is one's.
        rank: Option<u32>,
        /// The field.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// A tensor that cannot be so.
    #[error("rank {rank}: tensor {} {flaw}", quote(tensor))]
    Tensor {
        /// The rank.
        rank: u32,
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        flaw: TensorFlaw,
    },
}

/// What is wrong with a tensor of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TensorFlaw {
    /// Dtype, shape and length do not go together.
    #[error("has {bytes} bytes, which its dtype and shape do not make up")]
    Size {
        /// Its length.
        bytes: u64,
    },
    /// It does not lie in the memory.
    #[error("has {bytes} bytes at {offset}, outside a memory of {memory}")]
    Outside {
        /// First byte.
        offset: u64,
        /// How many.
        bytes: u64,
        /// The memory's length.
        memory: u64,
    },
    /// It lies at an odd place.
    #[error("begins at byte {offset}, no multiple of 256")]
    Unaligned {
        /// First byte.
        offset: u64,
    },
    /// There are two.
    #[error("stands twice")]
    Twice,
}

impl HoldError {
    /// What would work, where that can be said.
    pub fn help(&self) -> Option<&'static str> {
        Some(match self {
            Self::NobodyHolds { .. } => {
                "`shardwright load PLAN --hold` loads a plan's weights and holds them"
            }
            Self::HeldAlready { .. } => {
                "attach to it (`shardwright attach`), end that process, or hold at another socket"
            }
            Self::NotASocket { .. } => {
                "name a socket, or a place where nothing lies; what lies there is left alone"
            }
            Self::NotOurFolder { .. } => "set XDG_RUNTIME_DIR to a folder of your own, or name a socket",
            Self::OpenFolder { .. } => "make it yours alone with chmod 700, or name a socket elsewhere",
            Self::Locked { .. } => "name a socket in a folder that nobody else uses",
            Self::Full { .. } => "end a process that is attached",
            Self::Silent { .. } => "look whether the process that holds is stopped",
            Self::Malformed { source: DocumentError::Protocol { .. }, .. } => {
                "use the same version of shardwright on both sides"
            }
            Self::NotShareable { .. } => "only memory of GPUs can be held for other processes",
            Self::Differs { .. } => "load again; the weights that are held are not those that were loaded",
            Self::Device { source: DeviceError::NoSuchGpu { .. }, .. } => {
                "let CUDA_VISIBLE_DEVICES name that GPU"
            }
            _ => return None,
        })
    }
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map_or("a process of another container".to_owned(), |pid| format!("pid {pid}"))
}

fn rank_list(held: &[u32]) -> String {
    let held: Vec<String> = held.iter().map(u32::to_string).collect();
    if held.is_empty() { "no rank is".to_owned() } else { format!("ranks {} are", held.join(", ")) }
}

/// What serde says, in which the document's own words may stand.
fn shown(error: &serde_json::Error) -> String {
    shardwright_planner::quote::escaped(&error.to_string())
}
