//! Loading from sources that do not always do what they should.

mod apart;
mod lent;

use super::*;
use crate::{
    collective::local_group,
    device::HostDevice,
    fixture::planned,
    source::{Deliver, ReadFiles, Request, SourceError},
};
use shardwright_planner::checkpoint::ByteRange;
use std::{io, ops::ControlFlow};

/// Files of which something happens when byte `at` of all that is delivered is reached.
struct Disturbed<F> {
    files: ReadFiles,
    delivered: AtomicU64,
    at: u64,
    happens: F,
}

impl<F: Fn() -> Result<(), SourceError> + Sync> Source for Disturbed<F> {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        let mut failure = None;
        self.files.stream(next, &mut |request, at, piece| {
            let before = self.delivered.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if before <= self.at && self.at < before + piece.len() as u64 {
                failure = (self.happens)().err();
            }
            if failure.is_some() { ControlFlow::Break(()) } else { deliver(request, at, piece) }
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn mapped(&self, file: usize, range: ByteRange) -> Result<Option<&[u8]>, SourceError> {
        self.files.mapped(file, range)
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        self.files.check_unchanged()
    }
}

fn loaded(
    plan: &Plan,
    catalog: &Catalog,
    source: &dyn Source,
    options: &LoadOptions,
) -> Result<Vec<LoadedRank>, LoadError> {
    let seats = (0u32..)
        .zip(local_group(plan.mesh.world_size(), Duration::from_secs(20)))
        .map(|(rank, end)| Seat::new(rank, &HostDevice, Some(Box::new(end))));
    load(plan, catalog, source, seats.collect(), options, &Progress::default())
}

fn verifying() -> LoadOptions {
    LoadOptions { verify: Some(Extent::Full), threads: 3, ..LoadOptions::default() }
}

#[test]
fn a_read_that_fails_in_the_middle_ends_all_ranks_with_its_error() {
    let (plan, catalog) = planned("llama-bf16", 1, 2, 2);
    let bytes = catalog.files().iter().map(|file| file.bytes).sum::<u64>();
    for at in [0, bytes / 3, bytes / 2] {
        let path = catalog.files()[0].path.clone();
        let happens =
            || Err(SourceError::Read { path: path.clone(), at, source: io::ErrorKind::TimedOut.into() });
        let files = ReadFiles::open(&catalog).unwrap();
        let source = Disturbed { files, delivered: AtomicU64::new(0), at, happens };
        let Err(error) = loaded(&plan, &catalog, &source, &verifying()) else { panic!("at {at}") };
        assert!(error.to_string().starts_with(&format!("cannot read byte {at} of ")), "{error}");
    }
}

#[test]
fn a_file_that_is_written_to_while_it_is_read_is_named() {
    let (plan, catalog) = planned("qwen3-f32", 1, 1, 2);
    let folder = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(catalog.folder()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let catalog = Catalog::open(folder.path()).unwrap();
    let path = catalog.files()[0].path.clone();
    let happens = || {
        // The same bytes again: nobody could tell from the sums.
        let bytes = std::fs::read(&path).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, bytes).unwrap();
        Ok(())
    };
    let files = ReadFiles::open(&catalog).unwrap();
    let source = Disturbed { files, delivered: AtomicU64::new(0), at: 0, happens };
    let Err(error) = loaded(&plan, &catalog, &source, &verifying()) else { panic!("nobody saw it") };
    assert!(matches!(error, LoadError::Source(SourceError::Changed { .. })), "{error}");
}

#[test]
fn tensors_are_ready_in_the_order_of_their_turns_and_verified() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let files = ReadFiles::open(&catalog).unwrap();
    let heard: Arc<Mutex<Vec<(u32, String, bool)>>> = Arc::default();
    let hears = Arc::clone(&heard);
    let on_ready = OnReady::new(move |ready| {
        let mut heard = hears.lock().unwrap();
        for tensor in &ready.tensors {
            let mut first = [0];
            ready.memory.read(tensor.offset, &mut first).unwrap();
            heard.push((ready.rank, tensor.name.to_owned(), ready.verified));
        }
    });
    let options = LoadOptions { on_ready, ..verifying() };
    let ranks = loaded(&plan, &catalog, &files, &options).unwrap();
    for rank in &ranks {
        let names: Vec<String> = rank.tensors().map(|tensor| tensor.name.to_owned()).collect();
        let heard = heard.lock().unwrap();
        let of_rank: Vec<String> = heard
            .iter()
            .filter(|(of, _, verified)| *of == rank.rank && *verified)
            .map(|(_, name, _)| name.clone())
            .collect();
        assert_eq!(of_rank, names);
    }
}

#[test]
fn a_tensor_that_is_wrong_is_not_ready() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let files = ReadFiles::open(&catalog).unwrap();
    let count: Arc<AtomicU64> = Arc::default();
    let counts = Arc::clone(&count);
    let on_ready = OnReady::new(move |ready| {
        counts.fetch_add(ready.tensors.len() as u64, Ordering::Relaxed);
    });
    let options = LoadOptions { on_ready, flip_byte_of: Some(1), ..verifying() };
    let ranks = loaded(&plan, &catalog, &files, &options).unwrap();
    let wrong = ranks[0].verified.as_ref().unwrap().mismatches.len();
    let all: u64 = ranks.iter().map(|rank| rank.figures().tensors).sum();
    assert_eq!((wrong, count.load(Ordering::Relaxed)), (1, all - 2));
}

/// A source whose thread panics.
struct Panics;

impl Source for Panics {
    fn stream(&self, next: &mut dyn FnMut() -> Option<Request>, _: Deliver<'_>) -> Result<(), SourceError> {
        next();
        panic!("on purpose");
    }
}

/// A source that ends early and says nothing.
struct EndsEarly;

impl Source for EndsEarly {
    fn stream(&self, next: &mut dyn FnMut() -> Option<Request>, _: Deliver<'_>) -> Result<(), SourceError> {
        next();
        Ok(())
    }
}

/// What loading from `source` fails with, which does not take it long.
fn fails_soon(source: &'static (dyn Source + Sync)) -> LoadError {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
        done.send(loaded(&plan, &catalog, source, &verifying()).map(drop)).unwrap();
    });
    ended.recv_timeout(Duration::from_secs(30)).expect("it hangs").unwrap_err()
}

#[test]
fn a_reader_that_panics_does_not_leave_the_ranks_waiting() {
    assert!(matches!(fails_soon(&Panics), LoadError::Panicked { .. }));
}

#[test]
fn a_source_that_ends_early_does_not_leave_the_ranks_waiting() {
    assert!(matches!(fails_soon(&EndsEarly), LoadError::Incomplete));
}

/// What `MappedFiles` does where a file is cut while its last piece is used: it delivers zeros, and says so afterwards.
struct GoneWhileUsed(ReadFiles, std::path::PathBuf, u64);

impl Source for GoneWhileUsed {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        let mut all = 0;
        self.0.stream(next, &mut |request, at, piece| {
            all += piece.len() as u64;
            deliver(request, at, &vec![0; piece.len()])
        })?;
        // This thread waits for its turn on the processor.
        std::thread::sleep(Duration::from_millis(200));
        Err(SourceError::Truncated { path: self.1.clone(), at: 0, expected: self.2 })
    }
}

#[test]
fn nothing_is_ready_and_verified_that_was_gone_while_it_was_read() {
    let (plan, catalog) = planned("llama-bf16", 1, 1, 2);
    let file = &catalog.files()[0];
    let source = GoneWhileUsed(ReadFiles::open(&catalog).unwrap(), file.path.clone(), file.bytes);
    let verified: Arc<AtomicU64> = Arc::default();
    let counts = Arc::clone(&verified);
    let on_ready = OnReady::new(move |ready| {
        counts.fetch_add(u64::from(ready.verified) * ready.tensors.len() as u64, Ordering::Relaxed);
    });
    let options = LoadOptions { on_ready, ..verifying() };
    assert!(loaded(&plan, &catalog, &source, &options).is_err());
    assert_eq!(verified.load(Ordering::Relaxed), 0);
}
