//! The points, as they are written down.

use serde::Deserialize;
use std::{error::Error, path::Path};

/// What a point is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// GiB of weights on each GPU.
    Weights,
    /// Tokens that the cache has room for in the memory that the engine says it has.
    KvLayout,
    /// Tokens that the cache has room for.
    KvTokens,
    /// Microseconds of an all-reduce of nccl-tests.
    AllReduce,
    /// Milliseconds from one token of a sequence to its next.
    Decode,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::KvLayout => "KV tokens in a known memory",
            Self::KvTokens => "KV tokens",
            Self::AllReduce => "all-reduce time",
            Self::Decode => "decode step time",
        }
    }
}

/// A line of the file. What a kind does not need is empty.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Point {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    /// The skeleton that it is of.
    pub(crate) model: String,
    pub(crate) topology: String,
    #[serde(default)]
    pub(crate) nodes: Option<u32>,
    pub(crate) gpus: u32,
    #[serde(default)]
    pub(crate) tp: Option<u32>,
    #[serde(default)]
    pub(crate) pp: Option<u32>,
    #[serde(default)]
    pub(crate) dp: Option<u32>,
    pub(crate) utilization: Option<f64>,
    /// Tokens of a sequence: the longest that the engine allows, or those that were measured.
    pub(crate) context_len: Option<u64>,
    pub(crate) concurrency: Option<u64>,
    pub(crate) kv_bits: Option<u64>,
    /// Tokens of the longest batch of a prefill.
    pub(crate) batched_tokens: Option<u64>,
    /// GiB that the engine says it has for its cache.
    pub(crate) available_gib: Option<f64>,
    pub(crate) message_bytes: Option<f64>,
    /// In the unit of its kind.
    pub(crate) value: f64,
    /// Where it was published.
    pub(crate) source: String,
}

impl Point {
    pub(crate) fn read(path: &Path) -> Result<Vec<Self>, Box<dyn Error>> {
        let mut reader = csv::Reader::from_path(path)?;
        Ok(reader.deserialize().collect::<Result<_, _>>()?)
    }
}
