//! Fingerprints on a GPU: what the kernel is told, and what it gives.

use super::{
    driver::{Context, CudaError, DeviceBuffer, Kernel},
    staging::Staging,
};
use crate::{
    device::{Strip, Sum},
    fingerprint::Fingerprint,
};
use cudarc::driver::sys;
use std::{
    ffi::{CStr, c_void},
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// The kernel, compiled from `kernels/fingerprint.cu`. The text of a file has no zero in it, and ends with one here.
const PTX: &CStr = match CStr::from_bytes_with_nul(
    concat!(include_str!("../../../kernels/fingerprint.ptx"), "\0").as_bytes(),
) {
    Ok(ptx) => ptx,
    Err(_) => panic!("the kernel's text has a zero in it"),
};

/// Threads of a block: eight warps, each of which takes a row.
const THREADS: u32 = 256;

/// Blocks for each of the GPU's multiprocessors: enough to keep it busy while some wait for memory.
const BLOCKS_PER_PROCESSOR: u32 = 8;

/// Bytes that an item is over, about: so many blocks share the work evenly.
const ITEM_BYTES: u64 = 256 << 10;

/// A long row is cut into rows of this many bytes, so that all warps of a block have one.
const ROW_BYTES: u64 = 32 << 10;

/// Most items of one launch: 3.5 MiB of them.
const MOST_ITEMS: usize = 1 << 16;

/// Some rows of a tensor in the memory: `Item` of `kernels/fingerprint.cu`, field by field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    at: u64,
    at_stride: u64,
    in_tensor: u64,
    in_tensor_stride: u64,
    run_bytes: u64,
    seed: u64,
    runs: u32,
    sum: u32,
}

impl Item {
    const BYTES: usize = 56;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words =
            [self.at, self.at_stride, self.in_tensor, self.in_tensor_stride, self.run_bytes, self.seed];
        let fields = words.iter().map(|word| word.to_le_bytes());
        for (into, field) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(fields) {
            *into = field;
        }
        bytes[48..52].copy_from_slice(&self.runs.to_le_bytes());
        bytes[52..].copy_from_slice(&self.sum.to_le_bytes());
        bytes
    }
}

/// The kernel on one GPU, and memory for what it is told and gives.
pub(crate) struct Summing {
    kernel: Kernel,
    blocks: u32,
    scratch: Mutex<Scratch>,
}

struct Scratch {
    items: DeviceBuffer,
    limbs: DeviceBuffer,
}

impl Summing {
    pub(crate) fn new(context: &Context) -> Result<Self, CudaError> {
        let processors =
            context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let kernel = Kernel::new(context, PTX, c"fingerprint")?;
        let scratch = Scratch {
            items: DeviceBuffer::new(context, MOST_ITEMS * Item::BYTES)?,
            limbs: DeviceBuffer::new(context, 0)?,
        };
        let processors = u32::try_from(processors).unwrap_or(1).max(1);
        Ok(Self { kernel, blocks: processors * BLOCKS_PER_PROCESSOR, scratch: Mutex::new(scratch) })
    }

    /// The fingerprints of `sums`, whose strips say where in the address space they lie.
    ///
    /// # Safety
    /// The whole words of 8 bytes that have any byte of a strip are memory of the GPU until this returns, or for ever where it fails.
    pub(super) unsafe fn sums(
        &self,
        sums: &[Sum],
        staging: &Staging,
        patience: Duration,
    ) -> Result<Vec<Fingerprint>, CudaError> {
        if sums.is_empty() {
            return Ok(Vec::new());
        }
        // One at a time; a thread that panicked left buffers that are written anew.
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = sums.len() * Fingerprint::LIMBS * 8;
        if scratch.limbs.len() < bytes {
            scratch.limbs = DeviceBuffer::new(staging.stream().context(), bytes)?;
        }
        scratch.limbs.zero(staging.stream())?;
        let per_launch = MOST_ITEMS.min(staging.slot_bytes() / Item::BYTES);
        let mut items = items(sums).peekable();
        while items.peek().is_some() {
            let batch: Vec<u8> = items.by_ref().take(per_launch).flat_map(Item::to_bytes).collect();
            let mut slot = staging.slot()?;
            slot.bytes(batch.len()).copy_from_slice(&batch);
            slot.copy_to(&scratch.items, 0, batch.len())?;
            // SAFETY: these are the strips that the caller answers for.
            unsafe { self.launch(&scratch, (batch.len() / Item::BYTES) as u64, staging) }?;
        }
        staging.drain()?;
        staging.stream().wait("the fingerprint kernel", patience)?;

        let mut limbs = Vec::with_capacity(bytes / 8);
        let step = staging.slot_bytes() / 8 * 8;
        for start in (0..bytes).step_by(step) {
            let mut slot = staging.slot()?;
            let part = slot.copy_from(&scratch.limbs, start..bytes.min(start + step))?;
            limbs.extend(part.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        }
        let limbs = limbs.as_chunks::<{ Fingerprint::LIMBS }>().0;
        Ok(limbs.iter().map(|&limbs| Fingerprint::from_limbs(limbs)).collect())
    }

    /// Adds to the stream: the kernel on `count` items.
    ///
    /// # Safety
    /// As for [`Summing::sums`], of the items' rows.
    unsafe fn launch(&self, scratch: &Scratch, mut count: u64, staging: &Staging) -> Result<(), CudaError> {
        // Places in a memory that begins at address 0 are addresses.
        let (mut memory, mut items, mut limbs) = (0u64, scratch.items.address(), scratch.limbs.address());
        let mut arguments: [*mut c_void; 4] = [
            (&raw mut memory).cast(),
            (&raw mut items).cast(),
            (&raw mut count).cast(),
            (&raw mut limbs).cast(),
        ];
        let blocks = u32::try_from(count).unwrap_or(u32::MAX).min(self.blocks);
        // SAFETY: the kernel takes three addresses and a count, all of 64 bits. The items are in the buffer before it runs, for
        // the stream keeps order; the caller answers for their rows, and their sums lie inside the limbs. All live until the
        // stream is waited for.
        unsafe { self.kernel.launch(blocks, THREADS, &mut arguments, staging.stream()) }
    }
}

/// What the kernel is told, about [`ITEM_BYTES`] an item.
fn items(sums: &[Sum]) -> impl Iterator<Item = Item> {
    let strips =
        (0u32..).zip(sums).flat_map(|(number, sum)| sum.strips.iter().map(move |strip| (number, sum, strip)));
    strips.flat_map(|(number, sum, strip)| {
        cut(*strip).flat_map(move |rows| {
            let per_item = (ITEM_BYTES / rows.run_bytes.max(1)).clamp(1, u64::from(u32::MAX));
            (0..rows.runs.div_ceil(per_item)).map(move |item| {
                let first = item * per_item;
                Item {
                    at: rows.at + first * rows.at_stride,
                    at_stride: rows.at_stride,
                    in_tensor: rows.in_tensor + first * rows.in_tensor_stride,
                    in_tensor_stride: rows.in_tensor_stride,
                    run_bytes: rows.run_bytes,
                    seed: sum.seed,
                    runs: u32::try_from(per_item.min(rows.runs - first)).unwrap_or(u32::MAX),
                    sum: number,
                }
            })
        })
    })
}

/// The same bytes in rows that are not long.
fn cut(strip: Strip) -> impl Iterator<Item = Strip> {
    let long = strip.run_bytes > ROW_BYTES;
    let rows = if long { strip.runs } else { 1 };
    (0..rows).flat_map(move |row| {
        let whole = Strip {
            at: strip.at + row * strip.at_stride,
            in_tensor: strip.in_tensor + row * strip.in_tensor_stride,
            at_stride: ROW_BYTES,
            in_tensor_stride: ROW_BYTES,
            run_bytes: ROW_BYTES,
            runs: strip.run_bytes / ROW_BYTES,
        };
        let done = whole.runs * ROW_BYTES;
        let rest = Strip {
            at: whole.at + done,
            in_tensor: whole.in_tensor + done,
            run_bytes: strip.run_bytes - done,
            runs: 1,
            ..whole
        };
        let pieces = if long { [whole, rest] } else { [strip, Strip { runs: 0, ..strip }] };
        pieces.into_iter().filter(|strip| strip.runs > 0 && strip.run_bytes > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every byte of a strip: where it lies, and where in the tensor.
    fn bytes(at: [u64; 2], in_tensor: [u64; 2], run_bytes: u64, runs: u64) -> Vec<(u64, u64)> {
        (0..runs)
            .flat_map(|run| {
                (0..run_bytes)
                    .map(move |byte| (at[0] + run * at[1] + byte, in_tensor[0] + run * in_tensor[1] + byte))
            })
            .collect()
    }

    proptest! {
        #[test]
        fn items_are_over_the_same_bytes(
            at in 0u64..99, in_tensor in 0u64..99, gaps in [0u64..9, 0u64..9],
            run_bytes in prop_oneof![1u64..40, ROW_BYTES - 2..3 * ROW_BYTES + 3, ITEM_BYTES..2 * ITEM_BYTES], runs in 1u64..5,
        ) {
            let strip = Strip {
                at, in_tensor, run_bytes, runs,
                at_stride: run_bytes + gaps[0], in_tensor_stride: run_bytes + gaps[1],
            };
            let sums = [Sum { seed: 3, strips: Vec::new() }, Sum { seed: 7, strips: vec![strip] }];
            let mut found = Vec::new();
            for item in items(&sums) {
                prop_assert_eq!((item.sum, item.seed), (1, 7));
                prop_assert!(item.run_bytes <= ROW_BYTES && item.run_bytes * u64::from(item.runs) <= ITEM_BYTES);
                found.extend(bytes(
                    [item.at, item.at_stride], [item.in_tensor, item.in_tensor_stride], item.run_bytes, item.runs.into(),
                ));
            }
            found.sort_unstable();
            prop_assert!(found == bytes([at, strip.at_stride], [in_tensor, strip.in_tensor_stride], run_bytes, runs));
        }
    }

    #[test]
    fn an_item_is_laid_out_as_the_kernel_reads_it() {
        let item = Item {
            at: 1,
            at_stride: 2,
            in_tensor: 3,
            in_tensor_stride: 4,
            run_bytes: 5,
            seed: 6,
            runs: 7,
            sum: 8,
        };
        let bytes = item.to_bytes();
        let words: Vec<u64> =
            bytes[..48].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(words, [1, 2, 3, 4, 5, 6]);
        let halves: Vec<u32> =
            bytes[48..].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        assert_eq!(halves, [7, 8]);
        let source = include_str!("../../../kernels/fingerprint.cu");
        let fields = ["at", "at_stride", "in_tensor", "in_tensor_stride", "run_bytes", "seed", "runs", "sum"];
        let declared = &source[source.find("struct Item").unwrap()..];
        let places: Vec<_> =
            fields.iter().map(|field| declared.find(&format!(" {field};")).unwrap()).collect();
        assert!(places.is_sorted());
    }
}
