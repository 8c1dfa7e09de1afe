//! A small safe binding to [NCCL](https://developer.nvidia.com/nccl), NVIDIA's collective communication between GPUs.
//!
//! The library is looked for when the program runs: nothing here needs CUDA or NCCL to build, and a program that uses this
//! crate runs on machines that have neither, until it calls [`Library::open`]. NCCL 2.18 and newer will do.
//!
//! Three layers, none of which is skipped: [`sys`] is NCCL as C sees it; [`Library`] finds it, checks its version and
//! resolves its functions, once; [`Communicator`] is one rank's end of a group of GPUs.
//!
//! # Waits that end
//!
//! NCCL's usual calls hang when another rank never makes them. Communicators here are non-blocking: each call starts the
//! work, then asks until it is done, the caller's patience is over, or the caller gives up, and then aborts and says so. What
//! NCCL itself does in `ncclCommAbort` and `ncclCommDestroy` is beyond reach: both may wait for threads of NCCL, and the
//! second for the other ranks of the host, so [`Communicator::finalize`] comes first when all goes well.
//!
//! What runs **on the stream** is another matter. After a peer died, a stream may hang, or it may *complete with wrong data in
//! the receive buffer*. So, after each step: wait for the stream with a deadline, not with a plain synchronise; ask
//! [`Communicator::async_error`]; only then trust the result. On an error, [`Communicator::abort`] frees the stream.
//!
//! # Example
//!
//! One process or thread a GPU. `share` brings the identifier from rank 0 to all ranks (a socket, a file, MPI):
//!
//! ```no_run
//! use nccl_rs::{Communicator, DataType, Library, Reduction, UniqueId};
//! use std::{ffi::c_void, path::Path, time::Duration};
//!
//! # fn share(id: Option<UniqueId>) -> UniqueId { id.unwrap() }
//! # fn wait_for(stream: *mut c_void) {}
//! /// Sums 1,000 counters over all ranks, in place. The device's context is current on this thread.
//! fn sum(rank: u32, world: u32, counters: u64, stream: *mut c_void) -> Result<(), Box<dyn std::error::Error>> {
//!     let explicit = std::env::var_os("NCCL_LIBRARY");
//!     let library = Library::open(explicit.as_deref().map(Path::new))?;
//!     for refusal in library.refused() {
//!         eprintln!("warning: {refusal}; using {}", library.name());
//!     }
//!     let id = share(if rank == 0 { Some(library.unique_id()?) } else { None });
//!     let patience = Duration::from_secs(60);
//!     let mut ranks = Communicator::init(&library, &id, rank, world, patience, &mut || false)?;
//!     // SAFETY: `counters` is device memory of 1,000 u64 that nobody else uses until the stream has been waited for.
//!     unsafe { ranks.all_reduce(counters, counters, 1000, DataType::Uint64, Reduction::Sum, stream)? };
//!     wait_for(stream);
//!     ranks.async_error()?;
//!     ranks.finalize()?;
//!     Ok(())
//! }
//! ```

mod communicator;
mod element;
mod error;
mod group;
mod library;
pub mod sys;
mod unique_id;
mod version;
mod waiting;

pub use communicator::Communicator;
pub use element::{DataType, Reduction};
pub use error::{CallError, Failure, OpenError, Refusal};
pub use group::Group;
pub use library::Library;
pub use unique_id::UniqueId;
pub use version::Version;
