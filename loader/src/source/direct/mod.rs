//! Files read past the page cache, with many reads in flight.
//!
//! In come requests; out go their bytes, read with `O_DIRECT` through one io_uring a thread. `cuts` decides what to read,
//! `queue` keeps the reads in flight, `file` finds out whether a file can be read so. What refuses is said, not worked around:
//! the caller chooses another source.

mod cuts;
mod file;
mod options;
mod queue;

pub use options::DirectOptions;

use super::{Deliver, PIECE_BYTES, Request, Source, SourceError};
use cuts::{Cut, Cuts};
use file::DirectFile;
use queue::Queue;
use shardwright_planner::checkpoint::{ByteRange, Catalog, CatalogFile};
use std::{
    collections::VecDeque,
    io,
    ops::ControlFlow,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// All files of a checkpoint, opened for direct reads, and a queue for each thread that reads.
pub struct DirectFiles {
    /// By number; `None` for those that nobody wanted.
    files: Vec<Option<DirectFile>>,
    /// What direct reads begin and stop at multiples of.
    unit: usize,
    options: DirectOptions,
    /// Those that nobody reads with.
    idle: Mutex<Vec<Queue>>,
}

/// Why files are not read directly.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// This kernel or file system does not do it; the files can be read otherwise.
    #[error(transparent)]
    Refused(#[from] DirectRefused),
    /// The files cannot be read, this way or another.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// What refuses direct reads.
#[derive(Debug, thiserror::Error)]
pub enum DirectRefused {
    /// The kernel gives no ring: too old, forbidden, or short of memory that may be locked.
    #[error("io_uring refused: {source}")]
    Ring {
        /// The system's answer.
        source: io::Error,
    },
    /// The file system does not know them.
    #[error("the file system of {} refuses direct reads: {source}", path.display())]
    FileSystem {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file system wants them aligned in a way that is not provided for.
    #[error("the file system of {} wants direct reads at multiples of {file_bytes} bytes, to multiples of {memory_bytes} in memory", path.display())]
    Alignment {
        /// The file.
        path: PathBuf,
        /// Bytes of the file; 0 where it has none.
        file_bytes: u32,
        /// Bytes of memory.
        memory_bytes: u32,
    },
}

impl DirectFiles {
    /// Opens the files of `catalog`, and reads the beginning of each to see whether that works.
    ///
    /// # Errors
    /// [`DirectError::Refused`] when direct reads do not work here, [`DirectError::Source`] when a file cannot be opened or read,
    /// or has another length than the catalog says.
    pub fn open(catalog: &Catalog, options: DirectOptions) -> Result<Self, DirectError> {
        Self::open_only(catalog, &|_| true, options)
    }

    /// Opens those files of `catalog` whose numbers are `wanted`; the others do not exist for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_only(
        catalog: &Catalog,
        wanted: &dyn Fn(usize) -> bool,
        options: DirectOptions,
    ) -> Result<Self, DirectError> {
        Self::open_files(catalog.files(), wanted, options)
    }

    fn open_files(
        entries: &[CatalogFile],
        wanted: &dyn Fn(usize) -> bool,
        options: DirectOptions,
    ) -> Result<Self, DirectError> {
        let open = |(number, entry)| wanted(number).then(|| DirectFile::open(entry)).transpose();
        let files = entries.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>()?;
        let unit = files.iter().flatten().map(|file| file.unit).max().unwrap_or(file::LEAST_UNIT);
        let options = options.fitted(unit);
        let queue = |_| options.queue(unit).map_err(|source| DirectRefused::Ring { source });
        let idle = Mutex::new((0..options.threads).map(queue).collect::<Result<_, _>>()?);
        let opened = Self { files, unit, options, idle };
        opened.probe()?;
        Ok(opened)
    }

    /// What is used of what was asked for.
    pub fn options(&self) -> DirectOptions {
        self.options
    }

    /// Reads the beginning of each file.
    fn probe(&self) -> Result<(), DirectError> {
        let begin = |(number, file): (usize, &Option<DirectFile>)| {
            let length = file.as_ref()?.bytes;
            let range = ByteRange::new(0, length.min(self.unit as u64), length)?;
            Some(Request { file: number, range, tag: 0, shared: false })
        };
        let mut requests = self.files.iter().enumerate().filter_map(begin);
        let read = self.stream(&mut || requests.next(), &mut |_, _, _| ControlFlow::Continue(()));
        read.map_err(|error| match error {
            SourceError::Read { path, source, .. } if file::unknown(&source) => {
                DirectRefused::FileSystem { path, source }.into()
            }
            error => error.into(),
        })
    }

    /// A queue until the end of the scope: one that is idle, or a further one if more threads read than were planned for.
    fn lend(&self) -> Result<Lent<'_>, SourceError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let queue = match idle {
            Some(queue) => queue,
            None => self.options.queue(self.unit).map_err(|source| SourceError::Io {
                attempt: "set up another ring for",
                path: self.files.iter().flatten().next().map(|file| file.path.clone()).unwrap_or_default(),
                source,
            })?,
        };
        Ok(Lent { queue: Some(queue), to: self })
    }

    fn file(&self, number: usize) -> Option<&DirectFile> {
        self.files.get(number)?.as_ref()
    }
}

impl Source for DirectFiles {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        let mut lent = self.lend()?;
        let Some(queue) = &mut lent.queue else { return Ok(()) };
        let length = |number: usize| Some(self.file(number)?.bytes);
        let mut cuts = Cuts::new(next, &length, self.unit as u64, self.options.slot_bytes as u64);
        let mut reads: VecDeque<(Cut, &DirectFile)> = VecDeque::new();
        let mut waiting = None;
        loop {
            // As many reads as there is room for, so that the queue stays full while bytes are handed on.
            while let Some(cut) = waiting.take().or_else(|| cuts.next()) {
                let out_of_range =
                    SourceError::OutOfRange { file: cut.file, start: cut.start, stop: cut.wanted };
                let Some(file) = self.file(cut.file) else { return Err(out_of_range) };
                let wanted = usize::try_from(cut.wanted - cut.start).map_err(|_| out_of_range)?;
                if !queue.push(&file.file, cut.start, wanted) {
                    waiting = Some(cut);
                    break;
                }
                reads.push_back((cut, file));
            }
            debug_assert!(waiting.is_none() || !reads.is_empty(), "an empty queue has room for any read");
            let Some((cut, file)) = reads.pop_front() else { return cuts.finish() };
            let bytes = queue.oldest().map_err(|broken| file.broken(broken))?.unwrap_or_default();
            for part in &cut.parts {
                let out_of_range =
                    SourceError::OutOfRange { file: cut.file, start: part.start, stop: part.stop };
                let bytes = cut.place(part).and_then(|place| bytes.get(place)).ok_or(out_of_range)?;
                for (at, piece) in (part.start..).step_by(PIECE_BYTES).zip(bytes.chunks(PIECE_BYTES)) {
                    if deliver(part.request, at, piece).is_break() {
                        return Ok(());
                    }
                }
            }
            queue.pop();
        }
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        self.files.iter().flatten().try_for_each(DirectFile::check_unchanged)
    }
}

/// A queue that is given back, with no reads in flight.
struct Lent<'a> {
    queue: Option<Queue>,
    to: &'a DirectFiles,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let Some(mut queue) = self.queue.take() else { return };
        // One that does not come to rest is not read with again.
        if queue.drain() {
            let mut idle = self.to.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < self.to.options.threads {
                idle.push(queue);
            }
        }
    }
}

#[cfg(test)]
mod tests;
