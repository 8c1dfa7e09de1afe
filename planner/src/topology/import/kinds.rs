//! What the GPUs of a machine are: as the source tells, or as the caller says.

use super::{ImportError, ImportProblem, Source, gpu_list};
use crate::{
    nearest::nearest,
    topology::{
        Bytes, KnownGpu, gpu_named, gpu_of_pci, known_gpus,
        names::Numbers,
        schema::{Count, Document, GpuKind, GpuKinds, Memory},
    },
};

/// What the caller says of the GPUs. What is not said, the source must tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct GpuChoice<'a> {
    /// The kind of all of them, as in `topologies/gpus.yaml` or as the product is called. It wins.
    pub kind: Option<&'a str>,
    /// What `nvidia-smi -L` prints.
    pub list: Option<Source<'a>>,
    /// The memory of each, for kinds that are not known.
    pub memory: Option<Bytes>,
}

/// What a source tells of a GPU.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Product name.
    pub(super) name: Option<String>,
    /// PCI vendor and device.
    pub(super) pci: Option<String>,
    /// Its memory.
    pub(super) memory: Option<u64>,
}

/// What a GPU is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Kind<'a> {
    pub(super) name: &'a str,
    /// What is known of it, if anything.
    pub(super) known: Option<&'static KnownGpu>,
}

/// The kinds of a machine's GPUs.
#[derive(Debug)]
pub(super) struct Kinds {
    /// Name, what is known, and memory where it must be said; each kind once.
    kinds: Vec<(String, Option<&'static KnownGpu>, Option<u64>)>,
    /// Which of these each GPU is.
    of_gpu: Vec<usize>,
}

impl GpuChoice<'_> {
    /// The kinds of the GPUs of which the source tells what was `seen`; `origin` is the source.
    pub(super) fn kinds_of(&self, origin: &str, seen: &[Seen]) -> Result<Kinds, ImportError> {
        let source = Source { origin, text: "" };
        let listed = self.list.map(|list| Ok((list, gpu_list::parse(&list)?))).transpose()?;
        if let Some((list, names)) = &listed {
            let (here, there) = (seen.len(), names.len());
            if here != there {
                return Err(source.fails(ImportProblem::GpuCounts {
                    here,
                    there,
                    other: list.origin.to_owned(),
                }));
            }
        }
        let mut all = Kinds { kinds: Vec::new(), of_gpu: Vec::new() };
        for (gpu, seen) in seen.iter().enumerate() {
            let listed = listed.as_ref().and_then(|(_, names)| names.get(gpu)).map(String::as_str);
            let of_pci = seen.pci.as_deref().and_then(gpu_of_pci);
            let (name, known) = match (self.kind.or(listed), seen.name.as_deref(), seen.pci.as_deref()) {
                (Some(said), _, _) => (said, gpu_named(said)),
                (None, Some(name), _) => (name, gpu_named(name).or(of_pci)),
                // A number is a poor name, but with its memory it makes a kind.
                (None, None, Some(pci)) if of_pci.is_some() || self.memory.is_some() => (pci, of_pci),
                (None, None, pci) => {
                    return Err(source.fails(ImportProblem::NoKind { gpu, pci: pci.map(str::to_owned) }));
                }
            };
            let memory = self.memory.map(Bytes::bytes).or(seen.memory);
            if known.is_none() && memory.is_none() {
                let problem =
                    ImportProblem::UnknownKind { kind: name.to_owned(), nearest: nearest_kind(name) };
                return Err(source.fails(problem));
            }
            all.add(known.map_or(name, |known| known.kind.as_str()), known, memory);
        }
        Ok(all)
    }
}

fn nearest_kind(name: &str) -> Option<String> {
    let names = || known_gpus().iter().flat_map(|known| known.names.iter().chain([&known.kind]));
    let lower: Vec<(String, &str)> = names().map(|name| (name.to_lowercase(), name.as_str())).collect();
    let found = nearest(&name.to_lowercase(), lower.iter().map(|(lower, _)| lower.as_str()))?;
    let (_, name) = lower.iter().find(|(lower, _)| *lower == found)?;
    gpu_named(name).map(|known| known.kind.clone())
}

impl Kinds {
    fn add(&mut self, name: &str, known: Option<&'static KnownGpu>, memory: Option<u64>) {
        let at = self.kinds.iter().position(|kind| kind.0 == name).unwrap_or_else(|| {
            self.kinds.push((name.to_owned(), known, memory));
            self.kinds.len() - 1
        });
        // Drivers keep different amounts for themselves; a kind has what its smallest GPU has.
        let kind = &mut self.kinds[at];
        kind.2 = [kind.2, memory].into_iter().flatten().min();
        self.of_gpu.push(at);
    }

    /// What GPU `gpu` is.
    pub(super) fn of(&self, gpu: usize) -> Kind<'_> {
        let (name, known, _) = &self.kinds[self.of_gpu[gpu]];
        Kind { name, known: *known }
    }

    /// How many GPUs.
    pub(super) fn gpus(&self) -> usize {
        self.of_gpu.len()
    }

    /// The machine with its GPUs, not yet connected.
    pub(super) fn document(&self, name: &str, about: &str) -> Document {
        let members = |at: usize| -> Vec<u32> {
            (0..).zip(&self.of_gpu).filter(|(_, of)| **of == at).map(|(gpu, _)| gpu).collect()
        };
        let words: Vec<String> = self
            .kinds
            .iter()
            .enumerate()
            .map(|(at, (kind, _, _))| format!("{}x {kind}", members(at).len()))
            .collect();
        let kinds = self.kinds.iter().enumerate().map(|(at, (kind, _, memory))| GpuKind {
            kind: kind.clone(),
            memory: memory.map(|bytes| Memory::Size(Bytes::new(bytes))),
            gpus: if self.kinds.len() > 1 { Numbers::new(members(at)) } else { None },
            ..GpuKind::default()
        });
        Document {
            topology: name.to_owned(),
            about: format!("{}, from {about}", words.join(" and ")),
            gpu: GpuKinds(kinds.collect()),
            // At most as many as a node has.
            gpus: Count::Number(u32::try_from(self.gpus()).unwrap_or(u32::MAX)),
            nodes: 1,
            hubs: Vec::new(),
            nics: Vec::new(),
            links: Vec::new(),
            network: None,
        }
    }
}
