//! Files mapped into memory.

use super::{PIECE_BYTES, Request, Source, SourceError};
use memmap2::Mmap;
use shardwright_planner::checkpoint::{ByteRange, Catalog, CatalogFile};
use std::{fs::File, io, ops::ControlFlow};

/// All files of a checkpoint, mapped read-only and shared by all ranks of the process.
#[derive(Debug)]
pub struct MappedFiles(Vec<Mmap>);

impl MappedFiles {
    /// Maps the files of `catalog`.
    ///
    /// # Errors
    /// [`SourceError`] when a file cannot be mapped, or has another length than the catalog says.
    pub fn open(catalog: &Catalog) -> Result<Self, SourceError> {
        catalog.files().iter().map(map).collect::<Result<_, _>>().map(Self)
    }
}

impl Source for MappedFiles {
    fn stream(
        &self,
        next: &mut dyn FnMut() -> Option<Request>,
        deliver: &mut dyn FnMut(Request, u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        while let Some(request) = next() {
            let Request { file, range, .. } = request;
            let out_of_range = SourceError::OutOfRange { file, start: range.start(), stop: range.stop() };
            let bytes = self.mapped(file, range).ok_or(out_of_range)?;
            for (at, piece) in (range.start()..).step_by(PIECE_BYTES).zip(bytes.chunks(PIECE_BYTES)) {
                if deliver(request, at, piece).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn mapped(&self, file: usize, range: ByteRange) -> Option<&[u8]> {
        let place = |byte: u64| usize::try_from(byte).ok();
        let (start, stop) = place(range.start()).zip(place(range.stop()))?;
        self.0.get(file)?.get(start..stop)
    }
}

fn map(entry: &CatalogFile) -> Result<Mmap, SourceError> {
    let path = &entry.path;
    let failed = |attempt| move |source: io::Error| SourceError::Io { attempt, path: path.clone(), source };
    let file = File::open(path).map_err(failed("open"))?;
    let found = file.metadata().map_err(failed("open"))?.len();
    if found != entry.bytes {
        return Err(SourceError::LengthChanged { path: path.clone(), expected: entry.bytes, found });
    }
    // SAFETY: the mapping is read-only and private to this type, which hands out shared slices inside the length checked
    // above. What no mapping can rule out is another process that truncates or rewrites the file meanwhile; checkpoints are
    // written once and renamed into place, and whatever bytes were read are verified afterwards.
    unsafe { Mmap::map(&file) }.map_err(failed("map"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(data: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let json = format!(r#"{{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}}}}"#, data.len());
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(data);
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        folder
    }

    #[test]
    fn the_bytes_of_a_tensor_are_those_of_the_file() {
        let folder = checkpoint(&[1, 2, 3, 4]);
        let catalog = Catalog::open(folder.path()).unwrap();
        let files = MappedFiles::open(&catalog).unwrap();
        let range = catalog.tensors()[0].bytes;
        assert_eq!(files.mapped(0, range).unwrap(), [1, 2, 3, 4]);
        let beyond = ByteRange::new(0, 1 << 40, u64::MAX).unwrap();
        assert_eq!((files.mapped(0, beyond), files.mapped(1, range)), (None, None));
        let mut request = Some(Request { file: 0, range: beyond, tag: 0 });
        let read = files.stream(&mut || request.take(), &mut |_, _, _| ControlFlow::Continue(()));
        assert!(matches!(read, Err(SourceError::OutOfRange { file: 0, .. })));
    }

    #[test]
    fn a_file_that_changed_its_length_is_named() {
        let folder = checkpoint(&[1, 2, 3, 4]);
        let catalog = Catalog::open(folder.path()).unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(MappedFiles::open(&catalog), Err(SourceError::LengthChanged { found: 5, .. })));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(MappedFiles::open(&catalog), Err(SourceError::Io { attempt: "open", .. })));
    }
}
