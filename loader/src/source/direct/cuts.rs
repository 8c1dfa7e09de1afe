//! What to read for what is wanted.
//!
//! In come requests, in order; out go reads that begin and stop where direct reads may, and which parts of the requests each of
//! them brings. It reads nothing.

use crate::source::{Request, SourceError};
use std::ops::Range;

/// Most parts that one read brings; more tiny requests get a further read.
const MOST_PARTS: usize = 256;

/// A read that brings something.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) file: usize,
    /// First byte; a multiple of the unit.
    pub(super) start: u64,
    /// One past the last byte that is wanted.
    pub(super) wanted: u64,
    /// What is wanted of it, in order.
    pub(super) parts: Vec<Part>,
}

/// A part of a request, or all of it. Never empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) request: Request,
    pub(super) start: u64,
    pub(super) stop: u64,
}

/// Cuts requests into reads: each is wanted in one run of the file and at most `most` bytes long, a multiple of `unit`. Requests
/// of one file that follow each other share a read where the units they need touch or overlap.
pub(super) struct Cuts<'a> {
    next: &'a mut dyn FnMut() -> Option<Request>,
    /// Of a file, in bytes, where there is one of that number.
    length: &'a dyn Fn(usize) -> Option<u64>,
    unit: u64,
    most: u64,
    /// What was taken from `next` and is not in a read yet.
    rest: Option<Part>,
    /// Nothing more is taken from `next`.
    ended: bool,
    failure: Option<SourceError>,
}

impl Cut {
    /// Where `part` lies in what was read.
    pub(super) fn place(&self, part: &Part) -> Option<Range<usize>> {
        let place = |byte: u64| usize::try_from(byte.checked_sub(self.start)?).ok();
        Some(place(part.start)?..place(part.stop)?)
    }
}

impl<'a> Cuts<'a> {
    pub(super) fn new(
        next: &'a mut dyn FnMut() -> Option<Request>,
        length: &'a dyn Fn(usize) -> Option<u64>,
        unit: u64,
        most: u64,
    ) -> Self {
        Self { next, length, unit, most, rest: None, ended: false, failure: None }
    }

    /// The next read.
    pub(super) fn next(&mut self) -> Option<Cut> {
        let mut part = self.rest.take().or_else(|| self.take())?;
        let start = part.start / self.unit * self.unit;
        let end = start + self.most;
        let mut cut = Cut { file: part.request.file, start, wanted: start, parts: Vec::new() };
        loop {
            let here = Part { stop: part.stop.min(end), ..part };
            cut.wanted = cut.wanted.max(here.stop);
            cut.parts.push(here);
            if here.stop < part.stop {
                self.rest = Some(Part { start: here.stop, ..part });
                return Some(cut);
            }
            let Some(following) = self.take() else { return Some(cut) };
            let reached = cut.wanted.next_multiple_of(self.unit).min(end - 1);
            let shares = following.request.file == cut.file && (start..=reached).contains(&following.start);
            if !shares || cut.parts.len() == MOST_PARTS {
                self.rest = Some(following);
                return Some(cut);
            }
            part = following;
        }
    }

    /// What ended the requests, when all reads are through: an error, where one was for bytes that do not exist.
    pub(super) fn finish(self) -> Result<(), SourceError> {
        self.failure.map_or(Ok(()), Err)
    }

    /// The next request that wants something.
    fn take(&mut self) -> Option<Part> {
        while !self.ended {
            let Some(request) = (self.next)() else { break };
            let (file, start, stop) = (request.file, request.range.start(), request.range.stop());
            if (self.length)(file).is_none_or(|length| stop > length) {
                self.failure = Some(SourceError::OutOfRange { file, start, stop });
                break;
            }
            if start < stop {
                return Some(Part { request, start, stop });
            }
        }
        self.ended = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shardwright_planner::checkpoint::ByteRange;

    const UNIT: u64 = 16;
    const LENGTH: u64 = 1000;

    fn request(tag: usize, file: usize, start: u64, len: u64) -> Request {
        let range = ByteRange::new(start, start + len, u64::MAX).unwrap();
        Request { file, range, tag: tag as u64, shared: false }
    }

    fn cut(requests: &[Request], most: u64) -> (Vec<Cut>, Result<(), SourceError>) {
        let mut requests = requests.iter().copied();
        let mut next = || requests.next();
        let length = |file| (file < 2).then_some(LENGTH);
        let mut cuts = Cuts::new(&mut next, &length, UNIT, most);
        let found = std::iter::from_fn(|| cuts.next()).collect();
        (found, cuts.finish())
    }

    proptest! {
        #[test]
        fn the_parts_are_the_requests_in_order_and_each_read_holds_its_parts(
            wanted in prop::collection::vec((0usize..2, 0u64..900, 0u64..100), 0..40),
            most in 1u64..6,
        ) {
            let most = most * UNIT;
            let requests: Vec<Request> =
                wanted.iter().enumerate().map(|(tag, &(file, start, len))| request(tag, file, start, len)).collect();
            let (cuts, end) = cut(&requests, most);
            prop_assert!(end.is_ok());
            let mut parts = cuts.iter().flat_map(|cut| &cut.parts);
            for request in requests.iter().filter(|request| !request.range.is_empty()) {
                let mut at = request.range.start();
                while at < request.range.stop() {
                    let part = parts.next().unwrap();
                    prop_assert_eq!((part.request, part.start), (*request, at));
                    prop_assert!(part.stop > at);
                    at = part.stop;
                }
                prop_assert_eq!(at, request.range.stop());
            }
            prop_assert!(parts.next().is_none());
            for cut in &cuts {
                prop_assert!(cut.start.is_multiple_of(UNIT) && cut.wanted - cut.start <= most);
                for part in &cut.parts {
                    prop_assert!(part.request.file == cut.file && part.start >= cut.start && part.stop <= cut.wanted);
                }
            }
        }
    }

    #[test]
    fn neighbours_share_a_read_and_strangers_do_not() {
        let reads = |requests: &[Request]| cut(requests, 4 * UNIT).0.len();
        assert_eq!(reads(&[request(0, 0, 3, 20), request(1, 0, 23, 5), request(2, 0, 30, 1)]), 1);
        assert_eq!(reads(&[request(0, 0, 3, 20), request(1, 1, 23, 5)]), 2);
        assert_eq!(reads(&[request(0, 0, 3, 20), request(1, 0, 3 * UNIT, 5)]), 2);
        // The second begins in the read's last unit and goes past it.
        assert_eq!(reads(&[request(0, 0, 0, 60), request(1, 0, 60, 10)]), 2);
        // The first fills the read, the second follows.
        assert_eq!(reads(&[request(0, 0, 0, 64), request(1, 0, 64, 10)]), 2);
        let tiny = vec![request(0, 0, 5, 1); MOST_PARTS + 1];
        assert_eq!(reads(&tiny), 2);
    }

    #[test]
    fn a_request_past_the_end_ends_the_reads_after_those_before_it() {
        for bad in [request(1, 0, LENGTH - 1, 2), request(1, 2, 0, 1)] {
            let (cuts, end) = cut(&[request(0, 0, 0, 4), bad, request(2, 0, 0, 4)], 4 * UNIT);
            assert_eq!(cuts.len(), 1);
            assert!(matches!(end, Err(SourceError::OutOfRange { .. })));
        }
    }
}
