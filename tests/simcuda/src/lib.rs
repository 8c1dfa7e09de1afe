//! A simulated CUDA driver and NCCL, for shardwright's tests. It never ships.
//!
//! Tests copy this library as `libcuda.so.1`, and link the copy as `libnccl.so.2`, into a folder on `LD_LIBRARY_PATH`; the
//! program under test loads it as it would load NVIDIA's and can't tell. It imitates, in host memory and with threads, the entry
//! points that shardwright calls:
//!
//! - several GPUs with their own, limited memory, at addresses that the host can't touch (`memory`);
//! - streams as queues that run later (`stream`), events, and copies that read pinned memory only when they run (`copy`);
//! - errors of asynchronous work that stick to their context (`context`);
//! - kernels, by interpreting the PTX that is shipped, each access checked (`ptx`, `interpret`);
//! - device memory shared between processes (`ipc`);
//! - NCCL between threads and processes (`nccl`);
//! - faults on demand (`fault`), and counts of what was done (`counts`).
//!
//! `settings` lists the variables that steer it.
//!
//! **What it proves:** the order of calls, lifetimes, what happens on errors, and the protocol between processes. Where NVIDIA's
//! driver is lenient by chance it is strict: freeing memory doesn't wait for its users, memory is poisoned, addresses are no
//! better aligned than promised, a destroyed handle is an error.
//!
//! **What it doesn't prove:** anything about speed, about the order in which DMA engines and caches make bytes visible, about
//! what a real driver does outside its documentation, or that real hardware runs the kernels.

use cudarc::driver::sys::CUresult;

pub mod api;
mod bits;
mod context;
mod copy;
mod counts;
mod device;
mod event;
mod fault;
mod handles;
mod host;
mod interpret;
mod intervals;
mod ipc;
mod lock;
mod memory;
mod module;
mod nccl;
mod ptx;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

/// What a call comes to.
type Answer<T = ()> = Result<T, CUresult>;
