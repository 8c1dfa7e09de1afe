//! From what was found out about a module to the partitions of its tensors.

use super::{
    decision::{Decision, DecisionRequest, Kept, Work},
    family::Family,
    fit::Fitted,
    role::{Role, StageRule},
    spaces::{Spaces, Whole},
};
use crate::{
    graph::Module,
    model::Dimension,
    partition::{Assigned, Axis, Logical, LogicalPartition, Partition, Remainder, Segment, Storage},
    quantisation::Stored,
};
use std::collections::BTreeMap;

/// What one of several experts, stored one by one, goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExpertNumber {
    number: usize,
    of: u64,
}

/// For each module of one of several experts: which number in its name is the expert's, and how many there are.
pub(super) fn expert_numbers(modules: &[Module], family: &Family) -> Vec<Option<ExpertNumber>> {
    let numbers: Vec<Option<usize>> =
        modules.iter().map(|module| family.expert_number(&module.name)).collect();
    // How many there are in each place where experts lie.
    let place = |module: &Module, number: usize| -> String {
        let parts: Vec<&str> = module.name.split('*').take(number + 1).collect();
        parts.join("*")
    };
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (module, number) in modules.iter().zip(&numbers) {
        let Some(number) = *number else { continue };
        let last = module.blocks.iter().filter_map(|blocks| blocks.get(number)).max();
        let count = counts.entry(place(module, number)).or_default();
        *count = (*count).max(last.map_or(0, |last| u64::from(*last) + 1));
    }
    modules
        .iter()
        .zip(numbers)
        .map(|(module, number)| {
            number.map(|number| ExpertNumber { number, of: counts[&place(module, number)] })
        })
        .collect()
}

/// How ranks share each tensor of `module`.
///
/// # Errors
/// [`Whole`] when a dimension that should be cut cannot be, as it is stored.
pub(super) fn partitions_of(
    module: &Module,
    fitted: &Fitted,
    expert: Option<ExpertNumber>,
    spaces: &Spaces,
    request: &DecisionRequest<'_>,
) -> Result<Vec<Partition>, Whole> {
    let count = module.parameters.len();
    let remainder = if request.uneven { Remainder::Uneven } else { Remainder::Refuse };
    let project = |logical: &LogicalPartition| -> Option<Vec<Partition>> {
        let one = |storage: &Option<Storage>| match storage {
            Some(storage) => storage.project(logical),
            None => Ok(Partition::Replicated),
        };
        fitted.stored.storages.iter().map(one).collect::<Result<_, _>>().ok()
    };
    if request.ep.is_some() {
        if let Some(ExpertNumber { number, of }) = expert {
            let assigned = Assigned { number, of, remainder, axis: Axis::Expert };
            return Ok(vec![Partition::Assigned(assigned); count]);
        }
        if let Some(segment) = fitted.stored.experts.and_then(|experts| Segment::elements(experts).ok()) {
            let logical = LogicalPartition::Split {
                dim: Logical::Expert,
                segments: vec![segment],
                remainder,
                axis: Axis::Expert,
            };
            let dimension = || Dimension::of_any_size("experts", segment.len(), 1);
            return project(&logical).ok_or_else(|| Whole { dimension: dimension(), together: u64::MAX });
        }
    }
    let Some((dim, dimensions)) = &fitted.split else { return Ok(vec![Partition::Replicated; count]) };
    let is_vocabulary = matches!(fitted.role, Role::VocabParallelEmbedding | Role::VocabParallelHead);
    let logical = LogicalPartition::Split {
        dim: *dim,
        segments: spaces.segments(module, dimensions)?,
        remainder: if is_vocabulary && dimensions.len() == 1 { Remainder::Pad } else { remainder },
        axis: Axis::Tensor,
    };
    project(&logical).ok_or_else(|| Whole {
        dimension: dimensions.first().cloned().unwrap_or_else(|| Dimension::of_any_size("_", 1, 1)),
        together: u64::MAX,
    })
}

/// The decision for `module`, whose tensors are shared as `partitions` say.
pub(super) fn decision(
    module: &Module,
    fitted: &Fitted,
    expert: Option<ExpertNumber>,
    partitions: Vec<Partition>,
    spaces: &Spaces,
    request: &DecisionRequest<'_>,
) -> Decision {
    let family = request.family;
    let stage = fitted.stage.unwrap_or(match fitted.role {
        _ if family.is_in_layers(&module.name) => StageRule::Layer,
        _ if family.is_before_layers(&module.name) => StageRule::First,
        Role::VocabParallelEmbedding => StageRule::First,
        Role::VocabParallelHead => StageRule::Last,
        _ => StageRule::Every,
    });
    let mut reason = fitted.reason.clone();
    if let Some(packing) = &fitted.stored.packing {
        reason.push_str(&format!("; stored as {packing}"));
    }
    let whole_experts = request.ep.is_some() && (expert.is_some() || fitted.stored.experts.is_some());
    if whole_experts {
        reason.push_str("; whole experts on each rank");
    }
    let mut warning = fitted.warning.clone();
    let held_once = partitions.contains(&Partition::FirstRank) && request.tp.parts() > 1;
    if held_once && warning.is_none() {
        let once =
            "is added once, after the sum over ranks: only rank 0 of each tensor-parallel group holds it";
        warning = Some(once.to_owned());
    }
    let communicates = !matches!(fitted.role, Role::Replicated | Role::ColumnParallel);
    let outputs = fitted.stored.weight.filter(|_| communicates).map(|weight| (weight, fitted.stored.out));
    let work = work(module, fitted, expert, &partitions, spaces);
    Decision { role: fitted.role, partitions, stage, outputs, work, reason, warning }
}

/// What `module` does for a token.
fn work(
    module: &Module,
    fitted: &Fitted,
    expert: Option<ExpertNumber>,
    partitions: &[Partition],
    spaces: &Spaces,
) -> Work {
    let Stored { weight, out, input, rest, experts, .. } = &fitted.stored;
    let sizes = [Some(*out), *input, *experts].into_iter().flatten().chain(rest.iter().copied());
    // Vectors are added or multiplied, which takes no time beside matrices.
    let matrix =
        weight.filter(|_| input.is_some()).map(|weight| (weight, sizes.fold(1, u64::saturating_mul)));
    let is_cut = partitions.iter().any(|partition| matches!(partition, Partition::Split(_)));
    let kept = fitted.kept.iter().map(|dimension| Kept {
        pieces: dimension.count,
        keeps: dimension.keeps,
        dealt: spaces
            .segments(module, std::slice::from_ref(dimension))
            .ok()
            .and_then(|segments| Some((*segments.first()?, dimension.unit)))
            .filter(|_| is_cut),
    });
    Work { matrix, experts: expert.map(|expert| expert.of).or(*experts), kept: kept.collect() }
}

/// An embedding without a head of its own is also the head: the last stage needs it too.
pub(super) fn hold_tied_embedding_at_both_ends(decisions: &mut [Decision], request: &DecisionRequest<'_>) {
    // Whatever the user's rules make of them, they are an embedding and a head.
    let named = |module: &Module, role| request.family.role_of(&module.name) == Some(role);
    let is = |(module, decision): (&Module, &Decision), role| decision.role == role || named(module, role);
    if request.modules.iter().zip(&*decisions).any(|pair| is(pair, Role::VocabParallelHead)) {
        return;
    }
    let tied = request.config.get("tie_word_embeddings").and_then(serde_json::Value::as_bool);
    for (module, decision) in request.modules.iter().zip(decisions) {
        if is((module, decision), Role::VocabParallelEmbedding) && decision.stage == StageRule::First {
            decision.stage = StageRule::FirstAndLast;
            decision.reason.push_str("; there is no head of its own, so it is the head too");
            if tied == Some(false) {
                let doubt =
                    "is taken for the head too: there is no other, though config.json does not tie them";
                decision.warning = Some(doubt.to_owned());
            }
        }
    }
}
