//! The document as it goes over the socket: JSON, which is not believed before it is checked.

use super::{Document, DocumentError, HeldGpu, HeldRank, PROTOCOL, TensorFlaw};
use crate::{
    load::{PlacedTensors, TensorPlace},
    schedule::TensorForm,
    verify::Extent,
};
use serde::{Deserialize, Serialize};
use shardwright_planner::checkpoint::Dtype;
use std::{borrow::Cow, fmt::Write, sync::Arc};

/// Most ranks that one process holds.
const MOST_RANKS: usize = 1024;

/// Longest text that is no tensor's name: a path is not longer.
const MOST_TEXT_BYTES: usize = 4096;

/// Tensors begin at multiples of this.
const ALIGNMENT: u64 = 256;

/// Digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// Digits of a fingerprint.
const FINGERPRINT_DIGITS: usize = 32;

#[derive(Serialize, Deserialize)]
#[serde(expecting = "a document")]
struct RawDocument<'a> {
    protocol: u64,
    #[serde(borrow)]
    shardwright: Cow<'a, str>,
    pid: u32,
    since: u64,
    plan: Cow<'a, str>,
    checkpoint: Cow<'a, str>,
    verified: RawExtent,
    ranks: Vec<RawRank<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawExtent {
    Full,
    Sample,
    Off,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "a rank")]
struct RawRank<'a> {
    rank: u32,
    #[serde(borrow)]
    device: RawDevice<'a>,
    bytes: u64,
    handle: Cow<'a, str>,
    fingerprint: Cow<'a, str>,
    tensors: Vec<RawTensor<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "a device")]
struct RawDevice<'a> {
    kind: RawKind,
    #[serde(borrow)]
    uuid: Cow<'a, str>,
    name: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Cuda,
}

#[derive(Serialize, Deserialize)]
#[serde(expecting = "a tensor")]
struct RawTensor<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    dtype: Dtype,
    shape: Cow<'a, [u64]>,
    offset: u64,
    bytes: u64,
}

impl Document {
    /// The document in JSON, on one line.
    pub(super) fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&RawDocument {
            protocol: PROTOCOL,
            shardwright: (&self.shardwright).into(),
            pid: self.pid,
            since: self.since,
            plan: (&self.plan).into(),
            checkpoint: (&self.checkpoint).into(),
            verified: match self.verified {
                Some(Extent::Full) => RawExtent::Full,
                Some(Extent::Sample) => RawExtent::Sample,
                None => RawExtent::Off,
            },
            ranks: self.ranks.iter().map(RawRank::of).collect(),
        })
    }

    /// Reads and checks what a holder sent.
    pub(super) fn from_json(json: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawDocument<'_> = serde_json::from_slice(json)?;
        if raw.protocol != PROTOCOL {
            return Err(DocumentError::Protocol { found: raw.protocol });
        }
        if raw.ranks.len() > MOST_RANKS {
            return Err(DocumentError::TooManyRanks { found: raw.ranks.len(), most: MOST_RANKS });
        }
        if !is_hexadecimal(&raw.plan, DIGEST_DIGITS) {
            return Err(DocumentError::Field { rank: None, field: "plan", rule: "64 hexadecimal digits" });
        }
        let ranks: Vec<HeldRank> = raw.ranks.into_iter().map(RawRank::checked).collect::<Result<_, _>>()?;
        if let Some(pair) = ranks.windows(2).find(|pair| pair[0].rank >= pair[1].rank) {
            let rank = Some(pair[1].rank);
            return Err(DocumentError::Field { rank, field: "rank", rule: "greater than the one before it" });
        }
        Ok(Self {
            shardwright: text(raw.shardwright, None, "shardwright")?,
            pid: raw.pid,
            since: raw.since,
            plan: raw.plan.into_owned(),
            checkpoint: text(raw.checkpoint, None, "checkpoint")?,
            verified: match raw.verified {
                RawExtent::Full => Some(Extent::Full),
                RawExtent::Sample => Some(Extent::Sample),
                RawExtent::Off => None,
            },
            ranks,
        })
    }
}

impl<'a> RawRank<'a> {
    fn of(held: &'a HeldRank) -> Self {
        let tensor = |tensor: &'a TensorPlace| RawTensor {
            name: (&*tensor.name).into(),
            dtype: tensor.held.dtype,
            shape: (&tensor.held.shape).into(),
            offset: tensor.offset,
            bytes: tensor.held.bytes,
        };
        Self {
            rank: held.rank,
            device: RawDevice {
                kind: RawKind::Cuda,
                uuid: (&held.gpu.uuid).into(),
                name: (&held.gpu.name).into(),
            },
            bytes: held.bytes,
            handle: to_hexadecimal(&held.handle).into(),
            fingerprint: (&held.fingerprint).into(),
            tensors: held.tensors.all().iter().map(tensor).collect(),
        }
    }

    fn checked(self) -> Result<HeldRank, DocumentError> {
        let rank = Some(self.rank);
        let malformed = |field, rule| DocumentError::Field { rank, field, rule };
        let handle = from_hexadecimal(&self.handle);
        if !is_hexadecimal(&self.fingerprint, FINGERPRINT_DIGITS) {
            return Err(malformed("fingerprint", "32 hexadecimal digits"));
        }
        let RawKind::Cuda = self.device.kind;
        let tensor = |tensor: RawTensor<'_>| {
            let checked = tensor.checked(self.bytes);
            checked.map_err(|(tensor, flaw)| DocumentError::Tensor { rank: self.rank, tensor, flaw })
        };
        let tensors = self.tensors.into_iter().map(tensor).collect::<Result<_, _>>()?;
        let tensors = PlacedTensors::new(tensors);
        if let Some(tensor) = tensors.repeated() {
            let tensor = tensor.to_owned();
            return Err(DocumentError::Tensor { rank: self.rank, tensor, flaw: TensorFlaw::Twice });
        }
        Ok(HeldRank {
            rank: self.rank,
            gpu: HeldGpu {
                uuid: text(self.device.uuid, rank, "uuid")?,
                name: text(self.device.name, rank, "name")?,
            },
            bytes: self.bytes,
            handle: handle.ok_or_else(|| malformed("handle", "64 bytes in hexadecimal digits"))?,
            fingerprint: self.fingerprint.into_owned(),
            tensors: Arc::new(tensors),
        })
    }
}

impl RawTensor<'_> {
    /// The tensor, if it lies in a memory of `memory` bytes as its dtype and shape say.
    fn checked(self, memory: u64) -> Result<TensorPlace, (String, TensorFlaw)> {
        let bits =
            self.shape.iter().try_fold(self.dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size));
        let stop = self.offset.checked_add(self.bytes);
        let flaw = if bits.is_none_or(|bits| Some(bits) != self.bytes.checked_mul(8)) {
            Some(TensorFlaw::Size { bytes: self.bytes })
        } else if stop.is_none_or(|stop| stop > memory) {
            Some(TensorFlaw::Outside { offset: self.offset, bytes: self.bytes, memory })
        } else if !self.offset.is_multiple_of(ALIGNMENT) {
            Some(TensorFlaw::Unaligned { offset: self.offset })
        } else {
            None
        };
        let name = self.name.into_owned();
        if let Some(flaw) = flaw {
            return Err((name, flaw));
        }
        let held = TensorForm { dtype: self.dtype, shape: self.shape.into_owned(), bytes: self.bytes };
        Ok(TensorPlace { name: name.into(), held: Arc::new(held), offset: self.offset })
    }
}

fn text(text: Cow<'_, str>, rank: Option<u32>, field: &'static str) -> Result<String, DocumentError> {
    if text.len() > MOST_TEXT_BYTES {
        return Err(DocumentError::Field { rank, field, rule: "4096 bytes at most" });
    }
    Ok(text.into_owned())
}

fn is_hexadecimal(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|letter| matches!(letter, b'0'..=b'9' | b'a'..=b'f'))
}

fn to_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hexadecimal<const N: usize>(text: &str) -> Option<[u8; N]> {
    if !is_hexadecimal(text, 2 * N) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().as_chunks::<2>().0) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
