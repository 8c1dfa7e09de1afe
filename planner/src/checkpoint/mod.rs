//! What is in a checkpoint's files: names, dtypes, shapes and byte ranges.
//!
//! In comes a path: a folder, one `.safetensors` file, or an index. Out goes a [`Catalog`], in which every tensor's
//! bytes are known to lie inside a regular file of the checkpoint's folder. Headers only: no weight byte is read, and
//! nothing here knows what a tensor is for.

mod byte_range;
mod catalog;
mod error;
mod files;
mod header;

pub use byte_range::ByteRange;
pub use catalog::{Catalog, CatalogFile, RANK_PART, TensorEntry};
pub use error::{CatalogError, HeaderError};
pub use header::MAX_HEADER_BYTES;
pub use safetensors::Dtype;
