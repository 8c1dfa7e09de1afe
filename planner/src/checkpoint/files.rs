//! Which files a checkpoint consists of: one file, the files an index names, or those found in the folder.
//!
//! No name leads out of the folder, however it is written and whatever it links to. One exception is made because it is
//! how most checkpoints lie on disk: a hub cache's `snapshots/<revision>/` links into its sibling `blobs/`.

use super::error::CatalogError;
use crate::unique_map::repeated;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fmt, io,
    ops::Range,
    path::{Component, Path, PathBuf},
};

/// Longest index that is read, in bytes; DeepSeek-V3's, with 91,991 tensors, has 9 million.
const MAX_INDEX_BYTES: u64 = 512 << 20;

/// Most files a checkpoint may have.
const MAX_FILES: usize = 100_000;

const USUAL_INDEX: &str = "model.safetensors.index.json";
const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// The files of a checkpoint, found but not opened.
#[derive(Debug)]
pub(super) struct Files {
    /// The folder they lie in, as it was given.
    pub(super) folder: PathBuf,
    /// Names relative to the folder with their real paths, sorted by name.
    pub(super) files: Vec<(String, PathBuf)>,
    /// What the index says, when there is one.
    pub(super) index: Option<Index>,
}

/// A `model.safetensors.index.json`.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) path: PathBuf,
    pub(super) weight_map: WeightMap,
}

/// Which file each tensor lies in. There may be 100,000, so that their names are one text.
#[derive(Debug, Default)]
pub(super) struct WeightMap {
    /// The files, in the order in which they are first named.
    pub(super) files: Vec<String>,
    names: String,
    /// Sorted by name; no name stands twice.
    tensors: Vec<Listed>,
}

/// A tensor that the index lists.
#[derive(Debug)]
struct Listed {
    /// Its name, among all of them.
    name: Range<usize>,
    /// The number of its file.
    file: usize,
}

impl WeightMap {
    /// How many tensors it lists.
    pub(super) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The tensors, sorted by name, with the numbers of their files.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (&str, usize)> {
        self.tensors.iter().map(|listed| (&self.names[listed.name.clone()], listed.file))
    }

    /// The number of the file that the tensor called `name` lies in.
    pub(super) fn file_of(&self, name: &str) -> Option<usize> {
        let place = self.tensors.binary_search_by(|listed| self.names[listed.name.clone()].cmp(name));
        place.ok().map(|place| self.tensors[place].file)
    }
}

#[derive(Deserialize)]
struct IndexDocument {
    weight_map: WeightMap,
}

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let WeightMap { mut files, mut names, mut tensors } = WeightMap::default();
                let mut numbers: HashMap<String, usize> = HashMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, Cow<'de, str>>()? {
                    let number = match numbers.get(file.as_ref()) {
                        Some(&number) => number,
                        None => {
                            numbers.insert(file.clone().into_owned(), files.len());
                            files.push(file.into_owned());
                            files.len() - 1
                        }
                    };
                    let start = names.len();
                    names.push_str(&tensor);
                    tensors.push(Listed { name: start..names.len(), file: number });
                }
                let name = |listed: &Listed| &names[listed.name.clone()];
                tensors.sort_unstable_by(|a, b| name(a).cmp(name(b)));
                match tensors.windows(2).find(|pair| name(&pair[0]) == name(&pair[1])) {
                    Some(pair) => Err(repeated(name(&pair[0]))),
                    None => Ok(WeightMap { files, names, tensors }),
                }
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// Finds the files of the checkpoint at `path`.
pub(super) fn find(path: &Path) -> Result<Files, CatalogError> {
    let meta = std::fs::metadata(path).map_err(|source| read_error(path, source))?;
    if meta.is_dir() {
        return in_folder(path);
    }
    let folder = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let name = text(path.file_name());
    if name.ends_with(INDEX_SUFFIX) {
        return from_index(&folder, path.to_owned());
    }
    // The caller named this very file, so wherever it links to is meant.
    let real = regular_file(path)?;
    Ok(Files { folder, files: vec![(name, real)], index: None })
}

fn in_folder(folder: &Path) -> Result<Files, CatalogError> {
    let entries = std::fs::read_dir(folder).map_err(|source| read_error(folder, source))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| read_error(folder, source))?;
        names.push(text(Some(&entry.file_name())));
    }
    names.sort();

    let has = |name: &str| names.iter().any(|other| other == name);
    if has(USUAL_INDEX) {
        return from_index(folder, folder.join(USUAL_INDEX));
    }
    let data: Vec<&String> = if has("model.safetensors") {
        names.iter().filter(|name| *name == "model.safetensors").collect()
    } else {
        let mut indexes = names.iter().filter(|name| name.ends_with(INDEX_SUFFIX));
        match (indexes.next(), indexes.count()) {
            (Some(index), 0) => return from_index(folder, folder.join(index)),
            (Some(_), more) => {
                return Err(CatalogError::SeveralIndexes { folder: folder.to_owned(), count: more + 1 });
            }
            (None, _) => {}
        }
        names.iter().filter(|name| name.ends_with(".safetensors")).collect()
    };
    if data.is_empty() {
        return Err(CatalogError::Empty { folder: folder.to_owned() });
    }
    let roots = Roots::of(folder)?;
    let files = data
        .into_iter()
        .map(|name| Ok((name.clone(), roots.resolve(folder, name, folder)?)))
        .collect::<Result<_, CatalogError>>()?;
    Ok(Files { folder: folder.to_owned(), files, index: None })
}

fn from_index(folder: &Path, path: PathBuf) -> Result<Files, CatalogError> {
    let real = regular_file(&path)?;
    let length = std::fs::metadata(&real).map_err(|source| read_error(&path, source))?.len();
    let bad = |reason: String| CatalogError::BadIndex { path: path.clone(), reason };
    if length > MAX_INDEX_BYTES {
        return Err(bad(format!("it has {length} bytes, more than {MAX_INDEX_BYTES}")));
    }
    let json = std::fs::read(&real).map_err(|source| read_error(&path, source))?;
    let document: IndexDocument = serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))?;
    let weight_map = document.weight_map;
    if weight_map.len() == 0 {
        return Err(bad("it names no tensor".to_owned()));
    }
    if weight_map.files.len() > MAX_FILES {
        return Err(bad(format!("it names more than {MAX_FILES} files")));
    }

    let roots = Roots::of(folder)?;
    let mut files = BTreeMap::new();
    for file in &weight_map.files {
        files.insert(file.clone(), roots.resolve(folder, file, &path)?);
    }
    Ok(Files {
        folder: folder.to_owned(),
        files: files.into_iter().collect(),
        index: Some(Index { path, weight_map }),
    })
}

/// The real folders in which a checkpoint's files may lie.
pub(super) struct Roots(Vec<PathBuf>);

impl Roots {
    /// Those of a checkpoint in `folder`.
    pub(super) fn of(folder: &Path) -> Result<Self, CatalogError> {
        let real = folder.canonicalize().map_err(|source| read_error(folder, source))?;
        let mut roots = Vec::new();
        if let Some(snapshots) = real.parent()
            && snapshots.file_name() == Some(OsStr::new("snapshots"))
        {
            roots.extend(snapshots.parent().map(|cache| cache.join("blobs")));
        }
        roots.push(real);
        Ok(Self(roots))
    }

    /// The real path of `name` in `folder`; `named_by` is what a message should point at.
    pub(super) fn resolve(
        &self,
        folder: &Path,
        name: &str,
        named_by: &Path,
    ) -> Result<PathBuf, CatalogError> {
        let outside = || CatalogError::OutsideFolder { index: named_by.to_owned(), file: name.to_owned() };
        let plain = |part| matches!(part, Component::Normal(_));
        if name.is_empty() || !Path::new(name).components().all(plain) {
            return Err(outside());
        }
        let path = folder.join(name);
        let real = path.canonicalize().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => {
                CatalogError::MissingFile { index: named_by.to_owned(), file: name.to_owned() }
            }
            _ => read_error(&path, source),
        })?;
        if !self.0.iter().any(|root| real.starts_with(root)) {
            return Err(outside());
        }
        regular_file(&real)
    }
}

/// The real path of `path`, which must be a regular file: opening a pipe would wait for ever.
fn regular_file(path: &Path) -> Result<PathBuf, CatalogError> {
    let real = path.canonicalize().map_err(|source| read_error(path, source))?;
    let meta = std::fs::metadata(&real).map_err(|source| read_error(path, source))?;
    if !meta.is_file() {
        return Err(CatalogError::NotAFile { path: path.to_owned() });
    }
    Ok(real)
}

fn read_error(path: &Path, source: io::Error) -> CatalogError {
    CatalogError::Read { path: path.to_owned(), source }
}

fn text(name: Option<&OsStr>) -> String {
    name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
