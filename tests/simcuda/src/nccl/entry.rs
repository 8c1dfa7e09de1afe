//! The functions of `libnccl.so.2`. Each checks its pointers and hands on; none lets a panic out.

use super::{
    comm::{self, Seat},
    group, hub,
    operation::{Call, Operation},
    refusal::{self, Refusal},
    wire::{Kind, Name},
};
use crate::{counts, settings::settings};
use nccl_rs::sys::{self, Comm, Config, RawUniqueId, ResultCode, Stream};
use std::{
    ffi::{c_char, c_int, c_void},
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::null_mut,
};

/// Counts a call, and tells what it returns; a failure becomes the last error.
fn answer(function: &'static str, act: impl FnOnce() -> Result<ResultCode, Refusal>) -> ResultCode {
    let counted = || {
        counts::call(function);
        act()
    };
    match catch_unwind(AssertUnwindSafe(counted)) {
        Ok(Ok(code)) => code,
        Ok(Err(refusal)) => refusal.keep(),
        Err(_) => Refusal::new(ResultCode::INTERNAL_ERROR, "the simulation panicked").keep(),
    }
}

/// Writes a result where the caller wants it.
///
/// # Safety
/// `to` is null or the caller's, to write a `T`.
unsafe fn give<T>(to: *mut T, value: T) -> Result<ResultCode, Refusal> {
    if to.is_null() {
        return Err(Refusal::argument("a pointer is null"));
    }
    // SAFETY: not null, so the caller's.
    unsafe { to.write(value) };
    Ok(ResultCode::SUCCESS)
}

/// Declares the functions, and holds each against the signature that `nccl_rs` calls it by.
macro_rules! entry_points {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $kind:ty),*): $signature:ty $body:block)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name($($argument: $kind),*) -> ResultCode {
                answer(stringify!($name), || $body)
            }
            const _: $signature = $name;
        )*
    };
}

entry_points! {
    fn ncclGetVersion(version: *mut c_int): sys::GetVersion {
        let number = c_int::try_from(settings().nccl_version).unwrap_or(c_int::MAX);
        // SAFETY: the caller's.
        unsafe { give(version, number) }
    }

    fn ncclGetUniqueId(id: *mut RawUniqueId): sys::GetUniqueId {
        let name = Name::new();
        hub::start(name.clone()).map_err(|error| {
            Refusal::new(ResultCode::SYSTEM_ERROR, format!("listening for ranks: {error}"))
        })?;
        // SAFETY: the caller's.
        unsafe { give(id, name.to_id()) }
    }

    fn ncclCommInitRank(comm: *mut Comm, ranks: c_int, id: RawUniqueId, rank: c_int): sys::CommInitRank {
        // SAFETY: the caller's.
        unsafe { init(comm, ranks, &id, rank, true) }
    }

    fn ncclCommInitRankConfig(
        comm: *mut Comm,
        ranks: c_int,
        id: RawUniqueId,
        rank: c_int,
        config: *mut Config
    ): sys::CommInitRankConfig {
        // SAFETY: the caller's.
        let blocking = unsafe { blocking(config, true) }?;
        // SAFETY: the caller's.
        unsafe { init(comm, ranks, &id, rank, blocking) }
    }

    fn ncclCommSplit(
        comm: Comm,
        color: c_int,
        key: c_int,
        new: *mut Comm,
        config: *mut Config
    ): sys::CommSplit {
        let parent = comm::find(comm)?;
        if color < 0 && color != sys::SPLIT_NO_COLOR {
            return Err(Refusal::argument(format!("color {color} is negative")));
        }
        // SAFETY: the caller's.
        unsafe { give(new, null_mut()) }?;
        // SAFETY: the caller's.
        let part = parent.split(color, key, unsafe { blocking(config, parent.blocking) }?)?;
        // SAFETY: the caller's.
        unsafe { give(new, part) }?;
        group::begun(&parent)
    }

    fn ncclCommFinalize(comm: Comm): sys::CommFinalize {
        comm::find(comm)?.finalise()
    }

    fn ncclCommDestroy(comm: Comm): sys::CommDestroy {
        comm::remove(comm)?.destroy()
    }

    fn ncclCommAbort(comm: Comm): sys::CommAbort {
        comm::remove(comm)?.abort();
        Ok(ResultCode::SUCCESS)
    }

    fn ncclCommGetAsyncError(comm: Comm, error: *mut ResultCode): sys::CommGetAsyncError {
        // SAFETY: the caller's.
        unsafe { give(error, comm::find(comm)?.progress()) }
    }

    fn ncclCommCount(comm: Comm, count: *mut c_int): sys::CommCount {
        let comm = comm::find(comm)?;
        comm.ready()?;
        // SAFETY: the caller's.
        unsafe { give(count, c_int::try_from(comm.seat()?.world).unwrap_or(c_int::MAX)) }
    }

    fn ncclCommUserRank(comm: Comm, rank: *mut c_int): sys::CommUserRank {
        let comm = comm::find(comm)?;
        comm.ready()?;
        // SAFETY: the caller's.
        unsafe { give(rank, c_int::try_from(comm.seat()?.rank).unwrap_or(c_int::MAX)) }
    }

    fn ncclCommCuDevice(comm: Comm, device: *mut c_int): sys::CommCuDevice {
        let comm = comm::find(comm)?;
        comm.ready()?;
        // SAFETY: the caller's.
        unsafe { give(device, comm.context.gpu.ordinal) }
    }

    fn ncclAllReduce(
        send: *const c_void,
        receive: *mut c_void,
        elements: usize,
        data_type: c_int,
        reduction: c_int,
        comm: Comm,
        stream: Stream
    ): sys::AllReduce {
        let call = Call { send, receive, elements, data_type, comm, stream };
        group::add(Operation::collective(call, Kind::AllReduce, reduction, 0))
    }

    fn ncclReduceScatter(
        send: *const c_void,
        receive: *mut c_void,
        elements: usize,
        data_type: c_int,
        reduction: c_int,
        comm: Comm,
        stream: Stream
    ): sys::ReduceScatter {
        let call = Call { send, receive, elements, data_type, comm, stream };
        group::add(Operation::collective(call, Kind::ReduceScatter, reduction, 0))
    }

    fn ncclAllGather(
        send: *const c_void,
        receive: *mut c_void,
        elements: usize,
        data_type: c_int,
        comm: Comm,
        stream: Stream
    ): sys::AllGather {
        let call = Call { send, receive, elements, data_type, comm, stream };
        group::add(Operation::collective(call, Kind::AllGather, 0, 0))
    }

    fn ncclBroadcast(
        send: *const c_void,
        receive: *mut c_void,
        elements: usize,
        data_type: c_int,
        root: c_int,
        comm: Comm,
        stream: Stream
    ): sys::Broadcast {
        let call = Call { send, receive, elements, data_type, comm, stream };
        group::add(Operation::collective(call, Kind::Broadcast, 0, root))
    }

    fn ncclSend(
        send: *const c_void,
        elements: usize,
        data_type: c_int,
        peer: c_int,
        comm: Comm,
        stream: Stream
    ): sys::Send {
        let call = Call { send, receive: null_mut(), elements, data_type, comm, stream };
        group::add(Operation::between(call, peer, true))
    }

    fn ncclRecv(
        receive: *mut c_void,
        elements: usize,
        data_type: c_int,
        peer: c_int,
        comm: Comm,
        stream: Stream
    ): sys::Recv {
        let call = Call { send: std::ptr::null(), receive, elements, data_type, comm, stream };
        group::add(Operation::between(call, peer, false))
    }

    fn ncclGroupStart(): sys::Group {
        group::start();
        Ok(ResultCode::SUCCESS)
    }

    fn ncclGroupEnd(): sys::Group {
        group::end()
    }
}

/// Words for a code; the same for all that do not exist.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ncclGetErrorString(code: ResultCode) -> *const c_char {
    let words = match code {
        ResultCode::SUCCESS => c"no error",
        ResultCode::UNHANDLED_CUDA_ERROR => c"unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
        ResultCode::SYSTEM_ERROR => c"unhandled system error (run with NCCL_DEBUG=INFO for details)",
        ResultCode::INTERNAL_ERROR => c"internal error - please report this issue to the NCCL developers",
        ResultCode::INVALID_ARGUMENT => c"invalid argument (run with NCCL_DEBUG=WARN for details)",
        ResultCode::INVALID_USAGE => c"invalid usage (run with NCCL_DEBUG=WARN for details)",
        ResultCode::REMOTE_ERROR => c"remote process exited or there was a network error",
        ResultCode::IN_PROGRESS => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    words.as_ptr()
}
const _: sys::GetErrorString = ncclGetErrorString;

/// The words of the process's last failure, whichever communicator is asked for.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn ncclGetLastError(_: Comm) -> *const c_char {
    refusal::last_words()
}
const _: sys::GetLastError = ncclGetLastError;

/// Begins to join, and answers as `blocking` asks.
///
/// # Safety
/// `new` is null or the caller's, to write a handle.
unsafe fn init(
    new: *mut Comm,
    ranks: c_int,
    id: &RawUniqueId,
    rank: c_int,
    blocking: bool,
) -> Result<ResultCode, Refusal> {
    // SAFETY: the caller's.
    unsafe { give(new, null_mut()) }?;
    let name = Name::from_id(id).ok_or_else(|| Refusal::argument("not a unique id of this NCCL"))?;
    let (Ok(rank), Ok(world)) = (u64::try_from(rank), u64::try_from(ranks)) else {
        return Err(Refusal::argument(format!("rank {rank} of {ranks}")));
    };
    if rank >= world {
        return Err(Refusal::argument(format!("rank {rank} of {ranks}")));
    }
    let (handle, comm) = comm::join(Seat { name, rank, world }, blocking)?;
    // SAFETY: the caller's.
    unsafe { give(new, handle) }?;
    group::begun(&comm)
}

/// Whether a configuration asks for blocking calls; `otherwise` where it does not say.
///
/// # Safety
/// `config` is null or the caller's configuration of any release, of which `size` bytes can be read.
unsafe fn blocking(config: *const Config, otherwise: bool) -> Result<bool, Refusal> {
    if config.is_null() {
        return Ok(otherwise);
    }
    // SAFETY: each field lies in what all releases have.
    let (size, magic, blocking) = unsafe { ((*config).size, (*config).magic, (*config).blocking) };
    let least = std::mem::offset_of!(Config, blocking) + size_of::<c_int>();
    if size < least || magic != sys::CONFIG_MAGIC {
        return Err(Refusal::argument("the configuration was not initialised"));
    }
    match blocking {
        sys::UNDEFINED => Ok(otherwise),
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Refusal::argument(format!("blocking is {other}, and can be 0 or 1"))),
    }
}
