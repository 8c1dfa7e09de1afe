//! A rank's memory on a GPU.

use super::{
    CudaOptions,
    driver::{Context, CudaError, DeviceBuffer, IpcHandle, Origin, gpu_name},
    registered::{Registered, WORTH_WHILE},
    staging::{Slot, Staging},
    sums::Summing,
};
use crate::{
    device::{Block, DeviceError, DeviceMemory, Filling, Place, Sum},
    fingerprint::Fingerprint,
};
use std::{mem::ManuallyDrop, ops::Range, time::Duration};

/// What is allocated is a multiple of this: whole words can be read at its end, and the driver puts nothing else into the same
/// page, which another process that opens it would get to see (`cuIpcGetMemHandle` in NVIDIA's documentation of the driver API).
const ALIGNMENT: u64 = 2 << 20;

/// All weights of a rank in one allocation of a GPU's memory.
pub(super) struct CudaMemory {
    inner: ManuallyDrop<Inner>,
    len: u64,
    patience: Duration,
    /// Whether copies straight from mapped files were asked for.
    wants_registered: bool,
}

/// Dropped in this order, when the GPU uses none of it any more.
struct Inner {
    staging: Staging,
    registered: Option<Registered>,
    summing: Option<Summing>,
    weights: DeviceBuffer,
}

impl CudaMemory {
    pub(super) fn new(context: &Context, len: u64, options: &CudaOptions) -> Result<Self, DeviceError> {
        // What can be refused is refused before anything large is allocated.
        let summing = if options.fingerprints { Some(Summing::new(context)?) } else { None };
        let (free, _) = context.memory_info()?;
        let refused = || DeviceError::OutOfMemory {
            device: gpu_name(context.gpu().ordinal),
            ranks: 1,
            bytes: len,
            available: Some(free),
        };
        let bytes = usize::try_from(len.next_multiple_of(ALIGNMENT)).map_err(|_| refused())?;
        if len > free {
            return Err(refused());
        }
        let weights = DeviceBuffer::new(context, bytes)
            .map_err(|error| if error.is("CUDA_ERROR_OUT_OF_MEMORY") { refused() } else { error.into() })?;
        let staging = Staging::new(context, options)?;
        let registered = if options.registered { Registered::new(context, options.patience)? } else { None };
        let inner = ManuallyDrop::new(Inner { staging, registered, summing, weights });
        // From here on the GPU uses it, and what it does not finish is not freed.
        let memory = Self { inner, len, patience: options.patience, wants_registered: options.registered };
        let stream = memory.inner.staging.stream();
        memory.inner.weights.zero(stream)?;
        // What is copied by other streams must not be zeroed afterwards.
        if memory.inner.registered.is_some() {
            stream.wait("zeroing", options.patience)?;
        }
        Ok(memory)
    }

    /// Weights of another process, which are only read.
    pub(super) fn open(
        context: &Context,
        handle: IpcHandle,
        len: u64,
        options: &CudaOptions,
    ) -> Result<Self, DeviceError> {
        let too_short =
            |found: u64| DeviceError::TooShort { device: gpu_name(context.gpu().ordinal), bytes: len, found };
        let summing = if options.fingerprints { Some(Summing::new(context)?) } else { None };
        let staging = Staging::new(context, options)?;
        // Who holds it allocated a multiple, too.
        let bytes = len.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| too_short(0))?;
        let weights = DeviceBuffer::open(context, handle, bytes)?.map_err(|found| too_short(found as u64))?;
        let inner = ManuallyDrop::new(Inner { staging, registered: None, summing, weights });
        Ok(Self { inner, len, patience: options.patience, wants_registered: false })
    }

    /// The range of `bytes` bytes from `at` on, checked.
    fn range(&self, at: u64, bytes: u64) -> Result<Range<usize>, DeviceError> {
        let outside = || DeviceError::OutOfRange { at, bytes, len: self.len };
        let stop = at.checked_add(bytes).filter(|&stop| stop <= self.len).ok_or_else(outside)?;
        let place = |byte: u64| usize::try_from(byte).map_err(|_| outside());
        Ok(place(at)?..place(stop)?)
    }

    /// Whether the GPU has done all that it was given.
    fn is_quiet(&self) -> bool {
        let registered = self.inner.registered.as_ref().is_none_or(Registered::is_quiet);
        registered
            && self.inner.staging.stream().wait("all work", self.patience.min(Duration::from_secs(1))).is_ok()
    }
}

/// A slot whose bytes are to be copied to a place of the memory.
struct StagedFilling<'a> {
    slot: Slot<'a>,
    weights: &'a DeviceBuffer,
    /// Made by [`CudaMemory::range`], and no longer than the slot.
    range: Range<usize>,
}

impl Filling for StagedFilling<'_> {
    fn bytes(&mut self) -> &mut [u8] {
        self.slot.bytes(self.range.len())
    }

    fn done(self: Box<Self>) -> Result<(), DeviceError> {
        let Self { slot, weights, range } = *self;
        Ok(slot.copy_to(weights, range.start, range.len())?)
    }
}

impl DeviceMemory for CudaMemory {
    fn len(&self) -> u64 {
        self.len
    }

    fn place(&self) -> Place {
        let gpu = self.inner.weights.context().gpu();
        Place::Cuda { address: self.inner.weights.address(), ordinal: gpu.ordinal, uuid: gpu.uuid.clone() }
    }

    fn window_bytes(&self) -> u64 {
        self.inner.staging.slot_bytes() as u64
    }

    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        if self.inner.weights.origin() == Origin::Opened {
            let device = gpu_name(self.inner.weights.context().gpu().ordinal);
            return Err(DeviceError::ReadOnly { device });
        }
        let range = self.range(at, bytes)?;
        if range.len() > self.inner.staging.slot_bytes() {
            return Err(DeviceError::OutOfRange { at, bytes, len: self.window_bytes() });
        }
        Ok(Box::new(StagedFilling { slot: self.inner.staging.slot()?, weights: &self.inner.weights, range }))
    }

    fn least_mapped_bytes(&self) -> Option<usize> {
        self.inner.registered.as_ref().map(|_| WORTH_WHILE)
    }

    fn copy_mapped(&self, block: Block<'_>, to: u64, to_stride: u64) -> Result<bool, DeviceError> {
        let Some(registered) = &self.inner.registered else { return Ok(false) };
        let span = to_stride.saturating_mul(block.runs as u64 - 1).saturating_add(block.run_bytes as u64);
        let range = self.range(to, span)?;
        let stride = usize::try_from(to_stride).unwrap_or(usize::MAX);
        Ok(registered.copy(block, &self.inner.weights, range.start, stride)?)
    }

    fn notes(&self) -> Vec<String> {
        let gpu = super::driver::gpu_name(self.inner.weights.context().gpu().ordinal);
        match self.inner.registered.as_ref().map(Registered::tried_and_refused) {
            None if self.wants_registered => {
                vec![format!("{gpu}: the driver registers no mapped files; everything was staged")]
            }
            Some((tried, refused)) if refused > 0 => vec![format!(
                "{gpu}: the driver did not register the pages of {refused} of {tried} copies; these were staged"
            )],
            _ => Vec::new(),
        }
    }

    fn finish(&self) -> Result<(), DeviceError> {
        self.inner.staging.drain()?;
        Ok(self.inner.staging.stream().wait("copying", self.patience)?)
    }

    fn fingerprints(&self, sums: &[Sum]) -> Result<Vec<Fingerprint>, DeviceError> {
        for strip in sums.iter().flat_map(|sum| &sum.strips) {
            let last = strip.runs.checked_sub(1).and_then(|last| last.checked_mul(strip.at_stride));
            let span = last.and_then(|last| last.checked_add(strip.run_bytes)).unwrap_or(u64::MAX);
            self.range(strip.at, span)?;
        }
        let Some(summing) = &self.inner.summing else { return Err(DeviceError::NoFingerprints) };
        Ok(summing.sums(sums, &self.inner.weights, &self.inner.staging, self.patience)?)
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let range = self.range(from, into.len() as u64)?;
        let staging = &self.inner.staging;
        for (start, part) in range.step_by(staging.slot_bytes()).zip(into.chunks_mut(staging.slot_bytes())) {
            let mut slot = staging.slot()?;
            part.copy_from_slice(slot.copy_from(&self.inner.weights, start..start + part.len())?);
        }
        Ok(())
    }

    fn ipc_handle(&self) -> Result<Option<[u8; 64]>, DeviceError> {
        match self.inner.weights.origin() {
            Origin::Allocated => Ok(Some(IpcHandle::of(&self.inner.weights)?.0)),
            // Who allocated it hands it on.
            Origin::Opened => Ok(None),
        }
    }
}

/// Frees everything, unless the GPU may still use it: then nothing is freed, for freeing would wait for the GPU for ever.
impl Drop for CudaMemory {
    fn drop(&mut self) {
        if self.is_quiet() {
            // SAFETY: dropped once, here, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.inner) };
        }
    }
}

impl From<CudaError> for DeviceError {
    fn from(error: CudaError) -> Self {
        Self::Cuda(error)
    }
}
