//! What lies where in a rank's files.

use crate::schedule::Schedule;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use sha2::{Digest, Sha256};
use shardwright_planner::{checkpoint::Dtype, quote::quote};
use std::collections::BTreeMap;

/// Headers are filled up to a multiple of this, so that the data begins where a page does.
const HEADER_UNIT: usize = 4096;

/// The length that stands before a header.
const LENGTH_BYTES: usize = 8;

/// A tensor of a rank's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTensor {
    /// Its name there.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// What it consists of.
    pub content: Content,
}

/// What a tensor of a rank's files consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Slices of the rank, one after the other: their places in the schedule.
    Slices(Vec<usize>),
    /// Bytes that come from no checkpoint.
    Constant(Vec<u8>),
}

/// Why a rank's files cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A tensor whose slices do not make it up.
    #[error(
        "{} of rank {rank} is to have the shape {shape:?}, and its slices have {found} bytes, not {expected}",
        quote(name)
    )]
    Size {
        /// The rank.
        rank: u32,
        /// The tensor's name in the file.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes that its shape asks for.
        expected: u64,
        /// Bytes of its slices.
        found: u64,
    },
    /// A slice that lies in no tensor of the files, or in several.
    #[error("the slice of {} that rank {rank} holds is not to be written once", quote(name))]
    NotOnce {
        /// The rank.
        rank: u32,
        /// The tensor's name in the checkpoint.
        name: String,
    },
    /// A name that stands twice.
    #[error("two tensors of rank {rank} are to be called {}", quote(name))]
    SameName {
        /// The rank.
        rank: u32,
        /// The name.
        name: String,
    },
    /// A header that cannot be written.
    #[error("the header of a file of rank {rank} cannot be written: {source}")]
    Header {
        /// The rank.
        rank: u32,
        /// The library's answer.
        source: serde_json::Error,
    },
}

/// The files of a rank: their headers, and where each part of the rank's memory lies in them.
#[derive(Debug)]
pub struct RankFiles {
    pub(super) files: Vec<FileLayout>,
    /// In the order of the rank's memory.
    pub(super) runs: Vec<Run>,
}

/// A file, before its data.
#[derive(Debug)]
pub(super) struct FileLayout {
    /// The length and the JSON.
    pub(super) header: Vec<u8>,
    /// Bytes that come from no checkpoint, and where.
    pub(super) constants: Vec<(u64, Vec<u8>)>,
    /// Its length.
    pub(super) bytes: u64,
}

/// A run of a rank's memory, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// First byte in the rank's memory.
    pub(super) at: u64,
    pub(super) bytes: u64,
    /// Which file.
    pub(super) file: usize,
    /// First byte in the file.
    pub(super) to: u64,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Entry {
    Metadata(BTreeMap<&'static str, &'static str>),
    Tensor(TensorInfo),
}

impl RankFiles {
    /// Lays out `tensors`, which consist of all slices of `schedule`, in their order, in files of at most `most_bytes` bytes of data where
    /// no tensor is larger. `name_of` gives the names of the schedule's tensors, for messages.
    ///
    /// # Errors
    /// [`ExportError`] when they do not make up one another.
    pub fn new(
        schedule: &Schedule,
        tensors: Vec<FileTensor>,
        most_bytes: u64,
        name_of: &dyn Fn(usize) -> String,
    ) -> Result<Self, ExportError> {
        check_once(schedule, &tensors, name_of)?;
        let mut files = Vec::new();
        let mut runs = Vec::with_capacity(schedule.len());
        let mut part: Vec<(FileTensor, u64)> = Vec::new();
        let mut part_bytes = 0u64;
        for tensor in tensors {
            let bytes = checked_bytes(schedule, &tensor)?;
            if part_bytes.saturating_add(bytes) > most_bytes && !part.is_empty() {
                files.push(file(schedule, std::mem::take(&mut part), files.len(), &mut runs)?);
                part_bytes = 0;
            }
            part_bytes = part_bytes.saturating_add(bytes);
            part.push((tensor, bytes));
        }
        // A rank that holds nothing has a file that says so.
        if !part.is_empty() || files.is_empty() {
            files.push(file(schedule, part, files.len(), &mut runs)?);
        }
        runs.sort_by_key(|run| run.at);
        Ok(Self { files, runs })
    }

    /// How many files there are.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Their lengths, and the SHA-256 of their headers.
    pub fn files(&self) -> impl Iterator<Item = (u64, [u8; 32])> {
        self.files.iter().map(|file| (file.bytes, Sha256::digest(&file.header).into()))
    }
}

/// Checks that each slice is written once.
fn check_once(
    schedule: &Schedule,
    tensors: &[FileTensor],
    name_of: &dyn Fn(usize) -> String,
) -> Result<(), ExportError> {
    let mut times = vec![0usize; schedule.len()];
    for tensor in tensors {
        let Content::Slices(slices) = &tensor.content else { continue };
        slices.iter().for_each(|&place| times[place] += 1);
    }
    match schedule.tensors().zip(times).find(|(_, times)| *times != 1) {
        Some((tensor, _)) => Err(ExportError::NotOnce { rank: schedule.rank, name: name_of(tensor.id) }),
        None => Ok(()),
    }
}

/// Bytes of a tensor, which are those of its slices.
fn checked_bytes(schedule: &Schedule, tensor: &FileTensor) -> Result<u64, ExportError> {
    let found = match &tensor.content {
        Content::Slices(slices) => slices.iter().map(|&place| schedule.tensor(place).held().bytes).sum(),
        Content::Constant(bytes) => bytes.len() as u64,
    };
    let bits = tensor.dtype.bitsize() as u64;
    let expected =
        tensor.shape.iter().try_fold(bits, |bits, &size| bits.checked_mul(size)).map(|bits| bits / 8);
    if expected == Some(found) {
        return Ok(found);
    }
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    Err(ExportError::Size { rank: schedule.rank, name, shape, expected: expected.unwrap_or(u64::MAX), found })
}

/// One file of these tensors; adds where their slices lie to `runs`.
fn file(
    schedule: &Schedule,
    mut tensors: Vec<(FileTensor, u64)>,
    number: usize,
    runs: &mut Vec<Run>,
) -> Result<FileLayout, ExportError> {
    let rank = schedule.rank;
    // Readers expect elements at multiples of their size, and there are no gaps in the format.
    tensors.sort_by_key(|(tensor, _)| std::cmp::Reverse(tensor.dtype.bitsize()));
    let mut entries = BTreeMap::from([("__metadata__", Entry::Metadata(BTreeMap::from([("format", "pt")])))]);
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let mut at = 0u64;
    for (tensor, bytes) in &tensors {
        let info = TensorInfo {
            dtype: tensor.dtype,
            shape: tensor.shape.iter().map(|&extent| size(extent)).collect(),
            data_offsets: (size(at), size(at + bytes)),
        };
        if entries.insert(&tensor.name, Entry::Tensor(info)).is_some() {
            return Err(ExportError::SameName { rank, name: tensor.name.clone() });
        }
        at += bytes;
    }
    let mut json = serde_json::to_vec(&entries).map_err(|source| ExportError::Header { rank, source })?;
    drop(entries);
    json.resize((LENGTH_BYTES + json.len()).next_multiple_of(HEADER_UNIT) - LENGTH_BYTES, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);

    let mut to = header.len() as u64;
    let mut constants = Vec::new();
    for (tensor, _) in tensors {
        match tensor.content {
            Content::Constant(bytes) => {
                let after = to + bytes.len() as u64;
                constants.push((to, bytes));
                to = after;
            }
            Content::Slices(slices) => {
                for placed in slices.into_iter().map(|place| schedule.tensor(place)) {
                    let bytes = placed.held().bytes;
                    if bytes > 0 {
                        runs.push(Run { at: placed.offset, bytes, file: number, to });
                    }
                    to += bytes;
                }
            }
        }
    }
    Ok(FileLayout { header, constants, bytes: to })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::planned;
    use shardwright_planner::checkpoint::Catalog;

    fn schedule() -> (Catalog, Schedule) {
        let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
        let schedule = Schedule::new(&plan, &catalog, 1).unwrap();
        (catalog, schedule)
    }

    fn tensors(catalog: &Catalog, schedule: &Schedule) -> Vec<FileTensor> {
        let tensor = |place: usize| {
            let placed = schedule.tensor(place);
            FileTensor {
                name: catalog.tensors()[placed.id].name.to_string(),
                dtype: placed.held().dtype,
                shape: placed.held().shape.clone(),
                content: Content::Slices(vec![place]),
            }
        };
        (0..schedule.len()).map(tensor).collect()
    }

    fn laid_out(schedule: &Schedule, tensors: Vec<FileTensor>, most: u64) -> Result<RankFiles, ExportError> {
        RankFiles::new(schedule, tensors, most, &|id| format!("tensor {id}"))
    }

    #[test]
    fn every_byte_of_the_memory_has_one_place_in_files_whose_headers_are_read() {
        let (catalog, schedule) = schedule();
        for most in [1, 10_000, 50_000, u64::MAX] {
            let files = laid_out(&schedule, tensors(&catalog, &schedule), most).unwrap();
            assert!(files.runs.windows(2).all(|pair| pair[0].at + pair[0].bytes <= pair[1].at));
            let bytes: u64 = files.runs.iter().map(|run| run.bytes).sum();
            assert_eq!(bytes, schedule.tensors().map(|tensor| tensor.held().bytes).sum::<u64>());
            let mut all = 0;
            for (number, file) in files.files.iter().enumerate() {
                let whole =
                    [file.header.clone(), vec![0; usize::try_from(file.bytes).unwrap() - file.header.len()]]
                        .concat();
                let read = safetensors::SafeTensors::deserialize(&whole).unwrap();
                all += read.len();
                assert!(file.header.len().is_multiple_of(HEADER_UNIT));
                // One tensor at least, and no more than were asked for.
                assert!(read.len() == 1 || file.bytes - file.header.len() as u64 <= most);
                // No two runs of a file have the same place, and all lie in its data.
                let mut places: Vec<_> = files
                    .runs
                    .iter()
                    .filter(|run| run.file == number)
                    .map(|run| (run.to, run.to + run.bytes))
                    .collect();
                places.sort_unstable();
                assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0));
                assert!(
                    places.iter().all(|place| place.0 >= file.header.len() as u64 && place.1 <= file.bytes)
                );
            }
            assert_eq!(all, schedule.len());
        }
    }

    #[test]
    fn what_does_not_make_up_the_slices_is_refused() {
        let (catalog, schedule) = schedule();
        let refused = |change: &dyn Fn(&mut Vec<FileTensor>)| {
            let mut tensors = tensors(&catalog, &schedule);
            change(&mut tensors);
            laid_out(&schedule, tensors, u64::MAX).unwrap_err()
        };
        assert!(matches!(refused(&|all| drop(all.pop())), ExportError::NotOnce { rank: 1, .. }));
        let again = refused(&|all| {
            let twice = FileTensor { name: "twice".to_owned(), ..all[0].clone() };
            all.push(twice);
        });
        assert!(matches!(again, ExportError::NotOnce { .. }));
        let same = refused(&|all| all[1].name = all[0].name.clone());
        assert!(matches!(same, ExportError::SameName { .. }), "{same}");
        let size = refused(&|all| all[0].shape[0] += 1);
        assert!(matches!(size, ExportError::Size { .. }), "{size}");
        let constant = FileTensor {
            name: "scale".to_owned(),
            dtype: Dtype::F32,
            shape: Vec::new(),
            content: Content::Constant(vec![0; 3]),
        };
        assert!(matches!(refused(&|all| all.push(constant.clone())), ExportError::Size { .. }));
    }
}
