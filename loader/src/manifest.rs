//! The fingerprints of a checkpoint's tensors, made once and kept beside its plan.
//!
//! In come the files, once; out goes a document. Whoever loads with it need not sum up the files again, and finds out too when
//! they are not what they were.

use crate::{
    fingerprint::{Fingerprint, seed_of},
    source::{Request, Source, SourceError},
};
use serde::{Deserialize, Serialize};
use shardwright_planner::{
    checkpoint::{ByteRange, Catalog},
    quote::quote,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// What the document says that it is.
const FORMAT: &str = "shardwright fingerprints 1";

/// Largest document that is read: a million tensors with long names.
const MOST_BYTES: u64 = 256 << 20;

/// Bytes that a thread sums up at a time.
const STEP: u64 = 64 << 20;

/// The fingerprints of a checkpoint's tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// By the tensors' numbers in the catalog.
    sums: Vec<Fingerprint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    tensors: BTreeMap<String, String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is no manifest.
    #[error("{} is no manifest of fingerprints: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is another checkpoint's.
    #[error("{} is another checkpoint's: {} {}", path.display(), quote(tensor), if *missing { "is not in it" } else { "is in it and not in the checkpoint" })]
    OtherCheckpoint {
        /// The file.
        path: PathBuf,
        /// A tensor that one of the two lacks.
        tensor: String,
        /// Whether the manifest lacks it.
        missing: bool,
    },
}

impl Manifest {
    /// Sums up all tensors of `catalog`, whose files `source` has, with `threads` threads. `go_on` is asked now and then; `None`
    /// when it says no.
    ///
    /// # Errors
    /// [`SourceError`] when the files cannot be read, or changed meanwhile.
    pub fn of(
        catalog: &Catalog,
        source: &dyn Source,
        threads: usize,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Self>, SourceError> {
        let mut parts: Vec<(usize, ByteRange)> = Vec::new();
        for (id, tensor) in catalog.tensors().iter().enumerate() {
            let mut start = tensor.bytes.start();
            while start < tensor.bytes.stop() {
                let stop = start.saturating_add(STEP).min(tensor.bytes.stop());
                parts.extend(ByteRange::new(start, stop, u64::MAX).map(|range| (id, range)));
                start = stop;
            }
        }
        parts.sort_by_key(|(id, range)| (catalog.tensors()[*id].file, *range));
        let seeds: Vec<u64> = catalog.tensors().iter().map(|tensor| seed_of(&tensor.name)).collect();
        let sums = Mutex::new(vec![Fingerprint::default(); seeds.len()]);
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let lane = || {
            let mut own: BTreeMap<usize, Fingerprint> = BTreeMap::new();
            let mut next = || {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let (id, range) = parts.get(place)?;
                Some(Request { file: catalog.tensors()[*id].file, range: *range, tag: *id as u64 })
            };
            source.stream(&mut next, &mut |request, at, piece| {
                let id = usize::try_from(request.tag).unwrap_or(usize::MAX);
                if let (Some(tensor), Some(&seed)) = (catalog.tensors().get(id), seeds.get(id)) {
                    own.entry(id).or_default().add(seed, at - tensor.bytes.start(), piece);
                }
                if go_on() && !stopped.load(Ordering::Relaxed) {
                    return ControlFlow::Continue(());
                }
                stopped.store(true, Ordering::Relaxed);
                ControlFlow::Break(())
            })?;
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            own.into_iter().for_each(|(id, sum)| sums[id].merge(sum));
            Ok(())
        };
        let failed = || stopped.store(true, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let lane = || lane().inspect_err(|_| failed());
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(lane)).collect();
            let own = lane();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Result<(), SourceError>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            others.into_iter().map(join).fold(own, Result::and)
        })?;
        source.check_unchanged()?;
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((!stopped.into_inner()).then_some(Self { sums }))
    }

    /// The document, for the tensors of `catalog`.
    ///
    /// # Errors
    /// None that is known: names and numbers are always text.
    pub fn to_json(&self, catalog: &Catalog) -> Result<String, serde_json::Error> {
        let named = catalog.tensors().iter().zip(&self.sums);
        let tensors = named.map(|(tensor, sum)| (tensor.name.clone(), sum.to_string())).collect();
        let mut text = serde_json::to_string_pretty(&Document { format: FORMAT.to_owned(), tensors })?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the document at `path`, which is to be that of `catalog`.
    ///
    /// # Errors
    /// [`ManifestError`] when it cannot be read, is malformed, or does not name the tensors of `catalog`.
    pub fn read(path: &Path, catalog: &Catalog) -> Result<Self, ManifestError> {
        let malformed = |reason: String| ManifestError::Malformed { path: path.to_owned(), reason };
        let failed = |source| ManifestError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let mut text = String::new();
        let read = file.take(MOST_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
        if read as u64 > MOST_BYTES {
            return Err(malformed(format!("it has more than {} MiB", MOST_BYTES >> 20)));
        }
        let document: Document = serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        if document.format != FORMAT {
            return Err(malformed(format!(
                "its format is {}, not {}",
                quote(&document.format),
                quote(FORMAT)
            )));
        }
        let other = |tensor: &str, missing| ManifestError::OtherCheckpoint {
            path: path.to_owned(),
            tensor: tensor.to_owned(),
            missing,
        };
        let mut sums = Vec::with_capacity(catalog.tensors().len());
        for tensor in catalog.tensors() {
            let text = document.tensors.get(&tensor.name).ok_or_else(|| other(&tensor.name, true))?;
            let sum = Fingerprint::parse(text, tensor.bytes.len());
            sums.push(sum.ok_or_else(|| malformed(format!("{} is no fingerprint", quote(text))))?);
        }
        let known =
            |name: &str| catalog.tensors().binary_search_by(|tensor| tensor.name.as_str().cmp(name)).is_ok();
        match document.tensors.keys().find(|name| !known(name)) {
            Some(name) => Err(other(name, false)),
            None => Ok(Self { sums }),
        }
    }

    /// The fingerprint of the tensor with this number in the catalog.
    pub fn of_tensor(&self, id: usize) -> Fingerprint {
        self.sums.get(id).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ReadFiles;

    fn fixture() -> Catalog {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama-bf16");
        Catalog::open(&folder).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let catalog = fixture();
        let files = ReadFiles::open(&catalog).unwrap();
        let manifest = Manifest::of(&catalog, &files, 3, &|| true).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fingerprints.json");
        std::fs::write(&path, manifest.to_json(&catalog).unwrap()).unwrap();
        assert_eq!(Manifest::read(&path, &catalog).unwrap(), manifest);
        assert!(
            catalog
                .tensors()
                .iter()
                .enumerate()
                .all(|(id, tensor)| { manifest.of_tensor(id).bytes() == tensor.bytes.len() })
        );
        assert_eq!(Manifest::of(&catalog, &files, 2, &|| false).unwrap(), None);
    }

    #[test]
    fn what_is_no_manifest_of_this_checkpoint_is_refused() {
        let catalog = fixture();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fingerprints.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Manifest::read(&path, &catalog).unwrap_err().to_string()
        };
        assert!(error("[]").contains("is no manifest of fingerprints"));
        assert!(error(r#"{"format": "other", "tensors": {}}"#).contains("its format is `other`"));
        let none = format!(r#"{{"format": "{FORMAT}", "tensors": {{}}}}"#);
        assert!(
            error(&none).contains("is another checkpoint's: `lm_head.weight` is not in it"),
            "{}",
            error(&none)
        );
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(Manifest::read(&path, &catalog), Err(ManifestError::Read { .. })));
    }
}
