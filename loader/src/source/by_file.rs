//! Files of which some are read in one way and some in another, or what other processes of the host read too in another than the
//! rest.

use super::{Deliver, Request, Source, SourceError};
use shardwright_planner::checkpoint::ByteRange;

/// Sources that have all files of a checkpoint between them.
pub struct ByFile {
    sources: Vec<Box<dyn Source>>,
    of_file: Vec<SourcesOf>,
}

/// The numbers of a file's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourcesOf {
    /// Of what this process alone reads of it.
    pub own: usize,
    /// Of what other processes of this host read too.
    pub shared: usize,
}

impl SourcesOf {
    fn number(self, shared: bool) -> usize {
        if shared { self.shared } else { self.own }
    }
}

impl ByFile {
    /// `of_file` gives for each file of the checkpoint the numbers of its sources among `sources`; all know it by the same number.
    pub fn new(sources: Vec<Box<dyn Source>>, of_file: Vec<SourcesOf>) -> Self {
        Self { sources, of_file }
    }

    fn number(&self, request: &Request) -> Option<usize> {
        Some(self.of_file.get(request.file)?.number(request.shared))
    }

    fn source(&self, request: &Request) -> Result<(usize, &dyn Source), SourceError> {
        let Request { file, range, .. } = *request;
        let number = self.number(request);
        let source = number.and_then(|number| Some((number, self.sources.get(number)?.as_ref())));
        source.ok_or(SourceError::OutOfRange { file, start: range.start(), stop: range.stop() })
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
            let (number, source) = self.source(&begin)?;
            let (mut begin, mut stopped) = (Some(begin), false);
            let mut next_of_source = || {
                if let Some(request) = begin.take() {
                    return Some(request);
                }
                if first.is_some() {
                    return None;
                }
                let request = next()?;
                if self.number(&request) == Some(number) {
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

    fn read_ahead(&self, file: usize, range: ByteRange) {
        if let Some(source) = self.of_file.get(file).and_then(|of| self.sources.get(of.shared)) {
            source.read_ahead(file, range);
        }
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
        let of = |own, shared| SourcesOf { own, shared };
        let mixed = ByFile::new(vec![Box::new(read), Box::new(mapped)], vec![of(0, 0), of(1, 1), of(0, 0)]);
        fixture::streams_what_was_asked(&mixed, &catalog);

        // What others read too from another source than the rest of the same file.
        let sources: Vec<Box<dyn Source>> = vec![
            Box::new(MappedFiles::open(&catalog).unwrap()),
            Box::new(ReadFiles::open(&catalog).unwrap()),
        ];
        fixture::streams_what_was_asked(&ByFile::new(sources, vec![of(0, 1); 3]), &catalog);

        std::fs::remove_file(&catalog.files()[1].path).unwrap();
        let outcome = mixed.check_unchanged();
        assert!(matches!(&outcome, Err(SourceError::Changed { path }) if *path == catalog.files()[1].path));
    }
}
