//! The facts of a machine that times and memory follow from.

use super::Group;

/// The GPUs that a layout runs on, the weakest standing for all.
#[derive(Debug, Clone, PartialEq)]
pub struct Machine {
    /// Bytes of memory of a GPU.
    pub memory_bytes: u64,
    /// How fast a GPU reads it.
    pub memory_bytes_per_second: f64,
    /// Dense operations per second, of the numbers that matrices are multiplied in.
    pub flops_per_second: f64,
    /// How the ranks of a tensor-parallel group reach each other; `None` for groups of one.
    pub tensor: Option<Group>,
    /// How all ranks that share experts do; `None` where none do.
    pub expert: Option<Group>,
    /// How a pipeline stage reaches the next one; `None` where there is one stage.
    pub pipeline: Option<Group>,
}
