//! Opening a checkpoint's files, each in the way that suits it.

use super::{
    ByFile, Choice, DirectError, DirectFiles, DirectOptions, FileFacts, HostFacts, Io, MappedFiles,
    ReadFiles, Source, SourceError, SourcesOf, Way, choose, summary,
};
use crate::device::HostDevice;
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
                        choice.way = Way::Read;
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
    Ok(Opened { source, how, notes })
}

/// Whether a file, by its number, is to be read in one of these ways.
fn read_by(chosen: &[(FileFacts, Choice)], ways: &[Way]) -> impl Fn(usize) -> bool {
    move |file| chosen.get(file).is_some_and(|(_, choice)| ways.contains(&choice.way))
}
