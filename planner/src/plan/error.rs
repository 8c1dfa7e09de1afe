//! What can be wrong with a plan.

use crate::{checkpoint::Dtype, mesh::Mesh, partition::PartitionError, quote::quote};
use std::{io, path::PathBuf};

/// Why a plan cannot be used, whatever the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Longer than any plan.
    #[error("the plan has {bytes} bytes, more than {most}")]
    TooLong {
        /// Its length.
        bytes: u64,
        /// The longest that is read.
        most: u64,
    },
    /// Not the YAML of a plan.
    #[error("not a plan: line {line}, column {column}: {reason}")]
    NotAPlan {
        /// Line, 0 when it is not known.
        line: usize,
        /// Column, 0 when it is not known.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A plan that cannot be written.
    #[error("the plan cannot be written: {reason}")]
    Unwritable {
        /// What the writer says.
        reason: String,
    },
    /// Written by another version.
    #[error("the plan's version is {found}, but this version of shardwright reads {known}")]
    Version {
        /// What the plan says.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Not one place for each rank, in order.
    #[error("the plan lists {found} ranks, but its mesh (tp {}, pp {}, dp {}) has {}; they are listed in order, each once", mesh.tp(), mesh.pp(), mesh.dp(), mesh.world_size())]
    Ranks {
        /// How many are listed.
        found: usize,
        /// The mesh.
        mesh: Mesh,
    },
    /// A cast of something that is no float, or to what it is already.
    #[error("{} cannot be cast from {from} to {to}", quote(name))]
    Cast {
        /// The tensors.
        name: String,
        /// What they are stored as.
        from: Dtype,
        /// What they were to be loaded as.
        to: Dtype,
    },
    /// Two ranks on one GPU.
    #[error("ranks {first} and {second} are both on {}", quote(gpu))]
    SharedGpu {
        /// One rank.
        first: u32,
        /// The other.
        second: u32,
        /// The GPU.
        gpu: String,
    },
    /// The stages do not cut the layers into runs.
    #[error("the plan's {found} stages do not cut {layers} layers into {pp} runs in order, none empty")]
    Stages {
        /// How many are listed.
        found: usize,
        /// Layers of the model.
        layers: u64,
        /// Pipeline stages of the mesh.
        pp: u32,
    },
    /// More tensors than any checkpoint has.
    #[error("the plan stands for more than {most} tensors")]
    TooManyTensors {
        /// The most that are expanded.
        most: u64,
    },
    /// More segments over more ranks than any plan has.
    #[error("the plan cuts its tensors into more than {most} slices for each pipeline stage")]
    TooManySlices {
        /// The most that are computed.
        most: u64,
    },
    /// A tensor in two groups.
    #[error("tensor {} is in the plan twice", quote(name))]
    NamedTwice {
        /// Its name.
        name: String,
    },
    /// A layer that no stage has, or a name without one.
    #[error("{} goes with its layer, but its first number is no layer below {layers}", quote(name))]
    NoLayer {
        /// The group's collapsed name.
        name: String,
        /// Layers of the model.
        layers: u64,
    },
    /// Not one weight for each rank of a tensor-parallel group.
    #[error(
        "the plan has {found} weights for {tp} ranks of a tensor-parallel group; each rank has one, which is not 0"
    )]
    Weights {
        /// How many there are.
        found: usize,
        /// Ranks in a tensor-parallel group.
        tp: u32,
    },
    /// Not one place for each tensor-parallel group.
    #[error("the plan places {found} tensor-parallel groups, but tp {}, pp {}, dp {} have {}", mesh.tp(), mesh.pp(), mesh.dp(), mesh.pp() * mesh.dp())]
    Groups {
        /// How many it places.
        found: usize,
        /// The axes.
        mesh: Mesh,
    },
    /// A tensor that goes to a rank by a number that its name does not have.
    #[error("{} goes to a rank by number {number} in its name, which is no number below {of}", quote(name))]
    NoNumber {
        /// The group's collapsed name.
        name: String,
        /// Which of the numbers in the name, from 0.
        number: usize,
        /// How many there are said to be.
        of: u64,
    },
    /// A shape that no tensor has.
    #[error("{} of {shape:?} is larger than any file", quote(name))]
    AbsurdShape {
        /// The group's collapsed name.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A partition that does not fit.
    #[error("{}: {source}", quote(name))]
    Partition {
        /// The group's collapsed name.
        name: String,
        /// What does not fit.
        source: PartitionError,
    },
}

/// Why a plan is not, or no longer, one for the checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum StaleError {
    /// Other files than were planned.
    #[error("the checkpoint has changed since it was planned: {reason}")]
    Files {
        /// Which file, with the numbers.
        reason: String,
    },
    /// The checkpoint has a tensor that the plan does not.
    #[error("tensor {} of the checkpoint is not in the plan", quote(name))]
    NotPlanned {
        /// Its name.
        name: String,
    },
    /// The plan has a tensor that the checkpoint does not.
    #[error("tensor {} of the plan is not in the checkpoint", quote(name))]
    NotThere {
        /// Its name.
        name: String,
    },
    /// Another dtype or shape.
    #[error("tensor {} is {found} in the checkpoint, but {planned} in the plan", quote(name))]
    Differs {
        /// Its name.
        name: String,
        /// What the header says.
        found: String,
        /// What the plan says.
        planned: String,
    },
}

impl PlanError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::Read { .. } => return None,
            Self::Unwritable { .. } => "give the checkpoint a path that is UTF-8 text",
            _ => "the plan was edited or damaged; make it anew with `shardwright plan`",
        };
        Some(help.to_owned())
    }
}

impl StaleError {
    /// What the reader can do about it.
    pub fn help(&self) -> String {
        "make the plan anew with `shardwright plan`, or give the checkpoint that was planned with --checkpoint".to_owned()
    }
}
