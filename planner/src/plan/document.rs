//! The plan as it is written.

use super::{cast::CastDtype, error::PlanError};
use crate::{
    checkpoint::{Catalog, CatalogFile, Dtype},
    graph::NamePattern,
    mesh::Mesh,
    model::ModelSpec,
    partition::Partition,
    rules::{Role, StageRule},
    topology::EdgeKind,
    yaml,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// The version of the document that this planner writes and reads.
pub const PLAN_VERSION: u32 = 1;

/// Longest plan that is read, in bytes.
const MAX_PLAN_BYTES: u64 = 64 << 20;

/// How a checkpoint is partitioned over ranks, and where the ranks run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub shardwright_plan: u32,
    /// What was planned.
    pub checkpoint: CheckpointIdentity,
    /// Its dimensions.
    pub model: ModelSpec,
    /// The family whose rules decided.
    pub family: String,
    /// Name of the topology.
    pub topology: String,
    /// Sizes of the axes.
    pub mesh: Mesh,
    /// What each rank of a tensor-parallel group is to hold, in proportion to the others; empty where all hold alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// Where the tensor-parallel groups are; absent for groups of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Groups>,
    /// The layers of each pipeline stage.
    pub stages: Vec<LayerRange>,
    /// Where each rank runs, in the order of the ranks.
    pub ranks: Vec<RankPlace>,
    /// The decisions.
    pub tensors: Vec<TensorGroup>,
    /// Whatever is odd and a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Which checkpoint a plan is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointIdentity {
    /// Where it lay when it was planned. Not part of the plan's digest: ranks on other hosts may have it elsewhere.
    pub path: PathBuf,
    /// Its files.
    pub files: Vec<FileIdentity>,
}

/// What identifies a file without reading its data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileIdentity {
    /// Relative to the checkpoint's folder.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its header, the length included, in hexadecimal.
    pub header_sha256: String,
}

/// The sets of GPUs that tensor-parallel groups run on, and what they were preferred to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Groups {
    /// In the order of the ranks.
    pub groups: Vec<GroupPlace>,
    /// The next best choice for the groups of the first node, where there is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner_up: Option<RunnerUpGroups>,
}

/// The GPUs of a tensor-parallel group, and what connects them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPlace {
    /// `gpu0-3`, or `node1/gpu0-7`.
    pub gpus: String,
    /// What the narrowest part of its rings is.
    pub kind: EdgeKind,
    /// What each GPU sends to the next: the bus bandwidth of an all-reduce.
    pub bytes_per_second: u64,
    /// From one GPU to the next, at most.
    pub hop_latency_ns: u64,
}

/// Sets of GPUs that were not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunnerUpGroups {
    /// `gpu0-3`, one for each group.
    pub gpus: Vec<String>,
    /// The bus bandwidth of an all-reduce in the slowest of them.
    pub bytes_per_second: u64,
}

impl Groups {
    /// The slowest of the groups.
    pub fn slowest(&self) -> Option<&GroupPlace> {
        self.groups.iter().min_by_key(|group| group.bytes_per_second)
    }
}

/// A run of layers, `start..stop`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRange {
    /// First layer.
    pub start: u64,
    /// One past the last layer.
    pub stop: u64,
}

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RankPlace {
    /// The rank.
    pub rank: u32,
    /// Name of its GPU in the topology.
    pub gpu: String,
    /// The node that it is in.
    pub node: u32,
    /// The GPU's number in its node, in the order of PCI addresses: what `CUDA_VISIBLE_DEVICES` names under
    /// `CUDA_DEVICE_ORDER=PCI_BUS_ID`.
    pub device: u32,
    /// What kind of GPU that is.
    pub kind: String,
    /// Bytes of the memory it loads into.
    pub memory_bytes: u64,
    /// The memory that it shares with other GPUs, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pool: Option<String>,
}

/// Tensors that are partitioned alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorGroup {
    /// Their names.
    pub names: Vec<NamePattern>,
    /// dtype of each, as it is stored.
    pub dtype: Dtype,
    /// The dtype that each is cast to as it is loaded, where that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cast: Option<CastDtype>,
    /// Shape of each, whole.
    pub shape: Vec<u64>,
    /// What their module is for.
    pub role: Role,
    /// Which pipeline stages hold them.
    pub stage: StageRule,
    /// Output features of their module, where they are what it computes with and its outputs go through a collective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<u64>,
    /// How ranks share each of them.
    pub partition: Partition,
    /// Why.
    pub why: String,
}

impl TensorGroup {
    /// The dtype that ranks hold them in.
    pub fn loaded_dtype(&self) -> Dtype {
        self.cast.map_or(self.dtype, Dtype::from)
    }

    /// Bytes of each, whole, in that dtype.
    pub fn loaded_bytes(&self) -> u64 {
        let bits = self.loaded_dtype().bitsize() as u64;
        self.shape.iter().fold(bits, |bits, &size| bits.saturating_mul(size)) / 8
    }

    /// How many tensors it stands for.
    pub fn count(&self) -> u64 {
        self.names.iter().map(NamePattern::count).fold(0, u64::saturating_add)
    }

    /// Whether they are biases.
    pub fn is_bias(&self) -> bool {
        let last = self.names.first().and_then(|pattern| pattern.parts().last());
        matches!(last, Some(crate::graph::PatternPart::Text(text)) if text == "bias" || text.ends_with("_bias"))
    }

    /// How many different first numbers their names have: layers.
    pub fn layers(&self) -> u64 {
        use crate::graph::PatternPart::{Numbers, Text};
        let first = |pattern: &NamePattern| {
            let numbers = pattern.parts().iter().find_map(|part| match part {
                Numbers(ranges) => Some(ranges.clone()),
                Text(_) => None,
            });
            numbers.unwrap_or_default()
        };
        let mut ranges: Vec<_> = self.names.iter().flat_map(first).collect();
        ranges.sort_by_key(|range| *range.start());
        let mut end = 0u64;
        let mut count = 0;
        for range in ranges {
            let (start, stop) = (u64::from(*range.start()).max(end), u64::from(*range.end()) + 1);
            count += stop.saturating_sub(start);
            end = end.max(stop);
        }
        count
    }

    /// The name with `*` for every number.
    pub fn collapsed(&self) -> String {
        use crate::graph::PatternPart::{Numbers, Text};
        let parts = self.names.first().map_or(&[][..], NamePattern::parts);
        let parts: Vec<&str> = parts
            .iter()
            .map(|part| match part {
                Text(text) => text.as_str(),
                Numbers(_) => "*",
            })
            .collect();
        parts.join(".")
    }
}

impl CheckpointIdentity {
    /// The identity of the checkpoint at `path`.
    pub fn of(catalog: &Catalog, path: &Path) -> Self {
        Self { path: path.to_owned(), files: catalog.files().iter().map(FileIdentity::of).collect() }
    }
}

impl FileIdentity {
    /// The identity of a file of `bytes` bytes whose header has this SHA-256, the length included.
    pub fn new(name: String, bytes: u64, header_sha256: [u8; 32]) -> Self {
        Self { name, bytes, header_sha256: hexadecimal(&header_sha256) }
    }

    /// The identity of one file.
    pub fn of(file: &CatalogFile) -> Self {
        Self { name: file.name.clone(), bytes: file.bytes, header_sha256: hexadecimal(&file.header_digest) }
    }
}

impl Plan {
    /// The document as YAML. The same plan gives the same bytes.
    ///
    /// # Errors
    /// [`PlanError::Unwritable`] when the checkpoint's path is no UTF-8.
    pub fn to_yaml(&self) -> Result<String, PlanError> {
        yaml::to_string(self).map_err(|error| PlanError::Unwritable { reason: error.to_string() })
    }

    /// Reads a document and checks that it holds together.
    ///
    /// # Errors
    /// [`PlanError`] names the place, or the group of tensors and the numbers.
    pub fn from_yaml(text: &str) -> Result<Self, PlanError> {
        let plan: Self = yaml::from_str(text).map_err(|error| PlanError::NotAPlan {
            line: error.line,
            column: error.column,
            reason: error.message,
        })?;
        plan.check()?;
        Ok(plan)
    }

    /// Reads the plan at `path` and checks that it holds together.
    ///
    /// # Errors
    /// [`PlanError`], see [`Plan::from_yaml`].
    pub fn read(path: &Path) -> Result<Self, PlanError> {
        let read_error = |source| PlanError::Read { path: path.to_owned(), source };
        let meta = std::fs::metadata(path).map_err(read_error)?;
        if !meta.is_file() {
            return Err(read_error(std::io::Error::other("not a regular file")));
        }
        if meta.len() > MAX_PLAN_BYTES {
            return Err(PlanError::TooLong { bytes: meta.len(), most: MAX_PLAN_BYTES });
        }
        let bytes = std::fs::read(path).map_err(read_error)?;
        let text = String::from_utf8(bytes).map_err(|_| PlanError::NotAPlan {
            line: 0,
            column: 0,
            reason: "it is not UTF-8 text".to_owned(),
        })?;
        Self::from_yaml(&text)
    }

    /// SHA-256 of the document without the checkpoint's path, in hexadecimal: what all ranks must agree on.
    ///
    /// # Errors
    /// [`PlanError::Unwritable`] when the plan cannot be written.
    pub fn digest(&self) -> Result<String, PlanError> {
        let mut plan = self.clone();
        plan.checkpoint.path = PathBuf::new();
        Ok(hexadecimal(&Sha256::digest(plan.to_yaml()?.as_bytes())))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
