//! The threads that read: each takes unit after unit of the pass, reads it, and hands its bytes to the ranks that want them.
//!
//! While a piece of a file is still in the core's cache it is summed up as what should arrive, copied, and, where the copy lies
//! in the rank's memory itself, summed up there as what did.

use super::{
    LoadError, Progress,
    arrivals::{Arrivals, UnitSums},
    caught, spawned,
};
use crate::{
    device::{DeviceMemory, Filling},
    fingerprint::Fingerprint,
    numa::NumaNodes,
    schedule::{Answers, Pass, Rows, Unit},
    tensors::{Tensors, Wanted},
    trace::{Tracer, Track},
};
use std::{
    cell::RefCell,
    collections::VecDeque,
    ops::{ControlFlow, Range},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// Units that are read ahead of the one in work, where processes share them: with fewer, one that gets ahead of another finds blocks that
/// the other was to ask for, and reads them itself.
const UNITS_AHEAD: usize = 16;

/// Requests of one unit have numbers below this.
const MOST_REQUESTS: u64 = 1 << 24;

/// What reading needs to know.
pub(super) struct Lanes<'a> {
    pub(super) pass: &'a Pass<'a>,
    pub(super) tensors: &'a Tensors<'a>,
    /// The ranks' memory, and the ranks, by schedule.
    pub(super) memories: &'a [(u32, &'a dyn DeviceMemory)],
    pub(super) answers: Answers,
    /// Whether each tensor is verified, by its number in the catalog; empty when none is.
    pub(super) chosen: &'a [bool],
    pub(super) arrivals: &'a Arrivals,
    pub(super) progress: &'a Progress,
    pub(super) tracer: &'a Tracer,
    /// A byte to flip in a rank's memory, by schedule.
    pub(super) flip: Option<(usize, u64)>,
    /// Called again and again; an error ends the reading with it.
    pub(super) step: &'a (dyn Fn() -> Result<(), LoadError> + Sync),
    /// The NUMA nodes of the ranks' devices, which threads take in turn.
    pub(super) near: (&'a NumaNodes, &'a [u32]),
}

/// What the threads have in common.
#[derive(Default)]
struct Common {
    next: AtomicUsize,
    /// Units whose bytes the kernel has been asked to read ahead.
    ahead: AtomicUsize,
    failure: Mutex<Option<LoadError>>,
}

impl Lanes<'_> {
    /// Reads everything with `threads` threads; `failed` hears of the first failure as soon as there is one.
    ///
    /// # Errors
    /// [`LoadError`] of the thread that failed first.
    pub(super) fn run(&self, threads: usize, failed: &(dyn Fn(&LoadError) + Sync)) -> Result<(), LoadError> {
        let common = Common::default();
        let fail = |error: LoadError| {
            let mut failure = common.failure.lock().unwrap_or_else(PoisonError::into_inner);
            if failure.is_none() {
                failed(&error);
                *failure = Some(error);
            }
            drop(failure);
            self.arrivals.stop();
        };
        let lane = |number: usize| {
            let (numa, nodes) = self.near;
            let turn = number.checked_rem(nodes.len()).and_then(|turn| nodes.get(turn)).copied();
            let _near = numa.stay(turn);
            let track = Track {
                rank: self.memories.first().map_or(0, |(rank, _)| *rank),
                lane: format!("reader {number}"),
            };
            if let Err(error) = caught(track.rank, || self.lane(&common, &track)) {
                fail(error);
            }
        };
        std::thread::scope(|scope| {
            for number in 1..threads.min(self.pass.units.len()) {
                let lane = &lane;
                if let Err(error) = spawned(scope, move || lane(number)) {
                    return fail(error);
                }
            }
            lane(0);
        });
        if !self.arrivals.is_stopped() && !self.arrivals.are_complete() {
            fail(LoadError::Incomplete);
        }
        match common.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn lane(&self, common: &Common, track: &Track) -> Result<(), LoadError> {
        if self.memories.iter().any(|(_, memory)| memory.least_mapped_bytes().is_some()) {
            return self.straight(&common.next, track);
        }
        // What was asked for, unit by unit, and is still to come; and the bytes of each unit.
        let (queue, sizes) = (RefCell::new(VecDeque::new()), RefCell::new(VecDeque::new()));
        let mut next = || {
            loop {
                if let Some(request) = queue.borrow_mut().pop_front() {
                    return Some(request);
                }
                let requests = self.next_requests(common)?;
                let bytes = requests.iter().map(|run: &Wanted| run.bytes.end - run.bytes.start).sum();
                sizes.borrow_mut().push_back(bytes);
                *queue.borrow_mut() = requests;
            }
        };
        // A unit whose bytes have all come stays open until the source says no ill of the last of them.
        let mut open: Option<Open<'_>> = None;
        let mut failure = None;
        let mut since = Instant::now();
        let mut deliver = |wanted: &Wanted, at: u64, piece: &[u8]| {
            let begin = Instant::now();
            self.tracer.add(track, "read", since, begin - since);
            let mut take = || -> Result<(), LoadError> {
                (self.step)()?;
                if let Some(whole) = open.take_if(|unit| unit.left == 0) {
                    self.close(whole)?;
                }
                let unit = match &mut open {
                    Some(unit) => unit,
                    None => {
                        let number = usize::try_from(wanted.tag / MOST_REQUESTS).unwrap_or(usize::MAX);
                        let bytes = sizes.borrow_mut().pop_front().unwrap_or(0);
                        open.insert(self.open(number, bytes)?)
                    }
                };
                self.hand_out(unit, wanted, at, piece)?;
                unit.left = unit.left.saturating_sub(piece.len() as u64);
                Ok(())
            };
            let outcome = take();
            since = Instant::now();
            self.tracer.add(track, "scatter", begin, since - begin);
            match outcome {
                Ok(()) if !self.arrivals.is_stopped() => ControlFlow::Continue(()),
                Ok(()) => ControlFlow::Break(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let read = self.tensors.stream(&mut next, &mut deliver);
        match failure {
            Some(error) => Err(error),
            None => {
                read?;
                open.filter(|unit| unit.left == 0).map_or(Ok(()), |whole| self.close(whole))
            }
        }
    }

    /// What is wanted of the next unit of which anything is.
    fn next_requests(&self, common: &Common) -> Option<VecDeque<Wanted>> {
        loop {
            let number = common.next.fetch_add(1, Ordering::Relaxed);
            let unit = self.pass.units.get(number)?;
            self.read_ahead(common, number);
            let requests = self.requests(number, unit);
            if !requests.is_empty() {
                return Some(requests);
            }
            self.arrivals.arrived(unit.batch, UnitSums::default());
        }
    }

    /// Has the kernel read ahead what processes of this host share of the units up to some after `number`.
    fn read_ahead(&self, common: &Common, number: usize) {
        let until = (number + UNITS_AHEAD).min(self.pass.units.len());
        // Whoever counts a unit asks for it.
        let count = |at: usize| (at < until).then_some(at + 1);
        while let Ok(at) = common.ahead.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count) {
            for (tensor, bytes) in self.pass.read_ahead(&self.pass.units[at]) {
                self.tensors.read_ahead(tensor, &bytes);
            }
        }
    }

    fn requests(&self, number: usize, unit: &Unit) -> VecDeque<Wanted> {
        let first = number as u64 * MOST_REQUESTS;
        let of_span = |(span, at): (&_, u64)| {
            let wanted = self.pass.wanted_with_others(span);
            let tensor = self.pass.tensors[span.tensor].id;
            wanted.into_iter().map(move |(bytes, shared)| Wanted { tensor, bytes, tag: first + at, shared })
        };
        unit.spans.iter().zip(0..).flat_map(of_span).collect()
    }

    /// Begins to fill the memory that the unit fills.
    fn open(&self, number: usize, bytes: u64) -> Result<Open<'_>, LoadError> {
        let unit = &self.pass.units[number];
        self.arrivals.wait_for_room(unit.batch, self.step)?;
        let mut fillings = Vec::with_capacity(self.memories.len());
        for ((rank, memory), window) in self.memories.iter().zip(&unit.windows) {
            if window.is_empty() {
                fillings.push(None);
                continue;
            }
            let on_device = |source| LoadError::Device { rank: *rank, source };
            let mut filling = memory.begin(window.start, window.end - window.start).map_err(on_device)?;
            // What is staged goes as a whole, with what lies between tensors.
            if !memory.is_filled_in_place() {
                filling.bytes().fill(0);
            }
            fillings.push(Some((filling, window.start)));
        }
        Ok(Open { unit, left: bytes, fillings, sums: UnitSums::default() })
    }

    fn hand_out(&self, open: &mut Open<'_>, wanted: &Wanted, at: u64, piece: &[u8]) -> Result<(), LoadError> {
        let end = at + piece.len() as u64;
        let out_of_range = || self.tensors.out_of_range(wanted.tensor, at..end);
        let span = usize::try_from(wanted.tag % MOST_REQUESTS).ok().and_then(|at| open.unit.spans.get(at));
        let span = span.ok_or_else(out_of_range)?;
        let tensor = &self.pass.tensors[span.tensor];
        let summed = self.chosen.get(tensor.id) == Some(&true);
        let seed = tensor.seed;
        if summed {
            for run in self.pass.answered(tensor) {
                let run = run.start.max(at)..run.end.min(end);
                if !run.is_empty() {
                    let bytes = part(piece, at, &run).ok_or_else(out_of_range)?;
                    let mut sum = Fingerprint::default();
                    sum.add(seed, run.start, bytes);
                    open.sums.expected.entry(tensor.id).or_default().merge(sum);
                }
            }
        }
        for place in self.pass.places(tensor) {
            let seat = place.seat();
            let Some((filling, window)) = open.fillings.get_mut(seat).and_then(Option::as_mut) else {
                continue;
            };
            let in_place = self.memories[seat].1.is_filled_in_place();
            let into = filling.bytes();
            let flip = self.flip.filter(|(of, _)| *of == seat).map(|(_, byte)| byte);
            let mut copied = 0;
            let placed = self.pass.placed(place);
            for (number, boxed) in placed.pieces().iter().enumerate() {
                let (mut own, mut answer) = (Fingerprint::default(), Fingerprint::default());
                for rows in placed.rows_out_of(boxed, at..end) {
                    copied += rows.bytes();
                    for run in Runs::of(rows) {
                        let from = part(piece, at, &run.from).ok_or_else(out_of_range)?;
                        let to = part_mut(into, *window, &run.to).ok_or_else(out_of_range)?;
                        to.copy_from_slice(from);
                        if let Some(byte) = flip.filter(|byte| run.to.contains(byte))
                            && let Some(byte) =
                                usize::try_from(byte - run.to.start).ok().and_then(|at| to.get_mut(at))
                        {
                            *byte ^= 1;
                        }
                    }
                    if summed && (in_place || self.answers == Answers::ForItself) {
                        for run in Runs::of(rows) {
                            let in_tensor = run.from.start;
                            if in_place {
                                own.add(
                                    seed,
                                    in_tensor,
                                    part_mut(into, *window, &run.to).ok_or_else(out_of_range)?,
                                );
                            }
                            if self.answers == Answers::ForItself {
                                answer.add(
                                    seed,
                                    in_tensor,
                                    part(piece, at, &run.from).ok_or_else(out_of_range)?,
                                );
                            }
                        }
                    }
                }
                if own.bytes() > 0 {
                    open.sums.own.entry((place, number)).or_default().merge(own);
                }
                if answer.bytes() > 0 {
                    open.sums.expected.entry(tensor.id).or_default().merge(answer);
                }
            }
            self.progress.add(self.memories[seat].0, copied);
        }
        Ok(())
    }

    /// Sends the unit on its way.
    fn close(&self, open: Open<'_>) -> Result<(), LoadError> {
        let Open { unit, fillings, sums, .. } = open;
        for ((rank, _), filling) in self.memories.iter().zip(fillings) {
            if let Some((filling, _)) = filling {
                filling.done().map_err(|source| LoadError::Device { rank: *rank, source })?;
            }
        }
        self.arrivals.arrived(unit.batch, sums);
        Ok(())
    }
}

/// A unit of which some has been read.
struct Open<'a> {
    unit: &'a Unit,
    /// Bytes still to come.
    left: u64,
    /// Where it goes, and the first byte of that in the rank's memory, by schedule.
    fillings: Vec<Option<(Box<dyn Filling + 'a>, u64)>>,
    sums: UnitSums,
}

/// Runs of bytes of a file, and where they go in a rank's memory.
pub(super) struct Runs {
    rows: Rows,
    next: u64,
}

pub(super) struct Run {
    pub(super) from: Range<u64>,
    pub(super) to: Range<u64>,
}

impl Runs {
    pub(super) fn of(rows: Rows) -> Self {
        Self { rows, next: 0 }
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let Self { rows, next } = self;
        (*next < rows.runs).then(|| {
            let (from, to) = (rows.from + *next * rows.from_stride, rows.to + *next * rows.to_stride);
            *next += 1;
            Run { from: from..from + rows.run_bytes, to: to..to + rows.run_bytes }
        })
    }
}

/// Where the run `run` lies in bytes that begin at `at`.
fn place_of(at: u64, run: &Range<u64>) -> Option<Range<usize>> {
    let place = |byte: u64| usize::try_from(byte.checked_sub(at)?).ok();
    Some(place(run.start)?..place(run.end)?)
}

/// The run `run` of bytes that begin at `at`.
fn part<'a>(bytes: &'a [u8], at: u64, run: &Range<u64>) -> Option<&'a [u8]> {
    bytes.get(place_of(at, run)?)
}

fn part_mut<'a>(bytes: &'a mut [u8], at: u64, run: &Range<u64>) -> Option<&'a mut [u8]> {
    bytes.get_mut(place_of(at, run)?)
}
