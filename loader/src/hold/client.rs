//! Attaching: the document from a holder, and ranks' weights opened by it.

use super::{
    Document, DocumentError, FULL, GREETING, HeldGpu, HoldError, MOST_DOCUMENT_BYTES, MOST_GREETING_BYTES,
    PROTOCOL, memory_fingerprint, peer::Peer, socket::dial,
};
use crate::{
    device::{DeviceError, DeviceMemory},
    load::RankWeights,
};
use rustix::{io::Errno, net::RecvFlags};
use std::{
    io::{self, BufRead, BufReader, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// This process, attached to one that holds weights: for as long as this, or any weights opened by it, lives.
pub struct Attached {
    document: Document,
    path: PathBuf,
    connection: Arc<UnixStream>,
}

/// Attaches to the process that holds weights at `path`, which has `patience` to answer.
///
/// # Errors
/// [`HoldError::NobodyHolds`] when there is no socket or nobody listens; [`HoldError::Stranger`] when it is neither this user's
/// nor the administrator's; [`HoldError::Silent`] when the document is not there in time; [`HoldError::Malformed`] when it is
/// none; [`HoldError::Full`] when no more can attach.
pub fn connect(path: &Path, patience: Duration) -> Result<Attached, HoldError> {
    let begin = Instant::now();
    let path = path.to_owned();
    let Some(stream) = dial(&path, patience)? else { return Err(HoldError::NobodyHolds { path }) };
    let failed = |source| HoldError::Io { doing: "reach", path: path.clone(), source };
    let peer = Peer::of(&stream).map_err(failed)?;
    if !peer.is_trusted() {
        return Err(HoldError::Stranger { path, uid: peer.uid });
    }
    stream.set_nonblocking(false).map_err(failed)?;
    let mut reader = BufReader::new(Timed { stream: &stream, deadline: begin + patience });
    let document = read(&mut reader).map_err(|error| match error {
        ReadError::Full => HoldError::Full { path: path.clone() },
        ReadError::Document(source) => HoldError::Malformed { path: path.clone(), source },
        ReadError::Io(error) if is_late(&error) => {
            HoldError::Silent { path: path.clone(), waited: begin.elapsed() }
        }
        ReadError::Io(source) => {
            HoldError::Io { doing: "read the document from", path: path.clone(), source }
        }
    })?;
    Ok(Attached { document, path, connection: Arc::new(stream) })
}

impl Attached {
    /// What is held.
    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Whether the holder is still there. When it is not, the weights may be gone too.
    pub fn is_held(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&*self.connection, &mut [0; 1], flags), Err(Errno::AGAIN | Errno::INTR))
    }

    /// Opens the weights of `rank`. `open` opens a handle on the GPU it is given, for so many bytes:
    /// [`CudaDevice::with_uuid`](crate::device::CudaDevice::with_uuid) and
    /// [`CudaDevice::open`](crate::device::CudaDevice::open). The weights keep this process attached, and are only read.
    ///
    /// # Errors
    /// [`HoldError::NoSuchRank`], and [`HoldError::Device`] when it cannot be opened.
    pub fn open(
        &self,
        rank: u32,
        open: impl FnOnce(&HeldGpu, [u8; 64], u64) -> Result<Box<dyn DeviceMemory>, DeviceError>,
    ) -> Result<RankWeights, HoldError> {
        let held = self.document.rank(rank).ok_or_else(|| HoldError::NoSuchRank {
            path: self.path.clone(),
            rank,
            held: self.document.ranks.iter().map(|held| held.rank).collect(),
        })?;
        let memory =
            open(&held.gpu, held.handle, held.bytes).map_err(|source| HoldError::Device { rank, source })?;
        if memory.len() != held.bytes {
            return Err(HoldError::OtherLength { rank, bytes: held.bytes, found: memory.len() });
        }
        let connection = Arc::clone(&self.connection);
        Ok(RankWeights::new(rank, Arc::clone(&held.tensors), memory).kept_by(connection))
    }

    /// Proves that `weights`, which [`Attached::open`] gave, are what the holder holds: reads all of them, on the GPU.
    ///
    /// # Errors
    /// [`HoldError::Differs`] with both fingerprints; [`HoldError::Device`] when they cannot be read.
    pub fn verify(&self, weights: &RankWeights) -> Result<(), HoldError> {
        let rank = weights.rank;
        let found =
            memory_fingerprint(weights.memory()).map_err(|source| HoldError::Device { rank, source })?;
        let found = found.to_string();
        match self.document.rank(rank) {
            Some(held) if held.fingerprint == found => Ok(()),
            held => {
                let expected = held.map_or_else(String::new, |held| held.fingerprint.clone());
                Err(HoldError::Differs { rank, expected, found })
            }
        }
    }
}

/// Reads from a socket until a deadline.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into)
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

enum ReadError {
    Full,
    Document(DocumentError),
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DocumentError> for ReadError {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

/// Reads a greeting and the document behind it. Memory grows with what comes, not with what is announced.
fn read(reader: &mut impl BufRead) -> Result<Document, ReadError> {
    let mut greeting = Vec::new();
    reader.by_ref().take(MOST_GREETING_BYTES).read_until(b'\n', &mut greeting)?;
    let Some(bytes) = announced(&greeting)? else { return Err(ReadError::Full) };
    let mut json = Vec::new();
    let found = reader.take(bytes).read_to_end(&mut json)? as u64;
    if found < bytes {
        return Err(DocumentError::Cut { bytes, found }.into());
    }
    Ok(Document::from_json(&json)?)
}

/// The length of the document that is announced; `None` when no more can attach.
fn announced(greeting: &[u8]) -> Result<Option<u64>, DocumentError> {
    let words = std::str::from_utf8(greeting).ok().and_then(|line| line.strip_suffix('\n'));
    let words: Vec<&str> = words.ok_or(DocumentError::NotOne)?.split(' ').collect();
    let [GREETING, protocol, length, ..] = words[..] else { return Err(DocumentError::NotOne) };
    let protocol = protocol.parse().map_err(|_| DocumentError::NotOne)?;
    if protocol != PROTOCOL {
        return Err(DocumentError::Protocol { found: protocol });
    }
    if length == FULL {
        return Ok(None);
    }
    let bytes: u64 = length.parse().map_err(|_| DocumentError::NotOne)?;
    if bytes > MOST_DOCUMENT_BYTES {
        return Err(DocumentError::TooLong { bytes });
    }
    Ok(Some(bytes))
}
