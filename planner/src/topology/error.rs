//! What can be wrong with a topology.

use super::{
    names::{Names, Numbers},
    schema::{MAX_COUNT, MAX_EDGES, MAX_GPUS, MAX_GPUS_PER_NODE, MAX_PARTS},
};
use crate::{quote::quote, yaml::YamlError};

/// Why a text is no topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {}{problem}", place.map_or(String::new(), |(line, column)| format!("line {line}, column {column}: ")))]
pub struct TopologyError {
    /// The file or the built-in's name.
    pub origin: String,
    /// Line and column of the name that is wrong, from 1, where it is one.
    pub place: Option<(usize, usize)>,
    /// What is wrong.
    pub problem: TopologyProblem,
}

/// What is wrong with a topology.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopologyProblem {
    /// Not YAML, an unknown key, or an impossible value.
    #[error("line {line}, column {column}: {reason}")]
    Malformed {
        /// Line, 0 when it is not known.
        line: usize,
        /// Column, 0 when it is not known.
        column: usize,
        /// What the parser says.
        reason: String,
        /// The word that was probably meant.
        nearest: Option<String>,
    },
    /// No GPUs, or more than are planned for.
    #[error(
        "{nodes} nodes of {gpus} GPUs: both are at least 1, a node has at most {MAX_GPUS_PER_NODE} GPUs and all together {MAX_GPUS}"
    )]
    Size {
        /// Nodes.
        nodes: u32,
        /// GPUs of each.
        gpus: u32,
    },
    /// More hubs or links than any node has.
    #[error("{count} {what}, more than {MAX_PARTS}")]
    TooMany {
        /// How many.
        count: usize,
        /// What of.
        what: &'static str,
    },
    /// More connections than any node has.
    #[error("more than {MAX_EDGES} connections in a node")]
    TooManyConnections,
    /// No connection, or absurdly many side by side.
    #[error("{} has {count} connections side by side, not 1 to {MAX_COUNT}", quote(name))]
    Connections {
        /// What has them.
        name: String,
        /// How many.
        count: u32,
    },
    /// A name that nothing has.
    #[error("{} is named, but there is no such GPU, hub or network card", quote(name))]
    UnknownName {
        /// The name.
        name: String,
        /// The nearest that exists.
        nearest: Option<String>,
    },
    /// Two hubs with one name, or a hub named like a GPU.
    #[error("the name {} is given twice", quote(name))]
    NameTwice {
        /// The name.
        name: String,
    },
    /// A kind of GPU that is not in the list of known ones, and whose memory the file does not say.
    #[error("GPU kind {} is not one of those known, so the file must say its `memory`", quote(kind))]
    UnknownGpu {
        /// The kind.
        kind: String,
        /// The nearest that is known.
        nearest: Option<String>,
    },
    /// Several kinds of GPUs that do not tell for each GPU which it is.
    #[error("which kind is gpu{gpu}? each kind needs `gpus`, and every GPU one kind")]
    KindOfGpu {
        /// The first GPU of no kind or of two.
        gpu: u32,
    },
    /// A hub that says which GPUs are plugged into it, but not how fast.
    #[error("hub {} needs a `bandwidth` for what is plugged into it", quote(hub))]
    NoBandwidth {
        /// The hub.
        hub: String,
    },
    /// A hub that no node has.
    #[error("hub {} spans 0 nodes: it is shared by 1 or more", quote(hub))]
    SpansNothing {
        /// The hub.
        hub: String,
    },
    /// Hubs whose nodes overlap without one holding the other.
    #[error(
        "hubs that span {smaller} and {larger} nodes overlap: the larger must be a multiple of the smaller"
    )]
    Spans {
        /// The smaller number of nodes.
        smaller: u32,
        /// The larger.
        larger: u32,
    },
    /// Numbers of things that cannot be dealt to each other.
    #[error("{} {of} cannot be dealt evenly to the {} of {}", dealt.0, dealt.1, quote(to))]
    NotDealt {
        /// What is to be dealt.
        of: &'static str,
        /// To whom.
        to: String,
        /// How many of each.
        dealt: (usize, usize),
    },
    /// A thing connected to itself.
    #[error("{} is connected to itself", quote(name))]
    SelfLink {
        /// The thing.
        name: String,
    },
    /// A hub that is plugged into itself over others.
    #[error("hub {} is plugged into itself, over what it is `on`", quote(name))]
    Cycle {
        /// The hub.
        name: String,
    },
    /// A link that says neither or both of what it connects.
    #[error("a {kind} link needs either `between` two names or `among` several")]
    LinkEnds {
        /// Its kind.
        kind: String,
    },
    /// GPUs that no path connects.
    #[error("no path connects {} and {}", quote(from), quote(to))]
    Unconnected {
        /// One GPU.
        from: String,
        /// The other.
        to: String,
    },
    /// Several nodes, and nothing between them.
    #[error("{nodes} nodes, but no `network` that connects every GPU with the other nodes")]
    NoNetwork {
        /// Nodes.
        nodes: u32,
    },
    /// A network that nothing is plugged into, or of unknown speed.
    #[error("the network needs {missing}")]
    NetworkWithout {
        /// What it lacks.
        missing: &'static str,
    },
    /// `detected` where nothing was detected.
    #[error("`{key}` is `detected`, which only means something on the machine that ranks run on")]
    NotDetected {
        /// The key.
        key: &'static str,
    },
}

impl TopologyProblem {
    /// The word of the file that is wrong, and which time it stands there.
    fn word(&self) -> Option<(&str, usize)> {
        match self {
            Self::NameTwice { name } => Some((name, 1)),
            Self::UnknownName { name, .. }
            | Self::Connections { name, .. }
            | Self::SelfLink { name }
            | Self::Cycle { name }
            | Self::UnknownGpu { kind: name, .. }
            | Self::NoBandwidth { hub: name }
            | Self::SpansNothing { hub: name }
            | Self::NotDealt { to: name, .. } => Some((name, 0)),
            _ => None,
        }
    }

    /// This problem of `text`, with its place.
    pub(super) fn of(self, text: &str, origin: &str) -> TopologyError {
        let place = self.word().and_then(|(word, time)| place(text, word, time));
        TopologyError { origin: origin.to_owned(), place, problem: self }
    }
}

/// Line and column, from 1, of the word in `text` that names `name` as the `time`th, by itself or in a run; comments are left
/// out, and so are keys.
fn place(text: &str, name: &str, time: usize) -> Option<(usize, usize)> {
    let is_of_word = |letter: char| letter.is_alphanumeric() || "_.:-".contains(letter);
    let number = name.strip_prefix("gpu").and_then(|number| number.parse().ok());
    let mut times = 0;
    for (at, line) in text.lines().enumerate() {
        let code = if line.starts_with('#') { "" } else { line.split(" #").next().unwrap_or(line) };
        // The count of all GPUs is no list of them.
        let of_gpus = code.contains("gpus:") && !code.starts_with("gpus:");
        let mut start = 0;
        while let Some(skip) = code[start..].find(is_of_word) {
            start += skip;
            let end = code[start..].find(|letter| !is_of_word(letter)).map_or(code.len(), |end| start + end);
            let word = &code[start..end];
            let names_it = word.parse::<Names>().is_ok_and(|names| names.has(name))
                || number.is_some_and(|number: u32| of_gpus && Numbers::lists(word, number))
                // The kinds of GPUs have blanks in their names.
                || code[start..].starts_with(name);
            if names_it {
                if times == time {
                    return Some((at + 1, code[..start].chars().count() + 1));
                }
                times += 1;
            }
            start = end;
        }
    }
    None
}

impl TopologyError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        use TopologyProblem::{Cycle, Malformed, NoNetwork, Unconnected, UnknownGpu, UnknownName};
        let help = match &self.problem {
            UnknownName { nearest: Some(nearest), .. }
            | UnknownGpu { nearest: Some(nearest), .. }
            | Malformed { nearest: Some(nearest), .. } => {
                return Some(format!("did you mean {}", quote(nearest)));
            }
            NoNetwork { .. } => "add network cards (`nics`) and `network: { kind: … }`",
            Unconnected { .. } => "plug both into hubs that links connect",
            Cycle { .. } => "hubs form a tree: each is on one nearer to the CPU",
            _ => {
                "the schema is described in topologies/README.md; `shardwright topology show dgx-h100 --yaml` prints an example"
            }
        };
        Some(help.to_owned())
    }
}

impl From<YamlError> for TopologyProblem {
    fn from(error: YamlError) -> Self {
        let nearest = error.nearest_word();
        Self::Malformed { line: error.line, column: error.column, reason: error.message, nearest }
    }
}
