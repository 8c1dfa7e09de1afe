//! A rank's memory in windows: what has to be copied, seen from where it goes.
//!
//! A slice lies in a rank's memory without holes, however it is cut out of the files. So a window of that memory is one copy to
//! a device, whether it holds a part of one matrix or a hundred small tensors, and what is scattered is scattered on the side of
//! the files.

use super::{PlacedTensor, Rows, Schedule};

/// A run of a rank's memory, and the rows that make it up. What no row covers is zero.
#[derive(Debug, PartialEq, Eq)]
pub struct Window {
    /// First byte in the rank's memory.
    pub at: u64,
    /// How many bytes; at least 1.
    pub bytes: u64,
    /// What is copied into it.
    pub fills: Vec<Fill>,
}

/// Rows of one file that go to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Which of the checkpoint's files.
    pub file: usize,
    /// The rows; their `to` is counted from the window's beginning.
    pub rows: Rows,
}

impl Window {
    /// Bytes that are read from files; the others are zero.
    pub fn copied_bytes(&self) -> u64 {
        self.fills.iter().map(|fill| fill.rows.bytes()).sum()
    }
}

impl Schedule {
    /// How many windows of `most` bytes the rank's memory has.
    pub fn windows(&self, most: u64) -> u64 {
        self.memory_bytes.div_ceil(most.max(1))
    }

    /// Window `number` of those that have `most` bytes each, but for the last.
    pub fn window(&self, number: u64, most: u64) -> Window {
        let at = number.saturating_mul(most.max(1)).min(self.memory_bytes);
        let stop = at.saturating_add(most.max(1)).min(self.memory_bytes);
        let first = self.tensors.partition_point(|tensor| tensor.offset + tensor.bytes <= at);
        let inside = self.tensors[first..].iter().take_while(|tensor| tensor.offset < stop);
        let fills = inside.flat_map(|tensor| fills(tensor, at, stop)).collect();
        Window { at, bytes: stop - at, fills }
    }
}

fn fills(tensor: &PlacedTensor, at: u64, stop: u64) -> impl Iterator<Item = Fill> {
    let rows = tensor.pieces.iter().flat_map(|piece| &piece.rows).flat_map(move |rows| rows.within(at, stop));
    rows.map(move |rows| Fill { file: tensor.file, rows: Rows { to: rows.to - at, ..rows } })
}
