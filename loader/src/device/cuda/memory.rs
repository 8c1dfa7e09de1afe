//! A rank's memory on a GPU.

use super::{
    CudaOptions,
    driver::{Context, CudaError, DeviceBuffer, Gpu, IpcHandle, Origin, Stream, gpu_name},
    registered::{Registered, WORTH_WHILE},
    staging::{Slot, Staging},
    sums::Summing,
};
use crate::{
    device::{
        Block, DeviceError, DeviceMemory, Filling, Keeper, LentPieces, Place, Strip, Sum, pieces::Pieces,
    },
    fingerprint::Fingerprint,
};
use std::{mem::ManuallyDrop, ops::Range, time::Duration};

/// What is allocated is a multiple of this: whole words can be read at its end, and the driver puts nothing else into the same
/// page, which another process that opens it would get to see (`cuIpcGetMemHandle` in NVIDIA's documentation of the driver API).
const ALIGNMENT: u64 = 2 << 20;

/// All weights of a rank on a GPU: in one allocation, or in pieces that somebody lent.
pub(super) struct CudaMemory {
    inner: ManuallyDrop<Inner>,
    pieces: Pieces,
    patience: Duration,
    /// Whether copies straight from mapped files were asked for.
    wants_registered: bool,
}

/// Dropped in this order, when the GPU uses none of it any more.
struct Inner {
    staging: Staging,
    registered: Option<Registered>,
    summing: Option<Summing>,
    /// The buffer of each piece.
    weights: Vec<DeviceBuffer>,
    /// What nobody lent, where something was lent.
    _own: Option<DeviceBuffer>,
    _keeper: Keeper,
}

impl CudaMemory {
    pub(super) fn new(context: &Context, len: u64, options: &CudaOptions) -> Result<Self, DeviceError> {
        // What can be refused is refused before anything large is allocated.
        let summing = if options.fingerprints { Some(Summing::new(context)?) } else { None };
        let weights = allocated(context, len)?;
        let pieces = Pieces::whole(weights.address(), len);
        let memory = Self::ready(context, options, summing, (pieces, vec![weights], None, None))?;
        memory.inner.weights[0].zero(memory.stream())?;
        memory.zeroed(options)
    }

    /// Memory of which somebody lent some pieces.
    pub(super) fn adopt(
        context: &Context,
        lent: &LentPieces,
        options: &CudaOptions,
    ) -> Result<Self, DeviceError> {
        let summing = if options.fingerprints { Some(Summing::new(context)?) } else { None };
        let own = allocated(context, lent.own_bytes())?;
        let pieces = lent.pieces(own.address());
        let buffer = |address: u64, bytes: u64| {
            let len = usize::try_from(bytes).unwrap_or(usize::MAX);
            // SAFETY: who lent the piece answers for it, see `LentPieces::new`; the keeper, and what was not lent, are kept.
            unsafe { DeviceBuffer::lent(context, address, len) }
        };
        let weights = pieces.all().iter().map(|piece| buffer(piece.address, piece.bytes)).collect();
        let memory = Self::ready(context, options, summing, (pieces, weights, Some(own), lent.keeper()))?;
        for (address, bytes) in lent.padded() {
            buffer(address, bytes).zero(memory.stream())?;
        }
        memory.inner._own.as_ref().map_or(Ok(()), |own| own.zero(memory.stream()))?;
        memory.zeroed(options)
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
        // Who holds it allocated a multiple, too.
        let bytes = len.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| usize::try_from(bytes).ok());
        let bytes = bytes.ok_or_else(|| too_short(0))?;
        let weights = DeviceBuffer::open(context, handle, bytes)?.map_err(|found| too_short(found as u64))?;
        let options = CudaOptions { registered: false, ..options.clone() };
        let pieces = Pieces::whole(weights.address(), len);
        Self::ready(context, &options, summing, (pieces, vec![weights], None, None))
    }

    /// From here on the GPU uses it, and what it does not finish is not freed.
    fn ready(
        context: &Context,
        options: &CudaOptions,
        summing: Option<Summing>,
        (pieces, weights, own, keeper): (Pieces, Vec<DeviceBuffer>, Option<DeviceBuffer>, Keeper),
    ) -> Result<Self, DeviceError> {
        let staging = Staging::new(context, options)?;
        let registered = if options.registered { Registered::new(context, options.patience)? } else { None };
        let inner =
            ManuallyDrop::new(Inner { staging, registered, summing, weights, _own: own, _keeper: keeper });
        Ok(Self { inner, pieces, patience: options.patience, wants_registered: options.registered })
    }

    /// The same, when what is to be zero will be before anything is copied.
    fn zeroed(self, options: &CudaOptions) -> Result<Self, DeviceError> {
        // What is copied by other streams must not be zeroed afterwards.
        if self.inner.registered.is_some() {
            self.stream().wait("zeroing", options.patience)?;
        }
        Ok(self)
    }

    fn stream(&self) -> &Stream {
        self.inner.staging.stream()
    }

    fn gpu(&self) -> &Gpu {
        self.stream().context().gpu()
    }

    /// The buffer that has `bytes` bytes from `at` on, and where in it they lie.
    fn find(&self, at: u64, bytes: u64) -> Result<(&DeviceBuffer, Range<usize>), DeviceError> {
        let outside = || DeviceError::OutOfRange { at, bytes, len: self.pieces.len() };
        let (number, from) = self.pieces.find(at, bytes)?;
        let place = |byte: u64| usize::try_from(byte).map_err(|_| outside());
        Ok((&self.inner.weights[number], place(from)?..place(from + bytes)?))
    }

    fn is_opened(&self) -> bool {
        self.inner.weights.iter().any(|buffer| buffer.origin() == Origin::Opened)
    }

    /// Whether the GPU has done all that it was given.
    fn is_quiet(&self) -> bool {
        let registered = self.inner.registered.as_ref().is_none_or(Registered::is_quiet);
        registered && self.stream().wait("all work", self.patience.min(Duration::from_secs(1))).is_ok()
    }
}

/// Memory for `len` bytes, if the GPU has so much.
fn allocated(context: &Context, len: u64) -> Result<DeviceBuffer, DeviceError> {
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
    let buffer = DeviceBuffer::new(context, bytes);
    buffer.map_err(|error| if error.is("CUDA_ERROR_OUT_OF_MEMORY") { refused() } else { error.into() })
}

/// A slot whose bytes are to be copied to a place of the memory.
struct StagedFilling<'a> {
    slot: Slot<'a>,
    weights: &'a DeviceBuffer,
    /// Made by [`CudaMemory::find`], and no longer than the slot.
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
        self.pieces.len()
    }

    fn place(&self) -> Place {
        let (address, gpu) = (self.inner.weights.first().map_or(0, DeviceBuffer::address), self.gpu());
        Place::Cuda { address, ordinal: gpu.ordinal, uuid: gpu.uuid.clone() }
    }

    fn address(&self, at: u64) -> u64 {
        self.pieces.address(at, 0).unwrap_or(0)
    }

    fn window_end(&self, at: u64) -> u64 {
        self.pieces.end(at).min(at.saturating_add(self.inner.staging.slot_bytes() as u64))
    }

    fn begin(&self, at: u64, bytes: u64) -> Result<Box<dyn Filling + '_>, DeviceError> {
        if self.is_opened() {
            return Err(DeviceError::ReadOnly { device: gpu_name(self.gpu().ordinal) });
        }
        let (weights, range) = self.find(at, bytes)?;
        if range.len() > self.inner.staging.slot_bytes() {
            return Err(DeviceError::OutOfRange { at, bytes, len: self.pieces.len() });
        }
        Ok(Box::new(StagedFilling { slot: self.inner.staging.slot()?, weights, range }))
    }

    fn least_mapped_bytes(&self) -> Option<usize> {
        self.inner.registered.as_ref().map(|_| WORTH_WHILE)
    }

    fn copy_mapped(&self, block: Block<'_>, to: u64, to_stride: u64) -> Result<bool, DeviceError> {
        let Some(registered) = &self.inner.registered else { return Ok(false) };
        let span = to_stride.saturating_mul(block.runs as u64 - 1).saturating_add(block.run_bytes as u64);
        let (weights, range) = self.find(to, span)?;
        let stride = usize::try_from(to_stride).unwrap_or(usize::MAX);
        Ok(registered.copy(block, weights, range.start, stride)?)
    }

    fn notes(&self) -> Vec<String> {
        let gpu = gpu_name(self.gpu().ordinal);
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
        let Some(summing) = &self.inner.summing else { return Err(DeviceError::NoFingerprints) };
        let in_place = |strip: &Strip| {
            let last = strip.runs.checked_sub(1).and_then(|last| last.checked_mul(strip.at_stride));
            let span = last.and_then(|last| last.checked_add(strip.run_bytes)).unwrap_or(u64::MAX);
            Ok(Strip { at: self.pieces.address(strip.at, span)?, ..*strip })
        };
        let in_place = |sum: &Sum| {
            let strips = sum.strips.iter().map(in_place).collect::<Result<_, DeviceError>>()?;
            Ok(Sum { seed: sum.seed, strips })
        };
        let sums = sums.iter().map(in_place).collect::<Result<Vec<Sum>, DeviceError>>()?;
        // SAFETY: the strips lie in pieces, which live until all is done, or for ever; own ones begin and end at whole words, and
        // lent ones can be read in such, see `LentPieces::new`.
        Ok(unsafe { summing.sums(&sums, &self.inner.staging, self.patience) }?)
    }

    fn read(&self, from: u64, into: &mut [u8]) -> Result<(), DeviceError> {
        let stop = self.pieces.checked_end(from, into.len() as u64)?;
        let staging = &self.inner.staging;
        into.fill(0);
        for (part, _) in self.pieces.parts(from..stop) {
            let (weights, range) = self.find(part.start, part.end - part.start)?;
            let first = usize::try_from(part.start - from).unwrap_or(usize::MAX);
            let Some(into) = into.get_mut(first..first.saturating_add(range.len())) else { continue };
            let starts = range.step_by(staging.slot_bytes());
            for (start, part) in starts.zip(into.chunks_mut(staging.slot_bytes())) {
                let mut slot = staging.slot()?;
                part.copy_from_slice(slot.copy_from(weights, start..start + part.len())?);
            }
        }
        Ok(())
    }

    fn ipc_handle(&self) -> Result<Option<[u8; 64]>, DeviceError> {
        match self.inner.weights.as_slice() {
            [weights] if weights.origin() == Origin::Allocated => Ok(Some(IpcHandle::of(weights)?.0)),
            // Who allocated it hands it on.
            _ => Ok(None),
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
