//! A run of bytes of one file.

/// A half-open run of bytes of one file: `start..stop`, `start <= stop`, never past the end of the file it was made for.
///
/// Empty only for a tensor with a dimension of size 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    stop: u64,
}

impl ByteRange {
    /// `start..stop` of a file of `file_bytes` bytes; `None` when it is inverted or does not lie inside.
    pub fn new(start: u64, stop: u64, file_bytes: u64) -> Option<Self> {
        (start <= stop && stop <= file_bytes).then_some(Self { start, stop })
    }

    /// First byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    pub fn stop(self) -> u64 {
        self.stop
    }

    /// Length in bytes.
    pub fn len(self) -> u64 {
        self.stop - self.start
    }

    /// Whether there is no byte in it.
    pub fn is_empty(self) -> bool {
        self.start == self.stop
    }
}
