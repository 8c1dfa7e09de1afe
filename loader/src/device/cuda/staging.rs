//! The ring of pinned buffers between the threads that read and the GPU that copies.
//!
//! One allocation, cut into slots. A slot is free, or some thread has it, or a copy that is marked by an event uses it; whoever
//! needs one and finds none free waits for the oldest copy. So reading, staging and copying overlap, and the memory they take is
//! the ring's, whatever is loaded.

use super::{
    CudaOptions,
    driver::{Context, CudaError, DeviceBuffer, Event, PinnedBuffer, Stream, gpu_name},
};
use crate::trace::{Tracer, Track};
use std::{
    collections::VecDeque,
    ops::Range,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Slots of a ring: some are filled while others are copied.
const SLOTS: usize = 8;

/// How long a thread waits for a slot while others fill theirs: as long as the slowest file system takes.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// Slots are multiples of a page.
const PAGE: u64 = 4096;

/// Largest slot: copies of this size run at the full speed of the link.
const LARGEST_SLOT: u64 = 16 << 20;

/// A ring of staging buffers and the stream that copies from them.
pub(super) struct Staging {
    // The order matters: the stream is idle, and gone, before the buffers are.
    stream: Stream,
    slots: Vec<SlotEvents>,
    buffer: PinnedBuffer,
    slot_bytes: usize,
    ring: Mutex<Ring>,
    changed: Condvar,
    patience: Duration,
    clock: Option<Clock>,
}

struct SlotEvents {
    begun: Option<Event>,
    done: Event,
}

#[derive(Default)]
struct Ring {
    free: Vec<usize>,
    /// Slots that a copy uses, oldest first.
    copying: VecDeque<usize>,
    /// Why a slot was lost: from then on nobody gets another, for what was copied from here on would not arrive either.
    failed: Option<CudaError>,
}

/// What relates the GPU's time to the host's.
struct Clock {
    tracer: Tracer,
    track: Track,
    zero: Event,
    zero_at: Instant,
}

/// A slot that the calling thread has alone, until it is given to a copy or dropped.
pub(super) struct Slot<'a> {
    staging: &'a Staging,
    number: usize,
    /// Whether the ring gets it back: not while a copy that nobody knows the end of may use it.
    returns: bool,
}

impl Staging {
    pub(super) fn new(context: &Context, options: &CudaOptions) -> Result<Self, CudaError> {
        let slot_bytes = (options.staging_bytes / SLOTS as u64 / PAGE * PAGE).clamp(PAGE, LARGEST_SLOT);
        let slot_bytes = usize::try_from(slot_bytes).unwrap_or(usize::MAX);
        let timing = options.tracer.is_on();
        let stream = Stream::new(context)?;
        let slots = (0..SLOTS)
            .map(|_| {
                let begun = if timing { Some(Event::new(context, true)?) } else { None };
                Ok(SlotEvents { begun, done: Event::new(context, timing)? })
            })
            .collect::<Result<_, CudaError>>()?;
        let clock = if timing {
            let zero = Event::new(context, true)?;
            zero.record(&stream)?;
            zero.wait("an empty stream", options.patience)?;
            let track = Track { rank: options.rank, lane: "copies to the GPU".to_owned() };
            Some(Clock { tracer: options.tracer.clone(), track, zero, zero_at: Instant::now() })
        } else {
            None
        };
        Ok(Self {
            buffer: PinnedBuffer::new(context, slot_bytes * SLOTS)?,
            slots,
            stream,
            slot_bytes,
            ring: Mutex::new(Ring { free: (0..SLOTS).collect(), ..Ring::default() }),
            changed: Condvar::new(),
            patience: options.patience,
            clock,
        })
    }

    pub(super) fn stream(&self) -> &Stream {
        &self.stream
    }

    pub(super) fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// A slot that nobody uses; waits for one.
    pub(super) fn slot(&self) -> Result<Slot<'_>, CudaError> {
        let mut ring = self.lock();
        let begin = Instant::now();
        loop {
            if let Some(error) = &ring.failed {
                return Err(error.clone());
            }
            if let Some(number) = ring.free.pop() {
                return Ok(Slot { staging: self, number, returns: true });
            }
            if let Some(number) = ring.copying.pop_front() {
                drop(ring);
                // It is this thread's now; if its copy does not end, nobody may have it again.
                return self.awaited(number);
            }
            // All are being filled. Whoever fills one takes as long as its files do; another copy or failure wakes this thread.
            let waited = self.changed.wait_timeout(ring, self.patience);
            ring = waited.unwrap_or_else(PoisonError::into_inner).0;
            if begin.elapsed() > LONGEST_WAIT {
                let gpu = gpu_name(self.stream.context().gpu().ordinal);
                return Err(CudaError::TimedOut { gpu, doing: "any staging buffer", waited: LONGEST_WAIT });
            }
        }
    }

    /// Waits until no copy uses any slot.
    pub(super) fn drain(&self) -> Result<(), CudaError> {
        loop {
            let Some(number) = self.lock().copying.pop_front() else { return Ok(()) };
            drop(self.awaited(number)?);
        }
    }

    /// A slot that a copy used until now. If its copy does not end, nobody has it again.
    fn awaited(&self, number: usize) -> Result<Slot<'_>, CudaError> {
        let mut slot = Slot { staging: self, number, returns: false };
        self.noted(self.slots[number].done.wait("copying", self.patience))?;
        self.trace(number);
        slot.returns = true;
        Ok(slot)
    }

    /// Lets everybody know of an error after which a slot is lost.
    fn noted<T>(&self, result: Result<T, CudaError>) -> Result<T, CudaError> {
        if let Err(error) = &result {
            self.lock().failed.get_or_insert_with(|| error.clone());
            self.changed.notify_all();
        }
        result
    }

    /// The ring; a thread that panicked left it whole, for it changes by single pushes and pops.
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(&self, number: usize, bytes: Range<usize>) -> Range<usize> {
        assert!(bytes.end <= self.slot_bytes, "{bytes:?} lies outside a slot");
        number * self.slot_bytes + bytes.start..number * self.slot_bytes + bytes.end
    }

    /// Draws the copy that used the slot and is done.
    fn trace(&self, number: usize) {
        let slot = &self.slots[number];
        if let (Some(clock), Some(begun)) = (&self.clock, &slot.begun)
            && let (Ok(start), Ok(length)) = (begun.since(&clock.zero), slot.done.since(begun))
        {
            clock.tracer.add(&clock.track, "copy", clock.zero_at + start, length);
        }
    }
}

impl Slot<'_> {
    /// Its first `bytes` bytes, of any content.
    pub(super) fn bytes(&mut self, bytes: usize) -> &mut [u8] {
        // SAFETY: this thread has the slot alone, and no copy uses it: it came from the free ones or its copy was waited for.
        unsafe { self.staging.buffer.bytes(self.staging.range(self.number, 0..bytes)) }
    }

    /// Lets the GPU copy its first `bytes` bytes to `to`; the ring has the slot back when that is done.
    pub(super) fn copy_to(mut self, into: &DeviceBuffer, to: usize, bytes: usize) -> Result<(), CudaError> {
        let staging = self.staging;
        // From here on a copy may use the slot.
        self.returns = false;
        let copying = self.enqueue(into, to, bytes);
        staging.noted(copying)?;
        staging.changed.notify_one();
        Ok(())
    }

    fn enqueue(&self, into: &DeviceBuffer, to: usize, bytes: usize) -> Result<(), CudaError> {
        let staging = self.staging;
        let events = &staging.slots[self.number];
        let range = staging.range(self.number, 0..bytes);
        // One thread at a time, so that the order of the ring is that of the stream.
        let mut ring = staging.lock();
        if let Some(begun) = &events.begun {
            begun.record(&staging.stream)?;
        }
        // SAFETY: the slot is not given to anybody before the event after the copy has passed; `into` outlives the copy, as the
        // memory that owns both drains the ring before it drops either, or drops neither.
        unsafe { into.copy_from(to, &staging.buffer, range, &staging.stream) }?;
        events.done.record(&staging.stream)?;
        ring.copying.push_back(self.number);
        Ok(())
    }

    /// Waits for the GPU to copy `range` of `from` into the slot, and gives these bytes.
    pub(super) fn copy_from(
        &mut self,
        from: &DeviceBuffer,
        range: Range<usize>,
    ) -> Result<&mut [u8], CudaError> {
        let staging = self.staging;
        let bytes = range.len();
        let to = staging.range(self.number, 0..bytes).start;
        self.returns = false;
        let done = &staging.slots[self.number].done;
        // SAFETY: this thread has the slot alone, and keeps it until the event after the copy has passed, or for ever.
        let copied = unsafe { from.copy_to(range, &staging.buffer, to, &staging.stream) }
            .and_then(|()| done.record(&staging.stream))
            .and_then(|()| done.wait("copying to the host", staging.patience));
        staging.noted(copied)?;
        self.returns = true;
        Ok(self.bytes(bytes))
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if self.returns {
            self.staging.lock().free.push(self.number);
        }
        self.staging.changed.notify_one();
    }
}
