//! Whether everything divides by the ranks, and what to say where it does not.

use super::{
    decision::{Decision, DecisionRequest},
    error::{Failure, NotDivisible, RuleError},
    fit::Fitted,
    spaces::Whole,
};
use crate::{
    graph::Module,
    model::{Dimension, ModelSpec},
    partition::{Axis, Indivisible, Partition, Remainder, Segment, Shares, deal},
    size::count,
};
use std::collections::HashMap;

/// The failure of a module whose stored form cannot be cut; none for one rank, which holds it whole.
pub(super) fn cannot_be_cut(module: &Module, fitted: &Fitted, whole: &Whole, tp: &Shares) -> Option<Failure> {
    if tp.parts() == 1 {
        return None;
    }
    let how = fitted.stored.packing.as_deref().unwrap_or("plain");
    let words = whole.dimension.words();
    let reason = match whole.together {
        u64::MAX => format!("{words} cannot be cut as it is stored ({how})"),
        together => format!("{words} is no multiple of the {together} that belong together ({how})"),
    };
    Some(Failure { module: module.name.clone(), reason })
}

/// Checks that every partition deals; `failures` are those that are known already.
pub(super) fn check(
    request: &DecisionRequest<'_>,
    fitted: &[Fitted],
    decisions: &[Decision],
    mut failures: Vec<Failure>,
    layers: u64,
) -> Result<(), RuleError> {
    let DecisionRequest { modules, config, tp, .. } = *request;
    let uncuttable = !failures.is_empty();
    let grouped = grouped_differently(request, fitted);
    failures.extend(grouped.iter().filter_map(|differ| differ.failure(request)));
    let mut dealt: Vec<Dealt> = Vec::new();
    let mut uneven = None;
    for ((module, fitted), decision) in modules.iter().zip(fitted).zip(decisions) {
        for partition in &decision.partitions {
            let Some(failing) = first_failing(partition, request, &mut dealt) else { continue };
            let failure =
                Failure { module: module.name.clone(), reason: why(fitted, partition, &failing, request) };
            uneven = uneven.or_else(|| match dimension_of(fitted, partition, failing.place) {
                Some(dimension) => {
                    let joined = if dimension.units > failing.segment.units() { "groups of " } else { "" };
                    uneven_dealing(&format!("{joined}{}", dimension.name), failing.segment, tp.parts())
                }
                None => uneven_dealing("experts", failing.segment, request.ep?.parts()),
            });
            if !failures.iter().any(|other| other.module == failure.module) {
                failures.push(failure);
            }
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    let failing: Vec<String> = failures.iter().map(|failure| failure.module.clone()).collect();
    let divides = match uncuttable {
        true => vec![1],
        false => sizes_that_divide(&dealt, &grouped, request),
    };
    let model = ModelSpec::of(config, request.family.vocabulary()).map(|model| ModelSpec { layers, ..model });
    Err(RuleError::NotDivisible(Box::new(NotDivisible {
        failures,
        tp: tp.parts(),
        model: model.map_or(String::new(), |model| model.to_string()),
        divides,
        uneven: if uncuttable { None } else { uneven },
        outside_layers: outside_layers(&failing, request),
    })))
}

/// Heads of a module that are grouped otherwise than those beside it.
struct GroupedDifferently {
    module: String,
    units: u64,
    groups: u64,
    beside: u64,
}

impl GroupedDifferently {
    /// Whether both are dealt to the same ranks all the same: where each rank gets as many.
    fn dealt_alike(&self, shares: &Shares) -> bool {
        let parts = u64::from(shares.parts());
        let fits = |groups: u64| groups.is_multiple_of(parts) || parts.is_multiple_of(groups);
        shares.are_equal() && self.units.is_multiple_of(parts) && fits(self.groups) && fits(self.beside)
    }

    fn failure(&self, request: &DecisionRequest<'_>) -> Option<Failure> {
        let reason = || {
            format!(
                "its heads are in {} groups, those beside it in {}: they cannot be dealt unevenly alike",
                self.groups, self.beside
            )
        };
        (!self.dealt_alike(request.tp)).then(|| Failure { module: self.module.clone(), reason: reason() })
    }
}

/// Where unevenness is allowed, the modules whose heads are grouped otherwise than others' in the same scope of a layer: what
/// deals evenly needs no look.
fn grouped_differently(request: &DecisionRequest<'_>, fitted: &[Fitted]) -> Vec<GroupedDifferently> {
    let mut differing = Vec::new();
    if !request.uneven && request.tp.are_equal() {
        return differing;
    }
    let mut first: HashMap<(&str, &[u32], u64), u64> = HashMap::new();
    for (module, fitted) in request.modules.iter().zip(fitted) {
        for &Dimension { units, groups, .. } in fitted.split.iter().flat_map(|(_, dimensions)| dimensions) {
            let mut others: Vec<u64> = module
                .blocks
                .iter()
                .map(|block| *first.entry((module.scope(), block.as_slice(), units)).or_insert(groups))
                .filter(|other| *other != groups)
                .collect();
            others.sort_unstable();
            others.dedup();
            differing.extend(others.into_iter().map(|beside| GroupedDifferently {
                module: module.name.clone(),
                units,
                groups,
                beside,
            }));
        }
    }
    differing
}

/// A glob that matches all of `failing`, where they are all parts of what runs before the layers.
fn outside_layers(failing: &[String], request: &DecisionRequest<'_>) -> Option<String> {
    let first = failing.first()?;
    let all_before = failing.iter().all(|module| request.family.is_before_layers(module));
    let ends = first.match_indices('.').map(|(end, _)| &first[..=end]);
    let common = ends.take_while(|start| failing.iter().all(|module| module.starts_with(start))).last();
    common.filter(|_| all_before).map(|start| format!("{start}**"))
}

/// A segment that is dealt, and to whom.
type Dealt = (Segment, Remainder, Axis);

/// A segment that does not deal.
struct Failing {
    place: usize,
    segment: Segment,
    refused: Indivisible,
}

fn first_failing(
    partition: &Partition,
    request: &DecisionRequest<'_>,
    dealt: &mut Vec<Dealt>,
) -> Option<Failing> {
    let (segments, remainder, axis) = match partition {
        Partition::Replicated | Partition::FirstRank => return None,
        Partition::Split(split) => (split.segments.clone(), split.remainder, split.axis),
        Partition::Assigned(assigned) => {
            (Vec::from_iter(Segment::elements(assigned.of).ok()), assigned.remainder, assigned.axis)
        }
    };
    let shares = match axis {
        Axis::Tensor => request.tp,
        Axis::Expert => request.ep?,
    };
    let mut failing = None;
    for (place, segment) in segments.into_iter().enumerate() {
        if !dealt.contains(&(segment, remainder, axis)) {
            dealt.push((segment, remainder, axis));
        }
        if failing.is_none()
            && let Err(refused) = deal(segment, shares, remainder)
        {
            failing = Some(Failing { place, segment, refused });
        }
    }
    failing
}

/// The sizes of a tensor-parallel group, up to the one asked for or 8, that everything divides by.
fn sizes_that_divide(
    dealt: &[Dealt],
    grouped: &[GroupedDifferently],
    request: &DecisionRequest<'_>,
) -> Vec<u32> {
    let copies = request.ep.map_or(1, |ep| ep.parts() / request.tp.parts());
    (1..=request.tp.parts().max(8))
        .filter(|&tp| grouped.iter().all(|differ| differ.dealt_alike(&Shares::equal(tp))))
        .filter(|&tp| {
            dealt.iter().all(|&(segment, remainder, axis)| {
                let ranks = if axis == Axis::Expert { tp.saturating_mul(copies) } else { tp };
                deal(segment, &Shares::equal(ranks), remainder).is_ok()
            })
        })
        .collect()
}

/// The dimension that segment number `place` of a partition of the module came of.
fn dimension_of<'a>(fitted: &'a Fitted, partition: &Partition, place: usize) -> Option<&'a Dimension> {
    let (_, dimensions) = fitted.split.as_ref()?;
    if partition.axis() == Axis::Expert { None } else { dimensions.get(place) }
}

/// What does not divide by what, in the words of the model.
fn why(fitted: &Fitted, partition: &Partition, failing: &Failing, request: &DecisionRequest<'_>) -> String {
    let Failing { place, segment, refused } = failing;
    let tp = request.tp.parts();
    let Some(dimension) = dimension_of(fitted, partition, *place) else {
        let ranks = request.ep.map_or(tp, Shares::parts);
        return format!(
            "{} do not divide by the {ranks} ranks of a pipeline stage",
            count(refused.units, "expert")
        );
    };
    let name = &dimension.name;
    // Units that were joined for the sake of how the weights are stored.
    let joined = dimension.units / segment.units().max(1);
    if joined > 1 {
        let each = dimension.len() / segment.units().max(1);
        let units = segment.units();
        if segment.shared().is_some() {
            return format!(
                "{} are read by {} of heads that belong together, which {} not divide by {tp}",
                dimension.words(),
                count(units, block_word(fitted)),
                if units == 1 { "does" } else { "do" }
            );
        }
        return format!(
            "{} is {} of {each}, which {} not divide by {tp}",
            dimension.words(),
            count(units, block_word(fitted)),
            if units == 1 { "does" } else { "do" }
        );
    }
    let grouped = dimension.units > dimension.groups;
    if grouped && dimension.count >= dimension.units {
        if !dimension.units.is_multiple_of(u64::from(tp)) {
            return format!("{} {name} do not divide by {tp}", dimension.units);
        }
        if refused.parts < tp {
            return format!(
                "the {} {name} of a {} do not divide by the {} ranks that share it",
                refused.units,
                if name == "query heads" { "kv head" } else { "group" },
                refused.parts
            );
        }
    }
    if grouped {
        let pieces = count(
            dimension.groups,
            if name == "query heads" { "kv head" } else { name.trim_end_matches('s') },
        );
        return format!("{pieces} cannot be dealt to {tp} ranks, nor shared by them, evenly");
    }
    match dimension.unit {
        1 => format!("{} does not divide by {tp}", dimension.words()),
        _ => format!("{} {name} do not divide by {tp}", dimension.count),
    }
}

/// What the pieces are that stored weights belong together in.
fn block_word(fitted: &Fitted) -> &'static str {
    match fitted.stored.packing.as_deref() {
        Some(packing) if packing.contains("a scale for") => "group",
        _ => "block",
    }
}

/// `the query heads 4,3,4,3`: what each rank would hold.
fn uneven_dealing(name: &str, segment: Segment, parts: u32) -> Option<String> {
    const MOST_SHOWN: u32 = 16;
    if segment.shared().is_some() {
        return None;
    }
    if parts > MOST_SHOWN {
        return Some("them as evenly as it goes".to_owned());
    }
    let hands = deal(segment, &Shares::equal(parts), Remainder::Uneven).ok()?;
    let held = hands.iter().map(|hand| hand.runs.iter().map(|run| run.stop - run.start).sum::<u64>());
    let units: Vec<String> = held.map(|elements| (elements / segment.unit()).to_string()).collect();
    Some(format!("the {name} {}", units.join(",")))
}
