//! The fingerprints of a checkpoint's tensors, made once and kept beside its plan.
//!
//! In come the files, once; out goes a document. Whoever loads with it need not sum up the files again, and finds out too when
//! they are not what they were.

use crate::{
    cast::{Cast, Casts},
    fingerprint::{Fingerprint, seed_of},
    source::SourceError,
    tensors::{Tensors, Wanted},
};
use serde::{Deserialize, Serialize};
use shardwright_planner::{
    checkpoint::{Catalog, Dtype},
    plan::CastDtype,
    quote::quote,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    ops::{ControlFlow, Range},
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
    /// The dtypes of those that were summed up as another than they are stored in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    cast: BTreeMap<String, CastDtype>,
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
    /// It was made for a plan that casts otherwise.
    #[error("{} has the sum of {} as {made}, and the plan loads it as {wanted}", path.display(), quote(tensor))]
    OtherDtype {
        /// The file.
        path: PathBuf,
        /// A tensor.
        tensor: String,
        /// The dtype that it was summed up in.
        made: Dtype,
        /// The dtype that it is loaded in.
        wanted: Dtype,
    },
}

impl Manifest {
    /// Sums up all of `tensors`, as they are loaded, with `threads` threads. `go_on` is asked now and then; `None` when it says no.
    ///
    /// # Errors
    /// [`SourceError`] when the files cannot be read, or changed meanwhile.
    pub fn of(
        tensors: &Tensors<'_>,
        threads: usize,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Self>, SourceError> {
        let entries = tensors.catalog().tensors();
        let mut in_order: Vec<usize> = (0..entries.len()).collect();
        in_order.sort_by_key(|&id| (entries[id].file, entries[id].bytes));
        let mut parts: Vec<(usize, Range<u64>)> = Vec::new();
        for id in in_order {
            let len = tensors.len_of(id);
            let mut start = 0u64;
            while start < len {
                let stop = start.saturating_add(STEP).min(len);
                parts.push((id, start..stop));
                start = stop;
            }
        }
        let seeds: Vec<u64> = entries.iter().map(|tensor| seed_of(&tensor.name)).collect();
        let sums = Mutex::new(vec![Fingerprint::default(); seeds.len()]);
        let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
        let lane = || {
            let mut own: BTreeMap<usize, Fingerprint> = BTreeMap::new();
            let mut next = || {
                let place = next.fetch_add(1, Ordering::Relaxed);
                let (id, bytes) = parts.get(place)?;
                Some(Wanted { tensor: *id, bytes: bytes.clone(), tag: 0, shared: false })
            };
            tensors.stream(&mut next, &mut |wanted, at, piece| {
                own.entry(wanted.tensor).or_default().add(seeds[wanted.tensor], at, piece);
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
        tensors.check_unchanged()?;
        let sums = sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok((!stopped.into_inner()).then_some(Self { sums }))
    }

    /// The document, for the tensors of `catalog` and the casts that they were summed up with.
    ///
    /// # Errors
    /// None that is known: names and numbers are always text.
    pub fn to_json(&self, catalog: &Catalog, casts: &Casts) -> Result<String, serde_json::Error> {
        let named = catalog.tensors().iter().zip(&self.sums);
        let tensors = named.map(|(tensor, sum)| (tensor.name.to_string(), sum.to_string())).collect();
        let all = catalog.tensors().iter().enumerate();
        let cast = all.filter_map(|(id, tensor)| Some((tensor.name.to_string(), casts.of(id)?.loaded())));
        let document = Document { format: FORMAT.to_owned(), tensors, cast: cast.collect() };
        let mut text = serde_json::to_string_pretty(&document)?;
        text.push('\n');
        Ok(text)
    }

    /// Reads the document at `path`, which is to be that of `catalog` with these casts.
    ///
    /// # Errors
    /// [`ManifestError`] when it cannot be read, is malformed, does not name the tensors of `catalog`, or has the sums of others
    /// dtypes.
    pub fn read(path: &Path, catalog: &Catalog, casts: &Casts) -> Result<Self, ManifestError> {
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
        for (id, tensor) in catalog.tensors().iter().enumerate() {
            let (made, wanted) = (document.cast.get(&*tensor.name).copied(), casts.of(id).map(Cast::loaded));
            if made != wanted {
                let as_loaded = |cast: Option<CastDtype>| cast.map_or(tensor.dtype, Dtype::from);
                return Err(ManifestError::OtherDtype {
                    path: path.to_owned(),
                    tensor: tensor.name.to_string(),
                    made: as_loaded(made),
                    wanted: as_loaded(wanted),
                });
            }
            let text = document.tensors.get(&*tensor.name).ok_or_else(|| other(&tensor.name, true))?;
            let sum = Fingerprint::parse(text, casts.len_of(id));
            sums.push(sum.ok_or_else(|| malformed(format!("{} is no fingerprint", quote(text))))?);
        }
        let known = |name: &str| catalog.number_of(name).is_some();
        match document.tensors.keys().chain(document.cast.keys()).find(|name| !known(name)) {
            Some(name) => Err(other(name, false)),
            None => Ok(Self { sums }),
        }
    }

    /// A sum over all of them, in order.
    pub fn sum(&self) -> Fingerprint {
        let seed = seed_of(FORMAT);
        let mut all = Fingerprint::default();
        let mut at = 0;
        for limb in self.sums.iter().flat_map(|sum| sum.to_limbs()) {
            let bytes = limb.to_le_bytes();
            all.add(seed, at, &bytes);
            at += bytes.len() as u64;
        }
        all
    }

    /// The fingerprint of the tensor with this number in the catalog.
    pub fn of_tensor(&self, id: usize) -> Fingerprint {
        self.sums.get(id).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fixture::planned_as, source::ReadFiles};

    fn fixture() -> Catalog {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints/llama-bf16");
        Catalog::open(&folder).unwrap()
    }

    #[test]
    fn what_was_written_is_read_again() {
        let catalog = fixture();
        let files = ReadFiles::open(&catalog).unwrap();
        let casts = Casts::none(&catalog);
        let tensors = Tensors::new(&catalog, &casts, &files);
        let manifest = Manifest::of(&tensors, 3, &|| true).unwrap().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fingerprints.json");
        std::fs::write(&path, manifest.to_json(&catalog, &casts).unwrap()).unwrap();
        assert_eq!(Manifest::read(&path, &catalog, &casts).unwrap(), manifest);
        assert!(
            catalog
                .tensors()
                .iter()
                .enumerate()
                .all(|(id, tensor)| { manifest.of_tensor(id).bytes() == tensor.bytes.len() })
        );
        assert_eq!(Manifest::of(&tensors, 2, &|| false).unwrap(), None);
    }

    #[test]
    fn sums_of_another_dtype_are_refused_with_both() {
        let (plan, catalog) = planned_as("llama-bf16", 1, 1, 1, Some(CastDtype::F32));
        let files = ReadFiles::open(&catalog).unwrap();
        let (cast, none) = (Casts::new(&plan, &catalog).unwrap(), Casts::none(&catalog));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fingerprints.json");
        let of = |casts: &Casts| {
            Manifest::of(&Tensors::new(&catalog, casts, &files), 2, &|| true).unwrap().unwrap()
        };
        assert!((0..catalog.tensors().len()).all(|id| of(&cast).of_tensor(id) != of(&none).of_tensor(id)));
        for (made, wanted, says) in [
            (&cast, &none, "as F32, and the plan loads it as BF16"),
            (&none, &cast, "as BF16, and the plan loads it as F32"),
        ] {
            std::fs::write(&path, of(made).to_json(&catalog, made).unwrap()).unwrap();
            assert_eq!(Manifest::read(&path, &catalog, made).unwrap(), of(made));
            let error = Manifest::read(&path, &catalog, wanted).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn what_is_no_manifest_of_this_checkpoint_is_refused() {
        let catalog = fixture();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fingerprints.json");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Manifest::read(&path, &catalog, &Casts::none(&catalog)).unwrap_err().to_string()
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
        assert!(matches!(
            Manifest::read(&path, &catalog, &Casts::none(&catalog)),
            Err(ManifestError::Read { .. })
        ));
    }
}
