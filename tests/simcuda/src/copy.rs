//! Copies: what of them happens when they are asked for, and what when their stream gets to them.
//!
//! In: two [`Side`]s and a [`Shape`]. When asked: both sides are checked, pageable host memory is staged. When run: both sides
//! are looked up again, since they may be gone by then (`CUDA_ERROR_ILLEGAL_ADDRESS`), and only then pinned and registered
//! bytes are read. Faults of copies strike here.

use crate::{
    Answer,
    context::Context,
    counts::Route,
    device::Gpu,
    fault,
    host::{self, Kind, Way},
    lock::lock,
    memory::{self, DeviceBytes},
    stream::Stream,
};
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use std::{
    ptr,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// Where rows begin, and how far one is from the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) place: Place,
    pub(crate) pitch: usize,
}

/// An address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Host(usize),
    Device(CUdeviceptr),
}

/// Rows of bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Shape {
    /// How many bytes from the first to the last of rows that are `pitch` apart.
    fn footprint(self, pitch: usize) -> Answer<usize> {
        if self.height > 1 && pitch < self.width {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let last = (self.height - 1).checked_mul(pitch).and_then(|last| last.checked_add(self.width));
        last.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)
    }

    fn bytes(self) -> usize {
        self.width * self.height
    }
}

/// Whether the call waits for the copy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Waits {
    No,
    Yes,
}

/// Copies rows from one side to the other.
pub(crate) fn copy(stream: &Arc<Stream>, from: Side, to: Side, shape: Shape, waits: Waits) -> Answer {
    if shape.width == 0 || shape.height == 0 {
        return Ok(());
    }
    let (from_len, to_len) = (shape.footprint(from.pitch)?, shape.footprint(to.pitch)?);
    match (from.place, to.place) {
        (Place::Host(host), Place::Device(device)) => {
            let device = Device { address: device, pitch: to.pitch, len: to_len };
            let host = Host { address: host, pitch: from.pitch, len: from_len };
            from_host(stream, host, device, shape, waits)
        }
        (Place::Device(device), Place::Host(host)) => {
            let device = Device { address: device, pitch: from.pitch, len: from_len };
            let host = Host { address: host, pitch: to.pitch, len: to_len };
            to_host(stream, device, host, shape, waits)
        }
        (Place::Device(from_address), Place::Device(to_address)) => {
            let from = Device { address: from_address, pitch: from.pitch, len: from_len };
            let to = Device { address: to_address, pitch: to.pitch, len: to_len };
            between(stream, from, to, shape)
        }
        (Place::Host(_), Place::Host(_)) => Err(CUresult::CUDA_ERROR_NOT_SUPPORTED),
    }
}

#[derive(Clone, Copy)]
struct Host {
    address: usize,
    pitch: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Device {
    address: CUdeviceptr,
    pitch: usize,
    len: usize,
}

impl Device {
    /// The bytes, which must be those of `gpu`.
    fn find(self, gpu: &Gpu) -> Answer<DeviceBytes> {
        let bytes = memory::device_bytes(self.address, self.len)?;
        if bytes.gpu() == gpu { Ok(bytes) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
    }

    /// The same when the stream got to it.
    fn find_later(self, gpu: &Gpu) -> Answer<DeviceBytes> {
        self.find(gpu).map_err(|_| CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)
    }
}

/// Copies between `host` and the device's `bytes`, a row at a time.
fn transfer(way: Way, host: Host, bytes: &DeviceBytes, pitch: usize, shape: Shape) -> bool {
    let rows = (0..shape.height)
        .map(|row| (host.address + row * host.pitch, bytes.pointer().wrapping_add(row * pitch), shape.width));
    // SAFETY: the footprint of all rows lies in `bytes`.
    unsafe { host::transfer(way, rows) }
}

/// Rows of pageable memory, one behind the other.
type Staged = Vec<u8>;

/// Reads them now.
fn stage(host: Host, shape: Shape) -> Answer<Staged> {
    let mut staged = vec![0; shape.bytes()];
    let start = staged.as_mut_ptr();
    let rows = (0..shape.height)
        .map(|row| (host.address + row * host.pitch, start.wrapping_add(row * shape.width), shape.width));
    // SAFETY: the rows lie in the vector.
    let there = unsafe { host::transfer(Way::FromHost, rows) };
    if there { Ok(staged) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
}

/// Writes them now.
fn unstage(staged: &mut Staged, host: Host, shape: Shape) -> Answer {
    let start = staged.as_mut_ptr();
    let rows = (0..shape.height)
        .map(|row| (host.address + row * host.pitch, start.wrapping_add(row * shape.width), shape.width));
    // SAFETY: the rows lie in the vector.
    let there = unsafe { host::transfer(Way::ToHost, rows) };
    if there { Ok(()) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
}

/// What goes wrong with a copy from the host.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Fail,
    Flip,
    Drop,
    Hang,
}

impl Fault {
    fn of(gpu: &Gpu, number: u64) -> Option<Self> {
        let all = [
            ("copy-error", Self::Fail),
            ("copy-flip", Self::Flip),
            ("copy-drop", Self::Drop),
            ("hang-stream", Self::Hang),
        ];
        let strikes = |(name, _): &&(&str, Self)| fault::strikes(name, gpu.number, number);
        all.iter().find(strikes).map(|(_, fault)| *fault)
    }
}

/// Waits for the end of the context, which is that of the process as a rule.
fn hang(context: &Context) {
    while !context.ended() {
        thread::sleep(Duration::from_millis(5));
    }
}

fn from_host(stream: &Arc<Stream>, host: Host, device: Device, shape: Shape, waits: Waits) -> Answer {
    let gpu = stream.context.gpu;
    device.find(gpu)?;
    let region = host::find(host.address, host.len)?;
    let route = match &region {
        _ if waits == Waits::Yes => Route::Synchronous,
        Some(region) if region.kind == Kind::Pinned => Route::Pinned,
        Some(_) => Route::Registered,
        None => Route::Pageable,
    };
    let staged = if region.is_none() { Some(stage(host, shape)?) } else { None };
    let number = lock(&gpu.counts).to_device.add(route, shape.bytes());
    for (name, signal) in [("kill-at-copy", libc::SIGKILL), ("stop-at-copy", libc::SIGSTOP)] {
        if number.is_some_and(|number| fault::strikes(name, gpu.number, number)) {
            fault::signal_self(signal);
        }
    }
    let fault = number.and_then(|number| Fault::of(gpu, number));
    let ticket = stream.enqueue(move |context| {
        match fault {
            Some(Fault::Fail) => return Err(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS),
            Some(Fault::Drop) => return Ok(()),
            Some(Fault::Hang) => {
                hang(context);
                return Ok(());
            }
            Some(Fault::Flip) | None => {}
        }
        let bytes = device.find_later(gpu)?;
        match staged {
            Some(mut staged) => {
                let start = staged.as_mut_ptr();
                for row in 0..shape.height {
                    let from = start.wrapping_add(row * shape.width);
                    let to = bytes.pointer().wrapping_add(row * device.pitch);
                    // SAFETY: a row of the vector and one of the footprint in `bytes`.
                    unsafe { ptr::copy_nonoverlapping(from, to, shape.width) };
                }
            }
            None => read_region(host, &bytes, device.pitch, shape)?,
        }
        if fault == Some(Fault::Flip) {
            // SAFETY: the middle of the first row lies in the footprint.
            unsafe { *bytes.pointer().add(shape.width / 2) ^= 0x10 };
        }
        mark_written(device, shape, gpu);
        Ok(())
    })?;
    if waits == Waits::Yes { stream.wait(ticket) } else { Ok(()) }
}

/// Reads from memory that the driver knew when the copy was asked for.
fn read_region(host: Host, bytes: &DeviceBytes, pitch: usize, shape: Shape) -> Answer {
    let gone = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
    // Kept until the bytes are read: the memory can't vanish meanwhile.
    let _region = host::find(host.address, host.len).ok().flatten().ok_or(gone)?;
    if transfer(Way::FromHost, host, bytes, pitch, shape) { Ok(()) } else { Err(gone) }
}

/// Counts the bytes that were written before.
fn mark_written(device: Device, shape: Shape, gpu: &Gpu) {
    // Rows without gaps are one run.
    let (rows, width) =
        if device.pitch == shape.width { (1, shape.bytes()) } else { (shape.height, shape.width) };
    let rewritten: u64 = (0..rows)
        .filter_map(|row| memory::device_bytes(device.address + (row * device.pitch) as u64, width).ok())
        .map(|row| row.mark_written())
        .sum();
    lock(&gpu.counts).rewritten_bytes += rewritten;
}

fn to_host(stream: &Arc<Stream>, device: Device, host: Host, shape: Shape, waits: Waits) -> Answer {
    let gpu = stream.context.gpu;
    device.find(gpu)?;
    let region = host::find(host.address, host.len)?;
    let route = match &region {
        _ if waits == Waits::Yes => Route::Synchronous,
        Some(region) if region.kind == Kind::Pinned => Route::Pinned,
        Some(_) => Route::Registered,
        None => Route::Pageable,
    };
    lock(&gpu.counts).to_host.add(route, shape.bytes());
    if region.is_some() {
        let ticket = stream.enqueue(move |_| {
            let gone = CUresult::CUDA_ERROR_ILLEGAL_ADDRESS;
            let bytes = device.find_later(gpu)?;
            let _region = host::find(host.address, host.len).ok().flatten().ok_or(gone)?;
            if transfer(Way::ToHost, host, &bytes, device.pitch, shape) { Ok(()) } else { Err(gone) }
        })?;
        return if waits == Waits::Yes { stream.wait(ticket) } else { Ok(()) };
    }
    // Into pageable memory, the call waits in any case.
    let staged = Arc::new(Mutex::new(vec![0; shape.bytes()]));
    let theirs = Arc::clone(&staged);
    let ticket = stream.enqueue(move |_| {
        let bytes = device.find_later(gpu)?;
        let mut staged = lock(&theirs);
        for (row, to) in staged.chunks_exact_mut(shape.width).enumerate() {
            let from = bytes.pointer().wrapping_add(row * device.pitch);
            // SAFETY: a row of the footprint in `bytes`, and one of the vector.
            unsafe { ptr::copy_nonoverlapping(from, to.as_mut_ptr(), shape.width) };
        }
        Ok(())
    })?;
    stream.wait(ticket)?;
    unstage(&mut lock(&staged), host, shape)
}

fn between(stream: &Arc<Stream>, from: Device, to: Device, shape: Shape) -> Answer {
    let find = move |gpu: &Gpu| {
        let from = memory::device_bytes(from.address, from.len)?;
        let to = memory::device_bytes(to.address, to.len)?;
        // Copies between GPUs are fine, but one is the stream's.
        let ours = from.gpu() == gpu || to.gpu() == gpu;
        if ours { Ok((from, to)) } else { Err(CUresult::CUDA_ERROR_INVALID_VALUE) }
    };
    let gpu = stream.context.gpu;
    find(gpu)?;
    let work = move |_: &Context| {
        let (from_bytes, to_bytes) = find(gpu).map_err(|_| CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)?;
        for row in 0..shape.height {
            let source = from_bytes.pointer().wrapping_add(row * from.pitch);
            let target = to_bytes.pointer().wrapping_add(row * to.pitch);
            // SAFETY: each a row of its footprint.
            unsafe { ptr::copy(source, target, shape.width) };
        }
        Ok(())
    };
    stream.enqueue(work).map(drop)
}

/// Fills device memory.
pub(crate) fn fill(stream: &Arc<Stream>, address: CUdeviceptr, value: u8, len: usize) -> Answer {
    if len == 0 {
        return Ok(());
    }
    let device = Device { address, pitch: len, len };
    let gpu = stream.context.gpu;
    device.find(gpu)?;
    let work = move |_: &Context| {
        let bytes = device.find_later(gpu)?;
        // SAFETY: all of `bytes`.
        unsafe { bytes.pointer().write_bytes(value, len) };
        Ok(())
    };
    stream.enqueue(work).map(drop)
}
