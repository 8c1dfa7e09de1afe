//! One rank's copies: windows of its memory, filled by a few threads from the files.

use super::{LoadError, Progress};
use crate::{
    device::{Block, DeviceMemory},
    schedule::{Fill, Rows, Schedule, Window},
    source::{Source, SourceError},
    trace::{Tracer, Track},
};
use shardwright_planner::checkpoint::ByteRange;
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Bytes of a file that are asked for at a time.
const BLOCK_BYTES: u64 = 8 << 20;

/// What copying needs to know.
pub(super) struct Copying<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) source: &'a dyn Source,
    pub(super) memory: &'a dyn DeviceMemory,
    pub(super) progress: &'a Progress,
    pub(super) tracer: &'a Tracer,
    /// Called before each window; an error ends the copying with it.
    pub(super) step: &'a (dyn Fn() -> Result<(), LoadError> + Sync),
    /// Called between blocks of a file: what is slow to read is read all the same.
    pub(super) beat: &'a (dyn Fn() + Sync),
}

impl Copying<'_> {
    /// Fills the rank's memory with `lanes` threads.
    ///
    /// # Errors
    /// [`LoadError`] of the thread that failed first.
    pub(super) fn run(&self, lanes: usize) -> Result<(), LoadError> {
        let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        let first_failure = Mutex::new(None);
        let lane = |number: usize| {
            if let Err(error) = self.lane(number, &next, &stop) {
                stop.store(true, Ordering::Relaxed);
                first_failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        std::thread::scope(|scope| {
            for number in 1..lanes.max(1) {
                let lane = &lane;
                scope.spawn(move || lane(number));
            }
            lane(0);
        });
        match first_failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Takes window after window, until there are no more or somebody failed.
    fn lane(&self, lane: usize, next: &AtomicU64, stop: &AtomicBool) -> Result<(), LoadError> {
        let size = self.memory.window_bytes();
        let count = self.schedule.windows(size);
        let mut scratch = Vec::new();
        let track = Track { rank: self.schedule.rank, lane: format!("reader {lane}") };
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                break;
            }
            (self.step)()?;
            let window = self.schedule.window(number, size);
            self.window(&window, &track, &mut scratch)?;
            self.progress.add(window.copied_bytes());
        }
        Ok(())
    }

    fn window(&self, window: &Window, track: &Track, scratch: &mut Vec<u8>) -> Result<(), LoadError> {
        let on_device = |source| LoadError::Device { rank: self.schedule.rank, source };
        if !self.memory.copies_mappings() {
            let (mut failure, waiting) = (None, self.tracer.span(track, "wait for staging"));
            let mut waiting = Some(waiting);
            let mut fill = |into: &mut [u8]| {
                waiting.take();
                let _span = self.tracer.span(track, "read");
                failure = gather(window, self.source, into, scratch, self.beat).err();
                failure.is_none()
            };
            self.memory.fill(window.at, window.bytes, &mut fill).map_err(on_device)?;
            return failure.map_or(Ok(()), |error| Err(error.into()));
        }
        for fill in &window.fills {
            self.straight(window, *fill, track, scratch)?;
        }
        Ok(())
    }

    /// Copies rows straight from where the source has them, or through the memory's staging where that does not go.
    fn straight(
        &self,
        window: &Window,
        fill: Fill,
        track: &Track,
        scratch: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let on_device = |source| LoadError::Device { rank: self.schedule.rank, source };
        let rows = fill.rows;
        let span = self.tracer.span(track, "copy from the mapping");
        let bytes = span_of(self.source, fill.file, rows, scratch)?;
        let count =
            |number: u64| usize::try_from(number).map_err(|_| LoadError::from(out_of_range(fill.file, rows)));
        let block = Block {
            bytes,
            run_bytes: count(rows.run_bytes)?,
            stride: count(rows.from_stride)?,
            runs: count(rows.runs)?,
        };
        if self.memory.copy_mapped(block, window.at + rows.to, rows.to_stride).map_err(on_device)? {
            return Ok(());
        }
        drop(span);
        // Rows that lie one after the other go in one piece.
        let (step, pieces) = if rows.to_stride == rows.run_bytes { (rows.runs, 1) } else { (1, rows.runs) };
        for piece in 0..pieces {
            let first = piece * step;
            let part = Rows { from: rows.from + first * rows.from_stride, to: 0, runs: step, ..rows };
            let only = Window {
                at: window.at + rows.to + first * rows.to_stride,
                bytes: part.bytes(),
                fills: vec![Fill { file: fill.file, rows: part }],
            };
            let mut failure = None;
            let mut fill = |into: &mut [u8]| {
                let _span = self.tracer.span(track, "read");
                failure = gather(&only, self.source, into, scratch, self.beat).err();
                failure.is_none()
            };
            self.memory.fill(only.at, only.bytes, &mut fill).map_err(on_device)?;
            if let Some(error) = failure {
                return Err(error.into());
            }
        }
        Ok(())
    }
}

/// Writes a window: its rows from the files, and zeros where there are none.
fn gather(
    window: &Window,
    source: &dyn Source,
    into: &mut [u8],
    scratch: &mut Vec<u8>,
    beat: &dyn Fn(),
) -> Result<(), SourceError> {
    if window.copied_bytes() < window.bytes {
        into.fill(0);
    }
    for fill in &window.fills {
        for rows in fill.rows.blocks(BLOCK_BYTES) {
            beat();
            let out_of_range = || out_of_range(fill.file, rows);
            let bytes = span_of(source, fill.file, rows, scratch)?;
            let count = |number: u64| usize::try_from(number).map_err(|_| out_of_range());
            let (len, from_stride, to_stride) =
                (count(rows.run_bytes)?, count(rows.from_stride)?, count(rows.to_stride)?);
            let (mut from, mut to) = (0usize, count(rows.to)?);
            for _ in 0..rows.runs {
                let row = bytes.get(from..from.saturating_add(len)).ok_or_else(out_of_range)?;
                into.get_mut(to..to.saturating_add(len)).ok_or_else(out_of_range)?.copy_from_slice(row);
                from = from.saturating_add(from_stride);
                to = to.saturating_add(to_stride);
            }
        }
    }
    Ok(())
}

/// The bytes of the file from the first row's beginning to the last row's end.
fn span_of<'a>(
    source: &'a dyn Source,
    file: usize,
    rows: Rows,
    scratch: &'a mut Vec<u8>,
) -> Result<&'a [u8], SourceError> {
    let stop = rows.from.saturating_add(rows.span());
    let range = ByteRange::new(rows.from, stop, u64::MAX).ok_or_else(|| out_of_range(file, rows))?;
    source.bytes(file, range, scratch)
}

fn out_of_range(file: usize, rows: Rows) -> SourceError {
    SourceError::OutOfRange { file, start: rows.from, stop: rows.from.saturating_add(rows.span()) }
}
