//! What keeps a machine from being found out, and what of it stays unknown.

use super::Address;
use nvml_wrapper::error::NvmlError;
use shardwright_planner::size::count;
use std::{fmt, path::PathBuf};

/// Why no machine could be made out.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// NVIDIA's library, or the driver that it speaks to, is not there.
    #[error("no NVIDIA driver here: {reason}")]
    NoDriver {
        /// What was tried, and what came of it.
        reason: String,
    },
    /// The driver knows of no GPU.
    #[error("the NVIDIA driver finds no GPU here")]
    NoGpu,
    /// NVML lists GPUs, and lets this user look at none of them.
    #[error("the NVIDIA driver has {gpus} GPUs, and this user may look at none of them")]
    NoPermission {
        /// How many there are.
        gpus: u32,
    },
    /// More GPUs than a machine has.
    #[error(
        "the NVIDIA driver speaks of {gpus} GPUs; {most} are the most that a machine is believed to have"
    )]
    TooMany {
        /// How many it speaks of.
        gpus: u32,
        /// How many are believed.
        most: u32,
    },
    /// A call that concerns all GPUs failed.
    #[error("{call} failed: {source}")]
    Nvml {
        /// The function of NVML.
        call: &'static str,
        /// Why.
        source: NvmlError,
    },
    /// A call without whose answer nothing can be said of a GPU failed.
    #[error("GPU {gpu}: {call} failed: {source}")]
    Gpu {
        /// NVML's number.
        gpu: u32,
        /// The function of NVML.
        call: &'static str,
        /// Why.
        source: NvmlError,
    },
    /// A GPU's PCI address makes no sense, or is that of another one.
    #[error("GPU {gpu}: NVML gives the PCI address {address:?}, which {problem}")]
    BadAddress {
        /// NVML's number.
        gpu: u32,
        /// What it says.
        address: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl DetectError {
    /// What can be done instead.
    pub fn help(&self) -> &'static str {
        match self {
            Self::NoDriver { .. } | Self::NoGpu => {
                "without a GPU, plan with `--topology host`, or for another machine: `shardwright topology list`"
            }
            Self::NoPermission { .. } => {
                "ask for access to /dev/nvidia*, or describe the machine in a topology file"
            }
            Self::TooMany { .. } | Self::Nvml { .. } | Self::Gpu { .. } | Self::BadAddress { .. } => {
                "see whether `nvidia-smi` works; a machine can also be described in a topology file"
            }
        }
    }
}

/// Something that could not be found out, or was left out. The rest holds without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// sysfs cannot be read.
    NoSysfs {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// sysfs does not have a GPU that NVML has.
    NotInSysfs {
        /// NVML's number.
        gpu: u32,
        /// Where it is.
        address: Address,
    },
    /// This user may not look at a GPU.
    NotAllowed {
        /// NVML's number.
        gpu: u32,
    },
    /// A GPU is divided into instances.
    Divided {
        /// NVML's number.
        gpu: u32,
    },
    /// NVLinks lead to a GPU that is not for this process to use, or to a CPU.
    LinksOutside {
        /// NVML's number.
        gpu: u32,
        /// How many.
        links: u32,
        /// Where they lead, where NVML says it.
        address: Option<Address>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSysfs { path, reason } => write!(
                f,
                "cannot see the PCI devices in {}: {reason}; all GPUs are taken to hang on one CPU, network cards are left out",
                path.display()
            ),
            Self::NotInSysfs { gpu, address } => {
                write!(f, "sysfs has no {address}, where GPU {gpu} is; it is taken to hang on a CPU directly")
            }
            Self::NotAllowed { gpu } => write!(f, "GPU {gpu} is left out: this user may not look at it"),
            Self::Divided { gpu } => {
                write!(f, "GPU {gpu} is divided into instances (MIG); the whole GPU is shown")
            }
            Self::LinksOutside { gpu, links, address } => {
                let links = count(u64::from(*links), "NVLink");
                match address {
                    Some(address) => {
                        write!(
                            f,
                            "GPU {gpu} has {links} to {address}, which is no GPU that can be used here: left out"
                        )
                    }
                    None => write!(f, "GPU {gpu} has {links} of which NVML does not say where to: left out"),
                }
            }
        }
    }
}
