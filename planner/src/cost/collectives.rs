//! The collectives that a partition makes necessary while the model runs.

use crate::{
    checkpoint::Dtype,
    partition::{Axis, Partition},
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
    /// Which pipeline stages it runs in.
    pub stage: StageRule,
    /// How many times a pass through the model.
    pub times: u64,
    /// Bytes that each rank contributes for one token.
    pub bytes_per_token: u64,
}

/// Every collective of one pass through the model, in the order of the plan.
///
/// Row-parallel modules and vocabulary-parallel embeddings leave partial sums, which an all-reduce adds up; a
/// vocabulary-parallel head leaves a part of the logits on each rank, which are gathered (Shoeybi et al. 2019). The experts
/// of a layer add up on each rank first. Ranks that hold whole experts get the tokens that are routed to them and send back
/// what these give: all-to-all where data-parallel copies have tokens of their own, else the same sum. A norm over features
/// that ranks share adds up their squares. Between pipeline stages the hidden state is sent on. Activations are taken to have
/// the dtype of the weights, or 16 bits where these are quantised.
pub fn collectives(plan: &Plan) -> Vec<Collective> {
    let mut found: Vec<Collective> = Vec::new();
    let tied = |group: &TensorGroup| group.stage == StageRule::FirstAndLast;
    for group in plan.tensors.iter().filter(|group| is_weight(group)) {
        let mut add = |role| {
            let Some(next) = after_module(plan, group, role) else { return };
            // Modules of one name that are stored differently are one step of the model.
            match found.iter_mut().find(|other| other.after == next.after && other.kind == next.kind) {
                Some(other) => other.times += next.times,
                None => found.push(next),
            }
        };
        add(group.role);
        if tied(group) && group.role == Role::VocabParallelEmbedding {
            // It is the head too.
            add(Role::VocabParallelHead);
        }
    }
    let stages = u64::from(plan.mesh.pp());
    // An adapter's outputs are added to its base's, which are sent on.
    let sends = plan.tensors.iter().any(|group| group.outputs.is_some());
    if stages > 1
        && sends
        && let Some(hidden) = plan.model.hidden
    {
        found.push(Collective {
            kind: "send/recv",
            after: "each stage but the last".to_owned(),
            stage: StageRule::Every,
            times: stages - 1,
            bytes_per_token: hidden * activation_bytes(plan),
        });
    }
    found
}

/// Whether the group is what its module computes with, rather than a scale or a bias beside it.
fn is_weight(group: &TensorGroup) -> bool {
    group.outputs.is_some()
}

fn after_module(plan: &Plan, group: &TensorGroup, role: Role) -> Option<Collective> {
    let tp = u64::from(plan.mesh.tp());
    let out = group.outputs?;
    let whole_experts = group.partition.axis() == Axis::Expert;
    let bytes = activation_bytes(plan);
    let (kind, bytes_per_token) = match role {
        Role::RowParallel if whole_experts && plan.mesh.dp() > 1 => ("all-to-all", out * bytes),
        _ if tp == 1 => return None,
        Role::RowParallel => ("all-reduce", out * bytes),
        Role::VocabParallelEmbedding => ("all-reduce", group.shape.get(1)? * bytes),
        Role::VocabParallelHead => ("all-gather", out.div_ceil(tp) * bytes),
        // A sum of squares in float32.
        Role::ShardedNorm => ("all-reduce", 4),
        Role::ShardedGroupNorm if shares_groups(group, tp) => ("all-reduce", 4),
        Role::ShardedGroupNorm => return None,
        Role::ColumnParallel | Role::Replicated => return None,
    };
    let times = match group.stage {
        StageRule::Layer => group.layers(),
        _ => group.count(),
    };
    let stage = match (role, group.stage) {
        // Tied to the embedding it is the head of the last stage all the same.
        (Role::VocabParallelHead, StageRule::FirstAndLast) => StageRule::Last,
        (_, StageRule::FirstAndLast) => StageRule::First,
        (_, stage) => stage,
    };
    Some(Collective { kind, after: group.collapsed(), stage, times, bytes_per_token })
}

/// Whether there are fewer groups than ranks.
fn shares_groups(group: &TensorGroup, ranks: u64) -> bool {
    matches!(&group.partition, Partition::Split(split) if split.segments.iter().any(|s| s.groups() < ranks))
}

/// Bytes of one activation: those of the widest float that the layers' matrices are stored in, if any is wide enough.
pub(crate) fn activation_bytes(plan: &Plan) -> u64 {
    let matrices =
        plan.tensors.iter().filter(|group| group.role == Role::RowParallel && group.outputs.is_some());
    let floats = matrices.map(|group| match group.loaded_dtype() {
        Dtype::F32 => 4,
        _ => 2,
    });
    floats.max().unwrap_or(2)
}
