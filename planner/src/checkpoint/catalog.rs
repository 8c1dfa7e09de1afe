//! The catalog: every tensor of a checkpoint and the file and bytes it lies in.

use super::{
    ByteRange, Dtype,
    error::CatalogError,
    files::{self, Roots},
    header::{Header, header_digest, read_header},
};
use rayon::prelude::*;
use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is in a checkpoint's files. Every byte range lies inside its file, and no name stands twice.
#[derive(Debug)]
pub struct Catalog {
    folder: PathBuf,
    files: Vec<CatalogFile>,
    tensors: Vec<TensorEntry>,
    unlisted: usize,
    /// Whether the names say whose tensors they are.
    is_of_ranks: bool,
}

/// What stands between a tensor's name and its rank, where files belong to ranks.
pub const RANK_PART: &str = "rank";

/// One file of a checkpoint.
#[derive(Debug, Clone)]
pub struct CatalogFile {
    /// Relative to the checkpoint's folder.
    pub name: String,
    /// Where the file really lies.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its header, the length included.
    pub header_digest: [u8; 32],
}

impl CatalogFile {
    /// Whether `file`, read from its beginning, has the header that was read into the catalog.
    ///
    /// # Errors
    /// Those of reading; a file that ends within the length among them.
    pub fn has_header(&self, file: impl Read) -> io::Result<bool> {
        Ok(header_digest(file)? == Some(self.header_digest))
    }
}

/// One tensor.
#[derive(Debug, Clone)]
pub struct TensorEntry {
    /// Its name in the header. Whoever keeps it shares it: there may be 100,000.
    pub name: Arc<str>,
    /// Its dtype as safetensors knows it.
    pub dtype: Dtype,
    /// Its shape, outermost dimension first. Tensors that have the same share it.
    pub shape: Arc<[u64]>,
    /// Which file of [`Catalog::files`].
    pub file: usize,
    /// Its bytes in that file, row-major.
    pub bytes: ByteRange,
}

/// The shapes of a checkpoint, which are few.
#[derive(Default)]
struct Shapes(HashSet<Arc<[u64]>>);

impl Shapes {
    fn shared(&mut self, shape: &[u64]) -> Arc<[u64]> {
        if let Some(known) = self.0.get(shape) {
            return Arc::clone(known);
        }
        let shape: Arc<[u64]> = shape.into();
        self.0.insert(Arc::clone(&shape));
        shape
    }
}

impl Catalog {
    /// Reads the headers of the checkpoint at `path`: a folder, one `.safetensors` file, or an index.
    ///
    /// # Errors
    /// [`CatalogError`] names the file, the tensor and the numbers of whatever cannot be believed.
    pub fn open(path: &Path) -> Result<Self, CatalogError> {
        let found = files::find(path)?;
        let read = found
            .files
            .par_iter()
            .map(|(name, path)| open_one(name, path))
            .collect::<Result<Vec<_>, CatalogError>>()?;
        let (files, headers): (Vec<CatalogFile>, Vec<Header>) = read.into_iter().unzip();
        // Where the index says that tensors lie, by the numbers of the files here.
        let numbers: HashMap<&str, usize> =
            files.iter().enumerate().map(|(number, file)| (file.name.as_str(), number)).collect();
        let listed = found.index.as_ref().map(|index| {
            let map = &index.weight_map;
            (map, map.files.iter().map(|file| numbers.get(file.as_str()).copied()).collect::<Vec<_>>())
        });

        let mut tensors: Vec<TensorEntry> = Vec::with_capacity(headers.iter().map(|h| h.tensors.len()).sum());
        let (mut unlisted, mut shapes) = (0, Shapes::default());
        for (file, header) in headers.into_iter().enumerate() {
            for tensor in header.tensors {
                if let Some((listed, files)) = &listed
                    && listed.file_of(&tensor.name).and_then(|number| files[number]) != Some(file)
                {
                    unlisted += 1;
                    continue;
                }
                tensors.push(TensorEntry {
                    name: tensor.name,
                    dtype: tensor.dtype,
                    shape: shapes.shared(&tensor.shape),
                    file,
                    bytes: tensor.bytes,
                });
            }
        }
        sort_by_name(&mut tensors, |number| &files[number].name).map_err(|(_, error)| error)?;
        if let Some(index) = &found.index
            && tensors.len() < index.weight_map.len()
        {
            let missing =
                index.weight_map.tensors().find(|(tensor, _)| number_of(&tensors, tensor).is_none());
            if let Some((tensor, file)) = missing {
                return Err(CatalogError::MissingTensor {
                    index: index.path.clone(),
                    tensor: tensor.to_owned(),
                    file: index.weight_map.files[file].clone(),
                });
            }
        }
        Ok(Self { folder: found.folder, files, tensors, unlisted, is_of_ranks: false })
    }

    /// Reads the headers of files that belong to ranks: tensor `t` of rank 3 is called `t.rank.3`, as several ranks may have one of that
    /// name. `files` are those of `folder`, each with its rank.
    ///
    /// # Errors
    /// The rank whose files cannot be believed, and why.
    pub fn of_ranks(folder: &Path, files: &[(u32, String)]) -> Result<Self, (u32, CatalogError)> {
        let first = files.first().map_or(0, |(rank, _)| *rank);
        let roots = Roots::of(folder).map_err(|error| (first, error))?;
        let open = |(rank, name): &(u32, String)| {
            let opened = roots.resolve(folder, name, folder).and_then(|path| open_one(name, &path));
            opened.map(|(file, header)| (*rank, file, header)).map_err(|error| (*rank, error))
        };
        let mut read = files.par_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        read.sort_by(|(_, a, _), (_, b, _)| a.name.cmp(&b.name));
        let mut tensors = Vec::with_capacity(read.iter().map(|(.., header)| header.tensors.len()).sum());
        let (mut files, mut shapes) = (Vec::with_capacity(read.len()), Shapes::default());
        for (number, (rank, file, header)) in read.into_iter().enumerate() {
            tensors.extend(header.tensors.into_iter().map(|tensor| TensorEntry {
                name: format!("{}.{RANK_PART}.{rank}", tensor.name).into(),
                dtype: tensor.dtype,
                shape: shapes.shared(&tensor.shape),
                file: number,
                bytes: tensor.bytes,
            }));
            files.push((rank, file));
        }
        sort_by_name(&mut tensors, |number| &files[number].1.name)
            .map_err(|(second, error)| (files[second].0, error))?;
        let files = files.into_iter().map(|(_, file)| file).collect();
        Ok(Self { folder: folder.to_owned(), files, tensors, unlisted: 0, is_of_ranks: true })
    }

    /// The name that `rank` knows the tensor with this number by.
    pub fn own_name(&self, number: usize, rank: u32) -> &str {
        let name = &*self.tensors[number].name;
        if !self.is_of_ranks {
            return name;
        }
        name.strip_suffix(&format!(".{RANK_PART}.{rank}")).unwrap_or(name)
    }

    /// The folder the files lie in, as it was given; `config.json` is looked for there.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The files, sorted by name.
    pub fn files(&self) -> &[CatalogFile] {
        &self.files
    }

    /// The tensors, sorted by name.
    pub fn tensors(&self) -> &[TensorEntry] {
        &self.tensors
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorEntry> {
        self.number_of(name).map(|number| &self.tensors[number])
    }

    /// The number among [`Catalog::tensors`] of the tensor called `name`.
    pub fn number_of(&self, name: &str) -> Option<usize> {
        number_of(&self.tensors, name)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes.len()).sum()
    }

    /// Tensors that lie in the files but that the index does not list there; they are not part of the checkpoint.
    pub fn unlisted(&self) -> usize {
        self.unlisted
    }
}

/// The number of the tensor called `name` among `tensors`, which are sorted by name.
fn number_of(tensors: &[TensorEntry], name: &str) -> Option<usize> {
    tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()
}

/// Sorts tensors by name. The number of the second file is told where a name stands in two.
fn sort_by_name<'a>(
    tensors: &mut [TensorEntry],
    file_name: impl Fn(usize) -> &'a String,
) -> Result<(), (usize, CatalogError)> {
    tensors.par_sort_unstable_by(|a, b| a.name.cmp(&b.name).then(a.file.cmp(&b.file)));
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => {
            let [first, second] = [0, 1].map(|at| file_name(pair[at].file).clone());
            let tensor = pair[0].name.to_string();
            Err((pair[1].file, CatalogError::InTwoFiles { tensor, first, second }))
        }
        None => Ok(()),
    }
}

fn open_one(name: &str, path: &Path) -> Result<(CatalogFile, Header), CatalogError> {
    let read_error = |source| CatalogError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read_error)?;
    let bytes = file.metadata().map_err(read_error)?.len();
    let header =
        read_header(file, bytes).map_err(|source| CatalogError::Header { path: path.to_owned(), source })?;
    let entry =
        CatalogFile { name: name.to_owned(), path: path.to_owned(), bytes, header_digest: header.digest };
    Ok((entry, header))
}

#[cfg(test)]
mod tests;
