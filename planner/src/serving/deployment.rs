//! A model that is served: all that its memory and times follow from, but for what is assumed.

use super::{Layout, Machine, Model, Workload};

/// A model, laid out on some GPUs, and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// The model, as it is laid out.
    pub model: Model,
    /// How it is.
    pub layout: Layout,
    /// The GPUs.
    pub machine: Machine,
    /// What is asked of them.
    pub workload: Workload,
}
