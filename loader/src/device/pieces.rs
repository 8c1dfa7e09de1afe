//! Where the bytes of a rank's memory lie: in one piece, or in pieces that somebody else has.

use super::DeviceError;
use shardwright_planner::cost::placed_bytes;
use std::{any::Any, ops::Range, sync::Arc};

/// A run of a rank's memory, and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First byte in the rank's memory.
    pub(super) at: u64,
    /// How many.
    pub(super) bytes: u64,
    /// Where the first one lies.
    pub(super) address: u64,
}

/// All of a rank's memory. Between the pieces lies nothing, and nobody asks for it.
#[derive(Debug, Clone)]
pub(super) struct Pieces {
    /// In the order of the memory; none overlap.
    all: Vec<Piece>,
    len: u64,
}

impl Pieces {
    /// A memory of `len` bytes that lies in one piece.
    pub(super) fn whole(address: u64, len: u64) -> Self {
        Self { all: vec![Piece { at: 0, bytes: len, address }], len }
    }

    /// Bytes of the memory, those between pieces among them.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn all(&self) -> &[Piece] {
        &self.all
    }

    /// Which piece has the byte `at`, or is the last one before it.
    fn number_at(&self, at: u64) -> Option<usize> {
        self.all.partition_point(|piece| piece.at <= at).checked_sub(1)
    }

    /// Which piece `bytes` bytes from `at` on lie in, and how far from its first byte. They have to be of one piece.
    pub(super) fn find(&self, at: u64, bytes: u64) -> Result<(usize, u64), DeviceError> {
        let number = self.number_at(at).filter(|&number| {
            let Piece { at: first, bytes: len, .. } = self.all[number];
            (at - first).checked_add(bytes).is_some_and(|stop| stop <= len)
        });
        match number {
            Some(number) => Ok((number, at - self.all[number].at)),
            None => Err(DeviceError::OutOfRange { at, bytes, len: self.len }),
        }
    }

    /// Where `bytes` bytes from `at` on lie, which have to be of one piece.
    pub(super) fn address(&self, at: u64, bytes: u64) -> Result<u64, DeviceError> {
        self.find(at, bytes).map(|(number, from)| self.all[number].address + from)
    }

    /// The byte after `bytes` bytes from `at` on, which have to lie inside the memory.
    pub(super) fn checked_end(&self, at: u64, bytes: u64) -> Result<u64, DeviceError> {
        checked_end(at, bytes, self.len)
    }

    /// The first byte after `at` that does not lie in one piece with it.
    pub(super) fn end(&self, at: u64) -> u64 {
        self.number_at(at).map_or(at, |number| self.all[number].at + self.all[number].bytes)
    }

    /// The pieces that a run of the memory lies in: which part of it, and where that is.
    pub(super) fn parts(&self, run: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        parts(&self.all, |piece| piece.at..piece.at + piece.bytes, run)
            .map(|(part, piece)| (part.clone(), piece.address + (part.start - piece.at)))
    }
}

/// The byte after `bytes` bytes from `at` on, which have to lie inside a memory of `len` bytes.
pub(crate) fn checked_end(at: u64, bytes: u64, len: u64) -> Result<u64, DeviceError> {
    let stop = at.checked_add(bytes).filter(|&stop| stop <= len);
    stop.ok_or(DeviceError::OutOfRange { at, bytes, len })
}

/// Of `all`, which have the runs `run_of` of a memory, in its order: those that a run of it lies in, each with the part of the run.
pub(crate) fn parts<P>(
    all: &[P],
    run_of: impl Fn(&P) -> Range<u64>,
    run: Range<u64>,
) -> impl Iterator<Item = (Range<u64>, &P)> {
    let first = all.partition_point(|piece| run_of(piece).end <= run.start);
    all[first..].iter().map_while(move |piece| {
        let of_piece = run_of(piece);
        let part = of_piece.start.max(run.start)..of_piece.end.min(run.end);
        (of_piece.start < run.end).then_some((part, piece))
    })
}

/// A rank's memory of which somebody else has some pieces.
pub struct LentPieces {
    all: Vec<LentPiece>,
    len: u64,
    own_bytes: u64,
    /// What keeps the lent ones alive.
    keeper: Keeper,
}

/// Something that keeps memory alive.
pub(crate) type Keeper = Option<Arc<dyn Any + Send + Sync>>;

/// A run of a rank's memory that somebody may have lent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LentPiece {
    /// First byte in the rank's memory.
    pub(crate) at: u64,
    /// How many.
    pub(crate) bytes: u64,
    /// Where it lies, where it was lent.
    pub(crate) address: Option<u64>,
    /// Whether not all of it will be filled: the rest is to be zero.
    pub(crate) is_padded: bool,
}

impl LentPieces {
    /// A memory of `len` bytes that consists of `all`, in their order.
    ///
    /// # Safety
    /// For as long as `keeper` lives, the pieces with an address are memory there, of the device that is asked for it, that
    /// nobody else touches, and that may be read in whole words of 8 bytes.
    pub(crate) unsafe fn new(all: Vec<LentPiece>, len: u64, keeper: Keeper) -> Self {
        let own = all.iter().filter(|piece| piece.address.is_none());
        let own_bytes = own.map(|piece| placed_bytes(piece.bytes)).sum();
        Self { all, len, own_bytes, keeper }
    }

    /// What has to live as long as the memory.
    pub(super) fn keeper(&self) -> Keeper {
        self.keeper.clone()
    }

    /// Bytes that nobody lent.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.own_bytes
    }

    /// The memory, of which what nobody lent lies from `own` on.
    pub(super) fn pieces(&self, mut own: u64) -> Pieces {
        let mut all = Vec::with_capacity(self.all.len());
        for &LentPiece { at, bytes, address, .. } in self.all.iter().filter(|piece| piece.bytes > 0) {
            let address = address.unwrap_or_else(|| {
                let address = own;
                own += placed_bytes(bytes);
                address
            });
            all.push(Piece { at, bytes, address });
        }
        Pieces { all, len: self.len }
    }

    /// The lent pieces that will not be filled to the last byte: where they are, and their lengths.
    pub(super) fn padded(&self) -> impl Iterator<Item = (u64, u64)> {
        let padded = self.all.iter().filter(|piece| piece.is_padded);
        padded.filter_map(|piece| piece.address.map(|address| (address, piece.bytes)))
    }

    /// The lent pieces: where they are, and their lengths.
    pub(super) fn lent(&self) -> impl Iterator<Item = (u64, u64)> {
        self.all.iter().filter_map(|piece| piece.address.map(|address| (address, piece.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Pieces {
        let all = vec![
            Piece { at: 0, bytes: 10, address: 1000 },
            Piece { at: 16, bytes: 4, address: 500 },
            Piece { at: 20, bytes: 4, address: 2000 },
        ];
        Pieces { all, len: 30 }
    }

    #[test]
    fn a_run_has_an_address_where_it_lies_in_one_piece() {
        let pieces = pieces();
        assert_eq!(pieces.address(3, 7).unwrap(), 1003);
        assert_eq!(pieces.address(17, 3).unwrap(), 501);
        assert_eq!(pieces.address(20, 0).unwrap(), 2000);
        for (at, bytes) in [(3, 8), (10, 1), (16, 5), (23, 2), (u64::MAX, 1), (3, u64::MAX)] {
            assert!(matches!(pieces.address(at, bytes), Err(DeviceError::OutOfRange { .. })), "{at} {bytes}");
        }
        assert_eq!([pieces.end(0), pieces.end(9), pieces.end(19), pieces.end(20)], [10, 10, 20, 24]);
    }

    #[test]
    fn the_parts_of_a_run_are_what_of_it_lies_somewhere() {
        let parts = |run| pieces().parts(run).collect::<Vec<_>>();
        assert_eq!(parts(5..22), [(5..10, 1005), (16..20, 500), (20..22, 2000)]);
        assert_eq!(parts(10..16), []);
        assert_eq!(parts(24..30), []);
    }
}
