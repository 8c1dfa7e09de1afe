//! Rows: the shape of every copy.

use std::ops::Range;

/// Runs of bytes that lie at equal distances, in a tensor as it is loaded and in a rank's memory.
///
/// A column-parallel slice is one run; a row-parallel slice has one run for each row of the matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    /// First byte, counted from the beginning of the tensor.
    pub from: u64,
    /// Bytes from the beginning of one run to the next, in the tensor.
    pub from_stride: u64,
    /// First byte, counted from the beginning of the rank's memory.
    pub to: u64,
    /// Bytes from the beginning of one run to the next, in the rank's memory.
    pub to_stride: u64,
    /// Bytes of each run; at least 1.
    pub run_bytes: u64,
    /// How many runs; at least 1.
    pub runs: u64,
}

impl Rows {
    /// Bytes that are copied.
    pub fn bytes(&self) -> u64 {
        self.run_bytes * self.runs
    }

    /// Bytes of the tensor from the first run's beginning to the last run's end.
    pub fn span(&self) -> u64 {
        (self.runs - 1) * self.from_stride + self.run_bytes
    }

    /// The same rows as one run where they touch on both sides.
    pub(super) fn joined(self) -> Self {
        if self.runs > 1 && self.from_stride == self.run_bytes && self.to_stride == self.run_bytes {
            let run_bytes = self.bytes();
            return Self { run_bytes, from_stride: run_bytes, to_stride: run_bytes, runs: 1, ..self };
        }
        if self.runs == 1 {
            // There is no next run; its distance must not be taken for something.
            return Self { from_stride: self.run_bytes, to_stride: self.run_bytes, ..self };
        }
        self
    }
}

impl Rows {
    /// The same rows with tensor and memory exchanged.
    fn exchanged(self) -> Self {
        let Self { from, from_stride, to, to_stride, .. } = self;
        Self { from: to, from_stride: to_stride, to: from, to_stride: from_stride, ..self }
    }

    /// The parts of these rows that come from the bytes `start..stop` of the tensor: the end of a row that began before, whole
    /// rows, and the beginning of one that ends after.
    pub fn out_of(self, start: u64, stop: u64) -> impl Iterator<Item = Self> {
        self.exchanged().within(start, stop).map(Self::exchanged)
    }

    /// One past the last byte that is written.
    pub(super) fn to_stop(self) -> u64 {
        self.to + (self.runs - 1) * self.to_stride + self.run_bytes
    }

    /// The parts of these rows that go to the bytes `start..stop` of the rank's memory: the end of a row that began before,
    /// whole rows, and the beginning of one that ends after.
    fn within(self, start: u64, stop: u64) -> impl Iterator<Item = Self> {
        let begins = |run: u64| self.to + run * self.to_stride;
        let first = match start.checked_sub(self.to + self.run_bytes) {
            Some(after) => after / self.to_stride + 1,
            None => 0,
        };
        let end = match stop.checked_sub(self.to) {
            Some(before) => before.div_ceil(self.to_stride).min(self.runs),
            None => 0,
        };
        // Bytes of row `run` that lie in the window, counted from the row's beginning.
        let inside = move |run: u64| {
            let skipped = start.saturating_sub(begins(run)).min(self.run_bytes);
            skipped..stop.saturating_sub(begins(run)).clamp(skipped, self.run_bytes)
        };
        let rows = move |runs: Range<u64>, bytes: Range<u64>| Self {
            from: self.from + runs.start * self.from_stride + bytes.start,
            to: begins(runs.start) + bytes.start,
            run_bytes: bytes.end - bytes.start,
            runs: runs.end - runs.start,
            ..self
        };
        let whole = |run: u64| run < end && inside(run) == (0..self.run_bytes);
        let head = first + u64::from(first < end && !whole(first));
        let tail = if head < end && !whole(end - 1) { end - 1 } else { end };
        let parts = [
            (head > first).then(|| rows(first..head, inside(first))),
            (tail > head).then(|| rows(head..tail, 0..self.run_bytes)),
            (end > tail).then(|| rows(tail..end, inside(tail))),
        ];
        parts.into_iter().flatten().filter(|rows| rows.run_bytes > 0).map(Self::joined)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every byte of the tensor and where it goes.
    fn moves(rows: Rows) -> Vec<(u64, u64)> {
        (0..rows.runs)
            .flat_map(|run| {
                (0..rows.run_bytes).map(move |byte| {
                    (rows.from + run * rows.from_stride + byte, rows.to + run * rows.to_stride + byte)
                })
            })
            .collect()
    }

    proptest! {
        #[test]
        fn pieces_of_a_tensor_share_the_rows_among_them(
            from in 0u64..9, to in 0u64..9, run_bytes in 1u64..20, runs in 1u64..9,
            gap_from in 0u64..5, gap_to in 0u64..5, window in 1u64..60,
        ) {
            let rows = Rows {
                from, from_stride: run_bytes + gap_from, to, to_stride: run_bytes + gap_to, run_bytes, runs,
            };
            let mut pieces = Vec::new();
            for start in (0..from + runs * rows.from_stride + 1).step_by(usize::try_from(window).unwrap()) {
                for part in rows.out_of(start, start + window) {
                    prop_assert!(moves(part).iter().all(|(from, _)| (start..start + window).contains(from)));
                    prop_assert_eq!(moves(part).last().unwrap().1 + 1, part.to_stop());
                    pieces.extend(moves(part));
                }
            }
            prop_assert_eq!(pieces, moves(rows));
        }

        #[test]
        fn joined_rows_move_the_same_bytes(
            from in 0u64..9, to in 0u64..9, run_bytes in 1u64..20, runs in 1u64..9,
            gap_from in 0u64..5, gap_to in 0u64..5,
        ) {
            let rows = Rows {
                from, from_stride: run_bytes + gap_from, to, to_stride: run_bytes + gap_to, run_bytes, runs,
            };
            prop_assert_eq!(moves(rows.joined()), moves(rows));
        }
    }
}
