//! What serving a model on some GPUs takes: memory, communication, time.
//!
//! In comes a [`Deployment`]: facts of a model ([`Model`]: bytes, multiplications, what is kept of tokens), of a machine
//! ([`Machine`]: memory, bandwidths) and what is asked of them ([`Workload`]); with what is assumed ([`Assumptions`]) it gives a
//! [`MemoryBudget`] and a [`Speed`], term by term, each with its formula in its documentation. It knows no checkpoint, no topology file and no layout but the one asked about.

mod assumptions;
mod communication;
mod deployment;
mod explained;
mod machine;
mod memory;
mod model;
mod speed;
mod workload;

pub use assumptions::{Assumptions, AssumptionsError, MemoryAssumptions, SpeedAssumptions};
pub use communication::{
    Algorithm, CollectiveTime, Group, all_gather, all_reduce, all_to_all, nccl_all_reduce, send,
};
pub use deployment::Deployment;
pub use explained::{Explained, Figure};
pub use machine::Machine;
pub use memory::MemoryBudget;
pub use model::{Layout, Model, Stage};
pub use speed::{Speed, StepTime};
pub use workload::Workload;

#[cfg(test)]
mod tests {
    //! Llama 3.1 70B over the eight GPUs of a DGX H100.

    use super::*;

    pub(super) const TP8: Layout = Layout { tp: 8, pp: 1, dp: 1, expert_parallel: false };

    pub(super) fn model() -> Model {
        let stage = Stage {
            layers: 80,
            weight_bytes: 17_640 << 20,
            dense_bytes: 17_600_000_000,
            dense_flops: 2.0 * 70.6e9 / 8.0,
            features: 28_672 / 8,
            has_head: true,
            cache_per_sequence: 80 * 2 * 128 * 8192,
            all_reduces: vec![(160, 2 * 8192)],
            ..Stage::default()
        };
        Model {
            stages: vec![stage],
            hidden: 8192,
            vocabulary: 128_256,
            query_heads: 64,
            head_size: 128,
            experts: 1,
            experts_per_token: 1,
            activation_bytes: 2,
        }
    }

    pub(super) fn machine() -> Machine {
        let tensor = Group {
            ranks: 8,
            nodes: 1,
            ring: 450e9,
            between: f64::INFINITY,
            hop: 6e-7,
            network_hop: 0.0,
            direct: true,
            in_switch: false,
        };
        Machine {
            memory_bytes: 81_559 << 20,
            memory_bytes_per_second: 3.35e12,
            flops_per_second: 989.4e12,
            tensor: Some(tensor),
            expert: None,
            pipeline: None,
        }
    }

    pub(super) fn workload() -> Workload {
        Workload {
            context_len: 8192,
            prompt_len: 1024,
            concurrency: 64,
            cache_bits: 16,
            utilization: 0.9,
            batched_tokens: None,
        }
    }

    pub(super) fn deployment() -> Deployment {
        Deployment { model: model(), layout: TP8, machine: machine(), workload: workload() }
    }
}
