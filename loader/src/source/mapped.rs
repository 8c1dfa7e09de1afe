//! Files mapped into memory.

use super::{
    Deliver, Request, Source, SourceError,
    ahead::{Ahead, pieces},
    fault::{GuardedMap, MOST_MAPPINGS, MapError},
    opened::{OpenedFile, OpenedFiles},
};
use rustix::fs::OFlags;
use shardwright_planner::checkpoint::{ByteRange, Catalog};
use std::io;

/// Files of a checkpoint, mapped read-only and shared by all ranks of the process. One that becomes shorter is an error, not the
/// end of the process.
#[derive(Debug)]
pub struct MappedFiles {
    maps: Vec<Option<GuardedMap>>,
    opened: OpenedFiles,
}

impl MappedFiles {
    /// Maps the files of `catalog`.
    ///
    /// # Errors
    /// [`SourceError`] when a file cannot be mapped, or has another length than the catalog says.
    pub fn open(catalog: &Catalog) -> Result<Self, SourceError> {
        Self::open_only(catalog, &|_| true)
    }

    /// Maps those files of `catalog` whose numbers are `wanted`; the others do not exist for it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_only(catalog: &Catalog, wanted: &dyn Fn(usize) -> bool) -> Result<Self, SourceError> {
        let opened = OpenedFiles::open(catalog, wanted, OFlags::empty())?;
        let map = |file: &Option<OpenedFile>| file.as_ref().map(map).transpose();
        let maps = opened.all().iter().map(map).collect::<Result<_, _>>()?;
        Ok(Self { maps, opened })
    }

    /// Whether all bytes of file number `file` that have been read so far were there.
    fn check(&self, file: usize) -> Result<(), SourceError> {
        let map = self.maps.get(file).and_then(Option::as_ref);
        let opened = self.opened.all().get(file).and_then(Option::as_ref);
        match map.and_then(GuardedMap::fault).zip(opened) {
            Some((at, opened)) => Err(opened.why_missing(at)),
            None => Ok(()),
        }
    }

    /// Where the bytes are.
    fn place(
        &self,
        file: usize,
        range: ByteRange,
    ) -> Result<(&GuardedMap, &OpenedFile, usize, usize), SourceError> {
        let (start, stop) = (range.start(), range.stop());
        let opened = self.opened.file(file, range)?;
        let map = self.maps.get(file).and_then(Option::as_ref);
        map.zip(usize::try_from(start).ok().zip(usize::try_from(stop).ok()))
            .map(|(map, (start, stop))| (map, opened, start, stop))
            .ok_or(SourceError::OutOfRange { file, start, stop })
    }
}

impl Source for MappedFiles {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        let mut ahead = Ahead::new(next);
        while let Some(request) = ahead.next(&|request| self.opened.announce(request.file, request.range)) {
            let (map, opened, start, _) = self.place(request.file, request.range)?;
            let mut begin = start;
            for (at, len) in pieces(request.range) {
                // All pages at once, which is faster than one fault after the other, and ends early where there are none.
                map.populate(begin, len).map_err(|()| opened.why_missing(at))?;
                let flow = deliver(request, at, &map.bytes()[begin..begin + len]);
                // Only now: they may have gone while they were used.
                self.check(request.file)?;
                if flow.is_break() {
                    return Ok(());
                }
                begin += len;
            }
        }
        Ok(())
    }

    fn mapped(&self, file: usize, range: ByteRange) -> Result<Option<&[u8]>, SourceError> {
        let (map, opened, start, stop) = self.place(file, range)?;
        self.check(file)?;
        map.populate(start, stop - start).map_err(|()| opened.why_missing(range.start()))?;
        Ok(Some(&map.bytes()[start..stop]))
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        (0..self.maps.len()).try_for_each(|file| self.check(file))?;
        self.opened.check_unchanged()
    }
}

fn map(file: &OpenedFile) -> Result<GuardedMap, SourceError> {
    let path = || file.path().to_owned();
    let failed = |source: io::Error| SourceError::Io { attempt: "map", path: path(), source };
    let bytes = usize::try_from(file.bytes()).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
    GuardedMap::new(file.file(), bytes).map_err(|error| match error {
        MapError::Full => SourceError::TooManyMappings { path: path(), most: MOST_MAPPINGS },
        MapError::Io(source) => failed(source),
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{PIECE_BYTES, fixture},
        *,
    };
    use std::{fs::File, ops::ControlFlow};

    #[test]
    fn the_bytes_of_a_tensor_are_those_of_the_file() {
        let folder = fixture::checkpoint(&[1, 2, 3, 4]);
        let catalog = Catalog::open(folder.path()).unwrap();
        let files = MappedFiles::open(&catalog).unwrap();
        let range = catalog.tensors()[0].bytes;
        assert_eq!(files.mapped(0, range).unwrap().unwrap(), [1, 2, 3, 4]);
        let beyond = ByteRange::new(0, 1 << 40, u64::MAX).unwrap();
        assert!(matches!(files.mapped(0, beyond), Err(SourceError::OutOfRange { .. })));
        assert!(matches!(files.mapped(1, range), Err(SourceError::OutOfRange { file: 1, .. })));
    }

    #[test]
    fn each_request_gives_its_bytes_in_order() {
        let folder = fixture::checkpoint(&fixture::pattern(3 * PIECE_BYTES));
        let catalog = Catalog::open(folder.path()).unwrap();
        fixture::streams_what_was_asked(&MappedFiles::open(&catalog).unwrap(), &catalog);
    }

    #[test]
    fn a_file_that_changed_its_length_is_named() {
        let folder = fixture::checkpoint(&[1, 2, 3, 4]);
        let catalog = Catalog::open(folder.path()).unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(MappedFiles::open(&catalog), Err(SourceError::LengthChanged { found: 5, .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(MappedFiles::open(&catalog), Err(SourceError::Io { attempt: "open", .. })));
    }

    #[test]
    fn a_file_that_becomes_shorter_between_two_pieces_is_named_with_its_new_end() {
        let folder = fixture::checkpoint(&fixture::pattern(3 * PIECE_BYTES));
        let catalog = Catalog::open(folder.path()).unwrap();
        let files = MappedFiles::open(&catalog).unwrap();
        let (error, delivered) = fixture::truncated_after_one_piece(&files, &catalog);
        let (end, bytes) = (PIECE_BYTES as u64, catalog.files()[0].bytes);
        let named =
            matches!(error, SourceError::Truncated { at, expected, .. } if (at, expected) == (end, bytes));
        assert!(named, "{error}");
        // Where the kernel cannot populate, the piece after it is found out when it has been delivered.
        assert!(delivered == end || delivered == 2 * end);
    }

    #[test]
    fn a_file_that_becomes_shorter_while_a_piece_is_used_is_named() {
        let folder = fixture::checkpoint(&fixture::pattern(3 * PIECE_BYTES));
        let catalog = Catalog::open(folder.path()).unwrap();
        let (files, entry) = (MappedFiles::open(&catalog).unwrap(), &catalog.files()[0]);
        let range = ByteRange::new(0, entry.bytes, entry.bytes).unwrap();
        let cut = std::sync::Once::new();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut asked = Some(Request { file: 0, range, tag: 0, shared: false });
                    let mut pieces = 0;
                    let mut deliver = |_: Request, _: u64, piece: &[u8]| {
                        pieces += 1;
                        cut.call_once(|| {
                            File::options().write(true).open(&entry.path).unwrap().set_len(0).unwrap();
                        });
                        assert!(piece.iter().all(|&byte| byte == 0), "gone");
                        ControlFlow::Continue(())
                    };
                    let error = files.stream(&mut || asked.take(), &mut deliver).unwrap_err();
                    assert!(matches!(error, SourceError::Truncated { at: 0, .. }), "{error}");
                    assert!(pieces <= 1);
                });
            }
        });
        assert!(matches!(files.check_unchanged(), Err(SourceError::Truncated { .. })));
    }
}
