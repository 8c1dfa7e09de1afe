//! Ranks that agree over NCCL, each with its GPU.
//!
//! NCCL's calls wait for ranks that may never come, and after a peer died a stream may end with wrong data. So the ranks keep
//! the way of agreeing that they came with, the *control*: they meet there before each collective, which waits with patience for
//! ranks that get on, and after it, which tells that all were alive when it ended. Between the two, NCCL has one patience.

use super::driver::{Context, CudaError, DeviceBuffer, PinnedBuffer, Stream, gpu_name};
use crate::{
    collective::{CollectiveError, Communicator, Lifeline, Reduce, meet, without_help},
    device::DeviceError,
};
use nccl_rs::{CallError, DataType, Library, Reduction, UniqueId, Version};
use std::{
    mem::ManuallyDrop,
    time::{Duration, Instant},
};

/// Numbers that are reduced at a time: 1 MiB of them.
const CHUNK: usize = 1 << 17;

/// How long to wait for the control to say which rank is gone, once NCCL has said that one is.
const GRACE: Duration = Duration::from_secs(1);

/// The longest pause between two looks at a collective that is under way.
const LONGEST_PAUSE: Duration = Duration::from_millis(1);

/// One rank's end of a group that agrees over NCCL.
pub(super) struct NcclCommunicator {
    /// `None` when it has been given up.
    nccl: Option<nccl_rs::Communicator>,
    on_gpu: ManuallyDrop<OnGpu>,
    control: Box<dyn Communicator>,
    patience: Duration,
}

/// What a collective works with.
struct OnGpu {
    stream: Stream,
    values: DeviceBuffer,
    staged: PinnedBuffer,
}

impl NcclCommunicator {
    /// Brings the GPUs of all ranks of `control` together; every rank calls it. All that NCCL needs, it has when this returns.
    ///
    /// # Errors
    /// [`DeviceError`] when the ranks have different releases of NCCL, or do not find together within `connecting`.
    pub(super) fn new(
        library: &Library,
        context: &Context,
        mut control: Box<dyn Communicator>,
        connecting: Duration,
        patience: Duration,
    ) -> Result<Self, DeviceError> {
        let on_gpu = match OnGpu::new(context) {
            Ok(on_gpu) => ManuallyDrop::new(on_gpu),
            Err(error) => {
                control.abort(&error.to_string());
                return Err(error.into());
            }
        };
        let mut this = Self { nccl: None, on_gpu, control, patience: connecting };
        if let Err(error) = this.meet(library, context, connecting) {
            let error = match error {
                // NCCL only says that something failed somewhere.
                DeviceError::Nccl { .. } => {
                    known_failure(&this.control.lifeline()).map_or(error, DeviceError::Collective)
                }
                error => error,
            };
            this.control.abort(&cause(&error));
            return Err(error);
        }
        this.patience = patience;
        Ok(this)
    }

    fn meet(
        &mut self,
        library: &Library,
        context: &Context,
        connecting: Duration,
    ) -> Result<(), DeviceError> {
        let (rank, world) = (self.control.rank(), self.control.world_size());
        same_release(library.version(), self.control.as_mut())?;
        let failed = |source| nccl_failed(&self.on_gpu.stream, source);
        let id = if rank == 0 { Some(library.unique_id().map_err(failed)?) } else { None };
        let id = shared_id(id, self.control.as_mut())?;

        context.bind()?;
        let lifeline = self.control.lifeline();
        let mut given_up = || {
            lifeline.beat();
            lifeline.failure().is_some()
        };
        let nccl = nccl_rs::Communicator::init(library, &id, rank, world, connecting, &mut given_up);
        self.nccl = Some(nccl.map_err(failed)?);
        // NCCL connects GPUs, and takes memory for it, at the first collective: now, while there is some.
        let mut count = [1];
        self.reduce(&mut count, Reduction::Sum)?;
        if count != [u64::from(world)] {
            let reason = format!("NCCL counted {} ranks, and there are {world}", count[0]);
            return Err(CollectiveError::lost(rank, &reason).into());
        }
        Ok(())
    }

    /// Reduces at most [`CHUNK`] numbers.
    fn reduce(&mut self, values: &mut [u64], reduction: Reduction) -> Result<(), DeviceError> {
        let OnGpu { stream, values: on_gpu, staged } = &*self.on_gpu;
        let failed = |source| nccl_failed(stream, source);
        let nccl = self.nccl.as_mut().ok_or_else(|| failed(CallError::Aborted { call: "ncclAllReduce" }))?;
        let bytes = values.len() * 8;
        // SAFETY: no copy uses the buffer: the stream was idle when the last call returned, and after a call that failed
        // `all_reduce` makes no other.
        let into = unsafe { staged.bytes(0..bytes) };
        for (into, value) in into.as_chunks_mut::<8>().0.iter_mut().zip(&*values) {
            *into = value.to_le_bytes();
        }
        let address = on_gpu.address();
        // SAFETY: nobody touches either buffer until the stream has been waited for; both live until it is idle, or for ever.
        unsafe { on_gpu.copy_from(0, staged, 0..bytes, stream) }?;
        let handle = stream.raw().cast();
        // SAFETY: as above, and the buffer holds that many numbers.
        unsafe { nccl.all_reduce(address, address, values.len(), DataType::Uint64, reduction, handle) }
            .map_err(failed)?;
        // SAFETY: as above.
        unsafe { on_gpu.copy_to(0..bytes, staged, 0, stream) }?;

        wait(stream, nccl, &self.control.lifeline(), self.patience)?;
        // SAFETY: the stream is idle.
        let from = unsafe { staged.bytes(0..bytes) };
        for (value, from) in values.iter_mut().zip(from.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*from);
        }
        Ok(())
    }

    /// What the group's failure is, where NCCL or the GPU only says that there is one.
    fn failure(&mut self, error: DeviceError) -> CollectiveError {
        if let DeviceError::Collective(failure) = error {
            return failure;
        }
        if let Some(failure) = known_failure(&self.control.lifeline()) {
            return failure;
        }
        let cause = cause(&error);
        self.control.abort(&cause);
        CollectiveError::lost(self.control.rank(), &cause)
    }
}

impl Communicator for NcclCommunicator {
    fn rank(&self) -> u32 {
        self.control.rank()
    }

    fn world_size(&self) -> u32 {
        self.control.world_size()
    }

    fn all_reduce(&mut self, values: &mut [u64], reduce: Reduce) -> Result<(), CollectiveError> {
        meet(self.control.as_mut(), values)?;
        let reduction = match reduce {
            Reduce::Sum => Reduction::Sum,
            Reduce::Min => Reduction::Min,
            Reduce::Max => Reduction::Max,
        };
        for chunk in values.chunks_mut(CHUNK) {
            if let Err(error) = self.reduce(chunk, reduction) {
                let failure = self.failure(error);
                self.give_up();
                return Err(failure);
            }
        }
        // A rank that died meanwhile would have left numbers that mean nothing.
        self.control.all_reduce(&mut [], Reduce::Sum)
    }

    fn lifeline(&self) -> Lifeline {
        self.control.lifeline()
    }
}

impl NcclCommunicator {
    /// Ends NCCL's part at once: what waits on the stream ends, too.
    fn give_up(&mut self) {
        if let Some(mut nccl) = self.nccl.take() {
            nccl.abort();
        }
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        if std::thread::panicking() || self.control.lifeline().failure().is_some() {
            self.give_up();
        }
        // When all went well, all ranks come here: NCCL ends with an end to waiting, and is aborted where that is over.
        if let Some(nccl) = self.nccl.take() {
            let _ = nccl.finalize();
        }
        if self.on_gpu.stream.wait("a collective", GRACE).is_ok() {
            // SAFETY: dropped once, here, and not used again; the GPU uses none of it any more. Else nothing is freed.
            unsafe { ManuallyDrop::drop(&mut self.on_gpu) };
        }
    }
}

impl OnGpu {
    fn new(context: &Context) -> Result<Self, CudaError> {
        Ok(Self {
            stream: Stream::new(context)?,
            values: DeviceBuffer::new(context, CHUNK * 8)?,
            staged: PinnedBuffer::new(context, CHUNK * 8)?,
        })
    }
}

/// What NCCL could not do, with the GPU that it could not do it on. Where the GPU itself has failed, that is the cause, which the
/// driver knows and NCCL only passes on.
fn nccl_failed(stream: &Stream, source: CallError) -> DeviceError {
    match stream.is_idle() {
        Err(cause) => cause.into(),
        Ok(_) => DeviceError::Nccl { device: gpu_name(stream.context().gpu().ordinal), source },
    }
}

/// What the other ranks are told of an error: not what to do about it here.
fn cause(error: &DeviceError) -> String {
    without_help(&error.to_string()).to_owned()
}

/// What the control says has failed, once NCCL or a GPU has said that something did: it may take a moment to hear of it.
fn known_failure(lifeline: &Lifeline) -> Option<CollectiveError> {
    let begin = Instant::now();
    while begin.elapsed() < GRACE {
        if let Some(failure) = lifeline.failure() {
            return Some(failure);
        }
        lifeline.beat();
        std::thread::sleep(LONGEST_PAUSE);
    }
    None
}

/// Waits for a collective as long as all goes well.
fn wait(
    stream: &Stream,
    nccl: &mut nccl_rs::Communicator,
    lifeline: &Lifeline,
    patience: Duration,
) -> Result<(), DeviceError> {
    let failed = |source| nccl_failed(stream, source);
    let (begin, mut pause) = (Instant::now(), Duration::from_micros(20));
    loop {
        let idle = stream.is_idle()?;
        // Before the result of an idle stream is trusted as well.
        nccl.async_error().map_err(failed)?;
        if let Some(failure) = lifeline.failure() {
            return Err(failure.into());
        }
        if idle {
            return Ok(());
        }
        if begin.elapsed() > patience {
            return Err(failed(CallError::TimedOut { call: "ncclAllReduce", waited: patience }));
        }
        lifeline.beat();
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Checks that all ranks have the same release: others may hang or misunderstand each other.
fn same_release(own: Version, control: &mut dyn Communicator) -> Result<(), DeviceError> {
    let code = |version: Version| {
        u64::from(version.major) << 32 | u64::from(version.minor) << 16 | u64::from(version.patch)
    };
    let mut codes = vec![0; control.world_size() as usize];
    codes[control.rank() as usize] = code(own);
    control.all_reduce(&mut codes, Reduce::Sum)?;
    let Some((rank, &other)) = (0u32..).zip(&codes).find(|(_, other)| **other != codes[0]) else {
        return Ok(());
    };
    let version = |code: u64| format!("{}.{}.{}", code >> 32, code >> 16 & 0xffff, code & 0xffff);
    Err(DeviceError::NcclDiffers { first: version(codes[0]), rank, other: version(other) })
}

/// The identifier that rank 0 made, on every rank.
fn shared_id(id: Option<UniqueId>, control: &mut dyn Communicator) -> Result<UniqueId, DeviceError> {
    let mut words = [0u64; UniqueId::BYTES / 8];
    if let Some(id) = id {
        for (word, bytes) in words.iter_mut().zip(id.as_bytes().as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
    }
    control.all_reduce(&mut words, Reduce::Sum)?;
    let mut bytes = [0; UniqueId::BYTES];
    for (bytes, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    Ok(UniqueId::from_bytes(bytes))
}
