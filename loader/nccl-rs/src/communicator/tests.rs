//! Communicators over functions that a test made: what NCCL returns is a script, and what it was asked is written down.

use super::*;
use crate::{DataType, Failure, Reduction, sys::Functions};
use std::{
    collections::VecDeque,
    ffi::{c_char, c_void},
    sync::Mutex,
};

/// An NCCL that plays a script. Its address is the first eight bytes of the unique id, and its communicators are itself.
#[derive(Default)]
struct Script {
    /// What `ncclCommGetAsyncError` says next; the last stays.
    progress: Mutex<VecDeque<c_int>>,
    /// What the next operation returns.
    operation: Mutex<c_int>,
    /// All calls but those for progress.
    calls: Mutex<Vec<&'static str>>,
}

impl Script {
    fn new(progress: &[c_int]) -> &'static Self {
        Box::leak(Box::new(Self {
            progress: Mutex::new(progress.iter().copied().collect()),
            ..Self::default()
        }))
    }

    fn id(&'static self) -> UniqueId {
        let mut bytes = [0; UniqueId::BYTES];
        bytes[..8].copy_from_slice(&std::ptr::from_ref(self).expose_provenance().to_ne_bytes());
        UniqueId::from_bytes(bytes)
    }

    fn of(comm: sys::Comm) -> &'static Self {
        // SAFETY: communicators of this file are leaked scripts.
        unsafe { &*comm.cast() }
    }

    fn join(&'static self, patience: u64) -> Result<Communicator, CallError> {
        let patience = Duration::from_millis(patience);
        Communicator::init(&library(), &self.id(), 1, 4, patience, &mut || false)
    }

    fn then(&self, progress: c_int) {
        *self.progress.lock().unwrap() = [progress].into();
    }

    fn calls(&self) -> String {
        self.calls.lock().unwrap().join(" ")
    }

    fn wrote(&self, call: &'static str) -> ResultCode {
        self.calls.lock().unwrap().push(call);
        ResultCode::SUCCESS
    }
}

thread_local! {
    /// What this thread's NCCL calls itself.
    static VERSION: std::cell::Cell<c_int> = const { std::cell::Cell::new(21801) };
    /// How deep this thread is in groups.
    static DEPTH: std::cell::Cell<i32> = const { std::cell::Cell::new(0) };
}

/// Every function, in the shape of C.
mod functions {
    use super::*;

    unsafe extern "C" fn version(number: *mut c_int) -> ResultCode {
        // SAFETY: the caller's pointer.
        unsafe { *number = VERSION.get() };
        ResultCode::SUCCESS
    }
    unsafe extern "C" fn unique_id(_: *mut sys::RawUniqueId) -> ResultCode {
        ResultCode::SYSTEM_ERROR
    }
    unsafe extern "C" fn error_string(_: ResultCode) -> *const c_char {
        c"some words".as_ptr()
    }
    unsafe extern "C" fn last_error(_: sys::Comm) -> *const c_char {
        c"".as_ptr()
    }
    unsafe extern "C" fn init_rank(_: *mut sys::Comm, _: c_int, _: sys::RawUniqueId, _: c_int) -> ResultCode {
        ResultCode::INVALID_USAGE
    }
    unsafe extern "C" fn init(
        comm: *mut sys::Comm,
        world: c_int,
        id: sys::RawUniqueId,
        rank: c_int,
        config: *mut sys::Config,
    ) -> ResultCode {
        assert_eq!((rank, world), (1, 4));
        let address: [u8; 8] = UniqueId::from_raw(id).as_bytes()[..8].try_into().unwrap();
        let script: sys::Comm = std::ptr::with_exposed_provenance_mut(usize::from_ne_bytes(address));
        // SAFETY: the caller's pointers.
        unsafe {
            let config = *config;
            assert_eq!((config.size, config.magic, config.blocking), (40, 0xcafe_beef, 0));
            *comm = script;
        }
        Script::of(script).wrote("init");
        ResultCode::IN_PROGRESS
    }
    unsafe extern "C" fn split(
        comm: sys::Comm,
        color: c_int,
        _: c_int,
        new: *mut sys::Comm,
        _: *mut sys::Config,
    ) -> ResultCode {
        // SAFETY: the caller's pointer.
        unsafe { *new = if color < 0 { null_mut() } else { comm } };
        Script::of(comm).wrote("split");
        ResultCode::IN_PROGRESS
    }
    unsafe extern "C" fn finalize(comm: sys::Comm) -> ResultCode {
        Script::of(comm).wrote("finalize");
        ResultCode::IN_PROGRESS
    }
    unsafe extern "C" fn destroy(comm: sys::Comm) -> ResultCode {
        Script::of(comm).wrote("destroy")
    }
    unsafe extern "C" fn abort(comm: sys::Comm) -> ResultCode {
        Script::of(comm).wrote("abort")
    }
    unsafe extern "C" fn progress(comm: sys::Comm, code: *mut ResultCode) -> ResultCode {
        let mut script = Script::of(comm).progress.lock().unwrap();
        let next = if script.len() > 1 { script.pop_front() } else { script.front().copied() };
        // SAFETY: the caller's pointer.
        unsafe { *code = ResultCode(next.unwrap_or(0)) };
        ResultCode::SUCCESS
    }
    unsafe extern "C" fn number(_: sys::Comm, number: *mut c_int) -> ResultCode {
        // SAFETY: the caller's pointer.
        unsafe { *number = 3 };
        ResultCode::SUCCESS
    }
    fn operation(call: &'static str, comm: sys::Comm) -> ResultCode {
        assert_eq!(DEPTH.get(), 1, "operations stand in a group");
        Script::of(comm).wrote(call);
        ResultCode(*Script::of(comm).operation.lock().unwrap())
    }
    unsafe extern "C" fn reduce(
        _: *const c_void,
        _: *mut c_void,
        _: usize,
        _: c_int,
        _: c_int,
        comm: sys::Comm,
        _: sys::Stream,
    ) -> ResultCode {
        operation("reduce", comm)
    }
    unsafe extern "C" fn gather(
        _: *const c_void,
        _: *mut c_void,
        _: usize,
        _: c_int,
        comm: sys::Comm,
        _: sys::Stream,
    ) -> ResultCode {
        operation("gather", comm)
    }
    unsafe extern "C" fn send(
        _: *const c_void,
        _: usize,
        _: c_int,
        _: c_int,
        comm: sys::Comm,
        _: sys::Stream,
    ) -> ResultCode {
        operation("send", comm)
    }
    unsafe extern "C" fn recv(
        _: *mut c_void,
        _: usize,
        _: c_int,
        _: c_int,
        comm: sys::Comm,
        _: sys::Stream,
    ) -> ResultCode {
        operation("recv", comm)
    }
    unsafe extern "C" fn start() -> ResultCode {
        DEPTH.set(DEPTH.get() + 1);
        ResultCode::SUCCESS
    }
    unsafe extern "C" fn end() -> ResultCode {
        DEPTH.set(DEPTH.get() - 1);
        ResultCode::IN_PROGRESS
    }

    pub(super) const ALL: Functions = Functions {
        get_version: version,
        get_unique_id: unique_id,
        get_error_string: error_string,
        get_last_error: last_error,
        comm_init_rank: init_rank,
        comm_init_rank_config: init,
        comm_split: split,
        comm_finalize: finalize,
        comm_destroy: destroy,
        comm_abort: abort,
        comm_get_async_error: progress,
        comm_count: number,
        comm_cu_device: number,
        comm_user_rank: number,
        all_reduce: reduce,
        all_gather: gather,
        reduce_scatter: reduce,
        broadcast: reduce,
        send,
        recv,
        group_start: start,
        group_end: end,
        mem_alloc: None,
        mem_free: None,
        comm_register: None,
        comm_deregister: None,
    };
}

fn library() -> Library {
    // SAFETY: they are as good as NCCL's for what the tests call.
    unsafe { Library::from_functions(functions::ALL) }.unwrap()
}

fn failed(error: &CallError) -> &Failure {
    match error {
        CallError::Failed(failure) => failure,
        other => panic!("{other}"),
    }
}

#[test]
fn a_library_too_old_or_of_no_version_is_refused() {
    let error = |code| {
        VERSION.set(code);
        // SAFETY: only the version is asked for.
        unsafe { Library::from_functions(functions::ALL) }.unwrap_err()
    };
    let found = crate::Version::from_code(21003).unwrap();
    assert!(matches!(error(21003), crate::OpenError::TooOld { found: told, .. } if told == found));
    assert!(matches!(error(-7), crate::OpenError::NoVersion { number: -7, .. }));
}

#[test]
fn a_communicator_is_joined_when_its_progress_says_so_and_destroyed_when_dropped() {
    let script = Script::new(&[7, 7, 7, 0]);
    let joined = script.join(10_000).unwrap();
    assert_eq!((joined.rank(), joined.world_size(), joined.device()), (1, 4, 3));
    drop(joined);
    assert_eq!(script.calls(), "init destroy");
}

#[test]
fn ranks_outside_the_world_are_refused_before_nccl_sees_them() {
    for (rank, world) in [(4, 4), (0, 0), (0, u32::MAX), (u32::MAX, u32::MAX)] {
        let id = UniqueId::from_bytes([0; UniqueId::BYTES]);
        let error =
            Communicator::init(&library(), &id, rank, world, Duration::MAX, &mut || false).unwrap_err();
        assert_eq!(error, CallError::NoSuchRank { call: "ncclCommInitRankConfig", rank, world });
    }
}

#[test]
fn an_initialisation_that_hangs_is_aborted_in_time() {
    let script = Script::new(&[7]);
    let error = script.join(20).unwrap_err();
    assert!(
        matches!(error, CallError::TimedOut { waited, .. } if waited < Duration::from_secs(5)),
        "{error}"
    );
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn an_initialisation_that_the_caller_gives_up_is_aborted() {
    let script = Script::new(&[7]);
    let mut left = 3;
    let mut give_up = || {
        left -= 1;
        left == 0
    };
    let joined = Communicator::init(&library(), &script.id(), 1, 4, Duration::MAX, &mut give_up);
    assert!(matches!(joined, Err(CallError::GivenUp { .. })), "{joined:?}");
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn an_initialisation_whose_caller_panics_is_aborted() {
    let script = Script::new(&[7]);
    let panicked = std::panic::catch_unwind(|| {
        let mut give_up = || panic!("while waiting");
        Communicator::init(&library(), &script.id(), 1, 4, Duration::MAX, &mut give_up)
    });
    assert!(panicked.is_err());
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn an_initialisation_that_fails_later_is_aborted_and_told_even_with_unknown_codes() {
    for (code, words) in [(2, Some("some words".to_owned())), (77, None)] {
        let script = Script::new(&[7, code]);
        let error = script.join(10_000).unwrap_err();
        assert_eq!((failed(&error).code.0, &failed(&error).meaning), (code, &words));
        assert_eq!(script.calls(), "init abort");
    }
}

#[test]
fn a_remote_error_is_seen_and_the_communicator_then_aborted() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    joined.async_error().unwrap();
    script.then(6);
    assert_eq!(failed(&joined.async_error().unwrap_err()).code, ResultCode::REMOTE_ERROR);
    script.then(0);
    drop(joined);
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn an_error_that_nobody_asked_for_is_seen_when_dropping() {
    let script = Script::new(&[0]);
    let joined = script.join(10_000).unwrap();
    script.then(6);
    drop(joined);
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn aborting_twice_aborts_once_and_nothing_works_afterwards() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    joined.abort();
    joined.abort();
    let aborted = |call| CallError::Aborted { call };
    assert_eq!(joined.async_error().unwrap_err(), aborted("ncclCommGetAsyncError"));
    assert_eq!(joined.group(|_| Ok(())).unwrap_err(), aborted("ncclGroupStart"));
    let split = joined.split(Some(0), 0, Duration::MAX, &mut || false);
    assert_eq!(split.unwrap_err(), aborted("ncclCommSplit"));
    assert_eq!(joined.finalize().unwrap_err(), aborted("ncclCommFinalize"));
    assert_eq!(script.calls(), "init abort");
}

#[test]
fn finalising_waits_and_then_destroys() {
    let script = Script::new(&[0, 7, 7, 0]);
    script.join(10_000).unwrap().finalize().unwrap();
    assert_eq!(script.calls(), "init finalize destroy");
}

#[test]
fn finalising_that_hangs_is_aborted() {
    let script = Script::new(&[0]);
    let joined = script.join(20).unwrap();
    script.then(7);
    assert!(matches!(joined.finalize(), Err(CallError::TimedOut { call: "ncclCommFinalize", .. })));
    assert_eq!(script.calls(), "init finalize abort");
}

#[test]
fn all_operations_reach_nccl_in_one_group() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    let (bytes, none) = (DataType::Uint8, null_mut());
    joined
        .group(|group| {
            // SAFETY: the script looks at no memory.
            unsafe {
                group.all_reduce(1, 2, 3, bytes, Reduction::Max, none)?;
                group.all_gather(1, 2, 3, bytes, none)?;
                group.reduce_scatter(1, 2, 3, bytes, Reduction::Min, none)?;
                group.broadcast(1, 2, 3, bytes, 3, none)?;
                group.send(1, 3, bytes, 0, none)?;
                group.recv(2, 3, bytes, 0, none)
            }
        })
        .unwrap();
    drop(joined);
    assert_eq!(script.calls(), "init reduce gather reduce reduce send recv destroy");
    assert_eq!(DEPTH.get(), 0);
}

#[test]
fn a_group_ends_when_its_work_fails_or_panics() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    // SAFETY: the script looks at no memory.
    let sent = unsafe { joined.send(1, 3, DataType::Uint8, 4, null_mut()) };
    assert_eq!(sent.unwrap_err(), CallError::NoSuchRank { call: "ncclSend", rank: 4, world: 4 });
    assert_eq!((DEPTH.get(), joined.failed), (0, false));

    *script.operation.lock().unwrap() = 5;
    // SAFETY: as above.
    let reduced = unsafe { joined.all_reduce(1, 2, 3, DataType::Uint8, Reduction::Sum, null_mut()) };
    assert_eq!(failed(&reduced.unwrap_err()).call, "ncclAllReduce");
    assert_eq!((DEPTH.get(), joined.failed), (0, true));

    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        joined.group(|_| -> Result<(), CallError> { panic!("in a group") })
    }));
    assert!(panicked.is_err());
    assert_eq!(DEPTH.get(), 0);
}

#[test]
fn parts_of_a_group_are_communicators_of_their_own() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    let mut split = |color, key| joined.split(color, key, Duration::from_secs(10), &mut || false);
    let part = split(Some(1), 0).unwrap().unwrap();
    assert_eq!((part.rank(), part.world_size(), part.device()), (3, 3, 3));
    assert!(split(None, 0).unwrap().is_none());
    assert!(matches!(split(Some(u32::MAX), 0), Err(CallError::TooLarge { number: u32::MAX, .. })));
    drop(part);
    assert_eq!(script.calls(), "init split split destroy");
}

#[test]
fn a_split_that_hangs_is_aborted_with_its_parent() {
    let script = Script::new(&[0]);
    let mut joined = script.join(10_000).unwrap();
    script.then(7);
    let split = joined.split(Some(1), 0, Duration::from_millis(20), &mut || false);
    assert!(matches!(split, Err(CallError::TimedOut { .. })), "{split:?}");
    drop(joined);
    assert_eq!(script.calls(), "init split abort");
}
