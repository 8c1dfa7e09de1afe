//! What a rank's part of an export is: a document beside its files, which is written when they are whole.

use super::ExportError;
use crate::{
    plan::{FileIdentity, Plan, PlanError},
    quote::quote,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

/// The plan's name in an export.
pub const PLAN_NAME: &str = "plan.yaml";

/// What [`RankRecord::names`] says of tensors that have the checkpoint's own names.
pub const CHECKPOINT_NAMES: &str = "checkpoint";

/// The version of the document.
const VERSION: u32 = 1;

/// Longest record that is read, in bytes: one line for each file.
const MOST_BYTES: u64 = 16 << 20;

/// What a rank's part of an export is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankRecord {
    /// The version of the document.
    shardwright_export: u32,
    /// Which export: see [`export_id`].
    pub export: String,
    /// Whose names the tensors have: [`CHECKPOINT_NAMES`], or an engine's name.
    pub names: String,
    /// The rank.
    pub rank: u32,
    /// How many ranks the plan has.
    pub world_size: u32,
    /// Its files, relative to the folder.
    pub files: Vec<FileIdentity>,
}

/// What all ranks of an export have in common: the digest of their plan and of the names that their tensors have.
///
/// # Errors
/// [`PlanError::Unwritable`] when the plan cannot be written.
pub fn export_id(plan: &Plan, names: &str) -> Result<String, PlanError> {
    let text = format!("{} {names}", plan.digest()?);
    Ok(Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The name of a rank's record in the folder.
pub fn record_name(rank: u32) -> String {
    format!("rank-{rank:05}.json")
}

/// Whether `path` is a folder with an export, or a part of one.
pub fn is_export(path: &Path) -> bool {
    path.is_dir() && path.join(PLAN_NAME).is_file()
}

impl RankRecord {
    /// The record of `rank`, whose `files` are whole.
    pub fn new(export: String, names: String, rank: u32, world_size: u32, files: Vec<FileIdentity>) -> Self {
        Self { shardwright_export: VERSION, export, names, rank, world_size, files }
    }

    /// Reads the record of `rank` in `folder`.
    ///
    /// # Errors
    /// [`ExportError`] when it is not there, cannot be read, or is none.
    pub fn read(folder: &Path, rank: u32) -> Result<Self, ExportError> {
        let record = record_name(rank);
        let path = folder.join(&record);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => {
                ExportError::RankMissing { folder: folder.to_owned(), rank, record: record.clone() }
            }
            _ => ExportError::Read { rank, path: path.clone(), source },
        };
        let mut text = String::new();
        let meta = std::fs::metadata(&path).map_err(failed)?;
        if !meta.is_file() {
            return Err(failed(io::Error::other("not a regular file")));
        }
        let file = File::open(&path).map_err(failed)?;
        file.take(MOST_BYTES).read_to_string(&mut text).map_err(failed)?;
        let malformed = |reason: String| ExportError::Malformed { rank, path: path.clone(), reason };
        let found: Self = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        if found.shardwright_export != VERSION {
            let version = found.shardwright_export;
            return Err(malformed(format!("its version is {version}, and {VERSION} is known")));
        }
        if found.rank != rank {
            return Err(malformed(format!("it is rank {}'s", found.rank)));
        }
        let plain = |file: &FileIdentity| !file.name.is_empty() && !file.name.contains('/');
        match found.files.iter().find(|file| !plain(file)) {
            Some(file) => Err(malformed(format!("{} is no file of the folder", quote(&file.name)))),
            None => Ok(found),
        }
    }

    /// The document.
    ///
    /// # Errors
    /// None that is known: names and numbers are always text.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }
}
