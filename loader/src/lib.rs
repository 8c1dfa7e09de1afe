//! shardwright's loader: executes a plan. It moves boxes of bytes from files to devices and proves that they arrived; it
//! knows no model family and decides nothing about partitions.
//!
//! The way of the data, one module a room:
//!
//! 1. [`schedule`]: a rank's slices → an ordered list of copies and their places in the rank's memory
//! 2. [`source`]: where the bytes come from; [`tensors`], tensor by tensor, [`cast`] where the plan says so
//! 3. [`device`]: where they go
//! 4. [`collective`]: how ranks agree
//! 5. [`fingerprint`] and [`verify`]: what arrived, summed over ranks and compared with the files
//! 6. [`load`]: the five together, for one rank or for all ranks of a host
//! 7. [`manifest`]: fingerprints that were made once
//! 8. [`hold`]: what was loaded, for other processes of the host
//! 9. [`export`]: files that a rank's slices are loaded into
//!
//! Beside them stand [`launch`], which rank this process is and how ranks find each other; [`numa`], which CPUs are near a
//! device; [`trace`], a timeline of the above; [`heap`], how the process allocates;
//! and [`detect`], which machine this is.

pub mod cast;
pub mod collective;
pub mod detect;
pub mod device;
pub mod export;
pub mod fingerprint;
#[cfg(test)]
mod fixture;
pub mod heap;
pub mod hold;
pub mod launch;
pub mod load;
pub mod manifest;
pub mod numa;
pub mod schedule;
pub mod source;
pub mod tensors;
pub mod trace;
pub mod verify;
