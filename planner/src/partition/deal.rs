//! Dealing a segment's units to the ranks of an axis.

use super::segment::{Segment, WhenFew};
use serde::{Deserialize, Serialize};

/// What happens to the units that are left over when they do not divide by the number of ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remainder {
    /// The split is refused.
    #[default]
    Refuse,
    /// The first ranks hold one unit more than the last.
    Uneven,
    /// Units of zeros that exist in no file fill up the last ranks (vocabularies).
    Pad,
}

impl Remainder {
    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn is_refuse(&self) -> bool {
        *self == Self::Refuse
    }
}

/// What one rank holds of one segment, counted in elements from the segment's beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First element.
    pub start: u64,
    /// One past the last element.
    pub stop: u64,
    /// Which of the ranks that hold this very run; the one with 0 answers for it in sums over ranks.
    pub replica: u32,
    /// How many ranks hold this very run.
    pub replicas: u32,
    /// Elements of zeros after the run that exist in no file.
    pub padding: u64,
}

/// A segment that does not deal evenly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{units} units do not divide by {parts}")]
pub struct Indivisible {
    /// How many pieces there are to deal.
    pub units: u64,
    /// Elements in each.
    pub unit: u64,
    /// How many ranks they should go to.
    pub parts: u32,
}

/// Deals `segment` to `parts` ranks in contiguous runs, in the order of the ranks.
///
/// The runs of two ranks are the same or disjoint, and together they are the segment.
///
/// # Errors
/// [`Indivisible`] when `remainder` is [`Remainder::Refuse`] and the units, or the ranks that share a group, do not come
/// out even.
///
/// Source: heads to ranks as Megatron-LM and vLLM deal them, key/value heads shared by neighbouring ranks included
/// (grouped-query attention: Ainslie et al. 2023).
pub fn deal(segment: Segment, parts: u32, remainder: Remainder) -> Result<Vec<Run>, Indivisible> {
    debug_assert!(parts > 0);
    let ranks = u64::from(parts);
    if segment.groups() < ranks && segment.units_per_group() > 1 {
        return deal_within_groups(segment, parts, remainder);
    }
    let units = segment.units();
    let unit = segment.unit();
    let refused = Err(Indivisible { units, unit, parts });
    // From here on a group is one unit, or whole groups are dealt.
    let (pieces, piece) = match segment.units_per_group() {
        1 => (units, unit),
        per_group => (segment.groups(), per_group * unit),
    };
    if pieces < ranks && segment.when_few() == WhenFew::Share {
        if !ranks.is_multiple_of(pieces) && remainder == Remainder::Refuse {
            return refused;
        }
        return Ok(share(pieces, piece, parts));
    }
    let even = pieces.is_multiple_of(ranks);
    match remainder {
        _ if even => Ok(spread(pieces, piece, parts)),
        Remainder::Refuse => refused,
        Remainder::Uneven => Ok(spread(pieces, piece, parts)),
        Remainder::Pad => Ok(padded(pieces, piece, parts)),
    }
}

/// Every number of ranks up to `limit` to which all `segments` deal under `remainder`.
pub fn parts_that_divide(segments: &[(Segment, Remainder)], limit: u32) -> Vec<u32> {
    (1..=limit)
        .filter(|&parts| segments.iter().all(|&(segment, remainder)| deal(segment, parts, remainder).is_ok()))
        .collect()
}

/// Fewer groups than ranks: each group to a run of ranks, and its units dealt among them.
fn deal_within_groups(segment: Segment, parts: u32, remainder: Remainder) -> Result<Vec<Run>, Indivisible> {
    let ranks = u64::from(parts);
    let (groups, per_group, unit) = (segment.groups(), segment.units_per_group(), segment.unit());
    if !ranks.is_multiple_of(groups) && remainder == Remainder::Refuse {
        return Err(Indivisible { units: groups, unit: per_group * unit, parts });
    }
    let mut runs = Vec::with_capacity(parts as usize);
    for group in 0..groups {
        let members = share_of(group, groups, ranks).1;
        let members = u32::try_from(members).unwrap_or(parts);
        let inner = Segment::new(per_group, 1, unit, segment.when_few()).map_err(|_| Indivisible {
            units: per_group,
            unit,
            parts,
        })?;
        let first = group * per_group * unit;
        runs.extend(deal(inner, members, remainder)?.into_iter().map(|run| Run {
            start: first + run.start,
            stop: first + run.stop,
            ..run
        }));
    }
    Ok(runs)
}

/// `pieces` to `parts` ranks, the first ranks one more where it does not come out even.
fn spread(pieces: u64, piece: u64, parts: u32) -> Vec<Run> {
    (0..u64::from(parts))
        .map(|rank| {
            let (first, count) = share_of(rank, u64::from(parts), pieces);
            Run { start: first * piece, stop: (first + count) * piece, replica: 0, replicas: 1, padding: 0 }
        })
        .collect()
}

/// The same number of `pieces` to every rank, the missing ones made of zeros.
fn padded(pieces: u64, piece: u64, parts: u32) -> Vec<Run> {
    let each = pieces.div_ceil(u64::from(parts));
    (0..u64::from(parts))
        .map(|rank| {
            let first = (rank * each).min(pieces);
            let last = ((rank + 1) * each).min(pieces);
            Run {
                start: first * piece,
                stop: last * piece,
                replica: 0,
                replicas: 1,
                padding: (each - (last - first)) * piece,
            }
        })
        .collect()
}

/// Fewer `pieces` than ranks: each piece to a run of neighbouring ranks.
fn share(pieces: u64, piece: u64, parts: u32) -> Vec<Run> {
    let mut runs = Vec::with_capacity(parts as usize);
    for number in 0..pieces {
        let holders = share_of(number, pieces, u64::from(parts)).1;
        let holders = u32::try_from(holders).unwrap_or(parts);
        runs.extend((0..holders).map(|replica| Run {
            start: number * piece,
            stop: (number + 1) * piece,
            replica,
            replicas: holders,
            padding: 0,
        }));
    }
    runs
}

/// First and count of what receiver `number` of `receivers` gets of `things` in contiguous runs, the first receivers one
/// more where it does not come out even.
fn share_of(number: u64, receivers: u64, things: u64) -> (u64, u64) {
    let (each, more) = (things / receivers, things % receivers);
    let first = number * each + number.min(more);
    (first, each + u64::from(number < more))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(segment: Segment, parts: u32, remainder: Remainder) -> Vec<u64> {
        deal(segment, parts, remainder).unwrap().iter().map(|run| run.stop - run.start).collect()
    }

    #[test]
    fn key_value_heads_are_shared_by_neighbours() {
        let heads = Segment::new(2, 1, 64, WhenFew::Share).unwrap();
        let starts: Vec<_> = deal(heads, 8, Remainder::Refuse)
            .unwrap()
            .iter()
            .map(|run| (run.start, run.replica, run.replicas))
            .collect();
        let expected =
            [(0, 0, 4), (0, 1, 4), (0, 2, 4), (0, 3, 4), (64, 0, 4), (64, 1, 4), (64, 2, 4), (64, 3, 4)];
        assert_eq!(starts, expected);
    }

    #[test]
    fn query_heads_stay_with_their_key_value_head() {
        // Qwen2-7B: 28 query heads in 4 groups.
        let heads = Segment::new(4, 7, 1, WhenFew::Refuse).unwrap();
        let refused = deal(heads, 8, Remainder::Refuse).unwrap_err();
        assert_eq!((refused.units, refused.parts), (7, 2));
        assert_eq!(lengths(heads, 8, Remainder::Uneven), [4, 3, 4, 3, 4, 3, 4, 3]);
        assert_eq!(lengths(heads, 3, Remainder::Uneven), [14, 7, 7]);
    }

    #[test]
    fn uneven_dealing_gives_the_first_ranks_more_or_the_last_none() {
        let blocks = Segment::new(231, 1, 128, WhenFew::Refuse).unwrap();
        assert_eq!(lengths(blocks, 2, Remainder::Uneven), [116 * 128, 115 * 128]);
        let few = Segment::new(3, 1, 128, WhenFew::Refuse).unwrap();
        assert!(deal(few, 4, Remainder::Refuse).is_err());
        assert_eq!(lengths(few, 4, Remainder::Uneven), [128, 128, 128, 0]);
    }

    #[test]
    fn padding_fills_the_last_ranks() {
        let rows = Segment::elements(5).unwrap();
        let runs = deal(rows, 4, Remainder::Pad).unwrap();
        let seen: Vec<_> = runs.iter().map(|run| (run.stop - run.start, run.padding)).collect();
        assert_eq!(seen, [(2, 0), (2, 0), (1, 1), (0, 2)]);
    }

    #[test]
    fn the_sizes_that_work_are_found() {
        let query = Segment::new(4, 7, 128, WhenFew::Refuse).unwrap();
        let kv = Segment::new(4, 1, 128, WhenFew::Share).unwrap();
        let both = [(query, Remainder::Refuse), (kv, Remainder::Refuse)];
        assert_eq!(parts_that_divide(&both, 32), [1, 2, 4, 28]);
    }
}
