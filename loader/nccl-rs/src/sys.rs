//! NCCL as C sees it: types, numbers and signatures, with nothing checked.
//!
//! Everything that comes from the library is a plain integer here, never a Rust enum: a newer NCCL may return numbers that
//! this file does not know. Signatures are those of `nccl.h` 2.18, the oldest release that is accepted; what came later is an
//! `Option` in [`Functions`].
//!
//! The simulated NCCL of shardwright's tests takes its signatures from here too, so that the two cannot drift apart.

use std::{
    ffi::{c_char, c_int, c_uint, c_void},
    fmt,
};

#[cfg(not(target_pointer_width = "64"))]
compile_error!("NCCL and CUDA's device addresses need a 64-bit machine");

/// `ncclComm_t`: a communicator, opaque.
pub type Comm = *mut c_void;

/// `cudaStream_t` and `CUstream`: a stream, opaque. Null is the default stream.
pub type Stream = *mut c_void;

/// Bytes of an `ncclUniqueId`.
pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclUniqueId`: passed by value, as in C.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawUniqueId {
    /// Means nothing to anyone but NCCL.
    pub internal: [c_char; UNIQUE_ID_BYTES],
}

/// What a call came to: `ncclResult_t`. Any number may stand in it.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResultCode(pub c_int);

impl ResultCode {
    /// The call did what it should.
    pub const SUCCESS: Self = Self(0);
    /// A CUDA call failed inside.
    pub const UNHANDLED_CUDA_ERROR: Self = Self(1);
    /// A call to the operating system failed inside.
    pub const SYSTEM_ERROR: Self = Self(2);
    /// NCCL found itself in a state that it thought impossible, or memory was corrupted.
    pub const INTERNAL_ERROR: Self = Self(3);
    /// An argument was refused.
    pub const INVALID_ARGUMENT: Self = Self(4);
    /// The call is not allowed here.
    pub const INVALID_USAGE: Self = Self(5);
    /// Another rank failed, or the network to it did.
    pub const REMOTE_ERROR: Self = Self(6);
    /// A non-blocking call goes on in the background.
    pub const IN_PROGRESS: Self = Self(7);
    /// A wait inside NCCL took too long.
    pub const TIMEOUT: Self = Self(8);

    /// The name in `nccl.h`; `None` for numbers that this crate does not know.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::SUCCESS => "ncclSuccess",
            Self::UNHANDLED_CUDA_ERROR => "ncclUnhandledCudaError",
            Self::SYSTEM_ERROR => "ncclSystemError",
            Self::INTERNAL_ERROR => "ncclInternalError",
            Self::INVALID_ARGUMENT => "ncclInvalidArgument",
            Self::INVALID_USAGE => "ncclInvalidUsage",
            Self::REMOTE_ERROR => "ncclRemoteError",
            Self::IN_PROGRESS => "ncclInProgress",
            Self::TIMEOUT => "ncclTimeout",
            _ => return None,
        })
    }
}

impl fmt::Display for ResultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}, code {}", self.0),
            None => write!(f, "code {}, which this binding does not know", self.0),
        }
    }
}

/// The numbers of `ncclDataType_t`.
pub mod data_type {
    use std::ffi::c_int;

    /// `ncclInt8`
    pub const INT8: c_int = 0;
    /// `ncclUint8`
    pub const UINT8: c_int = 1;
    /// `ncclInt32`
    pub const INT32: c_int = 2;
    /// `ncclUint32`
    pub const UINT32: c_int = 3;
    /// `ncclInt64`
    pub const INT64: c_int = 4;
    /// `ncclUint64`
    pub const UINT64: c_int = 5;
    /// `ncclFloat16`
    pub const FLOAT16: c_int = 6;
    /// `ncclFloat32`
    pub const FLOAT32: c_int = 7;
    /// `ncclFloat64`
    pub const FLOAT64: c_int = 8;
    /// `ncclBfloat16`
    pub const BFLOAT16: c_int = 9;
    /// `ncclFloat8e4m3`, since NCCL 2.24
    pub const FLOAT8_E4M3: c_int = 10;
    /// `ncclFloat8e5m2`, since NCCL 2.24
    pub const FLOAT8_E5M2: c_int = 11;
}

/// The numbers of `ncclRedOp_t`.
pub mod reduction {
    use std::ffi::c_int;

    /// `ncclSum`
    pub const SUM: c_int = 0;
    /// `ncclProd`
    pub const PROD: c_int = 1;
    /// `ncclMax`
    pub const MAX: c_int = 2;
    /// `ncclMin`
    pub const MIN: c_int = 3;
    /// `ncclAvg`
    pub const AVG: c_int = 4;
}

/// The colour of ranks that take no part in what [`CommSplit`] makes: `NCCL_SPLIT_NOCOLOR`.
pub const SPLIT_NO_COLOR: c_int = -1;

/// A field of [`Config`] that is left to NCCL: `NCCL_CONFIG_UNDEF_INT`.
pub const UNDEFINED: c_int = c_int::MIN;

/// What [`Config::magic`] must be: `NCCL_API_MAGIC`.
pub const CONFIG_MAGIC: c_uint = 0xcafe_beef;

/// `ncclConfig_t` as NCCL 2.17 had it.
///
/// Newer releases have longer ones and go by `size` and `version`: what lies past `size` is theirs to choose. This one ends
/// where `splitShare` of 2.18 begins, and has no padding that a newer release could take for a field.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes of this structure.
    pub size: usize,
    /// [`CONFIG_MAGIC`].
    pub magic: c_uint,
    /// The release whose structure this is, as `NCCL_VERSION_CODE`.
    pub version: c_uint,
    /// 0: calls return [`ResultCode::IN_PROGRESS`] instead of waiting.
    pub blocking: c_int,
    /// Size of the thread block clusters.
    pub cga_cluster_size: c_int,
    /// Fewest thread blocks a kernel uses.
    pub min_ctas: c_int,
    /// Most thread blocks a kernel uses.
    pub max_ctas: c_int,
    /// Which network plugin; null: any.
    pub net_name: *const c_char,
}

impl Config {
    /// Non-blocking, and all else as NCCL chooses.
    #[must_use]
    pub const fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: CONFIG_MAGIC,
            version: 21700,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
        }
    }
}

const _: () = assert!(size_of::<Config>() == 40, "the layout of NCCL 2.17");

/// `ncclGetVersion`
pub type GetVersion = unsafe extern "C" fn(version: *mut c_int) -> ResultCode;
/// `ncclGetUniqueId`
pub type GetUniqueId = unsafe extern "C" fn(id: *mut RawUniqueId) -> ResultCode;
/// `ncclGetErrorString`: a constant of the library
pub type GetErrorString = unsafe extern "C" fn(code: ResultCode) -> *const c_char;
/// `ncclGetLastError`: a buffer of the library, which later errors overwrite; the communicator may be null
pub type GetLastError = unsafe extern "C" fn(comm: Comm) -> *const c_char;
/// `ncclCommInitRank`
pub type CommInitRank =
    unsafe extern "C" fn(comm: *mut Comm, ranks: c_int, id: RawUniqueId, rank: c_int) -> ResultCode;
/// `ncclCommInitRankConfig`: may write `comm` after it has returned, while the communicator is in progress
pub type CommInitRankConfig = unsafe extern "C" fn(
    comm: *mut Comm,
    ranks: c_int,
    id: RawUniqueId,
    rank: c_int,
    config: *mut Config,
) -> ResultCode;
/// `ncclCommSplit`: may write `new` after it has returned, while the parent is in progress
pub type CommSplit = unsafe extern "C" fn(
    comm: Comm,
    color: c_int,
    key: c_int,
    new: *mut Comm,
    config: *mut Config,
) -> ResultCode;
/// `ncclCommFinalize`
pub type CommFinalize = unsafe extern "C" fn(comm: Comm) -> ResultCode;
/// `ncclCommDestroy`
pub type CommDestroy = unsafe extern "C" fn(comm: Comm) -> ResultCode;
/// `ncclCommAbort`
pub type CommAbort = unsafe extern "C" fn(comm: Comm) -> ResultCode;
/// `ncclCommGetAsyncError`
pub type CommGetAsyncError = unsafe extern "C" fn(comm: Comm, error: *mut ResultCode) -> ResultCode;
/// `ncclCommCount`
pub type CommCount = unsafe extern "C" fn(comm: Comm, count: *mut c_int) -> ResultCode;
/// `ncclCommCuDevice`
pub type CommCuDevice = unsafe extern "C" fn(comm: Comm, device: *mut c_int) -> ResultCode;
/// `ncclCommUserRank`
pub type CommUserRank = unsafe extern "C" fn(comm: Comm, rank: *mut c_int) -> ResultCode;
/// `ncclAllReduce`
pub type AllReduce = unsafe extern "C" fn(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    data_type: c_int,
    reduction: c_int,
    comm: Comm,
    stream: Stream,
) -> ResultCode;
/// `ncclReduceScatter`: `elements` is what each rank receives
pub type ReduceScatter = AllReduce;
/// `ncclAllGather`: `elements` is what each rank sends
pub type AllGather = unsafe extern "C" fn(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    data_type: c_int,
    comm: Comm,
    stream: Stream,
) -> ResultCode;
/// `ncclBroadcast`
pub type Broadcast = unsafe extern "C" fn(
    send: *const c_void,
    receive: *mut c_void,
    elements: usize,
    data_type: c_int,
    root: c_int,
    comm: Comm,
    stream: Stream,
) -> ResultCode;
/// `ncclSend`
pub type Send = unsafe extern "C" fn(
    send: *const c_void,
    elements: usize,
    data_type: c_int,
    peer: c_int,
    comm: Comm,
    stream: Stream,
) -> ResultCode;
/// `ncclRecv`
pub type Recv = unsafe extern "C" fn(
    receive: *mut c_void,
    elements: usize,
    data_type: c_int,
    peer: c_int,
    comm: Comm,
    stream: Stream,
) -> ResultCode;
/// `ncclGroupStart` and `ncclGroupEnd`: of the calling thread
pub type Group = unsafe extern "C" fn() -> ResultCode;
/// `ncclMemAlloc`: `bytes` of device memory that NCCL can map everywhere
pub type MemAlloc = unsafe extern "C" fn(address: *mut *mut c_void, bytes: usize) -> ResultCode;
/// `ncclMemFree`
pub type MemFree = unsafe extern "C" fn(address: *mut c_void) -> ResultCode;
/// `ncclCommRegister`
pub type CommRegister = unsafe extern "C" fn(
    comm: Comm,
    address: *mut c_void,
    bytes: usize,
    handle: *mut *mut c_void,
) -> ResultCode;
/// `ncclCommDeregister`
pub type CommDeregister = unsafe extern "C" fn(comm: Comm, handle: *mut c_void) -> ResultCode;

/// Declares [`Functions`] and how each is found, once.
macro_rules! functions {
    (
        required { $($field:ident: $kind:ty = $symbol:literal,)* }
        optional { $($newer:ident: $newer_kind:ty = $newer_symbol:literal,)* }
    ) => {
        /// The functions of an opened NCCL, ready to be called.
        #[derive(Debug, Clone, Copy)]
        pub struct Functions {
            $(#[doc = concat!("`", $symbol, "`")] pub $field: $kind,)*
            $(#[doc = concat!("`", $newer_symbol, "`, where this NCCL has it")] pub $newer: Option<$newer_kind>,)*
        }

        impl Functions {
            /// Finds all of them, or names one that should be there and is not.
            ///
            /// # Safety
            /// `library` is NCCL: the symbols have the signatures that `nccl.h` gives them.
            pub(crate) unsafe fn resolve(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the caller says that the symbol has this signature.
                    $($field: unsafe { symbol::<$kind>(library, $symbol) }.ok_or($symbol)?,)*
                    // SAFETY: as above.
                    $($newer: unsafe { symbol::<$newer_kind>(library, $newer_symbol) },)*
                })
            }
        }
    };
}

functions! {
    required {
        get_version: GetVersion = "ncclGetVersion",
        get_unique_id: GetUniqueId = "ncclGetUniqueId",
        get_error_string: GetErrorString = "ncclGetErrorString",
        get_last_error: GetLastError = "ncclGetLastError",
        comm_init_rank: CommInitRank = "ncclCommInitRank",
        comm_init_rank_config: CommInitRankConfig = "ncclCommInitRankConfig",
        comm_split: CommSplit = "ncclCommSplit",
        comm_finalize: CommFinalize = "ncclCommFinalize",
        comm_destroy: CommDestroy = "ncclCommDestroy",
        comm_abort: CommAbort = "ncclCommAbort",
        comm_get_async_error: CommGetAsyncError = "ncclCommGetAsyncError",
        comm_count: CommCount = "ncclCommCount",
        comm_cu_device: CommCuDevice = "ncclCommCuDevice",
        comm_user_rank: CommUserRank = "ncclCommUserRank",
        all_reduce: AllReduce = "ncclAllReduce",
        all_gather: AllGather = "ncclAllGather",
        reduce_scatter: ReduceScatter = "ncclReduceScatter",
        broadcast: Broadcast = "ncclBroadcast",
        send: Send = "ncclSend",
        recv: Recv = "ncclRecv",
        group_start: Group = "ncclGroupStart",
        group_end: Group = "ncclGroupEnd",
    }
    optional {
        mem_alloc: MemAlloc = "ncclMemAlloc",
        mem_free: MemFree = "ncclMemFree",
        comm_register: CommRegister = "ncclCommRegister",
        comm_deregister: CommDeregister = "ncclCommDeregister",
    }
}

/// The function of that name.
///
/// # Safety
/// `T` is a function pointer, and the symbol, where there is one, a function of that signature.
pub(crate) unsafe fn symbol<T: Copy>(library: &libloading::Library, name: &str) -> Option<T> {
    // SAFETY: the caller says that the symbol has this type.
    unsafe { library.get::<T>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}
