//! What was found of one layout.

use crate::serving::{Layout, MemoryBudget, Speed};

/// A layout, judged.
#[derive(Debug, Clone)]
pub struct Judged {
    /// The layout.
    pub layout: Layout,
    /// The memory of the fullest GPU.
    pub memory: MemoryBudget,
    /// How fast it is, where the topology says enough and any sequence fits.
    pub speed: Option<Speed>,
    /// Sequences at a time that this speed is of: those that are asked for, or as many as fit.
    pub running: u64,
    /// Sequences at a time that are asked for.
    pub wanted: u64,
    /// Whether no other layout is better in one respect and no worse in any.
    pub pareto: bool,
}

impl Judged {
    /// How many GPUs it takes.
    pub fn gpus(&self) -> u32 {
        self.layout.tp * self.layout.pp * self.layout.dp
    }

    /// Whether all sequences that are asked for fit at a time.
    pub fn serves(&self) -> bool {
        self.memory.lacks == 0 && self.memory.sequences >= self.wanted
    }
}
