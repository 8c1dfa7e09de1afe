//! Requests, taken some way ahead so that the kernel reads while the ones before them are used.

use super::{PIECE_BYTES, Request};
use shardwright_planner::checkpoint::ByteRange;
use std::collections::VecDeque;

/// Bytes that are read ahead of the request in work, by each thread.
const AHEAD_BYTES: u64 = 8 << 20;

/// Most requests that are taken ahead, however small they are.
const MOST_AHEAD: usize = 64;

/// What `next` gives, in its order, each told to `announce` when about [`AHEAD_BYTES`] before it are still to be read.
pub(super) struct Ahead<'a> {
    next: &'a mut dyn FnMut() -> Option<Request>,
    taken: VecDeque<Request>,
    bytes: u64,
    ended: bool,
}

impl<'a> Ahead<'a> {
    pub(super) fn new(next: &'a mut dyn FnMut() -> Option<Request>) -> Self {
        Self { next, taken: VecDeque::new(), bytes: 0, ended: false }
    }

    /// The request to read now.
    pub(super) fn next(&mut self, announce: &dyn Fn(Request)) -> Option<Request> {
        if self.taken.is_empty() {
            self.take(announce);
        }
        let request = self.taken.pop_front()?;
        self.bytes -= request.range.len();
        while !self.ended && self.bytes < AHEAD_BYTES && self.taken.len() < MOST_AHEAD {
            self.take(announce);
        }
        Some(request)
    }

    fn take(&mut self, announce: &dyn Fn(Request)) {
        // Who said that there are no more is not asked again.
        let request = if self.ended { None } else { (self.next)() };
        let Some(request) = request else {
            self.ended = true;
            return;
        };
        announce(request);
        self.bytes = self.bytes.saturating_add(request.range.len());
        self.taken.push_back(request);
    }
}

/// The pieces of `range`: first byte and length of each.
pub(super) fn pieces(range: ByteRange) -> impl Iterator<Item = (u64, usize)> {
    (range.start()..range.stop()).step_by(PIECE_BYTES).map(move |at| {
        let left = range.stop() - at;
        (at, usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    fn announced(request_bytes: u64, requests: u64) -> Vec<usize> {
        let (told, asked) = (RefCell::new(Vec::new()), Cell::new(0));
        let mut next = || {
            let tag = asked.replace(asked.get() + 1);
            assert!(tag <= requests, "asked again after the end");
            let range = ByteRange::new(0, request_bytes, u64::MAX).unwrap();
            (tag < requests).then_some(Request { file: 0, range, tag, shared: false })
        };
        let mut ahead = Ahead::new(&mut next);
        let mut before = Vec::new();
        for number in 0.. {
            let Some(request) = ahead.next(&|request| told.borrow_mut().push(request.tag)) else { break };
            assert_eq!(request.tag, number);
            before.push(told.borrow().len());
        }
        assert!(ahead.next(&|_| ()).is_none());
        assert_eq!(*told.borrow(), (0..requests).collect::<Vec<_>>());
        before
    }

    #[test]
    fn requests_come_in_order_and_are_announced_before_they_are_read() {
        assert_eq!(announced(AHEAD_BYTES, 4), [2, 3, 4, 4]);
        assert_eq!(announced(AHEAD_BYTES / 4, 6), [5, 6, 6, 6, 6, 6]);
        assert_eq!(announced(1, 100)[0], 1 + MOST_AHEAD);
        assert_eq!(announced(0, 100)[99], 100);
        assert!(announced(1, 0).is_empty());
    }

    #[test]
    fn the_pieces_of_a_range_are_the_range() {
        let piece = PIECE_BYTES as u64;
        for (start, stop) in [(0, 0), (5, 6), (7, 7 + piece), (1, 2 + 2 * piece)] {
            let mut at = start;
            for (begin, len) in pieces(ByteRange::new(start, stop, u64::MAX).unwrap()) {
                assert!(begin == at && len > 0 && len <= PIECE_BYTES);
                at += len as u64;
            }
            assert_eq!(at, stop);
        }
    }
}
