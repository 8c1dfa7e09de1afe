//! A queue of reads in flight.
//!
//! In come reads, in order; out go their bytes, in the same order, in whatever order they land. It knows no request. The kernel
//! writes into the queue's buffer while reads are in flight, so all `unsafe` of direct reads stands here.

use io_uring::{IoUring, Probe, opcode, types::Fd};
use memmap2::{Advice, MmapMut, MmapRaw};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind},
    ops::Range,
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

/// Most reads in a queue, when they are short.
const MOST_READS: u32 = 64;

/// How often a read that brings nothing is tried again.
const MOST_TRIES: u32 = 100;

/// How long to wait for a kernel that is short of something.
const PAUSE: Duration = Duration::from_millis(1);

/// A ring, and the buffer that it reads into. The buffer is handed out from one end to the other and over again: what was pushed
/// first is popped first.
pub(super) struct Queue {
    ring: IoUring,
    /// Shared with nobody: a second owner is how it outlives a ring that does not come to rest.
    buffer: Arc<MmapRaw>,
    unit: usize,
    reads: VecDeque<Read>,
    /// Number of the oldest read; the others follow.
    first: u64,
    /// Reads that the kernel may write for.
    flying: usize,
    /// Whether the kernel has not been told of all of them.
    untold: bool,
}

/// Why a read's bytes could not be had.
#[derive(Debug)]
pub(super) enum Broken {
    /// The system refused the byte `at`.
    Refused { at: u64, source: io::Error },
    /// The file ends before what was wanted.
    Ended { at: u64 },
}

struct Read {
    fd: RawFd,
    /// First byte in the file.
    at: u64,
    /// How many bytes are wanted; the rest makes it a multiple of the unit.
    wanted: usize,
    /// Where it lies in the buffer.
    place: Range<usize>,
    /// How many bytes have arrived.
    filled: usize,
    tries: u32,
    state: State,
}

enum State {
    Flying,
    Landed,
    Broken(Broken),
}

impl Queue {
    /// A queue with a buffer of `bytes` bytes, for reads at multiples of `unit`, which divides a page or is a multiple of it.
    ///
    /// # Errors
    /// Whatever the system has against it.
    pub(super) fn new(bytes: usize, unit: usize) -> io::Result<Self> {
        let ring = IoUring::new(MOST_READS)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(ErrorKind::Unsupported.into());
        }
        let buffer = MmapMut::map_anon(bytes)?;
        // Only advice: with small pages there are more of them to pin for each read.
        let _ = buffer.advise(Advice::HugePage);
        let buffer = Arc::new(MmapRaw::from(buffer));
        Ok(Self { ring, buffer, unit, reads: VecDeque::new(), first: 0, flying: 0, untold: false })
    }

    /// Adds a read of the file's bytes from `at` on, a multiple of the unit, of which `wanted` are wanted. False while there is
    /// no room for it. `file` stays open until the read is popped or the queue drained.
    pub(super) fn push(&mut self, file: &File, at: u64, wanted: usize) -> bool {
        let len = wanted.max(1).next_multiple_of(self.unit);
        let Some(start) = self.room(len) else { return false };
        let place = start..start + len;
        let (fd, state) = (file.as_raw_fd(), State::Flying);
        self.reads.push_back(Read { fd, at, wanted, place, filled: 0, tries: 0, state });
        self.fly(self.reads.len() - 1);
        true
    }

    /// Waits for the oldest read; its wanted bytes. None when there is no read.
    pub(super) fn oldest(&mut self) -> Result<Option<&[u8]>, Broken> {
        loop {
            self.land(true);
            let Some(read) = self.reads.front() else { return Ok(None) };
            let (at, flying) = (read.at, matches!(read.state, State::Flying));
            if flying || self.untold {
                self.enter(usize::from(flying)).map_err(|source| Broken::Refused { at, source })?;
            }
            if !flying {
                break;
            }
        }
        let Some(read) = self.reads.front_mut() else { return Ok(None) };
        if let State::Broken(broken) = std::mem::replace(&mut read.state, State::Landed) {
            read.wanted = 0;
            return Err(broken);
        }
        // SAFETY: the place lies inside the buffer and belongs to this read alone (`room`), which has landed, so the kernel writes
        // there no more; the next read that may is pushed by who has `&mut self`, when the slice is gone. All bytes of an
        // anonymous mapping are initialised.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().add(read.place.start), read.wanted) };
        Ok(Some(bytes))
    }

    /// Forgets the oldest read, if it has landed.
    pub(super) fn pop(&mut self) {
        if self.reads.front().is_some_and(|read| !matches!(read.state, State::Flying)) {
            self.reads.pop_front();
            self.first += 1;
        }
    }

    /// Waits until the kernel writes no more, and forgets all reads. False when that cannot be known.
    pub(super) fn drain(&mut self) -> bool {
        self.land(false);
        while self.flying > 0 {
            if self.enter(1).is_err() {
                return false;
            }
            self.land(false);
        }
        self.first += self.reads.len() as u64;
        self.reads.clear();
        true
    }

    /// Where `len` bytes are free: after the newest read, or at the beginning when the oldest has left it.
    fn room(&self, len: usize) -> Option<usize> {
        let (Some(oldest), Some(newest)) = (self.reads.front(), self.reads.back()) else {
            return (len <= self.buffer.len()).then_some(0);
        };
        if self.reads.len() >= MOST_READS as usize {
            return None;
        }
        let (used_from, used_to) = (oldest.place.start, newest.place.end);
        if newest.place.start < used_from {
            return (used_from - used_to >= len).then_some(used_to);
        }
        if self.buffer.len() - used_to >= len { Some(used_to) } else { (used_from >= len).then_some(0) }
    }

    /// Asks for what read number `index` still lacks, from the last whole unit on.
    fn fly(&mut self, index: usize) {
        let Some(read) = self.reads.get_mut(index) else { return };
        let have = read.filled / self.unit * self.unit;
        let into = self.buffer.as_mut_ptr().wrapping_add(read.place.start + have);
        let at = read.at + have as u64;
        let Ok(len) = u32::try_from(read.place.len() - have) else {
            let source = ErrorKind::InvalidInput.into();
            read.state = State::Broken(Broken::Refused { at, source });
            return;
        };
        let entry =
            opcode::Read::new(Fd(read.fd), into, len).offset(at).build().user_data(self.first + index as u64);
        // SAFETY: `into` and `len` stay inside the read's place, which lies inside the buffer and which no other read and no slice
        // has until this one is popped. That happens only after it has landed; the buffer is unmapped only after all have (`drop`).
        let pushed = unsafe { self.ring.submission().push(&entry) };
        match pushed {
            Ok(()) => {
                read.state = State::Flying;
                self.flying += 1;
                self.untold = true;
            }
            // There is an entry for each read, so this is not reached.
            Err(full) => {
                let source = io::Error::other(full);
                read.state = State::Broken(Broken::Refused { at, source });
            }
        }
    }

    /// Takes in what has landed; what came short flies again if `again`.
    fn land(&mut self, again: bool) {
        loop {
            let Some(entry) = self.ring.completion().next() else { break };
            self.flying -= 1;
            let index =
                entry.user_data().checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
            let Some((index, read)) = index.and_then(|index| Some((index, self.reads.get_mut(index)?)))
            else {
                continue;
            };
            match read.landed(entry.result(), self.unit) {
                Some(state) => read.state = state,
                None if again => self.fly(index),
                None => {}
            }
        }
    }

    /// Tells the kernel of new reads and waits until `want` have landed, or something else ends the waiting.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        for _ in 0..MOST_TRIES {
            match self.ring.submit_and_wait(want) {
                Ok(_) => {
                    self.untold = !self.ring.submission().is_empty();
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
                // Short of memory, or of room for completions: what has landed makes some.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ResourceBusy) => {
                    if !self.ring.completion().is_empty() {
                        return Ok(());
                    }
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::TimedOut.into())
    }
}

impl Read {
    /// What becomes of it when the kernel answers `result`; None when it is to be tried again.
    fn landed(&mut self, result: i32, unit: usize) -> Option<State> {
        let at = self.at + self.filled as u64;
        let Ok(brought) = usize::try_from(result) else {
            let source = io::Error::from_raw_os_error(-result);
            self.tries += 1;
            let passing = matches!(source.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock);
            return (!passing || self.tries > MOST_TRIES)
                .then_some(State::Broken(Broken::Refused { at, source }));
        };
        let reached = self.filled / unit * unit + brought;
        let got_on = reached > self.filled;
        self.filled = self.filled.max(reached);
        if self.filled >= self.wanted {
            return Some(State::Landed);
        }
        // A read may come short anywhere, and again at the end of the file, where it gets no further.
        (!got_on).then_some(State::Broken(Broken::Ended { at }))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if !self.drain() {
            // The kernel may still write there.
            std::mem::forget(Arc::clone(&self.buffer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: usize = 4096;

    /// What lies at `at` of the file.
    fn byte(at: usize) -> u8 {
        (at / 7).to_le_bytes()[0]
    }

    /// A queue over `units` units, and a file without `O_DIRECT`: the queue does not ask for it.
    fn queue(units: usize, bytes: usize) -> Option<(Queue, File)> {
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..bytes).map(byte).collect();
        std::os::unix::fs::FileExt::write_all_at(&file, &data, 0).unwrap();
        match Queue::new(units * UNIT, UNIT) {
            Ok(queue) => Some((queue, file)),
            Err(error) => {
                eprintln!("skipped: io_uring refused: {error}");
                None
            }
        }
    }

    #[test]
    fn places_of_reads_of_any_length_do_not_overlap_and_come_back() {
        let Some((mut queue, file)) = queue(8, 64 * UNIT) else { return };
        let mut random = 7u32;
        let mut lengths = VecDeque::new();
        for number in 0..200 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let wanted = 1 + random as usize / 3 % (3 * UNIT);
            let at = number % 60 * UNIT;
            while !queue.push(&file, at as u64, wanted) {
                let (at, wanted): (usize, usize) = lengths.pop_front().unwrap();
                let bytes = queue.oldest().unwrap().unwrap();
                assert_eq!(bytes.len(), wanted);
                assert!((0..wanted).all(|here| bytes[here] == byte(at + here)));
                queue.pop();
            }
            lengths.push_back((at, wanted));
            let mut places: Vec<_> = queue.reads.iter().map(|read| read.place.clone()).collect();
            places.sort_by_key(|place| place.start);
            assert!(places.windows(2).all(|pair| pair[0].end <= pair[1].start));
            assert!(places.last().unwrap().end <= 8 * UNIT);
        }
        assert!(queue.drain());
        assert!(queue.oldest().unwrap().is_none());
    }

    #[test]
    fn what_never_fits_is_not_taken() {
        let Some((mut queue, file)) = queue(2, UNIT) else { return };
        assert!(!queue.push(&file, 0, 2 * UNIT + 1));
        assert!(queue.push(&file, 0, 1));
        // Not landed, as far as the queue knows: it stays.
        queue.pop();
        assert_eq!(queue.reads.len(), 1);
    }

    #[test]
    fn a_read_past_the_end_says_where_the_file_ends() {
        let Some((mut queue, file)) = queue(8, UNIT + 100) else { return };
        for (at, wanted) in [(0, UNIT + 100), (0, UNIT + 101), (UNIT as u64, 2 * UNIT), (2 * UNIT as u64, 1)]
        {
            assert!(queue.push(&file, at, wanted));
        }
        assert_eq!(queue.oldest().unwrap().unwrap().len(), UNIT + 100);
        queue.pop();
        for end in [UNIT + 100, UNIT + 100, 2 * UNIT] {
            assert!(matches!(queue.oldest(), Err(Broken::Ended { at }) if at == end as u64));
            queue.pop();
        }
    }

    #[test]
    fn a_read_that_came_short_goes_on_and_one_that_is_put_off_is_tried_again() {
        let read = |filled| Read {
            fd: 0,
            at: 8192,
            wanted: 10_000,
            place: 0..3 * UNIT,
            filled,
            tries: 0,
            state: State::Flying,
        };
        let mut short = read(0);
        assert!(short.landed(5000, UNIT).is_none());
        assert!(short.landed(5000, UNIT).is_none(), "from the last whole unit on");
        assert_eq!(short.filled, 9096);
        assert!(matches!(short.landed(904, UNIT), Some(State::Broken(Broken::Ended { at: 17_288 }))));
        assert!(matches!(read(9096).landed(1808, UNIT), Some(State::Landed)));
        let (interrupted, refused) =
            (-rustix::io::Errno::INTR.raw_os_error(), -rustix::io::Errno::IO.raw_os_error());
        let mut put_off = read(4096);
        assert!((0..MOST_TRIES).all(|_| put_off.landed(interrupted, UNIT).is_none()));
        assert!(put_off.landed(interrupted, UNIT).is_some());
        let broken = read(4096).landed(refused, UNIT);
        assert!(matches!(broken, Some(State::Broken(Broken::Refused { at: 12_288, .. }))));
    }
}
