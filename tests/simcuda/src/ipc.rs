//! Device memory of other processes.
//!
//! In: an allocation, here; a handle, there. The handle's 64 bytes name this process, the GPU's memory file, and the place in it;
//! whoever opens it maps `/proc/PID/fd/N`, so nothing lies on a disk or in `/dev/shm`, and nothing opens once the process is
//! gone. Memory begins within its page ([`memory::ALIGNMENT`] bytes), and before it lies a seal that freeing it wipes out: a
//! handle of memory that was freed, or of a process whose number another has now, doesn't open either.

use crate::{
    Answer, context,
    lock::lock,
    memory::{self, Mapping, Owner},
};
use cudarc::driver::sys::{CUdeviceptr, CUipcMemHandle, CUresult};
use std::{
    ffi::c_char,
    fs::File,
    hash::{BuildHasher as _, RandomState},
    sync::Mutex,
};

/// What a handle says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Handle {
    process: u32,
    descriptor: i32,
    /// Where the memory begins in the file.
    offset: u64,
    len: u64,
    nonce: u64,
}

/// How handles and seals begin.
const MAGIC: [u8; 8] = *b"simcuda\0";

/// Something that was opened here, and how often.
struct Opened {
    handle: Handle,
    ordinal: i32,
    address: CUdeviceptr,
    times: usize,
}

static OPENED: Mutex<Vec<Opened>> = Mutex::new(Vec::new());

impl Handle {
    fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.process.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.descriptor.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.len.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.nonce.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; 64]) -> Option<Self> {
        let (words, _) = bytes.as_chunks::<8>();
        let number = |at: usize| u64::from_le_bytes(words[at]);
        let (halves, _) = bytes[8..16].as_chunks::<4>();
        (words[0] == MAGIC).then(|| Self {
            process: u32::from_le_bytes(halves[0]),
            descriptor: i32::from_le_bytes(halves[1]),
            offset: number(2),
            len: number(3),
            nonce: number(4),
        })
    }
}

/// A handle for the allocation at `address`.
pub(crate) fn export(address: CUdeviceptr) -> Answer<CUipcMemHandle> {
    context::current()?;
    let bytes = memory::device_bytes(address, 1)?;
    let allocation = bytes.allocation();
    if !matches!(allocation.owner, Owner::Us) || allocation.address as u64 != address {
        return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let (descriptor, offset) = allocation.gpu.space.in_file(allocation);
    // The same for each export of an allocation.
    let nonce = memory::with_seal(allocation, |seal| {
        let mut nonce = u64::from_le_bytes(*seal);
        if nonce == 0 {
            nonce = RandomState::new().hash_one(address) | 1;
            *seal = nonce.to_le_bytes();
        }
        nonce
    });
    let handle =
        Handle { process: std::process::id(), descriptor, offset, len: allocation.len as u64, nonce };
    Ok(CUipcMemHandle { reserved: handle.to_bytes().map(|byte| byte as c_char) })
}

/// The address of another process's memory on the current GPU. Opening it again gives the same.
pub(crate) fn open(handle: &CUipcMemHandle) -> Answer<CUdeviceptr> {
    let gpu = context::current()?.gpu;
    let bytes = handle.reserved.map(|byte| byte.to_le_bytes()[0]);
    let handle = Handle::from_bytes(&bytes).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    if handle.process == std::process::id() {
        return Err(CUresult::CUDA_ERROR_INVALID_CONTEXT);
    }
    let mut opened = lock(&OPENED);
    let known = opened.iter_mut().find(|known| known.handle == handle && known.ordinal == gpu.ordinal);
    if let Some(known) = known {
        known.times += 1;
        return Ok(known.address);
    }
    let address =
        map(&handle).and_then(|(mapping, len)| memory::adopt(gpu, mapping, memory::ALIGNMENT, len))?;
    opened.push(Opened { handle, ordinal: gpu.ordinal, address, times: 1 });
    Ok(address)
}

/// The memory with the bytes before it, and how long it is.
fn map(handle: &Handle) -> Answer<(Mapping, usize)> {
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let len = usize::try_from(handle.len).map_err(|_| invalid)?;
    let path = format!("/proc/{}/fd/{}", handle.process, handle.descriptor);
    let file = File::options().read(true).write(true).open(path).map_err(|_| invalid)?;
    let offset = handle.offset.checked_sub(memory::ALIGNMENT as u64).ok_or(invalid)?;
    let whole = len.checked_add(memory::ALIGNMENT).ok_or(invalid)?;
    if file.metadata().map_or(0, |about| about.len()) < offset.saturating_add(whole as u64) {
        return Err(invalid);
    }
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    let mapping =
        Mapping::new(whole, rights, Some((&file, offset))).map_err(|_| CUresult::CUDA_ERROR_MAP_FAILED)?;
    // SAFETY: the mapping begins with a seal; the other process may change it, but not while it is opened without a mistake.
    let seal = unsafe { mapping.start().cast::<[u8; 8]>().read_volatile() };
    if u64::from_le_bytes(seal) != handle.nonce { Err(invalid) } else { Ok((mapping, len)) }
}

/// Closes it once; the last time ends it.
pub(crate) fn close(address: CUdeviceptr) -> Answer {
    let context = context::current();
    let mut opened = lock(&OPENED);
    let at = opened.iter().position(|known| known.address == address);
    let at = at.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
    opened[at].times -= 1;
    if opened[at].times == 0 {
        opened.swap_remove(at);
        memory::let_go(address)?;
    }
    context.map(drop)
}

/// Forgets what was open on a GPU whose context ends.
pub(crate) fn forget_all(ordinal: i32) {
    lock(&OPENED).retain(|known| known.ordinal != ordinal);
}
