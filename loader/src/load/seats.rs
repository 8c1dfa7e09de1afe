//! The ranks of a process: what each does beside the threads that read for all of them.

use super::{
    FiguresOfRanks, LoadError, LoadFigures, LoadOptions, LoadedRank, LoadedTensor, PlacedTensors,
    RankWeights, Ready, Seat, arrivals::Arrivals, caught, host::Hosts,
};
use crate::{
    collective::{CollectiveError, Communicator, Lifeline, Reduce},
    device::{DeviceMemory, LentPieces},
    numa::NumaNodes,
    schedule::{Batches, PlacedTensor, Schedule},
    tensors::Tensors,
    trace::{Traced, Track},
    verify::{Arrived, Replicated, Standard, Verification, Verified, Verifier, VerifyError},
};
use shardwright_planner::plan::Plan;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// What all ranks of a process have in common.
pub(super) struct Job<'a> {
    pub(super) plan: &'a Plan,
    pub(super) tensors: &'a Tensors<'a>,
    pub(super) options: &'a LoadOptions,
    pub(super) batches: &'a Batches,
    /// Whether each tensor is verified, by its number in the catalog; empty when none is.
    pub(super) chosen: &'a [bool],
    pub(super) replicated: &'a Replicated,
    /// Whether this process has all ranks.
    pub(super) is_whole: bool,
}

/// A rank whose device and communicator are there, and its memory.
pub(super) struct Seated<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) memory: Arc<dyn DeviceMemory>,
    pub(super) communicator: Option<Box<dyn Communicator>>,
    pub(super) lifeline: Option<Lifeline>,
    /// The ranks that share this host.
    pub(super) neighbours: Vec<u32>,
    /// The NUMA node of its device, where it has one.
    pub(super) numa_node: Option<u32>,
    begin: Instant,
}

/// What a rank ends with.
pub(super) struct Done {
    of_all_ranks: FiguresOfRanks,
    verified: Option<Verified>,
}

impl<'a> Seated<'a> {
    /// Finds the devices together and allocates the rank's memory; tells the others if that cannot be.
    pub(super) fn new(
        schedule: &'a Schedule,
        seat: Seat<'_>,
        lent: Option<LentPieces>,
        verifies: bool,
        numa: &NumaNodes,
    ) -> Result<Self, LoadError> {
        let Seat { rank, device, mut communicator, .. } = seat;
        let together = |source| LoadError::Collective { rank, source };
        let on_device = |source| LoadError::Device { rank, source };
        let own_bytes = lent.as_ref().map_or(schedule.memory_bytes, LentPieces::own_bytes);
        let mut neighbours = Vec::new();
        if let Some(communicator) = &mut communicator {
            // What there is, before any of the others takes some of it.
            let pools = device.pools().map_err(on_device)?;
            let hosts = Hosts::meet(communicator.as_mut(), pools, own_bytes).map_err(together)?;
            hosts
                .check_memory()
                .map_err(on_device)
                .inspect_err(|error| communicator.abort(&error.cause()))?;
            neighbours = hosts.neighbours();
        }
        // Devices find together before anything is loaded: what fails here fails early.
        communicator = match communicator {
            Some(control) if verifies => Some(device.connect(control).map_err(on_device)?),
            control => control,
        };
        let numa_node = device.numa_node();
        // Pinned buffers lie on the node of the thread that asks for them.
        let _near = numa.stay(numa_node);
        let begin = Instant::now();
        let memory = match lent {
            None => device.allocate(schedule.memory_bytes),
            Some(lent) => device.adopt(lent),
        };
        let memory = memory.map_err(on_device).inspect_err(|error| {
            if let Some(communicator) = &mut communicator {
                communicator.abort(&error.cause());
            }
        })?;
        let lifeline = communicator.as_deref().map(Communicator::lifeline);
        Ok(Self { schedule, memory: memory.into(), communicator, lifeline, neighbours, numa_node, begin })
    }
}

impl Done {
    /// The weights of `rank`, when all is done.
    pub(super) fn loaded(
        self,
        rank: u32,
        memory: Arc<dyn DeviceMemory>,
        table: Arc<PlacedTensors>,
        too_large: &[String],
    ) -> LoadedRank {
        let weights = RankWeights::new(rank, table, memory);
        LoadedRank::new(weights, self.of_all_ranks, self.verified, too_large.to_vec())
    }
}

impl Job<'_> {
    /// Whether somebody asked to stop, or another rank failed.
    pub(super) fn check(&self, rank: u32, lifeline: Option<&Lifeline>) -> Result<(), LoadError> {
        if self.options.interrupted.load(Ordering::Relaxed) {
            return Err(LoadError::Interrupted { rank });
        }
        let failure = lifeline.and_then(Lifeline::failure);
        failure.map_or(Ok(()), |source| Err(LoadError::Collective { rank, source }))
    }

    /// Follows the arrival of one rank's tensors, batch by batch, and verifies them. `None` when they do not all arrive, which is
    /// for those who read to say.
    pub(super) fn follow(
        &self,
        seat: usize,
        seated: &mut Seated<'_>,
        arrivals: &Arrivals,
    ) -> Result<Option<Done>, LoadError> {
        let outcome = caught(seated.schedule.rank, || self.follow_to_the_end(seat, seated, arrivals));
        if let (Err(error), Some(communicator)) = (&outcome, &mut seated.communicator) {
            // Before the memory is given back, which may take a while where the GPU hangs.
            communicator.abort(&error.cause());
        }
        // Communicators may wait for one another when they end: each does so in the thread of its rank.
        seated.communicator = None;
        outcome
    }

    fn follow_to_the_end(
        &self,
        seat: usize,
        seated: &mut Seated<'_>,
        arrivals: &Arrivals,
    ) -> Result<Option<Done>, LoadError> {
        let Seated { schedule, memory, communicator, lifeline, begin, .. } = seated;
        let (schedule, kept, lifeline) = (*schedule, &*memory, lifeline.as_ref());
        let memory = kept.as_ref();
        let rank = schedule.rank;
        let track = Track { rank, lane: "verification".to_owned() };
        let tracer = &self.options.tracer;
        let mut traced = communicator.as_deref_mut().map(|inner| Traced::new(inner, tracer, &track));
        let check = || self.check(rank, lifeline);
        let step = || match check() {
            Ok(()) => {
                lifeline.inspect(|lifeline| lifeline.beat());
                Ok(())
            }
            Err(LoadError::Collective { source, .. }) => Err(VerifyError::Collective(source)),
            Err(_) => Err(VerifyError::Interrupted),
        };
        let not_verified = |source| match source {
            VerifyError::Interrupted => LoadError::Interrupted { rank },
            source => LoadError::Verify { rank, source },
        };
        let this = Verification {
            plan: self.plan,
            catalog: self.tensors.catalog(),
            schedule,
            batches: self.batches,
            memory,
            tensors: self.tensors,
            chosen: self.chosen,
            replicated: self.replicated,
            standard: match &self.options.manifest {
                Some(manifest) => Standard::Manifest(manifest),
                // Threads of one process read the same files.
                None => Standard::Files { samples: seat == 0 && !self.is_whole },
            },
            step: &step,
        };
        let mut verifier = None;
        if self.options.verify.is_some() {
            let communicator = traced.as_mut().map(|traced| traced as &mut dyn Communicator);
            verifier = Some(Verifier::new(&this, communicator).map_err(not_verified)?);
        }

        let catalog = self.tensors.catalog();
        let entries = catalog.tensors();
        let mut load = begin.elapsed();
        let (last, mut since) = (self.batches.count().saturating_sub(1), Instant::now());
        for number in 0..self.batches.count() {
            if !arrivals.wait(number, &check)? {
                return Ok(None);
            }
            let ids = || self.batches.tensors(number);
            let places = self.batches.of_schedule(number, schedule);
            if number == last || self.options.on_ready.is_wanted() {
                memory.finish().map_err(|source| LoadError::Device { rank, source })?;
            }
            if number == last {
                (load, since) = (begin.elapsed(), Instant::now());
            }
            let mut wrong = Vec::new();
            if let Some(verifier) = &mut verifier {
                let _span = tracer.span(&track, "verify");
                let own = arrivals.take_own(seat, places.clone());
                let arrived =
                    if memory.is_filled_in_place() { Arrived::Summed(&own) } else { Arrived::OnDevice };
                let expected = match &self.options.manifest {
                    Some(manifest) if traced.is_some() => {
                        let brings = rank == 0;
                        ids().filter(|_| brings).map(|id| (id, manifest.of_tensor(id))).collect()
                    }
                    // One rank of a process brings what the process has summed up of the files.
                    _ if seat == 0 => arrivals.take_expected(ids()),
                    _ => HashMap::new(),
                };
                let communicator = traced.as_mut().map(|traced| traced as &mut dyn Communicator);
                let found =
                    verifier.batch(number, &arrived, &expected, communicator).map_err(not_verified)?;
                wrong.extend(found.iter().map(|mismatch| mismatch.tensor.clone()));
            }
            if self.options.on_ready.is_wanted() {
                let is_right =
                    |placed: &PlacedTensor<'_>| wrong.iter().all(|name| **name != *entries[placed.id].name);
                let right = schedule.tensors_at(places).filter(is_right);
                let tensors = right.map(|placed| LoadedTensor {
                    name: catalog.own_name(placed.id, rank),
                    dtype: placed.held().dtype,
                    shape: &placed.held().shape,
                    address: memory.address(placed.offset),
                    offset: placed.offset,
                    bytes: placed.held().bytes,
                });
                let verified = verifier.is_some() && ids().all(|id| self.chosen.get(id) == Some(&true));
                let tensors = tensors.collect();
                self.options.on_ready.tell(Ready { rank, tensors, memory: kept, verified });
            }
        }
        let verified = verifier.map(Verifier::finish);
        let verify = since.elapsed();
        let tensors = schedule.len() as u64;
        let figures = LoadFigures { tensors, bytes: schedule.copied_bytes(), load, verify };
        // What was read of files that changed meanwhile is of no use, whatever its sums are. One rank looks for its process.
        if seat == 0 {
            self.tensors.check_unchanged()?;
        }
        // Nobody says that it is done before all are.
        let of_all_ranks = match &mut traced {
            Some(communicator) => {
                share(figures, communicator).map_err(|source| LoadError::Collective { rank, source })?
            }
            None => vec![(rank, figures)],
        };
        Ok(Some(Done { of_all_ranks, verified }))
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
