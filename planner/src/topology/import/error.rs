//! Why what a tool printed is no topology.

use super::{MAX_BYTES, MAX_DEPTH, MAX_DEVICES, MAX_GPUS, MAX_NICS};
use crate::{
    quote::quote,
    size::count,
    topology::{TopologyError, TopologyProblem},
};

/// Why a text could not be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct ImportError {
    /// The file, or what else the text came from.
    pub origin: String,
    /// What is wrong.
    pub problem: ImportProblem,
}

/// What is wrong with a text that is to be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportProblem {
    /// Longer than any tool's output.
    #[error("{bytes} bytes, more than {MAX_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// More than any node has.
    #[error("{count} {what}, more than {most}")]
    TooMany {
        /// How many, or how many were counted before giving up.
        count: usize,
        /// What of.
        what: &'static str,
        /// Most that are read.
        most: usize,
    },
    /// No XML, or XML with a document type, or too much of it.
    #[error("line {line}, column {column}: {reason}")]
    NotXml {
        /// Line.
        line: u32,
        /// Column.
        column: u32,
        /// What the parser says.
        reason: String,
    },
    /// XML of another kind.
    #[error(
        "line {line}: the element is {}, but the one around an NCCL topology is `system`",
        quote(element)
    )]
    NotNccl {
        /// Line.
        line: u32,
        /// The outermost element.
        element: String,
    },
    /// A figure that is none, or that no machine has.
    #[error("line {line}: {attribute} {} of `{element}` is not {expected}", quote(value))]
    Attribute {
        /// Line.
        line: u32,
        /// The element.
        element: &'static str,
        /// The attribute.
        attribute: &'static str,
        /// As it is written.
        value: String,
        /// What would do.
        expected: String,
    },
    /// Devices behind devices behind devices.
    #[error("{}PCI devices are nested deeper than {MAX_DEPTH} levels", if *line == 0 { String::new() } else { format!("line {line}: ") })]
    TooDeep {
        /// Line, 0 when it is not known.
        line: u32,
    },
    /// Two PCI devices with one address.
    #[error("the PCI address {} is given twice", quote(address))]
    AddressTwice {
        /// The address.
        address: String,
    },
    /// A dump of several machines.
    #[error("{hosts} hosts are described, and a topology is that of one node")]
    SeveralHosts {
        /// How many.
        hosts: usize,
    },
    /// Neither XML nor a matrix.
    #[error(
        "this is neither an NCCL topology (XML) nor a matrix of `nvidia-smi topo -m`: no line names GPU0, GPU1 …"
    )]
    NeitherKind,
    /// A matrix beside a matrix.
    #[error("a second matrix beside `nvidia-smi topo -m`")]
    MatrixTwice,
    /// The names over the columns are missing or not as expected.
    #[error("line {line}: {} stands where GPU{expected} is expected", quote(name))]
    ColumnName {
        /// Line.
        line: usize,
        /// The name there.
        name: String,
        /// The number of the GPU expected there.
        expected: usize,
    },
    /// A row too few.
    #[error("the matrix ends before the row of {}: {rows} of {devices} rows are there", quote(device))]
    RowMissing {
        /// The device whose row is missing.
        device: String,
        /// Rows that are there.
        rows: usize,
        /// Rows that the columns ask for.
        devices: usize,
    },
    /// A row of something else.
    #[error("line {line}: the row of {} stands where that of {} is expected", quote(name), quote(device))]
    RowName {
        /// Line.
        line: usize,
        /// The name there.
        name: String,
        /// The name expected.
        device: String,
    },
    /// A row with too few cells, or too many.
    #[error("line {line}: the row of {} has {cells} cells for {devices} columns", quote(device))]
    RowLength {
        /// Line.
        line: usize,
        /// Whose row it is.
        device: String,
        /// Cells that are there.
        cells: usize,
        /// Columns that the head names.
        devices: usize,
    },
    /// A word that says no connection.
    #[error(
        "line {line}: {} between {} and {} is no connection that is known",
        quote(word),
        quote(row),
        quote(column)
    )]
    LinkWord {
        /// Line.
        line: usize,
        /// The word.
        word: String,
        /// Whose row.
        row: String,
        /// Whose column.
        column: String,
    },
    /// Two devices that disagree on what connects them.
    #[error("{} is {there} from {}, but {back} the other way round", quote(to), quote(from))]
    Asymmetric {
        /// One device.
        from: String,
        /// The other.
        to: String,
        /// What the row of `from` says.
        there: String,
        /// What the row of `to` says.
        back: String,
    },
    /// No GPUs in it.
    #[error("no GPUs are described")]
    NoGpus {
        /// What else is.
        devices: usize,
    },
    /// Nothing tells what the GPUs are.
    #[error("what GPU{gpu} is, the text does not tell{}", pci.as_ref().map_or(String::new(), |pci| format!(" (PCI device {})", quote(pci))))]
    NoKind {
        /// The first GPU that is not known.
        gpu: usize,
        /// Its PCI vendor and device, where they are known.
        pci: Option<String>,
    },
    /// A kind of GPU that is not known, and whose memory nobody says.
    #[error("GPU kind {} is not one of those known, and its memory is not given", quote(kind))]
    UnknownKind {
        /// The kind.
        kind: String,
        /// The nearest that is known.
        nearest: Option<String>,
    },
    /// A list of GPUs without GPUs.
    #[error("no line like `GPU 0: NVIDIA H100 80GB HBM3 (UUID: …)`")]
    EmptyList,
    /// A list of GPUs out of order, or with a nameless one.
    #[error("line {line}: {} stands where GPU {expected} with its name is expected", quote(text))]
    ListLine {
        /// Line.
        line: usize,
        /// The line.
        text: String,
        /// The number of the GPU expected there.
        expected: usize,
    },
    /// Two sources that do not speak of one machine.
    #[error("{} in it, but {} in {}", count(*here as u64, "GPU"), there, quote(other))]
    GpuCounts {
        /// GPUs here.
        here: usize,
        /// GPUs there.
        there: usize,
        /// The other source.
        other: String,
    },
    /// What was made of it is no topology.
    #[error("no topology comes of it: {problem}")]
    Topology {
        /// Why not.
        #[source]
        problem: TopologyProblem,
    },
}

impl ImportError {
    /// What the reader can do about it.
    pub fn help(&self) -> Option<String> {
        use ImportProblem as P;
        let help = match &self.problem {
            P::UnknownKind { nearest: Some(nearest), .. } => {
                return Some(format!(
                    "did you mean --gpu '{nearest}'? for a kind that is not known, say its memory: --gpu-memory '80 GiB'"
                ));
            }
            P::UnknownKind { .. } => {
                "name a kind of topologies/gpus.yaml with --gpu 'H100 SXM5 80GB', or say the memory of this one: --gpu-memory '80 GiB'"
            }
            P::NoKind { .. } => {
                "say it with --gpu 'H100 SXM5 80GB', or give what `nvidia-smi -L` prints with --gpu-list FILE"
            }
            P::NoGpus { .. } => {
                "give what `nvidia-smi topo -m` prints on that machine beside it, with --matrix FILE"
            }
            P::EmptyList | P::ListLine { .. } => "save what `nvidia-smi -L` prints: nvidia-smi -L > gpus.txt",
            P::GpuCounts { .. } => "both must be of one machine, with all its GPUs visible",
            P::NotXml { .. }
            | P::NotNccl { .. }
            | P::TooDeep { .. }
            | P::AddressTwice { .. }
            | P::Attribute { .. } => "NCCL writes its topology to the file that NCCL_TOPO_DUMP_FILE names",
            P::MatrixTwice => {
                "--matrix is for the NVLinks that NCCL's topology lacks; leave it out, or give NCCL's file first"
            }
            P::SeveralHosts { .. } => {
                "dump it from a run within one node, and give the number of nodes with --nodes"
            }
            P::NeitherKind
            | P::ColumnName { .. }
            | P::RowMissing { .. }
            | P::RowName { .. }
            | P::RowLength { .. }
            | P::Asymmetric { .. } => {
                "save all that `nvidia-smi topo -m` prints: nvidia-smi topo -m > matrix.txt"
            }
            P::LinkWord { .. } => "known are X, NV1 to NV256, PIX, PXB, PHB, NODE, and SYS or SOC",
            P::TooLong { .. } | P::TooMany { .. } => {
                return Some(format!(
                    "a node has at most {MAX_GPUS} GPUs, {MAX_NICS} network cards and {MAX_DEVICES} PCI devices"
                ));
            }
            P::Topology { problem } => {
                return TopologyError { origin: String::new(), place: None, problem: problem.clone() }.help();
            }
        };
        Some(help.to_owned())
    }
}
