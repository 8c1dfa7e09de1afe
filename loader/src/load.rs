//! Loading: schedule, source, device, communicator and verification together.
//!
//! In come a plan and its catalog; out come [`LoadedRank`]s, each with its tensors in one piece of device memory. One rank
//! is one thread here; whether ranks are threads or processes is for the communicator to know.

use crate::{
    collective::{CollectiveError, Communicator, local_group},
    device::{Block, Device, DeviceError, DeviceMemory},
    schedule::{PlacedTensor, Rows, Schedule, ScheduleError},
    source::{MappedFiles, Source, SourceError},
    verify::{Verification, Verified, VerifyError, verify, verify_alone},
};
use shardwright_planner::{
    checkpoint::{ByteRange, Catalog},
    plan::Plan,
};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// Bytes of a file that are handed to a device at a time.
const BLOCK_BYTES: u64 = 8 << 20;

/// How to load.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    /// Whether to verify what arrived.
    pub verify: bool,
    /// How long a rank waits for the others.
    pub patience: Duration,
    /// A fault to inject, so that people can see that verification finds it.
    pub flip_byte_of: Option<u32>,
}

/// A rank whose weights lie on its device.
pub struct LoadedRank {
    /// The rank.
    pub rank: u32,
    /// Its tensors, in the order of the files.
    pub tensors: Vec<PlacedTensor>,
    /// The memory they lie in.
    pub memory: Box<dyn DeviceMemory>,
    /// What loading took.
    pub figures: LoadFigures,
    /// What verification found, where it was asked for.
    pub verified: Option<Verified>,
}

/// What loading one rank took.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadFigures {
    /// Bytes copied from files to the device.
    pub bytes: u64,
    /// Until the last byte had arrived.
    pub load: Duration,
    /// Verification after that.
    pub verify: Duration,
}

/// Bytes that have arrived, for whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Bytes that all ranks together have copied so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why ranks could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan and the checkpoint do not go together.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// The bytes could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A device failed.
    #[error("rank {rank}: {source}")]
    Device {
        /// The rank.
        rank: u32,
        /// What the device could not do.
        source: DeviceError,
    },
    /// Verification could not be carried out.
    #[error("rank {rank}: {source}")]
    Verify {
        /// The rank.
        rank: u32,
        /// Why.
        source: VerifyError,
    },
    /// A rank's thread panicked.
    #[error("rank {rank} ended unexpectedly; this is a defect of shardwright")]
    Panicked {
        /// The rank.
        rank: u32,
    },
}

impl LoadError {
    /// Whether it only says that another rank failed.
    fn is_consequence(&self) -> bool {
        matches!(self, Self::Verify { source: VerifyError::Collective(CollectiveError::PeerLost { .. }), .. })
    }
}

/// Loads all ranks of `plan` in this process, one thread a rank.
///
/// # Errors
/// [`LoadError`] of the rank that failed first; what others report in consequence is left out.
pub fn load_all(
    plan: &Plan,
    catalog: &Catalog,
    device: &dyn Device,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<Vec<LoadedRank>, LoadError> {
    let world = plan.mesh.world_size();
    let schedules: Vec<Schedule> =
        (0..world).map(|rank| Schedule::new(plan, catalog, rank)).collect::<Result<_, _>>()?;
    // Together they must fit before any of them begins.
    let needs: u64 = schedules.iter().map(|schedule| schedule.memory_bytes).fold(0, u64::saturating_add);
    let available = device.available_bytes();
    if available.is_some_and(|free| needs > free) {
        let source = DeviceError::OutOfMemory { device: device.name(), bytes: needs, available };
        return Err(LoadError::Device { rank: 0, source });
    }
    let files = MappedFiles::open(catalog)?;
    let group = local_group(world, options.patience);

    let job = Job { plan, catalog, source: &files, device, options, progress };
    let outcomes: Vec<Result<LoadedRank, LoadError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = schedules
            .into_iter()
            .zip(group)
            .map(|(schedule, mut communicator)| {
                let job = &job;
                scope.spawn(move || job.load(schedule, Some(&mut communicator)))
            })
            .collect();
        (0u32..)
            .zip(threads)
            .map(|(rank, thread)| thread.join().unwrap_or(Err(LoadError::Panicked { rank })))
            .collect()
    });
    let (loaded, mut failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    failed.sort_by_key(|outcome| outcome.as_ref().is_err_and(LoadError::is_consequence));
    failed.into_iter().chain(loaded).collect()
}

/// Loads one rank of `plan` in this process, without the others; it is verified against its own boxes in the files.
///
/// # Errors
/// [`LoadError`] names what failed.
pub fn load_one(
    plan: &Plan,
    catalog: &Catalog,
    rank: u32,
    device: &dyn Device,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<LoadedRank, LoadError> {
    let schedule = Schedule::new(plan, catalog, rank)?;
    let files = MappedFiles::open(catalog)?;
    Job { plan, catalog, source: &files, device, options, progress }.load(schedule, None)
}

/// What all ranks of a process have in common.
struct Job<'a> {
    plan: &'a Plan,
    catalog: &'a Catalog,
    source: &'a dyn Source,
    device: &'a dyn Device,
    options: &'a LoadOptions,
    progress: &'a Progress,
}

impl Job<'_> {
    /// Loads one rank and verifies it: together with the others, or alone.
    fn load(
        &self,
        schedule: Schedule,
        communicator: Option<&mut dyn Communicator>,
    ) -> Result<LoadedRank, LoadError> {
        let rank = schedule.rank;
        let on_device = |source| LoadError::Device { rank, source };
        let begin = Instant::now();
        let mut memory = self.device.allocate(schedule.memory_bytes).map_err(on_device)?;
        self.copy_all(&schedule, memory.as_mut())?;
        memory.finish().map_err(on_device)?;
        let load = begin.elapsed();

        if self.options.flip_byte_of == Some(rank) {
            flip_byte(&schedule, memory.as_mut()).map_err(on_device)?;
        }
        let begin = Instant::now();
        let mut verified = None;
        if self.options.verify {
            let this = Verification {
                plan: self.plan,
                catalog: self.catalog,
                schedule: &schedule,
                memory: memory.as_ref(),
                source: self.source,
            };
            let outcome = match communicator {
                Some(communicator) => verify(&this, communicator),
                None => verify_alone(&this),
            };
            verified = Some(outcome.map_err(|source| LoadError::Verify { rank, source })?);
        }
        let figures = LoadFigures { bytes: schedule.copied_bytes(), load, verify: begin.elapsed() };
        Ok(LoadedRank { rank, tensors: schedule.tensors, memory, figures, verified })
    }

    fn copy_all(&self, schedule: &Schedule, memory: &mut dyn DeviceMemory) -> Result<(), LoadError> {
        let mut scratch = Vec::new();
        for tensor in &schedule.tensors {
            for rows in tensor.pieces.iter().flat_map(|piece| &piece.rows) {
                for block in rows.blocks(BLOCK_BYTES) {
                    copy(block, tensor.file, self.source, memory, &mut scratch).map_err(
                        |error| match error {
                            CopyError::Source(error) => LoadError::Source(error),
                            CopyError::Device(source) => LoadError::Device { rank: schedule.rank, source },
                        },
                    )?;
                    self.progress.0.fetch_add(block.bytes(), Ordering::Relaxed);
                }
            }
        }
        Ok(())
    }
}

enum CopyError {
    Source(SourceError),
    Device(DeviceError),
}

fn copy(
    rows: Rows,
    file: usize,
    source: &dyn Source,
    memory: &mut dyn DeviceMemory,
    scratch: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let out_of_range =
        || SourceError::OutOfRange { file, start: rows.from, stop: rows.from.saturating_add(rows.span()) };
    let range = ByteRange::new(rows.from, rows.from + rows.span(), u64::MAX);
    let range = range.ok_or_else(|| CopyError::Source(out_of_range()))?;
    let bytes = source.bytes(file, range, scratch).map_err(CopyError::Source)?;
    let count = |number: u64| usize::try_from(number).map_err(|_| CopyError::Source(out_of_range()));
    let block = Block {
        bytes,
        run_bytes: count(rows.run_bytes)?,
        stride: count(rows.from_stride)?,
        runs: count(rows.runs)?,
    };
    memory.write(block, rows.to, rows.to_stride).map_err(CopyError::Device)
}

/// Flips the lowest bit of the first byte of the rank's largest tensor.
fn flip_byte(schedule: &Schedule, memory: &mut dyn DeviceMemory) -> Result<(), DeviceError> {
    let largest = schedule.tensors.iter().max_by_key(|tensor| tensor.bytes);
    let Some(tensor) = largest else { return Ok(()) };
    let mut byte = [0];
    memory.read(tensor.offset, &mut byte)?;
    byte[0] ^= 1;
    let block = Block { bytes: &byte, run_bytes: 1, stride: 1, runs: 1 };
    memory.write(block, tensor.offset, 1)?;
    memory.finish()
}

#[cfg(test)]
pub(crate) fn copy_for_test(rows: Rows, file: usize, source: &dyn Source, memory: &mut dyn DeviceMemory) {
    assert!(copy(rows, file, source, memory, &mut Vec::new()).is_ok());
}
