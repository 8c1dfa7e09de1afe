//! The simulated NCCL through `nccl_rs`, as the loader uses it: ranks are threads, each with a GPU, or processes.

use super::*;
use crate::nccl::entry::*;
use nccl_rs::{
    CallError, Communicator, DataType, Library, OpenError, Reduction, UniqueId,
    sys::{Comm, Functions, ResultCode},
};
use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);
const IMPATIENCE: Duration = Duration::from_millis(300);
const U64: DataType = DataType::Uint64;

const FUNCTIONS: Functions = Functions {
    get_version: ncclGetVersion,
    get_unique_id: ncclGetUniqueId,
    get_error_string: ncclGetErrorString,
    get_last_error: ncclGetLastError,
    comm_init_rank: ncclCommInitRank,
    comm_init_rank_config: ncclCommInitRankConfig,
    comm_split: ncclCommSplit,
    comm_finalize: ncclCommFinalize,
    comm_destroy: ncclCommDestroy,
    comm_abort: ncclCommAbort,
    comm_get_async_error: ncclCommGetAsyncError,
    comm_count: ncclCommCount,
    comm_cu_device: ncclCommCuDevice,
    comm_user_rank: ncclCommUserRank,
    all_reduce: ncclAllReduce,
    all_gather: ncclAllGather,
    reduce_scatter: ncclReduceScatter,
    broadcast: ncclBroadcast,
    send: ncclSend,
    recv: ncclRecv,
    group_start: ncclGroupStart,
    group_end: ncclGroupEnd,
    mem_alloc: None,
    mem_free: None,
    comm_register: None,
    comm_deregister: None,
};

fn library() -> Library {
    // SAFETY: they are what is tested.
    unsafe { Library::from_functions(FUNCTIONS) }.unwrap()
}

fn join(id: &UniqueId, rank: u32, world: u32, patience: Duration) -> Result<Communicator, CallError> {
    Communicator::init(&library(), id, rank, world, patience, &mut || false)
}

/// Runs `rank` once for each of `world` ranks, on a thread and a GPU of its own.
fn ranks<T: Send>(world: u32, rank: impl Fn(u32, &UniqueId) -> T + Sync) -> Vec<T> {
    start();
    let id = library().unique_id().unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..world)
            .map(|number| {
                let (rank, id) = (&rank, &id);
                scope.spawn(move || {
                    use_gpu(i32::try_from(number).unwrap());
                    rank(number, id)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Ranks that have joined.
fn joined<T: Send>(world: u32, rank: impl Fn(u32, Communicator) -> T + Sync) -> Vec<T> {
    ranks(world, |number, id| rank(number, join(id, number, world, PATIENCE).unwrap()))
}

/// Device memory that holds these numbers.
fn numbers(numbers: &[u64]) -> CUdeviceptr {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    let address = allocate(bytes.len());
    // SAFETY: as many bytes of ours.
    ok(unsafe { cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) });
    address
}

fn numbers_at(address: CUdeviceptr, len: usize) -> Vec<u64> {
    let bytes = read_back(address, len * 8);
    bytes.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).collect()
}

/// Sums one number over the ranks, in place.
fn sum(joined: &mut Communicator, address: CUdeviceptr, stream: CUstream) -> Result<(), CallError> {
    // SAFETY: memory of at least one number, which the tests leave alone meanwhile.
    unsafe { joined.all_reduce(address, address, 1, U64, Reduction::Sum, stream.cast()) }
}

/// Whether the stream is done within that time.
fn done_within(stream: CUstream, limit: Duration) -> bool {
    let began = Instant::now();
    // SAFETY: no pointers.
    while unsafe { cuStreamQuery(stream) } == CUresult::CUDA_ERROR_NOT_READY {
        if began.elapsed() > limit {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

fn code<T>(result: Result<T, CallError>) -> ResultCode {
    match result.err().unwrap() {
        CallError::Failed(failure) => failure.code,
        other => panic!("{other}"),
    }
}

#[test]
fn all_operations_move_what_they_should() {
    apart(name!(all_operations_move_what_they_should), &[("SIMCUDA_DELAY_US", "2000")], || {
        joined(4, |rank, mut joined| {
            assert_eq!((joined.rank(), joined.world_size(), joined.device()), (rank, 4, rank));
            let (stream, own) = (stream(), u64::from(rank));
            let c_stream = stream.cast();
            let four = numbers(&[own, own + 10, u64::MAX, 1 << own]);
            let (sum, max, all, part, from_two, left) =
                (allocate(32), allocate(32), allocate(128), allocate(8), allocate(32), allocate(32));
            // SAFETY: memory as long as each operation says, which nobody else uses.
            unsafe {
                joined.all_reduce(four, sum, 4, U64, Reduction::Sum, c_stream).unwrap();
                joined.all_reduce(four, max, 4, U64, Reduction::Max, c_stream).unwrap();
                joined.all_gather(four, all, 4, U64, c_stream).unwrap();
                joined.reduce_scatter(four, part, 1, U64, Reduction::Sum, c_stream).unwrap();
                joined.broadcast(four, from_two, 4, U64, 2, c_stream).unwrap();
                joined
                    .group(|group| {
                        group.send(four, 4, U64, (rank + 1) % 4, c_stream)?;
                        group.recv(left, 4, U64, (rank + 3) % 4, c_stream)
                    })
                    .unwrap();
            }
            ok(wait(stream));
            joined.async_error().unwrap();
            assert_eq!(numbers_at(sum, 4), [6, 46, u64::MAX - 3, 15]);
            assert_eq!(numbers_at(max, 4), [3, 13, u64::MAX, 8]);
            let of = |rank: u64| [rank, rank + 10, u64::MAX, 1 << rank];
            assert_eq!(numbers_at(all, 16), (0..4).flat_map(of).collect::<Vec<_>>());
            assert_eq!(numbers_at(part, 1), [[6, 46, u64::MAX - 3, 15][rank as usize]]);
            assert_eq!(numbers_at(from_two, 4), of(2));
            assert_eq!(numbers_at(left, 4), of((own + 3) % 4));
            joined.finalize().unwrap();
        });
    });
}

#[test]
fn many_sums_in_a_row_stay_in_order() {
    apart(name!(many_sums_in_a_row_stay_in_order), &[], || {
        joined(3, |_, mut joined| {
            let (address, stream) = (numbers(&[1]), stream());
            for _ in 0..30 {
                sum(&mut joined, address, stream).unwrap();
            }
            ok(wait(stream));
            joined.async_error().unwrap();
            assert_eq!(numbers_at(address, 1), [3_u64.pow(30)]);
        });
    });
}

#[test]
fn parts_of_a_split_are_ordered_by_key_and_work_beside_their_parent() {
    apart(name!(parts_of_a_split_are_ordered_by_key_and_work_beside_their_parent), &[], || {
        joined(4, |rank, mut joined| {
            let color = (rank != 3).then_some(rank % 2);
            let part = joined.split(color, 4 - rank, PATIENCE, &mut || false).unwrap();
            let (address, stream) = (numbers(&[u64::from(rank) + 1]), stream());
            if let Some(mut part) = part {
                let place = [(1, 2), (0, 1), (0, 2)][rank as usize];
                assert_eq!((part.rank(), part.world_size()), place);
                sum(&mut part, address, stream).unwrap();
                ok(wait(stream));
                assert_eq!(numbers_at(address, 1), [[4, 2, 4][rank as usize]]);
                part.finalize().unwrap();
            } else {
                assert_eq!(rank, 3);
            }
            sum(&mut joined, address, stream).unwrap();
            ok(wait(stream));
            assert_eq!(numbers_at(address, 1), [14]);
            joined.finalize().unwrap();
        });
    });
}

#[test]
fn a_rank_that_never_joins_is_waited_for_until_the_caller_has_enough() {
    let fault = ("SIMCUDA_FAULT", "nccl-init-hang:1");
    apart(name!(a_rank_that_never_joins_is_waited_for_until_the_caller_has_enough), &[fault], || {
        for result in ranks(2, |rank, id| join(id, rank, 2, IMPATIENCE)) {
            match result {
                Err(CallError::TimedOut { waited, .. }) => assert!(waited < Duration::from_secs(10)),
                // The other one was aborted first.
                other => assert_eq!(code(other), ResultCode::REMOTE_ERROR),
            }
        }
    });
}

#[test]
fn a_rank_that_hangs_keeps_streams_waiting_until_they_are_aborted() {
    let fault = ("SIMCUDA_FAULT", "nccl-hang:1");
    apart(name!(a_rank_that_hangs_keeps_streams_waiting_until_they_are_aborted), &[fault], || {
        let both = Barrier::new(2);
        joined(2, |_, mut joined| {
            let (address, stream) = (numbers(&[1]), stream());
            sum(&mut joined, address, stream).unwrap();
            assert!(!done_within(stream, IMPATIENCE));
            joined.async_error().unwrap();
            both.wait();
            joined.abort();
            ok(wait(stream));
        });
    });
}

#[test]
fn an_internal_error_is_seen_by_asking_and_ends_the_communicator() {
    let fault = ("SIMCUDA_FAULT", "nccl-error:0");
    apart(name!(an_internal_error_is_seen_by_asking_and_ends_the_communicator), &[fault], || {
        let both = Barrier::new(2);
        joined(2, |rank, mut joined| {
            let (address, stream) = (numbers(&[1]), stream());
            let summed = sum(&mut joined, address, stream);
            both.wait();
            ok(wait(stream));
            if rank == 0 {
                // The error may have come before the call was seen to be done.
                assert!(summed.is_ok() || code(summed) == ResultCode::INTERNAL_ERROR);
                assert_eq!(code(joined.async_error()), ResultCode::INTERNAL_ERROR);
                assert_eq!(code(sum(&mut joined, address, stream)), ResultCode::INTERNAL_ERROR);
            } else {
                summed.unwrap();
                assert_eq!(numbers_at(address, 1), [2]);
            }
        });
    });
}

#[test]
fn a_stream_goes_on_with_garbage_when_a_peer_aborts() {
    apart(name!(a_stream_goes_on_with_garbage_when_a_peer_aborts), &[], || {
        let both = Barrier::new(2);
        joined(2, |rank, mut joined| {
            let (address, stream) = (numbers(&[1]), stream());
            if rank == 1 {
                both.wait();
                return joined.abort();
            }
            sum(&mut joined, address, stream).unwrap();
            both.wait();
            ok(wait(stream));
            assert_eq!(numbers_at(address, 1), [0x5a5a_5a5a_5a5a_5a5a]);
            assert_eq!(code(joined.async_error()), ResultCode::REMOTE_ERROR);
        });
    });
}

#[test]
fn two_sends_outside_a_group_wait_for_ever() {
    apart(name!(two_sends_outside_a_group_wait_for_ever), &[], || {
        let both = Barrier::new(2);
        joined(2, |rank, mut joined| {
            let (address, stream) = (numbers(&[1, 0]), stream());
            // SAFETY: memory of two numbers that nobody else uses.
            unsafe {
                joined.send(address, 1, U64, 1 - rank, stream.cast()).unwrap();
                joined.recv(address + 8, 1, U64, 1 - rank, stream.cast()).unwrap();
            }
            assert!(!done_within(stream, IMPATIENCE));
            both.wait();
            joined.abort();
            ok(wait(stream));
        });
    });
}

#[test]
fn ranks_whose_calls_differ_are_told() {
    apart(name!(ranks_whose_calls_differ_are_told), &[], || {
        joined(2, |rank, mut joined| {
            let (address, stream) = (numbers(&[1, 1]), stream());
            let elements = 1 + rank as usize;
            // SAFETY: memory of two numbers that nobody else uses.
            let called =
                unsafe { joined.all_reduce(address, address, elements, U64, Reduction::Sum, stream.cast()) };
            // The other's call may break the communicator before this one's is on the stream.
            if called.is_ok() {
                ok(wait(stream));
                assert_eq!(code(joined.async_error()), ResultCode::INVALID_USAGE);
            } else {
                assert_eq!(code(called), ResultCode::INVALID_USAGE);
            }
        });
    });
}

#[test]
fn two_ranks_on_one_gpu_are_refused() {
    apart(name!(two_ranks_on_one_gpu_are_refused), &[], || {
        let results = ranks(2, |rank, id| {
            use_gpu(0);
            join(id, rank, 2, PATIENCE)
        });
        for result in results {
            let error = result.unwrap_err();
            assert!(error.to_string().contains("Duplicate GPU"), "{error}");
            assert_eq!(code::<()>(Err(error)), ResultCode::INVALID_USAGE);
        }
    });
}

#[test]
fn memory_that_is_gone_when_its_operation_runs_breaks_the_context() {
    let slow = ("SIMCUDA_DELAY_US", "200000");
    apart(name!(memory_that_is_gone_when_its_operation_runs_breaks_the_context), &[slow], || {
        joined(1, |_, mut joined| {
            let (address, stream) = (numbers(&[1]), stream());
            let other = numbers(&[1]);
            assert!(ok_to_queue(&mut joined, other, stream));
            sum(&mut joined, address, stream).unwrap();
            // SAFETY: an allocation of ours.
            ok(unsafe { cuMemFree_v2(address) });
            assert_eq!(wait(stream), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        });
    });
}

/// Puts several sums before what comes next, so that it comes late.
fn ok_to_queue(joined: &mut Communicator, address: CUdeviceptr, stream: CUstream) -> bool {
    (0..5).all(|_| sum(joined, address, stream).is_ok())
}

#[test]
fn an_old_nccl_is_refused() {
    apart(name!(an_old_nccl_is_refused), &[("SIMCUDA_NCCL_VERSION", "21003")], || {
        // SAFETY: as in `library`.
        let opened = unsafe { Library::from_functions(FUNCTIONS) };
        assert!(matches!(opened, Err(OpenError::TooOld { .. })), "{opened:?}");
    });
}

/// The unique id of a test's processes, and which of them this is.
fn place() -> Option<(UniqueId, u32)> {
    let text = env::var("SIMCUDA_TEST_ID").ok()?;
    let bytes: Vec<u8> = text.split(',').map(|byte| byte.parse().unwrap()).collect();
    let rank = env::var("SIMCUDA_TEST_RANK").unwrap().parse().unwrap();
    Some((UniqueId::from_bytes(bytes.try_into().unwrap()), rank))
}

/// Runs `test` as two processes, ranks 0 and 1, that see one GPU each. The unique id is made in a third.
#[track_caller]
fn processes(name: &str, variables: [&[(&str, &str)]; 2], test: impl FnOnce(&UniqueId, u32)) {
    if let Some((id, rank)) = place() {
        start();
        return test(&id, rank);
    }
    let id = library().unique_id().unwrap();
    let id = id.as_bytes().map(|byte| byte.to_string()).join(",");
    thread::scope(|scope| {
        for (rank, variables) in ["0", "1"].into_iter().zip(variables) {
            let more = [
                ("SIMCUDA_TEST_ID", id.as_str()),
                ("SIMCUDA_TEST_RANK", rank),
                ("CUDA_VISIBLE_DEVICES", rank),
            ];
            let variables = [variables, &more].concat();
            scope.spawn(move || {
                let output = child(name, &variables);
                let text =
                    [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
                assert!(text[0].contains("1 passed") || text[0].contains("dies now"), "{}", text.concat());
            });
        }
    });
}

#[test]
fn processes_sum_what_they_have() {
    processes(name!(processes_sum_what_they_have), [&[], &[]], |id, rank| {
        let mut joined = join(id, rank, 2, PATIENCE).unwrap();
        let (address, stream) = (numbers(&[u64::from(rank) + 1]), stream());
        sum(&mut joined, address, stream).unwrap();
        ok(wait(stream));
        joined.async_error().unwrap();
        assert_eq!(numbers_at(address, 1), [3]);
        joined.finalize().unwrap();
    });
}

#[test]
fn a_process_that_dies_is_a_remote_error() {
    processes(name!(a_process_that_dies_is_a_remote_error), [&[], &[]], |id, rank| {
        let mut joined = join(id, rank, 2, PATIENCE).unwrap();
        let (address, stream) = (numbers(&[1]), stream());
        sum(&mut joined, address, stream).unwrap();
        ok(wait(stream));
        if rank == 1 {
            // Not before the other has put its second sum on the stream.
            thread::sleep(Duration::from_secs(1));
            println!("dies now");
            std::process::abort();
        }
        assert_eq!(numbers_at(address, 1), [2]);
        sum(&mut joined, address, stream).unwrap();
        assert!(!done_within(stream, Duration::from_millis(100)));
        ok(wait(stream));
        assert_eq!(numbers_at(address, 1), [0x5a5a_5a5a_5a5a_5a5a]);
        assert_eq!(code(joined.async_error()), ResultCode::REMOTE_ERROR);
    });
}

#[test]
fn versions_that_differ_between_ranks_are_refused() {
    let newer: &[_] = &[("SIMCUDA_NCCL_VERSION", "22800")];
    processes(name!(versions_that_differ_between_ranks_are_refused), [&[], newer], |id, rank| {
        let error = join(id, rank, 2, PATIENCE).unwrap_err();
        assert!(error.to_string().contains("Mismatched NCCL version"), "{error}");
        assert_eq!(code::<()>(Err(error)), ResultCode::INVALID_USAGE);
    });
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    apart(name!(calls_that_make_no_sense_are_refused), &[], || {
        start();
        let id = library().unique_id().unwrap();
        let mut raw = nccl_rs::sys::RawUniqueId { internal: [0; 128] };
        let refused = ResultCode::INVALID_ARGUMENT;
        let (null, nobody): (Comm, Comm) = (ptr::null_mut(), ptr::without_provenance_mut(0x1234_5678));
        let mut comm = ptr::null_mut();
        // SAFETY: pointers are null where they are not valid; handles are never followed.
        unsafe {
            assert_eq!(ncclGetVersion(ptr::null_mut()), refused);
            assert_eq!(ncclGetUniqueId(ptr::null_mut()), refused);
            assert_eq!(ncclCommInitRank(&raw mut comm, 1, raw, 0), refused);
            raw.internal = id.as_bytes().map(u8::cast_signed);
            for (ranks, rank) in [(0, 0), (1, 1), (1, -1), (-1, 0)] {
                assert_eq!(ncclCommInitRank(&raw mut comm, ranks, raw, rank), refused);
            }
            assert_eq!(ncclCommInitRank(ptr::null_mut(), 1, raw, 0), refused);
            for handle in [null, nobody] {
                assert_eq!(ncclCommDestroy(handle), refused);
                assert_eq!(ncclCommAbort(handle), refused);
                assert_eq!(ncclCommFinalize(handle), refused);
                assert_eq!(ncclCommSplit(handle, 0, 0, &raw mut comm, ptr::null_mut()), refused);
                assert_eq!(ncclCommCount(handle, ptr::null_mut()), refused);
            }
            assert_eq!(ncclGroupEnd(), ResultCode::INVALID_USAGE);

            let mut config = nccl_rs::sys::Config::non_blocking();
            config.magic = 7;
            assert_eq!(ncclCommInitRankConfig(&raw mut comm, 1, raw, 0, &raw mut config), refused);
            // A blocking communicator: at once ready.
            assert_eq!(ncclCommInitRank(&raw mut comm, 1, raw, 0), ResultCode::SUCCESS);
            let own: *mut c_void = ptr::without_provenance_mut(usize::try_from(numbers(&[1])).unwrap());
            let (u64, sum) = (nccl_rs::sys::data_type::UINT64, nccl_rs::sys::reduction::SUM);
            let stream = stream().cast();
            let reduce =
                |send, elements, kind, op, stream| ncclAllReduce(send, own, elements, kind, op, comm, stream);
            assert_eq!(reduce(ptr::null_mut(), 1, u64, sum, stream), refused);
            assert_eq!(reduce(own, usize::MAX, u64, sum, stream), refused);
            assert_eq!(reduce(own, 1, 12, sum, stream), refused);
            assert_eq!(reduce(own, 1, u64, 99, stream), refused);
            assert_eq!(reduce(own, 1, u64, sum, nobody), ResultCode::UNHANDLED_CUDA_ERROR);
            assert_eq!(ncclBroadcast(own, own, 1, u64, 1, comm, stream), refused);
            assert_eq!(ncclSend(own, 1, u64, -1, comm, stream), refused);
            assert_eq!(reduce(own, 1, u64, sum, stream), ResultCode::SUCCESS);
            ok(wait(stream.cast()));
            assert_eq!(ncclCommDestroy(comm), ResultCode::SUCCESS);
            assert_eq!(ncclCommDestroy(comm), refused);
        }
    });
}

#[test]
fn a_program_that_does_not_ask_whether_a_call_is_done_is_caught() {
    apart(name!(a_program_that_does_not_ask_whether_a_call_is_done_is_caught), &[], || {
        start();
        let id = library().unique_id().unwrap();
        let mut config = nccl_rs::sys::Config::non_blocking();
        let raw = nccl_rs::sys::RawUniqueId { internal: id.as_bytes().map(u8::cast_signed) };
        let mut comm = ptr::null_mut();
        let own: *mut c_void = ptr::without_provenance_mut(usize::try_from(numbers(&[1])).unwrap());
        let stream = stream().cast();
        // SAFETY: valid pointers and handles.
        unsafe {
            let joining = ncclCommInitRankConfig(&raw mut comm, 1, raw, 0, &raw mut config);
            assert_eq!(joining, ResultCode::IN_PROGRESS);
            let settle = || {
                let mut code = ResultCode::IN_PROGRESS;
                while code == ResultCode::IN_PROGRESS {
                    assert_eq!(ncclCommGetAsyncError(comm, &raw mut code), ResultCode::SUCCESS);
                }
                code
            };
            assert_eq!(settle(), ResultCode::SUCCESS);
            let reduce = || ncclAllReduce(own, own, 1, 5, 0, comm, stream);
            assert_eq!(reduce(), ResultCode::IN_PROGRESS);
            assert_eq!(reduce(), ResultCode::INVALID_ARGUMENT);
            assert_eq!(settle(), ResultCode::SUCCESS);
            assert_eq!(reduce(), ResultCode::IN_PROGRESS);
            assert_eq!(settle(), ResultCode::SUCCESS);
            ok(wait(stream.cast()));
            assert_eq!(ncclCommAbort(comm), ResultCode::SUCCESS);
        }
    });
}
