//! What can be wrong with a topology.

use super::schema::{MAX_GPUS, MAX_GPUS_PER_NODE, MAX_PARTS};
use crate::quote::quote;

/// Why a text is no topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// Not YAML, an unknown key, or an impossible value.
    #[error("{origin}: line {line}, column {column}: {reason}")]
    Malformed {
        /// The file or the built-in's name.
        origin: String,
        /// Line, 0 when it is not known.
        line: usize,
        /// Column, 0 when it is not known.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// No GPUs, or more than are planned for.
    #[error(
        "{origin}: {nodes} nodes of {gpus} GPUs: both are at least 1, a node has at most {MAX_GPUS_PER_NODE} GPUs and all together {MAX_GPUS}"
    )]
    Size {
        /// The file or the built-in's name.
        origin: String,
        /// Nodes.
        nodes: u32,
        /// GPUs of each.
        gpus: u32,
    },
    /// More hubs or links than any node has.
    #[error("{origin}: {count} {what}, more than {MAX_PARTS}")]
    TooMany {
        /// The file or the built-in's name.
        origin: String,
        /// How many.
        count: usize,
        /// What of.
        what: &'static str,
    },
    /// A name that nothing has.
    #[error("{origin}: {} is named, but there is no such GPU or hub", quote(name))]
    UnknownName {
        /// The file or the built-in's name.
        origin: String,
        /// The name.
        name: String,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// Two hubs with one name, or a hub named like a GPU.
    #[error("{origin}: the name {} is given twice", quote(name))]
    NameTwice {
        /// The file or the built-in's name.
        origin: String,
        /// The name.
        name: String,
    },
    /// A hub that says which GPUs are plugged into it, but not how fast, or the other way round.
    #[error("{origin}: hub {} needs both `gpus` and `bandwidth`, or neither", quote(hub))]
    HalfConnected {
        /// The file or the built-in's name.
        origin: String,
        /// The hub.
        hub: String,
    },
    /// A thing connected to itself.
    #[error("{origin}: {} is linked to itself", quote(name))]
    SelfLink {
        /// The file or the built-in's name.
        origin: String,
        /// The thing.
        name: String,
    },
    /// GPUs that no path connects.
    #[error("{origin}: no path connects {} and {}", quote(from), quote(to))]
    Unconnected {
        /// The file or the built-in's name.
        origin: String,
        /// One GPU.
        from: String,
        /// The other.
        to: String,
    },
    /// Several nodes, and nothing between them.
    #[error("{origin}: {nodes} nodes, but no `network` that connects them")]
    NoNetwork {
        /// The file or the built-in's name.
        origin: String,
        /// Nodes.
        nodes: u32,
    },
    /// `detected` where nothing was detected.
    #[error("{origin}: `{key}` is `detected`, which only means something on the machine that ranks run on")]
    NotDetected {
        /// The file or the built-in's name.
        origin: String,
        /// The key.
        key: &'static str,
    },
}

impl TopologyError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        let help = match self {
            Self::UnknownName { nearest: Some(nearest), .. } => {
                return Some(format!("did you mean {}", quote(nearest)));
            }
            Self::NoNetwork { .. } => "add `network: { kind: …, bandwidth: …, via: [HUB] }`",
            Self::Unconnected { .. } => "plug both into hubs that links connect",
            _ => {
                "the schema is described in topologies/README.md; `shardwright topology show dgx-h100 --yaml` prints an example"
            }
        };
        Some(help.to_owned())
    }
}
