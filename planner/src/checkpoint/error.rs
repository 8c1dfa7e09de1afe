//! What can be wrong with a checkpoint's files.

use super::{Dtype, MAX_HEADER_BYTES};
use crate::quote::quote;
use std::{io, path::PathBuf};

/// Why a checkpoint could not be catalogued.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The path, or a file the index names, is not there or cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// What was opened.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A pipe, a device or a folder where a file was expected.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was found there.
        path: PathBuf,
    },
    /// No safetensors file in the folder.
    #[error("no safetensors file in {}", folder.display())]
    Empty {
        /// The folder that was searched.
        folder: PathBuf,
    },
    /// Several indexes and none has the usual name.
    #[error("{} has {count} safetensors indexes and none is `model.safetensors.index.json`", folder.display())]
    SeveralIndexes {
        /// The folder that was searched.
        folder: PathBuf,
        /// How many were found.
        count: usize,
    },
    /// The index is not what an index is.
    #[error("{}: not a safetensors index: {reason}", path.display())]
    BadIndex {
        /// The index.
        path: PathBuf,
        /// What the parser or the check says.
        reason: String,
    },
    /// The index names a file that does not lie in the checkpoint's folder.
    #[error("{}: names {}, which lies outside the checkpoint's folder", index.display(), quote(file))]
    OutsideFolder {
        /// The index, or the folder when there is none.
        index: PathBuf,
        /// The name as it is written there.
        file: String,
    },
    /// The index names a file that is not there.
    #[error("{}: names {}, which is not in the folder", index.display(), quote(file))]
    MissingFile {
        /// The index.
        index: PathBuf,
        /// The name as it is written there.
        file: String,
    },
    /// The index says that a file holds a tensor, and its header does not have it.
    #[error("{}: says that {} is in {}, but that file does not have it", index.display(), quote(tensor), quote(file))]
    MissingTensor {
        /// The index.
        index: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The file that should have it.
        file: String,
    },
    /// The same tensor in two files, and no index that says which one counts.
    #[error("tensor {} is in both {} and {}", quote(tensor), quote(first), quote(second))]
    InTwoFiles {
        /// The tensor's name.
        tensor: String,
        /// One file.
        first: String,
        /// The other.
        second: String,
    },
    /// A file's header cannot be believed.
    #[error("{}: {source}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
}

/// Why one safetensors file's header cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The system refused to read.
    #[error("cannot read the header: {0}")]
    Read(io::Error),
    /// Shorter than the length that every file begins with.
    #[error("the file has {file_bytes} bytes, too few for a safetensors header")]
    TooShort {
        /// Length of the file.
        file_bytes: u64,
    },
    /// The declared header ends after the file, or is longer than any real one.
    #[error(
        "the header is said to be {header_bytes} bytes long, but the file has {file_bytes} and no header is longer than {MAX_HEADER_BYTES}"
    )]
    HeaderBeyondFile {
        /// What the first eight bytes say.
        header_bytes: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// Not the JSON that a header is.
    #[error("the header is not the JSON of a safetensors file: {0}")]
    NotJson(serde_json::Error),
    /// A name stands twice.
    #[error("the header has tensor {quoted} twice")]
    RepeatedTensor {
        /// The name, quoted for display.
        quoted: String,
    },
    /// A value that is not a tensor's dtype, shape and offsets or, under `__metadata__`, a map of texts.
    #[error("the header's entry {} cannot be understood: {source}", quote(name))]
    BadEntry {
        /// The key.
        name: String,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// More dimensions than any framework writes.
    #[error("tensor {} has {dimensions} dimensions", quote(name))]
    TooManyDimensions {
        /// The tensor.
        name: String,
        /// How many.
        dimensions: usize,
    },
    /// The end before the start.
    #[error("tensor {} ends at {stop}, before it starts at {start}", quote(name))]
    Inverted {
        /// The tensor.
        name: String,
        /// Declared start.
        start: u64,
        /// Declared end.
        stop: u64,
    },
    /// The number of bits overflows, or is no whole number of bytes.
    #[error(
        "tensor {} of {dtype} {shape:?} does not fill whole bytes, or is larger than any file",
        quote(name)
    )]
    NoWholeBytes {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Shape times dtype is not the length of the byte range.
    #[error(
        "tensor {} of {dtype} {shape:?} needs {expected} bytes, but its offsets give it {found}",
        quote(name)
    )]
    WrongSize {
        /// The tensor.
        name: String,
        /// Its dtype.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that dtype and shape ask for.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// The data ends after the file.
    #[error("tensor {} ends at byte {end}, but the file has {file_bytes}", quote(name))]
    BeyondFile {
        /// The tensor.
        name: String,
        /// Where it would end.
        end: u64,
        /// Length of the file.
        file_bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {} and {} overlap by {bytes} bytes", quote(other), quote(name))]
    Overlap {
        /// The later one.
        name: String,
        /// The earlier one.
        other: String,
        /// How many bytes they share at least.
        bytes: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("{bytes} bytes before tensor {} belong to no tensor", quote(before))]
    Gap {
        /// The tensor after the gap.
        before: String,
        /// Length of the gap.
        bytes: u64,
    },
    /// Bytes after the last tensor.
    #[error("{bytes} bytes at the end of the file belong to no tensor")]
    LeftOver {
        /// How many.
        bytes: u64,
    },
}

impl CatalogError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Read { .. } | Self::NotAFile { .. } => {
                "give a checkpoint's folder, one .safetensors file, or a .safetensors.index.json"
            }
            Self::Empty { .. } => {
                "weights are read from model.safetensors, or from model.safetensors.index.json and the files it names"
            }
            Self::SeveralIndexes { .. } => "give the path of the index that is meant",
            Self::BadIndex { .. } => "fetch the index again",
            Self::OutsideFolder { .. } => {
                "a checkpoint may only name files inside its own folder (or, in a hub cache, its own blobs); copy the file there"
            }
            Self::MissingFile { .. } | Self::MissingTensor { .. } => {
                "the download is incomplete, or the index belongs to another checkpoint; fetch both again"
            }
            Self::InTwoFiles { .. } => {
                "add a model.safetensors.index.json that says which file counts, or give one file"
            }
            Self::Header { source, .. } => match source {
                HeaderError::Read(_) => return None,
                HeaderError::TooShort { .. }
                | HeaderError::BeyondFile { .. }
                | HeaderError::HeaderBeyondFile { .. } => {
                    "the download is incomplete or not a safetensors file; compare its size with the source and fetch it again"
                }
                _ => {
                    "the file is damaged or was not written by safetensors; fetch it again, and do not trust its source"
                }
            },
        };
        Some(help.to_owned())
    }
}
