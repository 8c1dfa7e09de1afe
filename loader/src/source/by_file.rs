//! Files of which some are read in one way and some in another.

use super::{Deliver, Request, Source, SourceError};
use shardwright_planner::checkpoint::ByteRange;

/// Sources that have all files of a checkpoint between them.
pub struct ByFile {
    sources: Vec<Box<dyn Source>>,
    /// The number of each file's source.
    of_file: Vec<usize>,
}

impl ByFile {
    /// `of_file` gives for each file of the checkpoint the number of its source among `sources`; all know it by the same number.
    pub fn new(sources: Vec<Box<dyn Source>>, of_file: Vec<usize>) -> Self {
        Self { sources, of_file }
    }

    fn source(&self, file: usize, range: ByteRange) -> Result<&dyn Source, SourceError> {
        let source = self.of_file.get(file).and_then(|&source| self.sources.get(source));
        let missing = SourceError::OutOfRange { file, start: range.start(), stop: range.stop() };
        source.map(AsRef::as_ref).ok_or(missing)
    }
}

impl Source for ByFile {
    /// Streams from one source until a request is for another: long runs for the same one are cheap, alternation is not.
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: Deliver<'_>,
    ) -> Result<(), SourceError> {
        let mut first = next();
        while let Some(begin) = first.take() {
            let source = self.source(begin.file, begin.range)?;
            let number = self.of_file[begin.file];
            let (mut begin, mut stopped) = (Some(begin), false);
            let mut next_of_source = || {
                if let Some(request) = begin.take() {
                    return Some(request);
                }
                if first.is_some() {
                    return None;
                }
                let request = next()?;
                if self.of_file.get(request.file) == Some(&number) {
                    return Some(request);
                }
                first = Some(request);
                None
            };
            let mut deliver = |request: Request, at: u64, piece: &[u8]| {
                let flow = deliver(request, at, piece);
                stopped = flow.is_break();
                flow
            };
            source.stream(&mut next_of_source, &mut deliver)?;
            if stopped {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        self.sources.iter().try_for_each(|source| source.check_unchanged())
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{MappedFiles, PIECE_BYTES, ReadFiles, fixture},
        *,
    };
    use shardwright_planner::checkpoint::Catalog;

    #[test]
    fn each_file_is_read_by_its_source_and_the_order_stays() {
        let folder = tempfile::tempdir().unwrap();
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            let data = fixture::pattern(3 * PIECE_BYTES + number);
            fixture::write(&folder.path().join(format!("{name}.safetensors")), name, &data);
        }
        let catalog = Catalog::open(folder.path()).unwrap();
        let read = ReadFiles::open_only(&catalog, &|file| file != 1).unwrap();
        let mapped = MappedFiles::open_only(&catalog, &|file| file == 1).unwrap();
        let mixed = ByFile::new(vec![Box::new(read), Box::new(mapped)], vec![0, 1, 0]);
        fixture::streams_what_was_asked(&mixed, &catalog);

        std::fs::remove_file(&catalog.files()[1].path).unwrap();
        let outcome = mixed.check_unchanged();
        assert!(matches!(&outcome, Err(SourceError::Changed { path }) if *path == catalog.files()[1].path));
    }
}
