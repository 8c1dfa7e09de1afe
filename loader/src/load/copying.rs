//! One rank's copies: windows of its memory, filled by a few threads from the files.

use super::{LoadError, Progress};
use crate::{
    device::{Block, DeviceMemory},
    schedule::{Fill, Rows, Schedule, Window},
    source::{Source, SourceError},
    trace::{Tracer, Track},
};
use shardwright_planner::checkpoint::ByteRange;
use std::{
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
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
        let Some(least) = self.memory.least_mapped_bytes() else {
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
        };
        for fill in &window.fills {
            self.straight(window.at, *fill, least, track, scratch)?;
        }
        Ok(())
    }

    /// Copies rows straight from where the source has them, or through the memory's staging where that does not go. `at` is where
    /// the window begins, `least` from how many bytes on it is worth a try.
    fn straight(
        &self,
        at: u64,
        fill: Fill,
        least: usize,
        track: &Track,
        scratch: &mut Vec<u8>,
    ) -> Result<(), LoadError> {
        let on_device = |source| LoadError::Device { rank: self.schedule.rank, source };
        let Fill { file, rows } = fill;
        let bytes = span_of(self.source, file, rows, scratch)?;
        // Neighbouring windows meet within a page, which only one of them could have: the edges of a run go the usual way.
        let inner = if rows.runs == 1 { whole_pages(bytes) } else { 0..bytes.len() };
        if inner.len() < least {
            return self.staged(at, fill, track, scratch);
        }
        let part = |part: &Range<usize>| Rows {
            from: rows.from + part.start as u64,
            to: rows.to + part.start as u64,
            run_bytes: part.len() as u64,
            ..rows
        };
        let middle = if rows.runs == 1 { part(&inner) } else { rows };
        let edges = [0..inner.start, inner.end..bytes.len()].map(|edge| part(&edge));
        let count =
            |number: u64| usize::try_from(number).map_err(|_| LoadError::from(out_of_range(file, rows)));
        let block = Block {
            bytes: &bytes[inner],
            run_bytes: count(middle.run_bytes)?,
            stride: count(middle.from_stride)?,
            runs: count(middle.runs)?,
        };
        let span = self.tracer.span(track, "copy from the mapping");
        let copied = self.memory.copy_mapped(block, at + middle.to, middle.to_stride).map_err(on_device)?;
        drop(span);
        if !copied {
            return self.staged(at, fill, track, scratch);
        }
        for rows in edges.into_iter().filter(|edge| rows.runs == 1 && edge.run_bytes > 0) {
            self.staged(at, Fill { file, rows }, track, scratch)?;
        }
        Ok(())
    }

    /// Copies rows through the memory's staging.
    fn staged(&self, at: u64, fill: Fill, track: &Track, scratch: &mut Vec<u8>) -> Result<(), LoadError> {
        let on_device = |source| LoadError::Device { rank: self.schedule.rank, source };
        let rows = fill.rows;
        // Rows that lie one after the other go in one piece.
        let together = rows.runs == 1 || rows.to_stride == rows.run_bytes;
        let (step, pieces) = if together { (rows.runs, 1) } else { (1, rows.runs) };
        for piece in 0..pieces {
            let first = piece * step;
            let part = Rows { from: rows.from + first * rows.from_stride, to: 0, runs: step, ..rows };
            let only = Window {
                at: at + rows.to + first * rows.to_stride,
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

/// The part of `bytes` that consists of whole pages of memory; empty where there is none.
fn whole_pages(bytes: &[u8]) -> Range<usize> {
    let (start, page) = (bytes.as_ptr().addr(), rustix::param::page_size());
    let first = (start.next_multiple_of(page) - start).min(bytes.len());
    let last = ((start + bytes.len()) / page * page).saturating_sub(start);
    first..last.max(first)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_begin_and_end_at_pages() {
        let page = rustix::param::page_size();
        let bytes = vec![0u8; 5 * page];
        let aligned = bytes.as_ptr().addr().next_multiple_of(page) - bytes.as_ptr().addr();
        for (start, len) in [(0, page), (1, page), (1, 3 * page), (page - 1, 2), (0, 0), (7, 2 * page - 7)] {
            let part = &bytes[aligned + start..aligned + start + len];
            let pages = whole_pages(part);
            assert!(pages.start <= pages.end && pages.end <= len);
            assert!(pages.len().is_multiple_of(page));
            if !pages.is_empty() {
                assert!((part.as_ptr().addr() + pages.start).is_multiple_of(page));
                assert!(pages.start < page && len - pages.end < page);
            } else {
                assert!(len < 2 * page);
            }
        }
    }
}
