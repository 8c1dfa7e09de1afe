//! One pass over the files for all ranks of a process.
//!
//! A file's bytes are read once, and handed to every rank that wants them. What is read together is a [`Unit`]: for each rank it
//! fills one run of memory without holes, because a rank's tensors, and the rows of each, lie in memory in the order in which
//! they are read.

use super::{Batches, PlacedTensor, Rows, Schedule};
use crate::{cast::Casts, fingerprint::seed_of};
use shardwright_planner::checkpoint::Catalog;
use std::ops::Range;

/// Bytes between two runs that are read in vain rather than left out: storage and page cache give whole pages anyway.
const GAP_BYTES: u64 = 4096;

/// How finely processes of a host share.
#[derive(Debug, Clone, Copy)]
struct Grain {
    /// Bytes of a tensor that one process at a time has read ahead for all.
    block: u64,
    /// Fewer bytes than this are not worth a way of their own.
    least_alone: u64,
}

/// A block is one request to the storage, on most systems.
const GRAIN: Grain = Grain { block: 512 << 10, least_alone: 1 << 20 };

/// Most bytes of files in a unit, so that several threads have work.
const UNIT_BYTES: u64 = 64 << 20;

/// Which bytes of the files the process sums up, to say what should have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// None: nothing is verified, or the expected values are known.
    ForNothing,
    /// Each tensor's bytes are dealt evenly to those who hold any part of it, of a world of so many ranks, whatever their boxes.
    WithOthers {
        /// How many ranks there are.
        world: u32,
    },
    /// The bytes that its own boxes have.
    ForItself,
}

/// The files, as the ranks of a process want them.
#[derive(Debug)]
pub struct Pass<'a> {
    schedules: &'a [Schedule],
    batches: &'a Batches,
    /// The ranks that share this host, where some of them are in other processes.
    neighbours: &'a [u32],
    grain: Grain,
    answers: Answers,
    /// The tensors that are read, in order.
    pub tensors: Vec<PassTensor>,
    /// Where ranks hold them, tensor by tensor.
    places: Vec<Places>,
    /// What is read together, in order. None is of two batches.
    pub units: Vec<Unit>,
}

/// A tensor that ranks of the process want bytes of. There may be 100,000.
#[derive(Debug)]
pub struct PassTensor {
    /// Its number in the catalog.
    pub id: usize,
    /// The seed of its fingerprint.
    pub seed: u64,
    /// Its bytes, as it is loaded.
    pub len: u64,
    /// Where ranks hold it: which of [`Pass::places`].
    places: Range<usize>,
}

/// A tensor of one of the schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Which of the schedules.
    pub seat: u32,
    /// Which of its tensors.
    pub tensor: u32,
}

/// A tensor that stands at the same place of neighbouring schedules, as it does where all ranks hold a part of all tensors.
#[derive(Debug)]
struct Places {
    /// Which of the schedules.
    seats: Range<u32>,
    /// Which of their tensors.
    tensor: u32,
}

impl Place {
    /// Which of the schedules.
    pub fn seat(self) -> usize {
        self.seat as usize
    }
}

/// What is read together.
#[derive(Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its batch.
    pub batch: usize,
    /// The bytes that it is over, in order.
    pub spans: Box<[Span]>,
    /// The run of each rank's memory that it fills, by schedule; empty where there is none.
    pub windows: Box<[Range<u64>]>,
}

/// A run of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which tensor of the pass.
    pub tensor: usize,
    /// Which of its bytes, as it is loaded; not all of them need be wanted.
    pub bytes: Range<u64>,
}

impl<'a> Pass<'a> {
    /// The pass of the ranks of `schedules`. What is filled at a time of the memory of one of them, from some byte on, ends where
    /// `window_end` says.
    pub fn new(
        schedules: &'a [Schedule],
        window_end: &dyn Fn(usize, u64) -> u64,
        batches: &'a Batches,
        (catalog, casts): (&Catalog, &Casts),
        answers: Answers,
    ) -> Self {
        let sums_unheld = matches!(answers, Answers::WithOthers { .. });
        let (mut tensors, mut places) = (Vec::new(), Vec::<Places>::new());
        // Schedules are in the order of the batches.
        let mut next = vec![0u32; schedules.len()];
        for id in batches.in_order(sums_unheld) {
            let first = places.len();
            for ((seat, schedule), tensor) in (0..).zip(schedules).zip(&mut next) {
                let at = *tensor as usize;
                if at < schedule.len() && schedule.tensor(at).id == id {
                    match places[first..].last_mut() {
                        Some(Places { seats, tensor: same }) if seats.end == seat && same == tensor => {
                            seats.end += 1;
                        }
                        _ => places.push(Places { seats: seat..seat + 1, tensor: *tensor }),
                    }
                    *tensor += 1;
                }
            }
            if first < places.len() || (sums_unheld && batches.is_unheld(id)) {
                let seed = seed_of(&catalog.tensors()[id].name);
                let places = first..places.len();
                tensors.push(PassTensor { id, seed, len: casts.len_of(id), places });
            }
        }
        tensors.shrink_to_fit();
        places.shrink_to_fit();
        let (grain, units) = (GRAIN, Vec::new());
        let mut pass = Self { schedules, batches, neighbours: &[], grain, answers, tensors, places, units };
        pass.units = pass.units(window_end);
        pass
    }

    /// The same, for a process beside others of this host: `neighbours` are the ranks of all of them, its own too.
    #[must_use]
    pub fn beside(mut self, neighbours: &'a [u32]) -> Self {
        if !neighbours.iter().all(|rank| self.is_own(*rank)) {
            self.neighbours = neighbours;
        }
        self
    }

    fn is_own(&self, rank: u32) -> bool {
        self.schedules.iter().any(|schedule| schedule.rank == rank)
    }

    /// Which of the processes of this host that hold any of the tensor this one is, and how many those are; 0 and 1 where it is alone.
    fn turn(&self, tensor: &PassTensor) -> (u64, u64) {
        let answers = |rank: &&u32| self.batches.answers_as(tensor.id, **rank).is_some();
        let holders = self.neighbours.iter().filter(answers);
        let turn = holders.clone().position(|rank| self.is_own(*rank)).unwrap_or(0);
        (turn as u64, holders.count().max(1) as u64)
    }

    /// Where ranks of the process hold the tensor.
    pub fn places(&self, tensor: &PassTensor) -> impl Iterator<Item = Place> {
        let places = &self.places[tensor.places.clone()];
        places
            .iter()
            .flat_map(|&Places { ref seats, tensor }| seats.clone().map(move |seat| Place { seat, tensor }))
    }

    /// A tensor of a schedule.
    pub fn placed(&self, place: Place) -> PlacedTensor<'a> {
        self.schedules[place.seat()].tensor(place.tensor as usize)
    }

    /// How the ranks of the process hold the tensor.
    fn all_placed(&self, tensor: &PassTensor) -> impl Iterator<Item = PlacedTensor<'a>> {
        self.places(tensor).map(|place| self.placed(place))
    }

    /// The runs of the tensor's bytes that the process sums up, in order, none of which touch, where that does not follow from what its
    /// ranks hold.
    pub fn answered(&self, tensor: &PassTensor) -> Vec<Range<u64>> {
        let Answers::WithOthers { world } = self.answers else { return Vec::new() };
        let count = self.batches.answering(tensor.id, world).max(1) as u128;
        let border = |number: usize| {
            u64::try_from(u128::from(tensor.len) * number as u128 / count).unwrap_or(u64::MAX)
        };
        let ranks = self.schedules.iter().map(|schedule| schedule.rank);
        let mut numbers: Vec<usize> =
            ranks.filter_map(|rank| self.batches.answers_as(tensor.id, rank)).collect();
        numbers.sort_unstable();
        let mut shares: Vec<Range<u64>> = Vec::new();
        for number in numbers {
            let (start, end) = (border(number), border(number + 1));
            match shares.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => shares.push(start..end),
            }
        }
        shares.retain(|share| !share.is_empty());
        shares
    }

    /// What the ranks want of a span, and what of it is summed up, run after run. What is read in vain between them is no more
    /// than what is wanted, or some gaps of a page.
    pub fn wanted(&self, span: &Span) -> Vec<Range<u64>> {
        let tensor = &self.tensors[span.tensor];
        let (start, end) = (span.bytes.start, span.bytes.end);
        // Rows that several ranks hold count once.
        let mut parts: Vec<Rows> = Vec::new();
        for placed in self.all_placed(tensor) {
            for part in placed.all_rows_out_of(start..end) {
                let part = Rows { to: 0, to_stride: 0, ..part };
                if !parts.contains(&part) {
                    parts.push(part);
                }
            }
        }
        let answered = self.answered(tensor).into_iter().map(|run| run.start.max(start)..run.end.min(end));
        let mut runs: Vec<Range<u64>> = answered.filter(|run| !run.is_empty()).collect();
        let first = parts.iter().map(|part| part.from).chain(runs.iter().map(|run| run.start)).min();
        let last =
            parts.iter().map(|part| part.from + part.span()).chain(runs.iter().map(|run| run.end)).max();
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
        let wanted: u64 = parts.iter().map(Rows::bytes).sum();
        let summed = runs.iter().map(|run| run.end - run.start).sum();
        if wanted.max(summed) * 2 >= last - first {
            return std::iter::once(first..last).collect();
        }
        for part in parts {
            // Runs that would be joined are not told apart first: there may be one for every byte.
            if part.from_stride - part.run_bytes <= GAP_BYTES {
                runs.push(part.from..part.from + part.span());
                continue;
            }
            runs.extend((0..part.runs).map(|run| {
                let from = part.from + run * part.from_stride;
                from..from + part.run_bytes
            }));
        }
        runs.sort_by_key(|run| (run.start, run.end));
        let mut joined: Vec<Range<u64>> = Vec::new();
        for run in runs {
            match joined.last_mut() {
                Some(last) if run.start <= last.end.saturating_add(GAP_BYTES) => {
                    last.end = last.end.max(run.end);
                }
                _ => joined.push(run),
            }
        }
        joined
    }

    /// The same runs, each with whether other processes of this host may want some of it too.
    pub fn wanted_with_others(&self, span: &Span) -> Vec<(Range<u64>, bool)> {
        let wanted = self.wanted(span);
        if self.neighbours.is_empty() {
            return wanted.into_iter().map(|run| (run, false)).collect();
        }
        let alone = self.alone(span);
        let mut all = Vec::new();
        for run in wanted {
            let mut at = run.start;
            for own in &alone {
                let own = own.start.max(at)..own.end.min(run.end);
                if own.is_empty() {
                    continue;
                }
                if at < own.start {
                    all.push((at..own.start, true));
                }
                at = own.end;
                all.push((own, false));
            }
            if at < run.end {
                all.push((at..run.end, true));
            }
        }
        all
    }

    /// What this process has the kernel read ahead for all processes of this host that go through the same rows in stripes of their
    /// own: of each tensor every so manieth block, so that together they ask for each byte once, in large requests, and in the order
    /// in which all go through it. The numbers of the tensors are those of the catalog.
    pub fn read_ahead(&self, unit: &Unit) -> Vec<(usize, Range<u64>)> {
        let mut blocks = Vec::new();
        if self.neighbours.is_empty() {
            return blocks;
        }
        for span in &unit.spans {
            let tensor = &self.tensors[span.tensor];
            let pieces = self.all_placed(tensor).flat_map(PlacedTensor::pieces);
            let stripes = pieces.flat_map(|piece| &piece.rows).filter(|rows| rows.runs > 1);
            let Some(row) = stripes.map(|rows| rows.from_stride).max() else { continue };
            // Others have the rest of the rows.
            let mut region: Option<Range<u64>> = None;
            for (run, _) in self.wanted_with_others(span).into_iter().filter(|(_, shared)| *shared) {
                let start = (run.start / row * row).max(span.bytes.start);
                let end = run.end.div_ceil(row).saturating_mul(row).min(span.bytes.end);
                region =
                    Some(region.map_or(start..end, |region| region.start.min(start)..region.end.max(end)));
            }
            let Some(region) = region else { continue };
            let ((turn, turns), size) = (self.turn(tensor), self.grain.block);
            for block in region.start / size..region.end.div_ceil(size) {
                // Small tensors have one block: they are dealt by their numbers.
                if block.wrapping_add(tensor.id as u64) % turns == turn {
                    let part = (block * size).max(region.start)..((block + 1) * size).min(region.end);
                    blocks.push((tensor.id, part));
                }
            }
        }
        blocks
    }

    /// The runs of a span that no other process wants any byte of, in order: long ones, which it holds alone and sums up alone.
    fn alone(&self, span: &Span) -> Vec<Range<u64>> {
        let tensor = &self.tensors[span.tensor];
        let pieces = self.all_placed(tensor).flat_map(PlacedTensor::pieces);
        let held = pieces.filter(|piece| piece.replicas == 1).flat_map(|piece| &piece.rows);
        let mut alone: Vec<Range<u64>> = held
            .filter(|rows| rows.runs == 1)
            .map(|rows| rows.from.max(span.bytes.start)..(rows.from + rows.run_bytes).min(span.bytes.end))
            .collect();
        if matches!(self.answers, Answers::WithOthers { .. }) {
            let answered = self.answered(tensor);
            let within = |run: &Range<u64>| {
                let shares = answered.iter();
                let parts = shares.map(|share| share.start.max(run.start)..share.end.min(run.end));
                parts.collect::<Vec<_>>()
            };
            alone = alone.iter().flat_map(within).collect();
        }
        alone.retain(|run| run.end.saturating_sub(run.start) >= self.grain.least_alone);
        alone.sort_by_key(|run| run.start);
        alone
    }

    fn units(&self, window_end: &dyn Fn(usize, u64) -> u64) -> Vec<Unit> {
        let mut units = Vec::new();
        let mut open = Building::new(self.schedules.len());
        for (number, tensor) in self.tensors.iter().enumerate() {
            let batch = self.batches.batch_of(tensor.id);
            let mut start = 0;
            while start < tensor.len {
                let most = |open: &Building| self.most(tensor, start, open, window_end);
                let fits = open.batch.is_none_or(|open| open == batch);
                let mut stop = if fits { most(&open) } else { start };
                // A unit is filled to the brim, so that what is copied to a device at a time is large.
                if stop < tensor.len && stop - start < GAP_BYTES && !open.spans.is_empty() {
                    units.extend(open.finish(self.schedules.len()));
                    stop = most(&open);
                }
                let stop = stop.max(start + 1);
                open.batch = Some(batch);
                open.bytes += stop - start;
                for place in self.places(tensor) {
                    let window = &mut open.windows[place.seat()];
                    for rows in self.placed(place).all_rows_out_of(start..stop) {
                        let begin = if window.is_empty() { rows.to } else { window.start.min(rows.to) };
                        *window = begin..window.end.max(rows.to_stop());
                    }
                }
                open.spans.push(Span { tensor: number, bytes: start..stop });
                start = stop;
            }
        }
        units.extend(open.finish(self.schedules.len()));
        units
    }

    /// How far the bytes of `tensor` from `start` on go into the unit.
    fn most(
        &self,
        tensor: &PassTensor,
        start: u64,
        open: &Building,
        window_end: &dyn Fn(usize, u64) -> u64,
    ) -> u64 {
        let fits = |stop: u64| {
            self.places(tensor).all(|place| {
                let window = &open.windows[place.seat()];
                let parts = || self.placed(place).all_rows_out_of(start..stop);
                let begin =
                    if window.is_empty() { parts().map(|rows| rows.to).min() } else { Some(window.start) };
                let end = parts().map(Rows::to_stop).max();
                match (begin, end) {
                    (Some(begin), Some(end)) => end <= window_end(place.seat(), begin).max(begin + 1),
                    _ => true,
                }
            })
        };
        let last = tensor.len.min(start.saturating_add(UNIT_BYTES.saturating_sub(open.bytes)));
        if fits(last) {
            return last;
        }
        // The more bytes, the larger the window: the largest number that fits.
        let (mut least, mut most) = (start, last);
        while most - least > 1 {
            let middle = least + (most - least) / 2;
            if fits(middle) { least = middle } else { most = middle }
        }
        least
    }
}

/// A unit that is being put together.
struct Building {
    batch: Option<usize>,
    bytes: u64,
    spans: Vec<Span>,
    windows: Vec<Range<u64>>,
}

impl Building {
    fn new(seats: usize) -> Self {
        Self { batch: None, bytes: 0, spans: Vec::new(), windows: vec![0..0; seats] }
    }

    /// The unit, if there is anything in it; what follows begins anew.
    fn finish(&mut self, seats: usize) -> Option<Unit> {
        let Self { batch, spans, windows, .. } = std::mem::replace(self, Self::new(seats));
        batch.filter(|_| !spans.is_empty()).map(|batch| Unit {
            batch,
            spans: spans.into(),
            windows: windows.into(),
        })
    }
}

#[cfg(test)]
mod tests;
