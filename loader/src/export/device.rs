//! Files as a device: a rank's memory is what lies in them.

use super::{RankFiles, layout::Run};
use crate::{
    device::{Device, DeviceError, DeviceMemory, Filling, Place, Pool, Strip, Sum, checked_end, parts},
    fingerprint::Fingerprint,
};
use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Most bytes that are written at a time: several ranks' are gathered at once by several threads.
const WINDOW: u64 = 4 << 20;

/// Bytes that are read back at a time.
const READ_BYTES: usize = 1 << 20;

/// Buffers of each rank that are kept for the next filling: threads rarely fill more at once.
const MOST_KEPT: usize = 2;

/// The files of one rank, which do not exist before memory is asked for.
#[derive(Debug)]
pub struct FileDevice {
    paths: Vec<PathBuf>,
    files: RankFiles,
}

impl FileDevice {
    /// The device of a rank's `files`, at `paths`.
    pub fn new(files: RankFiles, paths: Vec<PathBuf>) -> Self {
        Self { paths, files }
    }
}

struct FileMemory {
    files: Vec<(PathBuf, File)>,
    runs: Vec<Run>,
    len: u64,
    buffers: Mutex<Vec<Vec<u8>>>,
}

struct FileFilling<'a> {
    memory: &'a FileMemory,
    at: u64,
    bytes: Vec<u8>,
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> DeviceError {
    DeviceError::File { path: path.to_owned(), what, source }
}

impl Device for FileDevice {
    fn name(&self) -> String {
        "files".to_owned()
    }

    fn pools(&self) -> Result<Vec<Pool>, DeviceError> {
        Ok(Vec::new())
    }

    fn allocate(&self, bytes: u64) -> Result<Box<dyn DeviceMemory>, DeviceError> {
        let mut files = Vec::with_capacity(self.paths.len());
        for (path, layout) in self.paths.iter().zip(&self.files.files) {
            let create = OpenOptions::new().read(true).write(true).create_new(true).open(path);
            let file = create.map_err(|source| failed(path, "create", source))?;
            let write = |at: u64, bytes: &[u8]| {
                file.write_all_at(bytes, at).map_err(|source| failed(path, "write", source))
            };
            write(0, &layout.header)?;
            layout.constants.iter().try_for_each(|(at, bytes)| write(*at, bytes))?;
            // Padding is zero because it is never written.
            file.set_len(layout.bytes).map_err(|source| failed(path, "write", source))?;
            files.push((path.clone(), file));
        }
        let runs = self.files.runs.clone();
        Ok(Box::new(FileMemory { files, runs, len: bytes, buffers: Mutex::default() }))
    }
}

impl FileMemory {
    fn check(&self, at: u64, bytes: u64) -> Result<(), DeviceError> {
        checked_end(at, bytes, self.len).map(drop)
    }

    /// The parts of these bytes of the memory that lie in files, with the file and the first byte there. Between tensors lies nothing.
    fn parts(&self, bytes: Range<u64>) -> impl Iterator<Item = (Range<u64>, &(PathBuf, File), u64)> {
        parts(&self.runs, |run| run.at..run.at + run.bytes, bytes)
            .map(|(part, run)| (part.clone(), &self.files[run.file], run.to + (part.start - run.at)))
    }

    /// Reads these bytes of the memory piece by piece.
    fn read_back(
        &self,
        bytes: Range<u64>,
        buffer: &mut Vec<u8>,
        with: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), DeviceError> {
        self.check(bytes.start, bytes.end.saturating_sub(bytes.start))?;
        for (part, (path, file), to) in self.parts(bytes) {
            let mut at = part.start;
            while at < part.end {
                let len = usize::try_from(part.end - at).map_or(READ_BYTES, |left| left.min(READ_BYTES));
                buffer.resize(READ_BYTES, 0);
                file.read_exact_at(&mut buffer[..len], to + (at - part.start))
                    .map_err(|source| failed(path, "read back", source))?;
                with(at, &buffer[..len]);
                at += len as u64;
            }
        }
        Ok(())
    }

    fn add_strip(
        &self,
        strip: &Strip,
        seed: u64,
        sum: &mut Fingerprint,
        buffer: &mut Vec<u8>,
    ) -> Result<(), DeviceError> {
        let Strip { at, at_stride, in_tensor, in_tensor_stride, run_bytes, runs } = *strip;
        // Rows that lie one after the other are read together.
        let (step, reads) = if at_stride == run_bytes { (runs, 1) } else { (1, runs) };
        for read in 0..reads {
            let first = at + read * at_stride;
            self.read_back(first..first + step * run_bytes, buffer, &mut |mut at, mut piece| {
                while !piece.is_empty() {
                    let (run, done) = ((at - first) / run_bytes, (at - first) % run_bytes);
                    let left = usize::try_from(run_bytes - done).unwrap_or(usize::MAX).min(piece.len());
                    let (part, rest) = piece.split_at(left);
                    sum.add(seed, in_tensor + (read + run) * in_tensor_stride + done, part);
                    (at, piece) = (at + left as u64, rest);
                }
            })?;
        }
        Ok(())
    }
}

impl DeviceMemory for FileMemory {
    fn len(&self) -> u64 {
        self.len
    }

    fn place(&self) -> Place {
        Place::Files
    }

    fn window_end(&self, at: u64) -> u64 {
        at.saturating_add(WINDOW)
    }

    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        self.check(at, bytes)?;
        let outside = || DeviceError::OutOfRange { at, bytes, len: self.len };
        let len = usize::try_from(bytes).ok().filter(|_| bytes <= WINDOW).ok_or_else(outside)?;
        let kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = kept.unwrap_or_default();
        buffer.resize(len, 0);
        Ok(Box::new(FileFilling { memory: self, at, bytes: buffer }))
    }

    fn finish(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn fingerprints(&self, sums: &[Sum]) -> Result<Vec<Fingerprint>, DeviceError> {
        let mut buffer = Vec::new();
        let one = |sum: &Sum| {
            let mut fingerprint = Fingerprint::default();
            for strip in sum.strips.iter().filter(|strip| strip.run_bytes > 0) {
                self.add_strip(strip, sum.seed, &mut fingerprint, &mut buffer)?;
            }
            Ok(fingerprint)
        };
        sums.iter().map(one).collect()
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        into.fill(0);
        let mut buffer = Vec::new();
        self.read_back(from..from.saturating_add(into.len() as u64), &mut buffer, &mut |at, piece| {
            let start = usize::try_from(at - from).unwrap_or(usize::MAX);
            if let Some(place) = into.get_mut(start..start.saturating_add(piece.len())) {
                place.copy_from_slice(piece);
            }
        })
    }
}

impl Filling for FileFilling<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    fn done(self: Box<Self>) -> Result<(), DeviceError> {
        let Self { memory, at, bytes } = *self;
        for (part, (path, file), to) in memory.parts(at..at + bytes.len() as u64) {
            let place = |byte: u64| usize::try_from(byte - at).unwrap_or(usize::MAX);
            file.write_all_at(&bytes[place(part.start)..place(part.end)], to)
                .map_err(|source| failed(path, "write", source))?;
        }
        let mut kept = memory.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST_KEPT {
            kept.push(bytes);
        }
        Ok(())
    }
}
