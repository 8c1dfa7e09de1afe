//! A checkpoint's tensors as they are loaded: the files of a source, tensor by tensor, cast where the plan says so.
//!
//! In come runs of bytes of tensors as they are loaded; out go these bytes, piece by piece. Where a tensor is cast, the elements
//! that a run touches are read as they are stored, and cast while they are in the core's cache. It knows no rank and no box.

use crate::{
    cast::{Cast, Casts},
    source::{PIECE_BYTES, Request, Source, SourceError},
};
use shardwright_planner::checkpoint::{ByteRange, Catalog};
use std::{
    cell::RefCell,
    collections::VecDeque,
    ops::{ControlFlow, Range},
    sync::atomic::{AtomicBool, Ordering},
};

/// The tensors of a checkpoint, readable from any thread.
pub struct Tensors<'a> {
    catalog: &'a Catalog,
    casts: &'a Casts,
    source: &'a dyn Source,
    /// Which had values that are too large for the dtype they were cast to.
    too_large: Vec<AtomicBool>,
}

/// What takes the pieces: each with the run that it belongs to and its first byte in the tensor.
pub type Deliver<'a> = &'a mut dyn FnMut(&Wanted, u64, &[u8]) -> ControlFlow<()>;

/// A run of a tensor's bytes that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The tensor's number in the catalog.
    pub tensor: usize,
    /// Which of its bytes, as it is loaded.
    pub bytes: Range<u64>,
    /// The caller's own number for it.
    pub tag: u64,
    /// Whether other processes of this host want some of them too.
    pub shared: bool,
}

impl<'a> Tensors<'a> {
    /// The tensors of `catalog`, whose files `source` has, with the casts of its plan.
    pub fn new(catalog: &'a Catalog, casts: &'a Casts, source: &'a dyn Source) -> Self {
        let too_large = catalog.tensors().iter().map(|_| AtomicBool::new(false)).collect();
        Self { catalog, casts, source, too_large }
    }

    /// The checkpoint.
    pub fn catalog(&self) -> &'a Catalog {
        self.catalog
    }

    /// Bytes of the tensor with this number as it is loaded.
    pub fn len_of(&self, id: usize) -> u64 {
        self.casts.len_of(id)
    }

    /// The names of the tensors that had values which became infinite when they were cast, as far as they were read.
    pub fn too_large(&self) -> Vec<&'a str> {
        let all = self.catalog.tensors().iter().zip(&self.too_large);
        all.filter(|(_, is)| is.load(Ordering::Relaxed)).map(|(tensor, _)| &*tensor.name).collect()
    }

    /// Reads what `next` asks for, in that order, until it gives `None`, and hands it on in pieces of at most [`PIECE_BYTES`], in
    /// order: `deliver` is told which run a piece belongs to, the piece's first byte in the tensor, and the piece. It breaks when
    /// it wants no more. Runs may be taken some way ahead of what is delivered; empty ones are left out. Each thread that reads
    /// calls it once.
    ///
    /// # Errors
    /// As [`Source::stream`]; [`SourceError::OutOfRange`] for bytes that a tensor does not have.
    pub fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Wanted>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        // What was asked for and is still to come: requests are answered in their order.
        let asked: RefCell<VecDeque<Asked>> = RefCell::default();
        let (mut count, mut wrong) = (0, None);
        let mut next = || {
            loop {
                let wanted = next()?;
                if wanted.bytes.is_empty() {
                    continue;
                }
                match self.place_of(wanted.tensor, &wanted.bytes) {
                    Ok((file, range)) => {
                        count += 1;
                        let shared = wanted.shared;
                        asked.borrow_mut().push_back(Asked { number: count, wanted });
                        return Some(Request { file, range, tag: count, shared });
                    }
                    Err(error) => {
                        wrong = Some(error);
                        return None;
                    }
                }
            }
        };
        let mut casting = Casting::default();
        let mut current: Option<Asked> = None;
        self.source.stream(&mut next, &mut |request, at, piece| {
            while current.as_ref().is_none_or(|asked| asked.number != request.tag) {
                current = asked.borrow_mut().pop_front();
                casting.left.clear();
                if current.is_none() {
                    return ControlFlow::Break(());
                }
            }
            let Some(Asked { wanted, .. }) = &current else { return ControlFlow::Break(()) };
            let start = self.catalog.tensors()[wanted.tensor].bytes.start();
            let at = at - start;
            match self.casts.of(wanted.tensor) {
                None => deliver(wanted, at, piece),
                Some(cast) => {
                    let too_large = &self.too_large[wanted.tensor];
                    casting.piece(cast, wanted, at, piece, too_large, deliver)
                }
            }
        })?;
        wrong.map_or(Ok(()), Err)
    }

    /// Reads one run of a tensor, which `deliver` is given piece by piece, each with its first byte in the tensor.
    ///
    /// # Errors
    /// As [`Tensors::stream`].
    pub fn read_run(
        &self,
        tensor: usize,
        bytes: Range<u64>,
        deliver: &mut dyn FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let mut wanted = Some(Wanted { tensor, bytes, tag: 0, shared: false });
        self.stream(&mut || wanted.take(), &mut |_, at, piece| deliver(at, piece))
    }

    /// Says that some process of this host will soon want these bytes of a tensor. Only advice: see [`Source::read_ahead`].
    pub fn read_ahead(&self, tensor: usize, bytes: &Range<u64>) {
        if let Ok((file, range)) = self.place_of(tensor, bytes) {
            self.source.read_ahead(file, range);
        }
    }

    /// A run of a tensor where it lies mapped into memory as it is loaded; `None` where it does not.
    ///
    /// # Errors
    /// As [`Source::mapped`].
    pub fn mapped(&self, tensor: usize, bytes: Range<u64>) -> Result<Option<&[u8]>, SourceError> {
        if self.casts.of(tensor).is_some() {
            return Ok(None);
        }
        let (file, range) = self.place_of(tensor, &bytes)?;
        self.source.mapped(file, range)
    }

    /// As [`Source::check_unchanged`].
    ///
    /// # Errors
    /// As [`Source::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        self.source.check_unchanged()
    }

    /// The error of whoever asked for bytes that a tensor does not have.
    pub(crate) fn out_of_range(&self, tensor: usize, bytes: Range<u64>) -> SourceError {
        let file = self.catalog.tensors().get(tensor).map_or(0, |entry| entry.file);
        SourceError::OutOfRange { file, start: bytes.start, stop: bytes.end }
    }

    /// Where the elements of a run lie: the file and its bytes.
    fn place_of(&self, tensor: usize, bytes: &Range<u64>) -> Result<(usize, ByteRange), SourceError> {
        let outside = || self.out_of_range(tensor, bytes.clone());
        let entry = self.catalog.tensors().get(tensor).ok_or_else(outside)?;
        if bytes.end > self.len_of(tensor) {
            return Err(outside());
        }
        let stored = self.casts.of(tensor).map_or(bytes.clone(), |cast| cast.stored(bytes.clone()));
        let (start, stop) = (entry.bytes.start() + stored.start, entry.bytes.start() + stored.end);
        let range = ByteRange::new(start, stop, entry.bytes.stop()).ok_or_else(outside)?;
        Ok((entry.file, range))
    }
}

/// A run that was asked for, with the number of its request.
struct Asked {
    number: u64,
    wanted: Wanted,
}

/// What one thread casts: a source may cut its pieces anywhere, through elements too.
#[derive(Default)]
struct Casting {
    /// The beginning of an element whose end is in the next piece.
    left: Vec<u8>,
    loaded: Vec<u8>,
}

impl Casting {
    /// Casts a piece that begins at byte `at` of the stored tensor, and delivers what is wanted of it.
    fn piece(
        &mut self,
        cast: Cast,
        wanted: &Wanted,
        mut at: u64,
        mut piece: &[u8],
        too_large: &AtomicBool,
        deliver: Deliver<'_>,
    ) -> ControlFlow<()> {
        let each = cast.stored_bytes();
        if !self.left.is_empty() {
            at -= self.left.len() as u64;
            let (end, rest) = piece.split_at((each - self.left.len()).min(piece.len()));
            self.left.extend_from_slice(end);
            piece = rest;
            if self.left.len() < each {
                return ControlFlow::Continue(());
            }
            let element = std::mem::take(&mut self.left);
            self.elements(cast, wanted, at, &element, too_large, deliver)?;
            at += each as u64;
        }
        let most = PIECE_BYTES / each.max(cast.loaded_bytes()) * each;
        let whole = piece.len() / each * each;
        for elements in piece[..whole].chunks(most) {
            self.elements(cast, wanted, at, elements, too_large, deliver)?;
            at += elements.len() as u64;
        }
        self.left.extend_from_slice(&piece[whole..]);
        ControlFlow::Continue(())
    }

    /// Casts whole elements, of which the first begins at byte `at` of the stored tensor.
    fn elements(
        &mut self,
        cast: Cast,
        wanted: &Wanted,
        at: u64,
        elements: &[u8],
        too_large: &AtomicBool,
        deliver: Deliver<'_>,
    ) -> ControlFlow<()> {
        self.loaded.clear();
        if cast.apply(elements, &mut self.loaded) {
            too_large.store(true, Ordering::Relaxed);
        }
        let start = at / cast.stored_bytes() as u64 * cast.loaded_bytes() as u64;
        // The first and the last element may be wanted in part.
        let end = start + self.loaded.len() as u64;
        let part = wanted.bytes.start.max(start)..wanted.bytes.end.min(end);
        let place = |byte: u64| usize::try_from(byte.saturating_sub(start)).unwrap_or(usize::MAX);
        match self.loaded.get(place(part.start)..place(part.end)) {
            Some(bytes) if !bytes.is_empty() => deliver(wanted, part.start, bytes),
            _ => ControlFlow::Continue(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixture::planned_as,
        source::{self, ReadFiles},
    };
    use proptest::prelude::*;
    use shardwright_planner::{checkpoint::Dtype, plan::CastDtype};

    /// Files that come in pieces of a few bytes.
    struct Crumbs {
        files: ReadFiles,
        bytes: usize,
    }

    impl Source for Crumbs {
        fn stream(
            &self,
            next: &mut dyn FnMut() -> Option<Request>,
            deliver: source::Deliver<'_>,
        ) -> Result<(), SourceError> {
            self.files.stream(next, &mut |request, at, piece| {
                for (at, crumb) in (at..).step_by(self.bytes).zip(piece.chunks(self.bytes)) {
                    deliver(request, at, crumb)?;
                }
                ControlFlow::Continue(())
            })
        }
    }

    fn read(tensors: &Tensors<'_>, id: usize, bytes: Range<u64>) -> Vec<u8> {
        let (mut all, mut next) = (Vec::new(), bytes.start);
        let deliver = &mut |at: u64, piece: &[u8]| {
            assert_eq!(at, next);
            next += piece.len() as u64;
            all.extend_from_slice(piece);
            ControlFlow::Continue(())
        };
        tensors.read_run(id, bytes, deliver).unwrap();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn a_run_of_a_cast_tensor_is_that_run_of_the_whole(
            to in prop::sample::select(vec![CastDtype::F16, CastDtype::BF16, CastDtype::F32]),
            name in prop::sample::select(vec!["llama-bf16", "mistral-f32"]), crumb in 1usize..9,
            start in 0u64..40, len in 1u64..40,
        ) {
            let (plan, catalog) = planned_as(name, 1, 1, 1, Some(to));
            let casts = Casts::new(&plan, &catalog).unwrap();
            let files = ReadFiles::open(&catalog).unwrap();
            let whole = Tensors::new(&catalog, &casts, &files);
            let crumbs = Crumbs { files: ReadFiles::open(&catalog).unwrap(), bytes: crumb };
            let crumbs = Tensors::new(&catalog, &casts, &crumbs);
            for (id, entry) in catalog.tensors().iter().enumerate().step_by(3) {
                let all = read(&whole, id, 0..whole.len_of(id));
                let elements: u64 = entry.shape.iter().product();
                prop_assert_eq!(all.len() as u64, elements * Dtype::from(to).bitsize() as u64 / 8);
                // By one call, whatever the pieces.
                let mut stored = Vec::new();
                let take = &mut |_: u64, piece: &[u8]| { stored.extend_from_slice(piece); ControlFlow::Continue(()) };
                crate::source::read_run(&files, entry.file, entry.bytes, take).unwrap();
                let mut cast = Vec::new();
                match casts.of(id) {
                    Some(of) => { of.apply(&stored, &mut cast); }
                    None => cast = stored,
                }
                prop_assert!(all == cast);
                let (from, until) = (start, (start + len).min(all.len() as u64));
                let part = read(&crumbs, id, from..until);
                prop_assert_eq!(&part[..], &all[usize::try_from(from).unwrap()..usize::try_from(until).unwrap()]);
            }
        }
    }

    #[test]
    fn bytes_that_a_tensor_does_not_have_are_refused() {
        let (plan, catalog) = planned_as("llama-bf16", 1, 1, 1, Some(CastDtype::F32));
        let casts = Casts::new(&plan, &catalog).unwrap();
        let files = ReadFiles::open(&catalog).unwrap();
        let tensors = Tensors::new(&catalog, &casts, &files);
        let len = tensors.len_of(0);
        assert_eq!(len, catalog.tensors()[0].bytes.len() * 2);
        let refused = tensors.read_run(0, len - 1..len + 1, &mut |_, _| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(SourceError::OutOfRange { .. })));
        assert!(matches!(tensors.mapped(usize::MAX, 0..1), Err(SourceError::OutOfRange { .. })));
        assert!(tensors.mapped(0, 0..1).unwrap().is_none());
    }
}
