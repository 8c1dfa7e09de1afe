//! Loading: schedule, source, device, communicator and verification together.
//!
//! In come a plan, its catalog, and a [`Seat`] for each rank that this process loads; out come [`LoadedRank`]s, each with its
//! tensors in one piece of device memory. One rank is one thread here, with a few more that read for it; whether the other ranks
//! are threads or processes is for the communicator to know.

mod copying;
mod error;
mod rank;
mod table;
mod weights;

pub use error::LoadError;
pub use rank::LoadedRank;
pub use table::{PlacedTensors, TensorPlace};
pub use weights::{LoadedTensor, RankWeights};

use crate::{
    collective::{CollectiveError, Communicator, Lifeline, Reduce},
    device::{Device, DeviceError, DeviceMemory},
    schedule::Schedule,
    source::{MappedFiles, Source},
    trace::{Tracer, Track},
    verify::{Extent, Verification, Verified, VerifyError, verify, verify_alone},
};
use copying::Copying;
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// What to verify of what arrived; `None` for nothing.
    pub verify: Option<Extent>,
    /// Threads that read, of all ranks of this process together; each rank has at least one. 0 for as many as there are cores.
    pub threads: usize,
    /// A fault to inject, so that people can see that verification finds it.
    pub flip_byte_of: Option<u32>,
    /// Becomes true when somebody asks to stop.
    pub interrupted: Arc<AtomicBool>,
    /// Keeps a timeline, where one is wanted.
    pub tracer: Tracer,
}

/// A rank that this process loads.
pub struct Seat<'a> {
    /// The rank.
    pub rank: u32,
    /// What it loads into.
    pub device: &'a dyn Device,
    /// Its end of the group of all ranks; without one it is loaded alone, and verified against its own boxes in the files.
    pub communicator: Option<Box<dyn Communicator>>,
}

/// What loading one rank took.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadFigures {
    /// Tensors that the rank holds a part of.
    pub tensors: u64,
    /// Bytes copied from files to the device.
    pub bytes: u64,
    /// Until the last byte had arrived.
    pub load: Duration,
    /// Verification after that.
    pub verify: Duration,
}

/// The figures of every rank that took part.
type FiguresOfRanks = Vec<(u32, LoadFigures)>;

/// Bytes that have been read and handed to devices, for whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress(AtomicU64);

impl Progress {
    /// Bytes of all ranks of this process so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Loads the ranks of `seats`, each in a thread of its own.
///
/// # Errors
/// [`LoadError`] of the rank that failed first; what others report in consequence is left out.
pub fn load(
    plan: &Plan,
    catalog: &Catalog,
    seats: Vec<Seat<'_>>,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<Vec<LoadedRank>, LoadError> {
    let prepared = prepare(plan, catalog, &seats);
    let (schedules, files) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            for mut seat in seats {
                if let Some(communicator) = &mut seat.communicator {
                    communicator.abort(&error.cause());
                }
            }
            return Err(error);
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = if options.threads == 0 { cores } else { options.threads };
    let lanes = (threads / seats.len().max(1)).max(1);

    let job = Job { plan, catalog, source: &files, options, progress, lanes };
    let outcomes: Vec<Result<LoadedRank, LoadError>> = std::thread::scope(|scope| {
        let threads: Vec<_> = schedules
            .into_iter()
            .zip(seats)
            .map(|(schedule, seat)| {
                let job = &job;
                (seat.rank, scope.spawn(move || job.run(schedule, seat)))
            })
            .collect();
        threads
            .into_iter()
            .map(|(rank, thread)| thread.join().unwrap_or(Err(LoadError::Panicked { rank })))
            .collect()
    });
    let (loaded, mut failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    failed.sort_by_key(|outcome| outcome.as_ref().is_err_and(LoadError::is_consequence));
    failed.into_iter().chain(loaded).collect()
}

/// The schedules of the seats, which fit into their devices together, and the files.
fn prepare(
    plan: &Plan,
    catalog: &Catalog,
    seats: &[Seat<'_>],
) -> Result<(Vec<Schedule>, MappedFiles), LoadError> {
    let mut schedules = Vec::with_capacity(seats.len());
    let mut needs: BTreeMap<String, (u64, &Seat<'_>)> = BTreeMap::new();
    for seat in seats {
        let schedule = Schedule::new(plan, catalog, seat.rank)?;
        let (bytes, _) = needs.entry(seat.device.name()).or_insert((0, seat));
        *bytes = bytes.saturating_add(schedule.memory_bytes);
        schedules.push(schedule);
    }
    for (device, (bytes, seat)) in needs {
        let on_device = |source| LoadError::Device { rank: seat.rank, source };
        let available = seat.device.available_bytes().map_err(on_device)?;
        if available.is_some_and(|free| bytes > free) {
            return Err(on_device(DeviceError::OutOfMemory { device, bytes, available }));
        }
    }
    Ok((schedules, MappedFiles::open(catalog)?))
}

/// What all ranks of a process have in common.
struct Job<'a> {
    plan: &'a Plan,
    catalog: &'a Catalog,
    source: &'a dyn Source,
    options: &'a LoadOptions,
    progress: &'a Progress,
    lanes: usize,
}

impl Job<'_> {
    /// Loads one rank, and tells the others if it cannot.
    fn run(&self, schedule: Schedule, seat: Seat<'_>) -> Result<LoadedRank, LoadError> {
        let Seat { rank, device, communicator } = seat;
        // Devices find together before anything is loaded: what fails here fails early.
        let mut communicator = match communicator {
            Some(control) if self.options.verify.is_some() => {
                Some(device.connect(control).map_err(|source| LoadError::Device { rank, source })?)
            }
            control => control,
        };
        let begin = Instant::now();
        let memory = device.allocate(schedule.memory_bytes);
        let outcome = memory.map_err(|source| LoadError::Device { rank, source }).and_then(|memory| {
            let outcome = self.load(&schedule, memory.as_ref(), begin, communicator.as_deref_mut());
            if let (Err(error), Some(communicator)) = (&outcome, &mut communicator) {
                // Before the memory is given back, which may take a while where the GPU hangs.
                communicator.abort(&error.cause());
            }
            outcome.map(|loaded| (memory, loaded))
        });
        if let (Err(error), Some(communicator)) = (&outcome, &mut communicator) {
            communicator.abort(&error.cause());
        }
        let (memory, (of_all_ranks, verified)) = outcome?;
        let weights = RankWeights::new(rank, Arc::new(schedule.tensors.into()), memory);
        Ok(LoadedRank::new(weights, of_all_ranks, verified))
    }

    /// Loads one rank into its memory and verifies it: together with the others, or alone.
    fn load(
        &self,
        schedule: &Schedule,
        memory: &dyn DeviceMemory,
        begin: Instant,
        mut communicator: Option<&mut (dyn Communicator + 'static)>,
    ) -> Result<(FiguresOfRanks, Option<Verified>), LoadError> {
        let rank = schedule.rank;
        let on_device = |source| LoadError::Device { rank, source };
        let lifeline = communicator.as_deref().map(Communicator::lifeline);
        let step = || self.step(rank, lifeline.as_ref());
        let beat = || {
            if let Some(lifeline) = &lifeline {
                lifeline.beat();
            }
        };
        let copying = Copying {
            schedule,
            source: self.source,
            memory,
            progress: self.progress,
            tracer: &self.options.tracer,
            step: &step,
            beat: &beat,
        };
        copying.run(self.lanes)?;
        memory.finish().map_err(on_device)?;
        let load = begin.elapsed();

        if self.options.flip_byte_of == Some(rank) {
            flip_byte(schedule, memory).map_err(on_device)?;
        }
        let begin = Instant::now();
        let verified = self.verify(schedule, memory, communicator.as_deref_mut(), lifeline.as_ref())?;
        let verify = begin.elapsed();
        let tensors = schedule.tensors.len() as u64;
        let figures = LoadFigures { tensors, bytes: schedule.copied_bytes(), load, verify };
        // Nobody says that it is done before all are.
        let of_all_ranks = match communicator {
            Some(communicator) => {
                share(figures, communicator).map_err(|source| LoadError::Collective { rank, source })?
            }
            None => vec![(rank, figures)],
        };
        Ok((of_all_ranks, verified))
    }

    fn verify(
        &self,
        schedule: &Schedule,
        memory: &dyn DeviceMemory,
        communicator: Option<&mut (dyn Communicator + 'static)>,
        lifeline: Option<&Lifeline>,
    ) -> Result<Option<Verified>, LoadError> {
        let rank = schedule.rank;
        let Some(extent) = self.options.verify else { return Ok(None) };
        let track = Track { rank, lane: "rank".to_owned() };
        let _span = self.options.tracer.span(&track, "verify");
        let step = || match self.step(rank, lifeline) {
            Ok(()) => Ok(()),
            Err(LoadError::Collective { source, .. }) => Err(VerifyError::Collective(source)),
            Err(_) => Err(VerifyError::Interrupted),
        };
        let this = Verification {
            plan: self.plan,
            catalog: self.catalog,
            schedule,
            memory,
            source: self.source,
            extent,
            step: &step,
        };
        let outcome = match communicator {
            Some(communicator) => verify(&this, communicator),
            None => verify_alone(&this),
        };
        match outcome {
            Ok(verified) => Ok(Some(verified)),
            Err(VerifyError::Interrupted) => Err(LoadError::Interrupted { rank }),
            Err(source) => Err(LoadError::Verify { rank, source }),
        }
    }

    /// Between two pieces of work: says that the rank gets on, and hears whether there is any use in that.
    fn step(&self, rank: u32, lifeline: Option<&Lifeline>) -> Result<(), LoadError> {
        if self.options.interrupted.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted { rank });
        }
        let Some(lifeline) = lifeline else { return Ok(()) };
        lifeline.beat();
        lifeline.failure().map_or(Ok(()), |source| Err(LoadError::Collective { rank, source }))
    }
}

/// The figures of all ranks, on each of them.
fn share(
    figures: LoadFigures,
    communicator: &mut dyn Communicator,
) -> Result<FiguresOfRanks, CollectiveError> {
    const NUMBERS: usize = 4;
    let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let mut numbers = vec![[0; NUMBERS]; communicator.world_size() as usize];
    numbers[communicator.rank() as usize] =
        [figures.tensors, figures.bytes, nanos(figures.load), nanos(figures.verify)];
    communicator.all_reduce(numbers.as_flattened_mut(), Reduce::Sum)?;
    let of_rank = |[tensors, bytes, load, verify]: [u64; NUMBERS]| LoadFigures {
        tensors,
        bytes,
        load: Duration::from_nanos(load),
        verify: Duration::from_nanos(verify),
    };
    Ok((0..).zip(numbers.into_iter().map(of_rank)).collect())
}

/// Flips the lowest bit of the first byte of the rank's largest tensor.
fn flip_byte(schedule: &Schedule, memory: &dyn DeviceMemory) -> Result<(), DeviceError> {
    let largest = schedule.tensors.iter().max_by_key(|tensor| tensor.bytes);
    let Some(tensor) = largest else { return Ok(()) };
    let mut byte = [0];
    memory.read(tensor.offset, &mut byte)?;
    memory.fill(tensor.offset, 1, &mut |into| {
        into.copy_from_slice(&[byte[0] ^ 1]);
        true
    })?;
    memory.finish()
}
