//! What is held, as it was checked: made of loaded ranks by who holds, read from a holder by who attaches.

use super::HoldError;
use crate::{
    device::{DeviceError, DeviceMemory, Place, Strip, Sum},
    fingerprint::{Fingerprint, seed_of},
    load::{LoadedRank, PlacedTensors},
    verify::Extent,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// The seed of the fingerprint of a rank's whole memory.
const MEMORY_SEED: &str = "rank memory";

/// All that a process holds. One that was read is checked: every tensor lies inside its rank's memory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Document {
    /// The version of shardwright that holds.
    pub shardwright: String,
    /// The process that holds, as it numbers itself.
    pub pid: u32,
    /// When it began to hold, in seconds since 1970.
    pub since: u64,
    /// The plan's digest: 64 hexadecimal digits.
    pub plan: String,
    /// What the checkpoint was, in the holder's words.
    pub checkpoint: String,
    /// What was verified when it was loaded; `None` for nothing.
    pub verified: Option<Extent>,
    /// The ranks, in their order.
    pub ranks: Vec<HeldRank>,
}

/// A rank whose weights are held.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldRank {
    /// The rank.
    pub rank: u32,
    /// Where its memory is.
    pub gpu: HeldGpu,
    /// Bytes of that memory.
    pub bytes: u64,
    /// What opens it in another process.
    pub handle: [u8; 64],
    /// The fingerprint of all of it, as [`memory_fingerprint`] shows it.
    pub fingerprint: String,
    /// Its tensors.
    pub tensors: Arc<PlacedTensors>,
}

/// A GPU that weights are held on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldGpu {
    /// Its UUID, as `nvidia-smi -L` prints it: processes number GPUs as they are told, but this they have in common.
    pub uuid: String,
    /// What it is called, for people.
    pub name: String,
}

/// What the ranks do not say of themselves.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The digest of the plan they were loaded by.
    pub plan: String,
    /// What the checkpoint is, for people: its path.
    pub checkpoint: String,
    /// What each GPU is called, by UUID; those that are missing go by their number in this process.
    pub gpu_names: BTreeMap<String, String>,
}

impl Document {
    /// What this process holds from now on. Reads all the weights once, on their devices, for their fingerprints; the devices
    /// must be made with them.
    ///
    /// # Errors
    /// [`HoldError::NotShareable`] when a rank's memory cannot be opened by other processes, as host memory cannot;
    /// [`HoldError::DoesNotVerify`] when a rank was verified and is wrong; [`HoldError::Device`] when a device fails.
    pub fn of(ranks: &[LoadedRank], facts: &Facts) -> Result<Self, HoldError> {
        let mut held: Vec<HeldRank> = ranks.iter().map(|rank| held(rank, facts)).collect::<Result<_, _>>()?;
        held.sort_by_key(|rank| rank.rank);
        let left_out = |rank: &LoadedRank| rank.verified.as_ref().map(|verified| verified.left_out);
        let verified = ranks.iter().map(left_out).sum::<Option<u64>>();
        Ok(Self {
            shardwright: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            since: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            plan: facts.plan.clone(),
            checkpoint: facts.checkpoint.clone(),
            verified: verified.map(|left_out| if left_out == 0 { Extent::Full } else { Extent::Sample }),
            ranks: held,
        })
    }

    /// Rank `rank`, if it is held.
    pub fn rank(&self, rank: u32) -> Option<&HeldRank> {
        self.ranks.iter().find(|held| held.rank == rank)
    }

    /// Bytes of all ranks together.
    pub fn bytes(&self) -> u64 {
        self.ranks.iter().map(|rank| rank.bytes).fold(0, u64::saturating_add)
    }
}

fn held(loaded: &LoadedRank, facts: &Facts) -> Result<HeldRank, HoldError> {
    let rank = loaded.rank;
    let wrong = loaded.verified.as_ref().map_or(0, |verified| verified.mismatches.len());
    if wrong > 0 {
        return Err(HoldError::DoesNotVerify { rank, tensors: wrong });
    }
    let on_device = |source| HoldError::Device { rank, source };
    let Place::Cuda { uuid, ordinal, .. } = loaded.place() else {
        return Err(HoldError::NotShareable { rank });
    };
    let memory = loaded.memory();
    let handle = memory.ipc_handle().map_err(on_device)?.ok_or(HoldError::NotShareable { rank })?;
    Ok(HeldRank {
        rank,
        bytes: memory.len(),
        handle,
        fingerprint: memory_fingerprint(memory).map_err(on_device)?.to_string(),
        tensors: loaded.weights.table(),
        gpu: HeldGpu {
            name: facts.gpu_names.get(&uuid).cloned().unwrap_or_else(|| format!("cuda:{ordinal}")),
            uuid,
        },
    })
}

/// The fingerprint of all bytes of `memory`, what lies between the tensors included.
///
/// # Errors
/// [`DeviceError`] when the device fails, or was made without fingerprints.
pub fn memory_fingerprint(memory: &dyn DeviceMemory) -> Result<Fingerprint, DeviceError> {
    let len = memory.len();
    let all = Strip { at: 0, at_stride: len, in_tensor: 0, in_tensor_stride: len, run_bytes: len, runs: 1 };
    let strips = if len == 0 { Vec::new() } else { vec![all] };
    let sums = memory.fingerprints(&[Sum { seed: seed_of(MEMORY_SEED), strips }])?;
    Ok(sums.first().copied().unwrap_or_default())
}
