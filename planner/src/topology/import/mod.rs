//! Topologies from what tools print.
//!
//! In comes the text of NCCL's topology file or of `nvidia-smi topo -m`, or the [`PciTree`] of the machine at hand; out goes
//! the YAML of a topology, and notes on what the source does not tell and what was assumed instead. A source tells how GPUs
//! are connected, seldom what they are and never how fast an NVLink is: these come from the list of known kinds. Nothing here
//! reads a file or the environment, and the same text gives the same YAML.

mod error;
mod fabric;
mod from_matrix;
mod from_tree;
mod gpu_list;
mod kinds;
mod matrix;
mod nccl;
mod plugged;
mod speeds;
#[cfg(test)]
mod tests;
mod tree;

pub use error::{ImportError, ImportProblem};
pub use kinds::GpuChoice;
pub use tree::{Cpu, GpuLink, LinkTarget, PciDevice, PciGpu, PciTree, Port};

use crate::{
    quote::quote,
    topology::{Topology, schema::Document},
    yaml,
};
use matrix::Matrix;

/// Longest text that is read, in bytes.
pub const MAX_BYTES: usize = 4 << 20;

/// Most GPUs of a node.
const MAX_GPUS: usize = crate::topology::schema::MAX_GPUS_PER_NODE as usize;

/// Most network cards of a node.
const MAX_NICS: usize = 256;

/// Most PCI devices of a node.
const MAX_DEVICES: usize = 4096;

/// Most PCI devices behind each other.
const MAX_DEPTH: usize = 16;

/// A text, and the file that it is from, for messages.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The file.
    pub origin: &'a str,
    /// What it holds.
    pub text: &'a str,
}

impl Source<'_> {
    fn fails(&self, problem: ImportProblem) -> ImportError {
        ImportError { origin: self.origin.to_owned(), problem }
    }

    /// The text, if it is not too long to be read.
    fn bounded(&self) -> Result<&str, ImportError> {
        match self.text.len() {
            0..=MAX_BYTES => Ok(self.text.strip_prefix('\u{feff}').unwrap_or(self.text)),
            bytes => Err(self.fails(ImportProblem::TooLong { bytes })),
        }
    }
}

/// What is to be imported.
#[derive(Debug, Clone, Copy)]
pub struct ImportRequest<'a> {
    /// The topology's name.
    pub name: &'a str,
    /// NCCL's topology (XML), or what `nvidia-smi topo -m` prints; the text tells which.
    pub source: Source<'a>,
    /// What `nvidia-smi topo -m` prints, beside NCCL's topology: its NVLinks are taken.
    pub matrix: Option<Source<'a>>,
    /// What the GPUs are, where the source does not tell.
    pub gpus: GpuChoice<'a>,
}

/// A topology made of what a tool printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The topology's text, with the notes as comments. [`Topology::parse`] has read it.
    pub yaml: String,
    /// What the source does not tell, and what was assumed.
    pub notes: Vec<String>,
}

/// The topology that a tool's output describes.
///
/// # Errors
/// [`ImportError`] names the file, and the line or the devices and the figures.
pub fn import(request: &ImportRequest<'_>) -> Result<Imported, ImportError> {
    let ImportRequest { name, source, gpus, .. } = *request;
    let text = source.bounded()?;
    let beside = request.matrix.map(|beside| Ok((beside, Matrix::parse(&beside)?))).transpose()?;
    if !text.trim_start().starts_with('<') {
        let matrix = match beside {
            // A matrix with another beside it: the same thing twice. The one that was named last is not silently dropped.
            Some((other, _)) => return Err(other.fails(ImportProblem::MatrixTwice)),
            None => Matrix::parse(&source)?,
        };
        return of_matrix(name, "`nvidia-smi topo -m`", &source, &matrix, &gpus, Vec::new());
    }
    let tree = nccl::parse(&source)?;
    let about = "NCCL's topology file";
    match beside {
        Some((origin, matrix)) if !from_tree::has_gpus(&tree) => {
            let [empty, full] = [source.origin, origin.origin].map(quote);
            let missing = format!("{empty} describes no GPUs: all is from {full}");
            of_matrix(name, "`nvidia-smi topo -m`", &origin, &matrix, &gpus, vec![missing])
        }
        beside => {
            let beside = beside.as_ref().map(|(origin, matrix)| (origin.origin, matrix));
            of_tree(name, about, &source, &tree, beside, &gpus)
        }
    }
}

/// The topology that `tree` describes; `about` says in a few words where it is from.
///
/// # Errors
/// [`ImportError`] where the tree has no GPUs, or its GPUs are of no known kind and `gpus` does not say what they are.
pub fn topology_of_tree(
    name: &str,
    about: &str,
    tree: &PciTree,
    gpus: &GpuChoice<'_>,
) -> Result<Imported, ImportError> {
    of_tree(name, about, &Source { origin: about, text: "" }, tree, None, gpus)
}

fn of_matrix(
    name: &str,
    about: &str,
    source: &Source<'_>,
    matrix: &Matrix,
    gpus: &GpuChoice<'_>,
    mut notes: Vec<String>,
) -> Result<Imported, ImportError> {
    let kinds = gpus.kinds_of(source.origin, &vec![kinds::Seen::default(); matrix.gpus])?;
    let mut document = kinds.document(name, about);
    from_matrix::connect(matrix, &kinds, &mut document, &mut notes);
    finish(source, &document, notes)
}

fn of_tree(
    name: &str,
    about: &str,
    source: &Source<'_>,
    tree: &PciTree,
    matrix: Option<(&str, &Matrix)>,
    gpus: &GpuChoice<'_>,
) -> Result<Imported, ImportError> {
    let fails = |problem| source.fails(problem);
    let found = from_tree::Machine::of(tree).map_err(fails)?;
    if let Some((other, matrix)) = matrix {
        let (here, there) = (found.gpus.len(), matrix.gpus);
        if here != there {
            return Err(fails(ImportProblem::GpuCounts { here, there, other: other.to_owned() }));
        }
    }
    let seen: Vec<_> = found.gpus.iter().map(from_tree::FoundGpu::seen).collect();
    let kinds = gpus.kinds_of(source.origin, &seen)?;
    let (mut document, mut notes) = (kinds.document(name, about), Vec::new());
    found.connect(matrix.map(|(_, matrix)| matrix), &kinds, &mut document, &mut notes);
    finish(source, &document, notes)
}

/// Writes the document, and reads it again: what is given away is a topology.
fn finish(source: &Source<'_>, document: &Document, notes: Vec<String>) -> Result<Imported, ImportError> {
    let fails = |problem| source.fails(ImportProblem::Topology { problem });
    let written = yaml::to_string(document).map_err(|error| fails(error.into()))?;
    let mut yaml: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    yaml.push_str(&written);
    Topology::parse(&yaml, source.origin, None, None).map_err(|error| fails(error.problem))?;
    Ok(Imported { yaml, notes })
}
