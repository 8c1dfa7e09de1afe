//! Loading: schedule, source, device, communicator and verification together.
//!
//! In come a plan, its catalog, and a [`Seat`] for each rank that this process loads; out come [`LoadedRank`]s, each with its
//! tensors in one piece of device memory. Some threads read the files, once for all ranks of the process (`lanes`); one thread a
//! rank follows what has arrived and verifies it with the other ranks meanwhile (`seats`). Whether these are threads or processes
//! is for the communicator to know.

mod arrivals;
mod error;
mod host;
mod lanes;
mod lent;
mod rank;
mod ready;
mod seats;
mod straight;
mod table;
mod weights;

pub use error::LoadError;
pub use lent::{Lent, LentError, LentTensor};
pub use rank::LoadedRank;
pub use ready::{OnReady, Ready};
pub use table::{PlacedTensors, TensorPlace};
pub use weights::{LoadedTensor, RankWeights};

use crate::{
    cast::Casts,
    collective::{Communicator, Lifeline},
    device::{Device, DeviceMemory, LentPieces, Pool},
    heap,
    manifest::Manifest,
    numa::NumaNodes,
    schedule::{Answers, Batches, Pass, Schedule, ScheduleError},
    source::Source,
    tensors::Tensors,
    trace::Tracer,
    verify::{self, Extent, Replicated},
};
use arrivals::Arrivals;
use lanes::Lanes;
use seats::{Job, Seated};
use shardwright_planner::{checkpoint::Catalog, plan::Plan};
use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{Scope, ScopedJoinHandle},
    time::Duration,
};

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// What to verify of what arrived; `None` for nothing.
    pub verify: Option<Extent>,
    /// What the tensors' fingerprints should be, where that is known: then the files are not summed up. Only for ranks that load
    /// together; it counts on rank 0.
    pub manifest: Option<Arc<Manifest>>,
    /// Threads that read for all ranks of this process. 0 for as many as there are cores.
    pub threads: usize,
    /// A fault to inject, so that people can see that verification finds it.
    pub flip_byte_of: Option<u32>,
    /// Becomes true when somebody asks to stop.
    pub interrupted: Arc<AtomicBool>,
    /// Hears what is ready while the rest arrives.
    pub on_ready: OnReady,
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
    /// Memory for its tensors that somebody else has.
    pub lent: Lent,
}

impl<'a> Seat<'a> {
    /// A rank whose memory is all the device's own.
    pub fn new(rank: u32, device: &'a dyn Device, communicator: Option<Box<dyn Communicator>>) -> Self {
        Self { rank, device, communicator, lent: Lent::default() }
    }
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
    /// Verification after that: of what was not verified while later bytes arrived.
    pub verify: Duration,
}

/// The figures of every rank that took part.
type FiguresOfRanks = Vec<(u32, LoadFigures)>;

/// Bytes that have been read and handed to devices, for whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress {
    all: AtomicU64,
    of_ranks: Mutex<BTreeMap<u32, u64>>,
}

impl Progress {
    /// Bytes of all ranks of this process so far.
    pub fn bytes(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    /// Bytes of each rank of this process that has any.
    pub fn of_ranks(&self) -> BTreeMap<u32, u64> {
        self.of_ranks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, rank: u32, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        *self.of_ranks.lock().unwrap_or_else(PoisonError::into_inner).entry(rank).or_default() += bytes;
    }
}

/// Loads the ranks of `seats` from `source`, which has the files of `catalog`: see [`crate::source::open`].
///
/// # Errors
/// [`LoadError`] of the rank that failed first; what others report in consequence is left out.
pub fn load(
    plan: &Plan,
    catalog: &Catalog,
    source: &dyn Source,
    seats: Vec<Seat<'_>>,
    options: &LoadOptions,
    progress: &Progress,
) -> Result<Vec<LoadedRank>, LoadError> {
    let mut prepared = match Prepared::new(plan, catalog, &seats, options) {
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
    heap::trim();
    let Prepared { schedules, lent, batches, chosen, replicated, casts } = &mut prepared;
    let (schedules, batches, chosen, casts) = (&*schedules, &*batches, &*chosen, &*casts);
    let tensors = &Tensors::new(catalog, casts, source);
    let world = plan.mesh.world_size();
    let job =
        Job { plan, tensors, options, batches, chosen, replicated, is_whole: seats.len() == world as usize };
    let numa = NumaNodes::of_host();
    let nodes = numa.of_devices(seats.iter().map(|seat| seat.device));
    let mut seated = seat_all(schedules, seats, std::mem::take(lent), options.verify.is_some(), &numa)?;

    let answers = match seated.first() {
        _ if chosen.is_empty() => Answers::ForNothing,
        Some(seated) if options.manifest.is_some() && seated.communicator.is_some() => Answers::ForNothing,
        Some(seated) if seated.communicator.is_some() => Answers::WithOthers { world },
        _ => Answers::ForItself,
    };
    let memories: Vec<(u32, Arc<dyn DeviceMemory>)> =
        seated.iter().map(|seated| (seated.schedule.rank, Arc::clone(&seated.memory))).collect();
    let window_end = |seat: usize, at: u64| memories[seat].1.window_end(at);
    let neighbours = seated.first().map(|seated| seated.neighbours.clone()).unwrap_or_default();
    let pass = Pass::new(schedules, &window_end, batches, (catalog, casts), answers);
    let pass = pass.beside(&neighbours);
    let arrivals = Arrivals::new(&pass, schedules, batches);
    let outcomes = std::thread::scope(|scope| {
        let mut ranks = Vec::new();
        let mut lifelines = Vec::new();
        for (number, seated) in seated.iter_mut().enumerate() {
            let rank = seated.schedule.rank;
            lifelines.push((rank, seated.lifeline.clone()));
            let (job, arrivals) = (&job, &arrivals);
            let numa = &numa;
            let follow = move || {
                let _near = numa.stay(seated.numa_node);
                let outcome = job.follow(number, seated, arrivals);
                if outcome.is_err() {
                    arrivals.stop();
                }
                outcome
            };
            ranks.push((rank, spawned(scope, follow)));
        }
        let step = || {
            lifelines.iter().try_for_each(|(rank, lifeline)| {
                lifeline.iter().for_each(Lifeline::beat);
                job.check(*rank, lifeline.as_ref())
            })
        };
        let memories: Vec<(u32, &dyn DeviceMemory)> =
            memories.iter().map(|(rank, memory)| (*rank, memory.as_ref())).collect();
        let lanes = Lanes {
            pass: &pass,
            tensors,
            memories: &memories,
            answers,
            chosen,
            arrivals: &arrivals,
            progress,
            tracer: &options.tracer,
            flip: options.flip_byte_of.and_then(|rank| byte_to_flip(schedules, rank)),
            step: &step,
            near: (&numa, &nodes),
        };
        // The others are told at once, whatever the device of the rank that failed is still busy with.
        let tell = |error: &LoadError| {
            let rank = error.rank().or(lifelines.first().map(|(rank, _)| *rank));
            for (of, lifeline) in &lifelines {
                if let (Some(lifeline), true) = (lifeline, Some(*of) == rank) {
                    lifeline.fail(*of, &error.cause());
                }
            }
        };
        let threads = if options.threads == 0 { cores() } else { options.threads };
        let read = match ranks.iter().find_map(|(_, thread)| thread.as_ref().err()) {
            None => lanes.run(threads, &tell),
            Some(error) => {
                tell(error);
                arrivals.stop();
                Ok(())
            }
        };
        let mut outcomes = joined(ranks);
        if let Err(error) = read {
            outcomes.insert(0, Err(error));
        }
        outcomes
    });
    let done = first_error(outcomes)?;
    let too_large: Vec<String> = tensors.too_large().into_iter().map(str::to_owned).collect();
    drop((pass, arrivals, memories));
    let memories: Vec<_> = seated.into_iter().map(|seated| seated.memory).collect();
    // Nothing failed, so everything arrived. Each schedule goes before the next table comes, and ranks that hold their tensors alike
    // share one.
    let mut tables: Vec<Arc<PlacedTensors>> = Vec::new();
    let loaded = |((schedule, memory), done): ((Schedule, _), Option<seats::Done>)| {
        let (rank, done) = (schedule.rank, done?);
        let table = PlacedTensors::loaded(catalog, &schedule);
        let table = match tables.iter().find(|known| ***known == table) {
            Some(known) => Arc::clone(known),
            None => {
                let table = Arc::new(table);
                tables.push(Arc::clone(&table));
                table
            }
        };
        Some(done.loaded(rank, memory, table, &too_large))
    };
    Ok(prepared.schedules.into_iter().zip(memories).zip(done).filter_map(loaded).collect())
}

/// Readies the devices of all ranks.
fn seat_all<'a>(
    schedules: &'a [Schedule],
    seats: Vec<Seat<'_>>,
    lent: Vec<Option<LentPieces>>,
    verifies: bool,
    numa: &NumaNodes,
) -> Result<Vec<Seated<'a>>, LoadError> {
    let outcomes = std::thread::scope(|scope| {
        let mut threads = Vec::with_capacity(seats.len());
        for ((schedule, seat), lent) in schedules.iter().zip(seats).zip(lent) {
            let rank = seat.rank;
            let ready = move || Seated::new(schedule, seat, lent, verifies, numa);
            threads.push((rank, spawned(scope, ready)));
        }
        joined(threads)
    });
    if outcomes.iter().all(Result::is_ok) {
        return outcomes.into_iter().collect();
    }
    // Communicators may wait for one another when they end: all do so at once.
    let ended = std::thread::scope(|scope| {
        let end = |outcome: Result<Seated<'a>, LoadError>| scope.spawn(|| outcome.map(drop));
        let threads: Vec<_> = outcomes.into_iter().map(end).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    first_error(ended).map(|_| Vec::new())
}

/// Cores that this process may use; 1 where the system does not say.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

type LoadThread<'scope, T> = Result<ScopedJoinHandle<'scope, T>, LoadError>;

/// A thread that does `work`, or why there is none.
fn spawned<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> LoadThread<'scope, T> {
    std::thread::Builder::new().spawn_scoped(scope, work).map_err(|source| LoadError::Thread { source })
}

/// What `work` ends with; a panic is an error of `rank`.
fn caught<T>(rank: u32, work: impl FnOnce() -> Result<T, LoadError>) -> Result<T, LoadError> {
    // What a panic leaves half done is not used: the load fails.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(LoadError::Panicked { rank }))
}

/// What the threads of ranks end with.
fn joined<T>(threads: Vec<(u32, LoadThread<'_, Result<T, LoadError>>)>) -> Vec<Result<T, LoadError>> {
    let join = |(rank, thread): (u32, LoadThread<'_, Result<T, LoadError>>)| {
        thread?.join().unwrap_or(Err(LoadError::Panicked { rank }))
    };
    threads.into_iter().map(join).collect()
}

/// All of them, or the error that the others follow from.
fn first_error<T>(outcomes: Vec<Result<T, LoadError>>) -> Result<Vec<T>, LoadError> {
    let (done, mut failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    let follows = |error: &LoadError| (error.is_consequence(), error.collective().is_some());
    failed.sort_by_key(|outcome| outcome.as_ref().err().map(follows));
    failed.into_iter().chain(done).collect()
}

/// What there is before any device is asked for anything.
struct Prepared {
    /// Of the seats, which fit into their devices together.
    schedules: Vec<Schedule>,
    /// Their memory, where somebody lent some.
    lent: Vec<Option<LentPieces>>,
    batches: Batches,
    /// Which tensors are verified; empty when none is.
    chosen: Vec<bool>,
    /// The boxes that several ranks hold, where ranks verify together.
    replicated: Replicated,
    casts: Casts,
}

impl Prepared {
    fn new(
        plan: &Plan,
        catalog: &Catalog,
        seats: &[Seat<'_>],
        options: &LoadOptions,
    ) -> Result<Self, LoadError> {
        let mut schedules = Vec::with_capacity(seats.len());
        let mut lent = Vec::with_capacity(seats.len());
        let mut pools: BTreeMap<u64, (Pool, u32, Vec<u64>)> = BTreeMap::new();
        for &Seat { rank, device, lent: ref of_others, .. } in seats {
            let mut schedule = Schedule::new(plan, catalog, rank)?;
            schedules.iter().for_each(|other| schedule.share(other));
            let pieces =
                if of_others.is_empty() { None } else { Some(of_others.pieces(&schedule, catalog)?) };
            for pool in device.pools().map_err(|source| LoadError::Device { rank, source })? {
                let (.., want) = pools.entry(pool.id).or_insert((pool, rank, Vec::new()));
                want.push(pieces.as_ref().map_or(schedule.memory_bytes, LentPieces::own_bytes));
            }
            lent.push(pieces);
            schedules.push(schedule);
        }
        for (pool, rank, want) in pools.into_values() {
            host::check(&pool, want.into_iter()).map_err(|source| LoadError::Device { rank, source })?;
        }
        let chosen = match options.verify {
            Some(extent) => verify::chosen(plan, catalog, extent).map_err(ScheduleError::from)?,
            None => Vec::new(),
        };
        let together = !chosen.is_empty() && seats.iter().any(|seat| seat.communicator.is_some());
        let replicated = if together { Replicated::new(plan, catalog) } else { Ok(Replicated::default()) };
        let replicated = replicated.map_err(ScheduleError::from)?;
        let batches = Batches::new(plan, catalog)?;
        let casts = Casts::new(plan, catalog)?;
        Ok(Self { schedules, lent, batches, chosen, replicated, casts })
    }
}

/// The first byte of the rank's largest tensor, and which of the schedules is the rank's.
fn byte_to_flip(schedules: &[Schedule], rank: u32) -> Option<(usize, u64)> {
    let (seat, schedule) = schedules.iter().enumerate().find(|(_, schedule)| schedule.rank == rank)?;
    let largest = schedule.tensors().max_by_key(|tensor| tensor.held().bytes)?;
    let first = largest.all_rows().map(|rows| rows.to).min()?;
    Some((seat, first))
}

#[cfg(test)]
mod tests;
