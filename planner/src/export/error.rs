//! Why a folder is no export that can be used.

use crate::{
    checkpoint::CatalogError,
    plan::{PlanError, StaleError},
    quote::quote,
};
use std::{io, path::PathBuf};

/// Why a folder is no export that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The plan in the folder is none.
    #[error("the plan of the export {}: {source}", path.display())]
    Plan {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        source: PlanError,
    },
    /// A rank's record is missing: the export of that rank is not there, or was never finished.
    #[error("rank {rank} is not in the export {}: {} is missing", folder.display(), quote(record))]
    RankMissing {
        /// The folder.
        folder: PathBuf,
        /// The rank.
        rank: u32,
        /// The name of its record.
        record: String,
    },
    /// A rank's record cannot be read.
    #[error("cannot read the record of rank {rank}, {}: {source}", path.display())]
    Read {
        /// The rank.
        rank: u32,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A rank's record is malformed.
    #[error("the record of rank {rank}, {}, is none: {reason}", path.display())]
    Malformed {
        /// The rank.
        rank: u32,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A rank's files come from another plan or another checkpoint.
    #[error("rank {rank}'s files in {} are of another export than the plan beside them", folder.display())]
    OtherExport {
        /// The folder.
        folder: PathBuf,
        /// The rank.
        rank: u32,
    },
    /// The files have an engine's names.
    #[error("{} has the names of {}, which loads it by itself", folder.display(), quote(names))]
    ForEngine {
        /// The folder.
        folder: PathBuf,
        /// Whose names.
        names: String,
    },
    /// A rank's files cannot be believed.
    #[error("rank {rank}'s files: {source}")]
    Files {
        /// The rank.
        rank: u32,
        /// What is wrong.
        source: CatalogError,
    },
    /// A rank's file is another than its record says.
    #[error(
        "{} of rank {rank} is not the file that was exported: its length or its header differs",
        quote(file)
    )]
    Changed {
        /// The rank.
        rank: u32,
        /// The file.
        file: String,
    },
    /// The files do not have what the plan says.
    #[error("the export {}: {source}", folder.display())]
    Stale {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        source: StaleError,
    },
}

impl ExportError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Plan { source, .. } => return source.help(),
            Self::Read { .. } => return None,
            Self::ForEngine { .. } => {
                "export with `--format shardwright` for `shardwright load`, or load the checkpoint's own plan"
            }
            _ => "export again: `shardwright export PLAN -o DIR`, or that rank alone with --rank",
        };
        Some(help.to_owned())
    }
}
