//! One safetensors file: its header read, and every claim in it checked, before any of it is believed.
//!
//! A file is an 8-byte little-endian length, that many bytes of JSON, and the data. The JSON maps names to dtype, shape
//! and offsets into the data. The tensors must tile the data exactly: no gap, no overlap, nothing left over.
//! Format: <https://huggingface.co/docs/safetensors>; the `safetensors` crate's own reader is the oracle in the tests.

use super::{ByteRange, Dtype, error::HeaderError};
use crate::unique_map::{REPEATED, UniqueMap};
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use std::{
    io::{self, BufRead, BufReader, Read},
    sync::Arc,
};

/// Longest JSON header that is read, in bytes. The same limit as the `safetensors` crate's.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Most dimensions a tensor may have; no framework writes more.
const MAX_DIMENSIONS: usize = 64;

/// The length that stands before the JSON.
const LENGTH_BYTES: u64 = 8;

/// A file's header, checked against the length of the file.
#[derive(Debug)]
pub(super) struct Header {
    /// SHA-256 of the length and the JSON: two files with the same digest and size lay out the same tensors.
    pub(super) digest: [u8; 32],
    /// Tensors in the order of their bytes.
    pub(super) tensors: Vec<HeaderTensor>,
}

/// One tensor as the header declares it, with its place in the file.
#[derive(Debug)]
pub(super) struct HeaderTensor {
    pub(super) name: Arc<str>,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
    /// From the beginning of the file, not of the data.
    pub(super) bytes: ByteRange,
}

/// The key under which a header may carry a map of free texts.
const METADATA: &str = "__metadata__";

/// Reads the header of a file of `file_bytes` bytes from its beginning.
pub(super) fn read_header(mut file: impl Read, file_bytes: u64) -> Result<Header, HeaderError> {
    if file_bytes < LENGTH_BYTES {
        return Err(HeaderError::TooShort { file_bytes });
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(HeaderError::Read)?;
    let header_bytes = u64::from_le_bytes(length);
    let room = (file_bytes - LENGTH_BYTES).min(MAX_HEADER_BYTES);
    if header_bytes > room {
        return Err(HeaderError::HeaderBeyondFile { header_bytes, file_bytes });
    }
    // Bounded by the check above: at most MAX_HEADER_BYTES.
    let mut json = Vec::new();
    file.take(header_bytes).read_to_end(&mut json).map_err(HeaderError::Read)?;
    if json.len() as u64 != header_bytes {
        return Err(HeaderError::Read(std::io::ErrorKind::UnexpectedEof.into()));
    }
    let digest = Sha256::new().chain_update(length).chain_update(&json).finalize().into();
    // Entries are parsed one by one, so that what is wrong with one is said with its name.
    let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<&RawValue>>(&json).map_err(not_json)?;

    let data_start = LENGTH_BYTES + header_bytes;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        if name == METADATA {
            parse_entry::<UniqueMap<String>>(&name, entry)?;
            continue;
        }
        let info: TensorInfo = parse_entry(&name, entry)?;
        tensors.push(checked_tensor(name, &info, data_start, file_bytes)?);
    }
    tensors.sort_by_key(|tensor| tensor.bytes);
    check_tiling(&tensors, data_start, file_bytes)?;
    Ok(Header { digest, tensors })
}

/// SHA-256 of the length and the JSON at the beginning of `file`, whatever they say; `None` when the length is more than is read.
pub(super) fn header_digest(mut file: impl Read) -> io::Result<Option<[u8; 32]>> {
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    if header_bytes > MAX_HEADER_BYTES {
        return Ok(None);
    }
    let (mut digest, mut left) = (Sha256::new().chain_update(length), header_bytes);
    let mut json = BufReader::new(file.take(header_bytes));
    loop {
        let part = json.fill_buf()?;
        let bytes = part.len();
        if bytes == 0 {
            return Ok((left == 0).then(|| digest.finalize().into()));
        }
        digest.update(part);
        left -= bytes as u64;
        json.consume(bytes);
    }
}

fn parse_entry<'json, T: Deserialize<'json>>(name: &str, entry: &'json RawValue) -> Result<T, HeaderError> {
    serde_json::from_str(entry.get())
        .map_err(|source| HeaderError::BadEntry { name: name.to_owned(), source })
}

fn not_json(error: serde_json::Error) -> HeaderError {
    let text = error.to_string();
    match text.strip_prefix(REPEATED) {
        Some(rest) => {
            HeaderError::RepeatedTensor { quoted: rest.split(" at line ").next().unwrap_or(rest).to_owned() }
        }
        None => HeaderError::NotJson(error),
    }
}

/// Checks one tensor on its own: offsets in order and inside the file, and as many bytes as shape and dtype ask.
fn checked_tensor(
    name: String,
    info: &TensorInfo,
    data_start: u64,
    file_bytes: u64,
) -> Result<HeaderTensor, HeaderError> {
    let (start, stop) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
    let shape: Vec<u64> = info.shape.iter().map(|&size| size as u64).collect();
    if shape.len() > MAX_DIMENSIONS {
        let dimensions = shape.len();
        return Err(HeaderError::TooManyDimensions { name, dimensions });
    }
    if start > stop {
        return Err(HeaderError::Inverted { name, start, stop });
    }
    let product = |least: u64| {
        shape.iter().try_fold(info.dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size.max(least)))
    };
    // An empty tensor's other sizes are multiplied too, where parts of it are counted.
    let expected = match product(1).and_then(|_| product(0)) {
        Some(bits) if bits % 8 == 0 => bits / 8,
        _ => {
            let dtype = info.dtype;
            return Err(HeaderError::NoWholeBytes { name, dtype, shape });
        }
    };
    if expected != stop - start {
        return Err(HeaderError::WrongSize { name, dtype: info.dtype, shape, expected, found: stop - start });
    }
    let place = data_start.checked_add(start).zip(data_start.checked_add(stop));
    let Some(bytes) = place.and_then(|(start, stop)| ByteRange::new(start, stop, file_bytes)) else {
        let end = data_start.saturating_add(stop);
        return Err(HeaderError::BeyondFile { name, end, file_bytes });
    };
    Ok(HeaderTensor { name: name.into(), dtype: info.dtype, shape, bytes })
}

/// Checks that the tensors, in the order of their bytes, fill the data from its first byte to its last.
fn check_tiling(tensors: &[HeaderTensor], data_start: u64, file_bytes: u64) -> Result<(), HeaderError> {
    let mut end = data_start;
    let mut previous: Option<&HeaderTensor> = None;
    for tensor in tensors {
        let start = tensor.bytes.start();
        if start < end {
            return Err(HeaderError::Overlap {
                name: tensor.name.to_string(),
                other: previous.map_or_else(String::new, |tensor| tensor.name.to_string()),
                bytes: end - start,
            });
        }
        if start > end {
            return Err(HeaderError::Gap { before: tensor.name.to_string(), bytes: start - end });
        }
        end = tensor.bytes.stop();
        previous = Some(tensor);
    }
    if end != file_bytes {
        let bytes = file_bytes - end;
        return Err(HeaderError::LeftOver { bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
