//! Copies straight from mapped files to a GPU, with no staging between, where the device can.

use super::{
    LoadError,
    arrivals::UnitSums,
    lanes::{Lanes, Runs},
};
use crate::{
    device::Block,
    fingerprint::Fingerprint,
    schedule::{Answers, Place, Rows, Unit},
    source::SourceError,
    trace::Track,
};
use std::{
    ops::{ControlFlow, Range},
    sync::atomic::{AtomicUsize, Ordering},
};

impl Lanes<'_> {
    /// Takes unit after unit, and copies each rank's rows by themselves.
    pub(super) fn straight(&self, next: &AtomicUsize, track: &Track) -> Result<(), LoadError> {
        while !self.arrivals.is_stopped() {
            let Some(unit) = self.pass.units.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            let mut sums = UnitSums::default();
            for span in &unit.spans {
                let tensor = &self.pass.tensors[span.tensor];
                for place in self.pass.places(tensor) {
                    for rows in self.pass.placed(place).all_rows_out_of(span.bytes.clone()) {
                        (self.step)()?;
                        self.rows(place, tensor.id, rows, track)?;
                        self.progress.add(self.memories[place.seat()].0, rows.bytes());
                    }
                }
            }
            self.sum_files(unit, &mut sums)?;
            // What went while it was copied is known now.
            for span in &unit.spans {
                let first = span.bytes.start;
                self.tensors.mapped(self.pass.tensors[span.tensor].id, first..first + 1)?;
            }
            self.arrivals.arrived(unit.batch, sums);
        }
        Ok(())
    }

    /// Sums up what should arrive: the device sums up what did.
    fn sum_files(&self, unit: &Unit, sums: &mut UnitSums) -> Result<(), LoadError> {
        for span in &unit.spans {
            let tensor = &self.pass.tensors[span.tensor];
            if self.chosen.get(tensor.id) != Some(&true) {
                continue;
            }
            let mut runs: Vec<Range<u64>> = self.pass.answered(tensor);
            if self.answers == Answers::ForItself {
                let places = self.pass.places(tensor);
                let rows =
                    places.flat_map(|place| self.pass.placed(place).all_rows_out_of(span.bytes.clone()));
                runs = rows.flat_map(Runs::of).map(|run| run.from).collect();
            }
            for run in runs {
                let run = run.start.max(span.bytes.start)..run.end.min(span.bytes.end);
                let mut sum = Fingerprint::default();
                self.read(tensor.id, run, &mut |at, piece| sum.add(tensor.seed, at, piece))?;
                sums.expected.entry(tensor.id).or_default().merge(sum);
            }
        }
        Ok(())
    }

    /// Copies rows straight from where the source has them, or through the memory's staging where that does not go.
    fn rows(&self, place: Place, tensor: usize, rows: Rows, track: &Track) -> Result<(), LoadError> {
        let (rank, memory) = self.memories[place.seat()];
        let on_device = |source| LoadError::Device { rank, source };
        let run = rows.from..rows.from.saturating_add(rows.span());
        let out_of_range = || self.tensors.out_of_range(tensor, run.clone());
        let least = memory.least_mapped_bytes().unwrap_or(usize::MAX);
        let flipped = self.flip.is_some_and(|(seat, byte)| {
            seat == place.seat() && (rows.to..rows.to + rows.to_stride * rows.runs).contains(&byte)
        });
        let Some(bytes) = self.tensors.mapped(tensor, run.clone())?.filter(|_| !flipped) else {
            return self.staged(place, tensor, rows, track);
        };
        // Neighbouring rows meet within a page, which only one of them could have: the edges of a run go the usual way.
        let inner = if rows.runs == 1 { whole_pages(bytes) } else { 0..bytes.len() };
        if inner.len() < least {
            return self.staged(place, tensor, rows, track);
        }
        let part = |part: &Range<usize>| Rows {
            from: rows.from + part.start as u64,
            to: rows.to + part.start as u64,
            run_bytes: part.len() as u64,
            ..rows
        };
        let middle = if rows.runs == 1 { part(&inner) } else { rows };
        let edges = [0..inner.start, inner.end..bytes.len()].map(|edge| part(&edge));
        let count = |number: u64| usize::try_from(number).map_err(|_| LoadError::from(out_of_range()));
        let block = Block {
            bytes: &bytes[inner],
            run_bytes: count(middle.run_bytes)?,
            stride: count(middle.from_stride)?,
            runs: count(middle.runs)?,
        };
        let span = self.tracer.span(track, "copy from the mapping");
        let copied = memory.copy_mapped(block, middle.to, middle.to_stride).map_err(on_device)?;
        drop(span);
        if !copied {
            return self.staged(place, tensor, rows, track);
        }
        for rows in edges.into_iter().filter(|edge| rows.runs == 1 && edge.run_bytes > 0) {
            self.staged(place, tensor, rows, track)?;
        }
        Ok(())
    }

    /// Copies rows through the memory's staging.
    fn staged(&self, place: Place, tensor: usize, rows: Rows, track: &Track) -> Result<(), LoadError> {
        let (rank, memory) = self.memories[place.seat()];
        let on_device = |source| LoadError::Device { rank, source };
        // Rows that lie one after the other go in one piece.
        let together = rows.runs == 1 || rows.to_stride == rows.run_bytes;
        let (step, pieces) = if together { (rows.runs, 1) } else { (1, rows.runs) };
        for piece in 0..pieces {
            let first = piece * step;
            let part = Rows {
                from: rows.from + first * rows.from_stride,
                to: rows.to + first * rows.to_stride,
                runs: step,
                ..rows
            };
            let mut filling = memory.begin(part.to, part.bytes()).map_err(on_device)?;
            let _span = self.tracer.span(track, "read");
            let into = filling.bytes();
            for run in Runs::of(part) {
                let mut fits = true;
                self.read(tensor, run.from.clone(), &mut |at, bytes| {
                    let start =
                        usize::try_from(run.to.start - part.to + (at - run.from.start)).unwrap_or(usize::MAX);
                    let place = into.get_mut(start..start.saturating_add(bytes.len()));
                    fits &= place.map(|place| place.copy_from_slice(bytes)).is_some();
                })?;
                if !fits {
                    return Err(self.tensors.out_of_range(tensor, run.from).into());
                }
            }
            if let Some((seat, byte)) = self.flip
                && seat == place.seat()
                && let Some(byte) =
                    byte.checked_sub(part.to).and_then(|at| into.get_mut(usize::try_from(at).ok()?))
            {
                *byte ^= 1;
            }
            filling.done().map_err(on_device)?;
        }
        Ok(())
    }

    /// Reads one run of a tensor.
    fn read(
        &self,
        tensor: usize,
        bytes: Range<u64>,
        with: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), SourceError> {
        self.tensors.read_run(tensor, bytes, &mut |at, piece| {
            with(at, piece);
            ControlFlow::Continue(())
        })
    }
}

/// The part of `bytes` that consists of whole pages of memory; empty where there is none.
fn whole_pages(bytes: &[u8]) -> Range<usize> {
    let (start, page) = (bytes.as_ptr().addr(), rustix::param::page_size());
    let first = (start.next_multiple_of(page) - start).min(bytes.len());
    let last = ((start + bytes.len()) / page * page).saturating_sub(start);
    first..last.max(first)
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
