//! Memory: a GPU's, and pages of the host that a GPU can copy from while the program goes on.

use super::{Context, IpcHandle, Stream, error::gpu_name};
use crate::device::CudaError;
use cudarc::driver::sys;
use std::{ops::Range, ptr::NonNull};

/// Memory of a GPU, in one piece.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    context: Context,
    address: sys::CUdeviceptr,
    len: usize,
    origin: Origin,
}

/// Where a buffer comes from, and so how it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Allocated by this process.
    Allocated,
    /// Another process' buffer, opened in this one.
    Opened,
    /// Somebody else's, in this process.
    Lent,
}

/// Rows of a two-dimensional copy from the host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows2d {
    /// The first row's first byte.
    pub(crate) from: *const u8,
    /// Bytes from one row to the next on the host.
    pub(crate) from_stride: usize,
    /// Where the first row goes, counted from the buffer's beginning.
    pub(crate) to: usize,
    /// Bytes from one row to the next in the buffer.
    pub(crate) to_stride: usize,
    /// Bytes of each row.
    pub(crate) run_bytes: usize,
    /// How many rows.
    pub(crate) runs: usize,
}

impl DeviceBuffer {
    /// At least one byte of memory, of any content.
    pub(crate) fn new(context: &Context, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        let mut address = 0;
        // SAFETY: the pointer is good for one address; what is allocated is freed by `drop` only.
        let allocated = unsafe { (context.functions().cuMemAlloc_v2)(&raw mut address, len.max(1)) };
        context.check("cuMemAlloc", allocated)?;
        Ok(Self { context: context.clone(), address, len, origin: Origin::Allocated })
    }

    /// The first `len` bytes of another process' buffer. It must not be used when that process has freed it: who hands out
    /// handles keeps the memory for as long as it is connected. The inner error is the buffer's length, when it is shorter.
    pub(crate) fn open(
        context: &Context,
        handle: IpcHandle,
        len: usize,
    ) -> Result<Result<Self, usize>, CudaError> {
        let opened =
            Self { context: context.clone(), address: handle.open(context)?, len, origin: Origin::Opened };
        let (mut start, mut whole): (sys::CUdeviceptr, usize) = (0, 0);
        // SAFETY: the pointers are good for an address and a length; the context is current, for it was opened just now.
        let range = unsafe {
            (context.functions().cuMemGetAddressRange_v2)(&raw mut start, &raw mut whole, opened.address)
        };
        context.check("cuMemGetAddressRange", range)?;
        // A small allocation may be a part of what the range is of.
        let held = (start + whole as u64).saturating_sub(opened.address);
        let held = usize::try_from(held).unwrap_or(usize::MAX);
        Ok(if held < len.max(1) { Err(held) } else { Ok(opened) })
    }

    /// `len` bytes at `address` that are somebody else's.
    ///
    /// # Safety
    /// They are memory of the context's GPU for as long as the buffer, and what was added to streams for it, lives.
    pub(crate) unsafe fn lent(context: &Context, address: u64, len: usize) -> Self {
        Self { context: context.clone(), address, len, origin: Origin::Lent }
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The address of a range, which must lie inside.
    fn at(&self, range: Range<usize>) -> sys::CUdeviceptr {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} lies outside {} bytes",
            self.len
        );
        self.address + range.start as u64
    }

    /// Adds to `stream`: fills all of it with zeros.
    pub(crate) fn zero(&self, stream: &Stream) -> Result<(), CudaError> {
        if self.len == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the bytes are inside the allocation, which lives until `drop`, and that waits for nobody: see `copy_from`.
        let set =
            unsafe { (self.context.functions().cuMemsetD8Async)(self.address, 0, self.len, stream.raw()) };
        self.context.check("cuMemsetD8Async", set)
    }

    /// Adds to `stream`: copies `range` of `from` to `to`.
    ///
    /// # Safety
    /// Until the stream has done it, nobody writes that range of `from`, and both buffers live.
    pub(crate) unsafe fn copy_from(
        &self,
        to: usize,
        from: &PinnedBuffer,
        range: Range<usize>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let (address, len) = (self.at(to..to + range.len()), range.len());
        self.context.bind()?;
        // SAFETY: both ranges were checked; the caller keeps them until the copy is done.
        let copy = unsafe {
            (self.context.functions().cuMemcpyHtoDAsync_v2)(address, from.at(range).cast(), len, stream.raw())
        };
        self.context.check("cuMemcpyHtoDAsync", copy)
    }

    /// Adds to `stream`: copies `range` to `to` of `into`.
    ///
    /// # Safety
    /// Until the stream has done it, nobody touches the bytes of `into`, and both buffers live.
    pub(crate) unsafe fn copy_to(
        &self,
        range: Range<usize>,
        into: &PinnedBuffer,
        to: usize,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let len = range.len();
        let (address, into) = (self.at(range), into.at(to..to + len));
        self.context.bind()?;
        // SAFETY: both ranges were checked; the caller keeps them until the copy is done.
        let copy = unsafe {
            (self.context.functions().cuMemcpyDtoHAsync_v2)(into.cast(), address, len, stream.raw())
        };
        self.context.check("cuMemcpyDtoHAsync", copy)
    }

    /// Adds to `stream`: copies rows from registered memory of the host.
    ///
    /// # Safety
    /// Until the stream has done it, all the rows' bytes on the host stay readable, registered and unchanged, and the buffer
    /// lives.
    pub(crate) unsafe fn copy_rows(&self, rows: Rows2d, stream: &Stream) -> Result<(), CudaError> {
        let span = (rows.runs - 1) * rows.to_stride + rows.run_bytes;
        let address = self.at(rows.to..rows.to + span);
        self.context.bind()?;
        if rows.runs == 1 {
            // SAFETY: the bytes on the GPU were checked; the caller keeps those on the host until the copy is done.
            let copy = unsafe {
                (self.context.functions().cuMemcpyHtoDAsync_v2)(
                    address,
                    rows.from.cast(),
                    rows.run_bytes,
                    stream.raw(),
                )
            };
            return self.context.check("cuMemcpyHtoDAsync", copy);
        }
        let copy = sys::CUDA_MEMCPY2D_st {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            srcHost: rows.from.cast(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: rows.from_stride,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: address,
            dstArray: std::ptr::null_mut(),
            dstPitch: rows.to_stride,
            WidthInBytes: rows.run_bytes,
            Height: rows.runs,
        };
        // SAFETY: the rows on the GPU were checked; the caller keeps those on the host until the copy is done.
        let copy = unsafe { (self.context.functions().cuMemcpy2DAsync_v2)(&raw const copy, stream.raw()) };
        self.context.check("cuMemcpy2DAsync", copy)
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            return;
        }
        match self.origin {
            Origin::Lent => {}
            Origin::Allocated => {
                // SAFETY: allocated by `new`, freed here only. The driver waits for work that still uses it.
                let _ = unsafe { (self.context.functions().cuMemFree_v2)(self.address) };
            }
            Origin::Opened => {
                // SAFETY: opened by `open`, closed here only; whoever used it has waited for that.
                let _ = unsafe { (self.context.functions().cuIpcCloseMemHandle)(self.address) };
            }
        }
    }
}

/// Memory of the host that a GPU copies from and to by itself.
#[derive(Debug)]
pub(crate) struct PinnedBuffer {
    context: Context,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is plain memory that this value owns; who may touch which bytes is for its owner to say.
unsafe impl Send for PinnedBuffer {}
// SAFETY: as above: shared, it only gives addresses.
unsafe impl Sync for PinnedBuffer {}

impl PinnedBuffer {
    /// `len` bytes, at least one, all zero.
    pub(crate) fn new(context: &Context, len: usize) -> Result<Self, CudaError> {
        context.bind()?;
        let len = len.max(1);
        // Not write-combined: it is read as well.
        let (mut start, flags) = (std::ptr::null_mut(), sys::CU_MEMHOSTALLOC_PORTABLE);
        // SAFETY: the pointer is good for one pointer; what is allocated is freed by `drop` only.
        let allocated = unsafe { (context.functions().cuMemHostAlloc)(&raw mut start, len, flags) };
        context.check("cuMemHostAlloc", allocated)?;
        let nothing = || CudaError::Call {
            gpu: Some(gpu_name(context.gpu().ordinal)),
            call: "cuMemHostAlloc",
            code: 0,
            name: "CUDA_SUCCESS".to_owned(),
            text: "success, but no memory".to_owned(),
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(nothing)?;
        // SAFETY: the driver gave `len` bytes, which nobody else has.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { context: context.clone(), start, len })
    }

    /// The address of a range, which must lie inside.
    fn at(&self, range: Range<usize>) -> *mut u8 {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} lies outside {} bytes",
            self.len
        );
        // SAFETY: the place lies inside the allocation, or just behind it.
        unsafe { self.start.as_ptr().add(range.start) }
    }

    /// The bytes of a range.
    ///
    /// # Safety
    /// Until the slice is gone, nobody else touches the range: no thread, and no copy of a GPU.
    #[expect(clippy::mut_from_ref, reason = "the caller answers for who has which range")]
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> &mut [u8] {
        let (start, len) = (self.at(range.clone()), range.len());
        // SAFETY: the range lies inside the allocation, whose bytes were all written by `new`; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

impl Drop for PinnedBuffer {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed here only; who copies from it waits before dropping it.
            let _ = unsafe { (self.context.functions().cuMemFreeHost)(self.start.as_ptr().cast()) };
        }
    }
}
