//! Opening a checkpoint's files, each in the way that suits it.

use super::{
    ByFile, Choice, DirectError, DirectFiles, DirectOptions, FileFacts, HostFacts, Io, MappedFiles,
    ReadFiles, Reason, Source, SourceError, SourcesOf, Way, choose, opened::OpenedFile, summary,
};
use crate::device::HostDevice;
use rustix::fs::OFlags;
use shardwright_planner::checkpoint::Catalog;

/// The files of a checkpoint, and what there is to say of how they are read.
pub struct Opened {
    /// The files.
    pub source: Box<dyn Source>,
    /// How they are read and why, in one line.
    pub how: String,
    /// What was wanted and did not go.
    pub notes: Vec<String>,
}

/// Opens the files of `catalog` for `threads` threads; `shared` says that other processes of this host read them at the same
/// time. What refuses to be read directly is read through the page cache, which is noted.
///
/// # Errors
/// [`SourceError`] when a file cannot be opened, or is not the one that the catalog says.
pub fn open(catalog: &Catalog, io: Io, shared: bool, threads: usize) -> Result<Opened, SourceError> {
    let files = catalog.files();
    let host = HostFacts {
        shared,
        bytes: files.iter().map(|file| file.bytes).fold(0, u64::saturating_add),
        available_bytes: HostDevice.available_bytes(),
    };
    let mut chosen: Vec<(FileFacts, Choice)> = files
        .iter()
        .map(|file| {
            let facts = FileFacts::gather(file)?;
            let choice = choose(io, &facts, &host);
            Ok((facts, choice))
        })
        .collect::<Result<_, SourceError>>()?;
    let mut notes = Vec::new();
    let mut direct = None;
    if chosen.iter().any(|(_, choice)| matches!(choice.way, Way::Direct | Way::Shared)) {
        let options = DirectOptions::for_threads(threads);
        let opened = DirectFiles::open_only(catalog, &read_by(&chosen, &[Way::Direct, Way::Shared]), options);
        match opened {
            Ok(files) => direct = Some(files),
            Err(DirectError::Source(error)) => return Err(error),
            Err(DirectError::Refused(refused)) => {
                notes.push(format!("reading through the page cache instead of directly: {refused}"));
                for (_, choice) in &mut chosen {
                    if matches!(choice.way, Way::Direct | Way::Shared) {
                        *choice = Choice { way: Way::Read, reason: Reason::Refused };
                    }
                }
            }
        }
    }
    let how = summary(&chosen);
    let any = |way: Way| chosen.iter().any(|(_, choice)| choice.way == way);
    let mut sources: Vec<(Way, Box<dyn Source>)> = Vec::new();
    if let Some(files) = direct {
        sources.push((Way::Direct, Box::new(files)));
    }
    if any(Way::Read) || any(Way::Shared) {
        let cached = |file: usize| {
            chosen
                .get(file)
                .is_some_and(|(facts, _)| facts.cached_bytes.is_some_and(|cached| cached >= facts.bytes))
        };
        let files = ReadFiles::open_only(catalog, &read_by(&chosen, &[Way::Read, Way::Shared]))?
            .with_cached(&cached)
            .with_parts(&read_by(&chosen, &[Way::Shared]));
        sources.push((Way::Read, Box::new(files)));
    }
    if any(Way::Mmap) {
        sources
            .push((Way::Mmap, Box::new(MappedFiles::open_only(catalog, &read_by(&chosen, &[Way::Mmap]))?)));
    }
    let number = |way: Way| sources.iter().position(|(of, _)| *of == way).unwrap_or(0);
    let of_file: Vec<SourcesOf> = chosen
        .iter()
        .map(|(_, choice)| match choice.way {
            Way::Shared => SourcesOf { own: number(Way::Direct), shared: number(Way::Read) },
            way => SourcesOf { own: number(way), shared: number(way) },
        })
        .collect();
    let mut sources: Vec<Box<dyn Source>> = sources.into_iter().map(|(_, source)| source).collect();
    let source = match sources.len() {
        1 => sources.remove(0),
        _ => Box::new(ByFile::new(sources, of_file)),
    };
    check_headers(catalog)?;
    // The files whose headers were looked at are those that were opened.
    source.check_unchanged()?;
    Ok(Opened { source, how, notes })
}

/// Checks that the files still have the headers of the catalog: by those their bytes are found.
fn check_headers(catalog: &Catalog) -> Result<(), SourceError> {
    catalog.files().iter().try_for_each(|entry| {
        let opened = OpenedFile::open(entry, OFlags::empty())?;
        match entry.has_header(opened.file()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(SourceError::HeaderChanged { path: entry.path.clone() }),
            Err(source) => Err(opened.unreadable(0, source)),
        }
    })
}

/// Whether a file, by its number, is to be read in one of these ways.
fn read_by(chosen: &[(FileFacts, Choice)], ways: &[Way]) -> impl Fn(usize) -> bool {
    move |file| chosen.get(file).is_some_and(|(_, choice)| ways.contains(&choice.way))
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    #[test]
    fn files_with_other_headers_than_were_read_are_refused() {
        let folder = fixture::checkpoint(&[1, 2, 3, 4]);
        let path = folder.path().join("model.safetensors");
        let catalog = Catalog::open(folder.path()).unwrap();
        for io in [Io::Auto, Io::Mmap, Io::Read, Io::Direct] {
            assert!(open(&catalog, io, false, 1).is_ok());
        }
        // As long as before, with the same bytes under another name.
        fixture::write(&path, "b", &[1, 2, 3, 4]);
        for io in [Io::Auto, Io::Mmap, Io::Read, Io::Direct] {
            let opened = open(&catalog, io, false, 1).map(drop);
            assert!(matches!(opened, Err(SourceError::HeaderChanged { .. })), "{opened:?}");
        }
        // A length that leads beyond the file, and one beyond everything.
        for length in [1 << 20, u64::MAX] {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[..8].copy_from_slice(&u64::to_le_bytes(length));
            std::fs::write(&path, bytes).unwrap();
            let opened = open(&catalog, Io::Read, false, 1).map(drop);
            assert!(matches!(opened, Err(SourceError::HeaderChanged { .. })), "{opened:?}");
        }
    }
}
