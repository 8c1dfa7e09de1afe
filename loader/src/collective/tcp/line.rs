//! One connection: frames in, frames out, and no wait without an end.

use super::frame::{Frame, FrameError, MAX_FRAME_BYTES, PART_VALUES, encode_part};
use crate::collective::{
    Reduce,
    board::{Board, TICK},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// How long an end that closes, or a group that has failed, waits for the other end to take or say its last.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes that are asked for at a time.
const READ_BYTES: usize = 64 << 10;

/// Orders that may wait for a sender: a call and the end.
pub(crate) const MAX_ORDERS: usize = 2;

/// What a thread that sends is asked to do.
#[derive(Debug)]
pub(crate) enum Order {
    /// Send this, or reduce it with the group and send the result.
    Reduce(Reduce, Vec<u64>),
    /// Say good-bye.
    Close,
}

/// What the threads at one end of a connection have in common.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) board: Arc<Board>,
    pub(crate) patience: Duration,
    closing: AtomicBool,
}

impl Line {
    pub(crate) fn new(board: Arc<Board>, patience: Duration) -> Self {
        Self { board, patience, closing: AtomicBool::new(false) }
    }

    /// Asks the threads to come to an end.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(crate) fn closes(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether nothing matters any more but to tell the other end so.
    fn hurries(&self) -> bool {
        self.closes() || self.board.failure().is_some()
    }
}

/// Why no further frame can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The other end has closed, or its process has ended.
    #[error("it ended")]
    Ended,
    #[error("its connection broke: {0}")]
    Io(std::io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// This end closes, and the other has said nothing for [`LINGER`].
    #[error("this end closes")]
    Closed,
}

/// The receiving half.
pub(crate) struct Receiver {
    stream: TcpStream,
    line: Arc<Line>,
    bytes: Vec<u8>,
    closing_since: Option<Instant>,
}

impl Receiver {
    pub(crate) fn new(stream: TcpStream, line: Arc<Line>) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(TICK))?;
        Ok(Self { stream, line, bytes: Vec::new(), closing_since: None })
    }

    /// Waits for the next frame, for as long as the connection lasts and this end does not close.
    pub(crate) fn next(&mut self) -> Result<Frame, ReadError> {
        self.fill(4)?;
        let length: [u8; 4] = self.bytes.as_slice().try_into().map_err(|_| ReadError::Ended)?;
        let length = u32::from_le_bytes(length);
        let bytes = usize::try_from(length).ok().filter(|bytes| (1..=MAX_FRAME_BYTES).contains(bytes));
        self.fill(bytes.ok_or(FrameError::Length { bytes: length })?)?;
        Ok(Frame::decode(&self.bytes)?)
    }

    /// Reads just `wanted` bytes; memory is asked for as they come.
    fn fill(&mut self, wanted: usize) -> Result<(), ReadError> {
        self.bytes.clear();
        while self.bytes.len() < wanted {
            let come = self.bytes.len();
            self.bytes.resize(come + (wanted - come).min(READ_BYTES), 0);
            let outcome = self.stream.read(&mut self.bytes[come..]);
            self.bytes.truncate(come + *outcome.as_ref().unwrap_or(&0));
            match outcome {
                Ok(0) => return Err(ReadError::Ended),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                        return Err(ReadError::Ended);
                    }
                    _ => return Err(ReadError::Io(error)),
                },
            }
            if self.line.closes() {
                let since = *self.closing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > LINGER {
                    return Err(ReadError::Closed);
                }
            }
        }
        Ok(())
    }
}

/// The other end takes nothing any more.
#[derive(Debug)]
pub(crate) struct WriteStalled;

/// The sending half. Once the connection is broken it sends nothing and says nothing: the receiving half knows better why.
pub(crate) struct Sender {
    stream: TcpStream,
    line: Arc<Line>,
    bytes: Vec<u8>,
    broken: bool,
    told: bool,
}

impl Sender {
    pub(crate) fn new(stream: TcpStream, line: Arc<Line>) -> std::io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(TICK))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, line, bytes: Vec::new(), broken: false, told: false })
    }

    pub(crate) fn beat(&mut self, count: u64) -> Result<(), WriteStalled> {
        self.send(|bytes| Frame::Beat(count).encode(bytes))
    }

    /// Sends all numbers of a call, but stops when the group fails.
    pub(crate) fn values(&mut self, call: u64, reduce: Reduce, values: &[u64]) -> Result<(), WriteStalled> {
        // Calls have at most `MAX_VALUES` numbers.
        let total = u32::try_from(values.len()).unwrap_or(u32::MAX);
        if values.is_empty() {
            return self.send(|bytes| encode_part(bytes, call, reduce, total, values));
        }
        for part in values.chunks(PART_VALUES) {
            if self.line.board.failure().is_some() {
                return Ok(());
            }
            self.send(|bytes| encode_part(bytes, call, reduce, total, part))?;
        }
        Ok(())
    }

    /// Tells the other end, once, if the group has failed.
    pub(crate) fn tell(&mut self) -> Result<(), WriteStalled> {
        match self.line.board.failure() {
            Some(failure) if !self.told => {
                self.told = true;
                self.send(|bytes| Frame::Failed(failure).encode(bytes))
            }
            _ => Ok(()),
        }
    }

    /// Says good-bye; nothing can be sent after it.
    pub(crate) fn end(mut self) {
        // Nobody is left to be told that it could not be said.
        let _ = self.tell().and_then(|()| self.send(|bytes| Frame::Bye.encode(bytes)));
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn send(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), WriteStalled> {
        self.bytes.clear();
        encode(&mut self.bytes);
        let begin = Instant::now();
        let (mut sent, mut quiet) = (0, Duration::ZERO);
        while sent < self.bytes.len() && !self.broken {
            let tried = Instant::now();
            match self.stream.write(&self.bytes[sent..]) {
                Ok(bytes) if bytes > 0 => (sent, quiet) = (sent + bytes, Duration::ZERO),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Time in which this process did not run is not the other's.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    quiet += tried.elapsed().min(TICK * 4);
                }
                _ => self.broken = true,
            }
            let too_slow = self.line.hurries() && begin.elapsed() >= LINGER;
            if sent < self.bytes.len() && (quiet >= self.line.patience || too_slow) {
                self.broken = true;
                return Err(WriteStalled);
            }
        }
        Ok(())
    }
}
