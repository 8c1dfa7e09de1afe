//! Applying a family's rules to a checkpoint's parameter groups.

use super::{
    error::{Failure, RuleError},
    family::Family,
    role::{Role, StageRule},
    rule::Rule,
};
use crate::{
    graph::ParameterGroup,
    model::{Dimension, ModelSpec},
    partition::{
        Indivisible, Logical, LogicalPartition, Partition, PartitionError, Remainder, Segment, SegmentError,
        Split, Storage, deal, parts_that_divide,
    },
    quote::quote,
    size::count,
};
use std::collections::{BTreeMap, BTreeSet};

/// What was decided for a parameter group.
#[derive(Debug, Clone)]
pub struct Decision {
    /// What its module is for.
    pub role: Role,
    /// How the ranks of a tensor-parallel group share each of its tensors.
    pub partition: Partition,
    /// Which pipeline stages hold them.
    pub stage: StageRule,
    /// Why, for `explain`.
    pub reason: String,
    /// What is odd about it, said of its tensors: `is replicated: …`.
    pub warning: Option<String>,
}

/// What decisions depend on, beside the tensors.
struct Context<'a> {
    spec: &'a ModelSpec,
    family: &'a Family,
    tp: u32,
    /// What happens to a remainder in modules that are not padded.
    remainder: Remainder,
}

/// Decides every group, in order. `uneven` deals what does not divide instead of refusing it.
///
/// # Errors
/// [`RuleError`] when the tensors contradict the configuration, or modules do not divide by `tp`; all modules that fail
/// are named at once.
pub fn decide(
    groups: &[ParameterGroup],
    spec: &ModelSpec,
    family: &Family,
    tp: u32,
    uneven: bool,
) -> Result<Vec<Decision>, RuleError> {
    let remainder = if uneven { Remainder::Uneven } else { Remainder::Refuse };
    let context = Context { spec, family, tp, remainder };
    check_layers(groups, &context)?;
    check_complete(groups, family)?;
    let mut decisions =
        groups.iter().map(|group| decide_one(group, &context)).collect::<Result<Vec<_>, RuleError>>()?;
    hold_tied_embedding_at_both_ends(&mut decisions, spec);
    check_divisible(groups, &decisions, &context)?;
    Ok(decisions)
}

/// Checks that the tensors have just the layers that the configuration counts.
fn check_layers(groups: &[ParameterGroup], context: &Context<'_>) -> Result<(), RuleError> {
    let expected = context.spec.layers;
    let wrong = |found: String| RuleError::WrongLayers { expected, found };
    let mut layers_of: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for group in groups {
        if context.family.is_in_layers(&group.module) {
            let layers = group.blocks.iter().filter_map(|blocks| blocks.first().copied());
            layers_of.entry(group.collapsed()).or_default().extend(layers);
        }
    }
    if layers_of.is_empty() {
        return Err(wrong(format!("no tensor lies in {}", quote(&context.family.layers))));
    }
    for (name, layers) in layers_of {
        if let Some(beyond) = layers.iter().find(|&&layer| u64::from(layer) >= expected) {
            return Err(wrong(format!("{} has layer {beyond}", quote(&name))));
        }
        let missing = (0..expected).find(|&layer| u32::try_from(layer).is_ok_and(|l| !layers.contains(&l)));
        if let Some(missing) = missing {
            return Err(wrong(format!("{} lacks layer {missing}", quote(&name))));
        }
    }
    Ok(())
}

/// Checks that the checkpoint has the modules without which the family's models do not run.
fn check_complete(groups: &[ParameterGroup], family: &Family) -> Result<(), RuleError> {
    let used: BTreeSet<usize> =
        groups.iter().filter_map(|group| family.rule(&group.module)).map(|(order, _, _)| order).collect();
    for (order, glob, rule) in family.rules() {
        // A head may be the embedding, and what has no dimensions may be left out of files.
        let optional = rule.role == Role::VocabParallelHead || rule.dimensions.is_empty();
        if !optional && !used.contains(&order) {
            let (family, module) = (family.name.clone(), glob.to_owned());
            return Err(RuleError::MissingModule { family, module });
        }
    }
    Ok(())
}

fn decide_one(group: &ParameterGroup, context: &Context<'_>) -> Result<Decision, RuleError> {
    let layered = context.family.is_in_layers(&group.module);
    let Some((_, glob, rule)) = context.family.rule(&group.module) else {
        let why = format!("family {} has no rule for it", context.family.name);
        return Ok(replicated_for_want(layered, why));
    };
    let mut reason = format!("family {}: {glob} is {}", context.family.name, rule.text);
    let Some(storage) = storage_of(group, rule) else {
        let why = format!("{} of a {} module is not understood", quote(&group.parameter), rule.role);
        return Ok(replicated_for_want(layered, why));
    };
    check_shape(group, rule, &storage, context)?;
    let partition = partition_of(group, rule, &storage, context).map_err(|error| {
        // Only a stored form that is coarser than the whole dimension: nothing can be cut.
        RuleError::NotDivisible {
            failures: vec![Failure { module: group.module.clone(), reason: error.to_string() }],
            tp: context.tp,
            model: context.spec.to_string(),
            divides: vec![1],
            uneven: None,
        }
    })?;
    let stage = rule.stage.unwrap_or(match rule.role {
        _ if layered => StageRule::Layer,
        Role::VocabParallelEmbedding => StageRule::First,
        Role::VocabParallelHead => StageRule::Last,
        Role::ColumnParallel | Role::RowParallel | Role::Replicated => StageRule::Every,
    });
    let held_once = partition == Partition::FirstRank && context.tp > 1;
    if held_once {
        reason.push_str("; a bias is added once, after the sum over ranks");
    }
    Ok(Decision {
        role: rule.role,
        partition,
        stage,
        reason,
        warning: held_once.then(|| {
            "is added once, after the sum over ranks: only rank 0 of each tensor-parallel group holds it"
                .to_owned()
        }),
    })
}

fn replicated_for_want(layered: bool, why: String) -> Decision {
    Decision {
        role: Role::Replicated,
        partition: Partition::Replicated,
        stage: if layered { StageRule::Layer } else { StageRule::Every },
        warning: Some(format!("is replicated: {why}")),
        reason: why,
    }
}

/// How the group's tensors lie in their module's logical matrix; `None` when that is not known.
fn storage_of(group: &ParameterGroup, rule: &Rule) -> Option<Storage> {
    match (group.parameter.as_str(), group.shape.len()) {
        ("bias", 1) => Some(Storage::bias()),
        ("weight", 1) => Some(Storage::vector()),
        ("weight", _) => Some(Storage::weight()),
        _ if rule.role == Role::Replicated => Some(Storage::vector()),
        _ => None,
    }
}

/// Checks that the tensors have the shape that the rule and the configuration say.
fn check_shape(
    group: &ParameterGroup,
    rule: &Rule,
    storage: &Storage,
    context: &Context<'_>,
) -> Result<(), RuleError> {
    if rule.dimensions.is_empty() {
        return Ok(());
    }
    let spec = context.spec;
    let dims = if storage.added_to_output { &rule.dimensions[..1] } else { &rule.dimensions[..] };
    let total = |terms: &Vec<Dimension>| terms.iter().map(|&term| spec.size_of(term).0).sum();
    let expected: Vec<u64> = dims.iter().map(total).collect();
    if expected == group.shape {
        return Ok(());
    }
    let mut words: Vec<String> = Vec::new();
    for &term in dims.iter().flatten() {
        let text = spec.size_of(term).1;
        if !words.contains(&text) {
            words.push(text);
        }
    }
    Err(RuleError::ContradictsConfig {
        tensor: group.collapsed(),
        found: group.shape.clone(),
        expected,
        explained: words.join(", "),
    })
}

/// The logical dimension a role splits, with its place among a rule's dimensions.
fn split_dimension(role: Role) -> Option<(Logical, usize)> {
    match role {
        Role::ColumnParallel | Role::VocabParallelEmbedding | Role::VocabParallelHead => {
            Some((Logical::Out, 0))
        }
        Role::RowParallel => Some((Logical::In, 1)),
        Role::Replicated => None,
    }
}

fn partition_of(
    group: &ParameterGroup,
    rule: &Rule,
    storage: &Storage,
    context: &Context<'_>,
) -> Result<Partition, SegmentError> {
    let Some((dim, place)) = split_dimension(rule.role) else {
        return Ok(Partition::Replicated);
    };
    let is_vocabulary = matches!(rule.role, Role::VocabParallelEmbedding | Role::VocabParallelHead);
    // Where elements are smaller than a byte, what shares a byte stays together.
    let stored = storage.dimensions.iter().position(|stored| stored.logical == Some(dim));
    let bits = group.dtype.bitsize() as u64;
    let byte_unit = stored.map_or(1, |stored| Split::byte_unit(&group.shape, stored, bits));
    let unit = storage.unit(dim) * byte_unit;
    let segments = rule.dimensions[place]
        .iter()
        .map(|&term| segment_of(term, context.spec)?.coarsened(unit))
        .collect::<Result<_, _>>()?;
    storage.project(&LogicalPartition::Split {
        dim,
        segments,
        remainder: if is_vocabulary { Remainder::Pad } else { context.remainder },
    })
}

fn segment_of(dimension: Dimension, spec: &ModelSpec) -> Result<Segment, SegmentError> {
    let heads = || Segment::attention_heads(spec.query_heads, spec.kv_heads, spec.head_size);
    match dimension {
        Dimension::QueryHeads => heads().map(|(query, _)| query),
        Dimension::KvHeads => heads().map(|(_, kv)| kv),
        Dimension::Hidden | Dimension::Intermediate | Dimension::HeadSize | Dimension::Vocabulary => {
            Segment::elements(spec.size_of(dimension).0)
        }
    }
}

/// An embedding without a head of its own is also the head: the last stage needs it too.
fn hold_tied_embedding_at_both_ends(decisions: &mut [Decision], spec: &ModelSpec) {
    if decisions.iter().any(|decision| decision.role == Role::VocabParallelHead) {
        return;
    }
    for decision in decisions {
        if decision.role == Role::VocabParallelEmbedding && decision.stage == StageRule::First {
            decision.stage = StageRule::FirstAndLast;
            decision.reason.push_str("; there is no head of its own, so it is the head too");
            if !spec.tied_embeddings {
                let doubt =
                    "is taken for the head too: there is no other, though config.json does not tie them";
                decision.warning = Some(doubt.to_owned());
            }
        }
    }
}

fn check_divisible(
    groups: &[ParameterGroup],
    decisions: &[Decision],
    context: &Context<'_>,
) -> Result<(), RuleError> {
    let mut failures: Vec<Failure> = Vec::new();
    let mut segments: Vec<(Segment, Remainder)> = Vec::new();
    let mut uneven = None;
    for (group, decision) in groups.iter().zip(decisions) {
        let Partition::Split(split) = &decision.partition else { continue };
        segments.extend(split.segments.iter().map(|&segment| (segment, split.remainder)));
        let refused = match decision.partition.slices(&group.shape, context.tp) {
            Ok(_) => continue,
            Err(PartitionError::Indivisible(refused)) => refused,
            Err(other) => {
                failures.push(Failure { module: group.module.clone(), reason: other.to_string() });
                continue;
            }
        };
        let terms = split_dimension(decision.role)
            .zip(context.family.rule(&group.module))
            .map_or(&[][..], |((_, place), (_, _, rule))| &rule.dimensions[place]);
        let failing = terms
            .iter()
            .zip(&split.segments)
            .find(|(_, segment)| deal(**segment, context.tp, split.remainder).is_err());
        let Some((&term, &segment)) = failing else { continue };
        uneven = uneven.or_else(|| uneven_dealing(term, segment, context.tp));
        let failure = Failure { module: group.module.clone(), reason: why(term, &refused, context) };
        if !failures.contains(&failure) {
            failures.push(failure);
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(RuleError::NotDivisible {
        failures,
        tp: context.tp,
        model: context.spec.to_string(),
        divides: parts_that_divide(&segments, context.tp.max(8)),
        uneven,
    })
}

/// What does not divide by what, in the words of the model.
fn why(term: Dimension, refused: &Indivisible, context: &Context<'_>) -> String {
    let (spec, tp) = (context.spec, context.tp);
    let (heads, kv) = (spec.query_heads, spec.kv_heads);
    match term {
        Dimension::QueryHeads if !heads.is_multiple_of(u64::from(tp)) => {
            format!("{heads} query heads do not divide by {tp}")
        }
        Dimension::QueryHeads if refused.parts < tp => format!(
            "the {} query heads of a kv head do not divide by the {} ranks that share it",
            refused.units, refused.parts
        ),
        Dimension::QueryHeads | Dimension::KvHeads => {
            format!("{} cannot be dealt to {tp} ranks, nor shared by them, evenly", count(kv, "kv head"))
        }
        Dimension::Hidden | Dimension::Intermediate | Dimension::HeadSize | Dimension::Vocabulary => {
            let units =
                if refused.unit > 1 { format!(" in units of {}", refused.unit) } else { String::new() };
            format!("{}{units} does not divide by {tp}", spec.size_of(term).1)
        }
    }
}

/// `the query heads 4,3,4,3`: what each rank would hold.
fn uneven_dealing(term: Dimension, segment: Segment, tp: u32) -> Option<String> {
    const MOST_SHOWN: u32 = 16;
    let runs = deal(segment, tp, Remainder::Uneven).ok()?;
    let units: Vec<String> =
        runs.iter().map(|run| ((run.stop - run.start) / segment.unit()).to_string()).collect();
    (tp <= MOST_SHOWN).then(|| format!("the {} {}", term.words(), units.join(",")))
}
