//! The collectives that a partition makes necessary while the model runs.

use crate::{
    plan::{Plan, TensorGroup},
    rules::{Role, StageRule},
};

/// A collective that runs once for each token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collective {
    /// What it is: `all-reduce`, `all-gather`, `send/recv`.
    pub kind: &'static str,
    /// The collapsed name of the module after which it runs.
    pub after: String,
    /// How many times a pass through the model.
    pub times: u64,
    /// Bytes that each rank contributes for one token.
    pub bytes_per_token: u64,
}

/// Every collective of one pass through the model, in the order of the plan.
///
/// Row-parallel modules and vocabulary-parallel embeddings leave partial sums, which an all-reduce adds up; a
/// vocabulary-parallel head leaves a part of the logits on each rank, which are gathered (Shoeybi et al. 2019). Between
/// pipeline stages the hidden state is sent on. Activations are taken to have the dtype of the weights.
pub fn collectives(plan: &Plan) -> Vec<Collective> {
    let mut found = Vec::new();
    let weights = plan.tensors.iter().filter(|group| group.shape.len() == 2);
    let tied = plan.tensors.iter().all(|group| group.role != Role::VocabParallelHead);
    for group in weights {
        found.extend(after_module(plan, group, group.role));
        if tied && group.role == Role::VocabParallelEmbedding {
            // It is the head too.
            found.extend(after_module(plan, group, Role::VocabParallelHead));
        }
    }
    let stages = u64::from(plan.mesh.pp());
    if stages > 1 {
        found.push(Collective {
            kind: "send/recv",
            after: "each stage but the last".to_owned(),
            times: stages - 1,
            bytes_per_token: plan.model.hidden * activation_bytes(plan),
        });
    }
    found
}

fn after_module(plan: &Plan, group: &TensorGroup, role: Role) -> Option<Collective> {
    let tp = u64::from(plan.mesh.tp());
    if tp == 1 {
        return None;
    }
    let bytes = group.dtype.bitsize() as u64 / 8;
    let (kind, elements) = match role {
        Role::RowParallel => ("all-reduce", group.shape[0]),
        Role::VocabParallelEmbedding => ("all-reduce", group.shape[1]),
        Role::VocabParallelHead => ("all-gather", group.shape[0].div_ceil(tp)),
        Role::ColumnParallel | Role::Replicated => return None,
    };
    let times = match group.stage {
        StageRule::Layer => group.count(),
        _ => 1,
    };
    let after = group.collapsed();
    Some(Collective { kind, after, times, bytes_per_token: elements * bytes })
}

/// Bytes of one activation: those of the widest float that the layers' matrices are stored in.
fn activation_bytes(plan: &Plan) -> u64 {
    let matrices = plan.tensors.iter().filter(|group| group.role == Role::RowParallel);
    matrices.map(|group| group.dtype.bitsize() as u64 / 8).max().unwrap_or(2)
}
