//! The simulated NCCL: what `libnccl.so.2` is for a program that runs on the simulated driver.
//!
//! In: the functions of `nccl.h` that `nccl_rs` looks up, with the signatures it gives them ([`entry`]). Out: communicators
//! between threads and processes of one machine, whose operations run later, on the streams they are put on.
//!
//! One library, two names: `libnccl.so.2` must be a link to the very file that `libcuda.so.1` is. The dynamic linker knows
//! files by inode, so both names then lead to one instance; with two copies this half would not see the other's streams.
//!
//! What it imitates:
//! - Initialisation meets at an abstract socket that the unique id names, and which leaves nothing on disk. A rank that does
//!   not come is waited for, for ever. Ranks of different versions, or two ranks on one GPU, are refused.
//! - Non-blocking communicators: calls return `ncclInProgress`, what they ask for happens later, and another call before
//!   that is refused, as are calls after an error.
//! - A send waits for its receive, so two ranks that send to each other outside a group wait for ever.
//! - When a rank dies or aborts, the others find `ncclRemoteError` as their asynchronous error, *and their streams go on with
//!   garbage in the receive buffers*: it is up to the program to ask before it trusts a result.
//! - `ncclCommAbort` ends every wait, of calls and of streams.
//!
//! What it does not: speed, algorithms, topology, networks, ordering across streams beyond that of the driver half,
//! user-made reductions, arithmetic of 16-bit and 8-bit floats (refused), CUDA graphs. Ranks that make calls which do not
//! match find `ncclInvalidUsage`, where the real one hangs or mixes up memory. All GPUs are of one machine.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SIMCUDA_NCCL_VERSION` | what `ncclGetVersion` says, and other ranks compare | 22703 |
//!
//! | fault | what happens to rank N of any communicator of the process |
//! |---|---|
//! | `nccl-init-hang:N` | it never joins |
//! | `nccl-hang:N` | its operations never start or end |
//! | `nccl-kill:N` | its process is killed when its first operation begins |
//! | `nccl-error:N` | after its first operation it finds `ncclInternalError` |

mod arithmetic;
mod comm;
pub(crate) mod entry;
mod group;
mod hub;
mod operation;
mod refusal;
mod wire;
