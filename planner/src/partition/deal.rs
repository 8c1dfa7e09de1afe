//! Dealing a segment's units to the ranks of an axis.

use super::segment::Segment;
use serde::{Deserialize, Serialize};
use std::num::NonZero;

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

/// The ranks of an axis, and how much of everything each of them is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    parts: u32,
    /// One for each rank, none of them 0; empty where all hold alike.
    weights: Vec<u32>,
}

impl Shares {
    /// `parts` ranks that hold alike.
    pub fn equal(parts: u32) -> Self {
        debug_assert!(parts > 0);
        Self { parts, weights: Vec::new() }
    }

    /// `parts` ranks that hold in proportion to `weights`, which repeat along the axis; alike where there are none.
    pub fn weighted(parts: u32, weights: &[u32]) -> Self {
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let weights = if equal { &[] } else { weights };
        Self { weights: weights.iter().copied().cycle().take(parts as usize).collect(), ..Self::equal(parts) }
    }

    /// How many ranks there are.
    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// Whether all ranks are to hold alike.
    pub fn are_equal(&self) -> bool {
        self.weights.is_empty()
    }

    /// Where each rank's part of `things` begins, and where the last one's ends.
    ///
    /// Alike: the first ranks hold one thing more where it does not come out even. Weighted: each border lies at the
    /// nearest thing to its exact place.
    fn borders(&self, things: u64) -> Vec<u64> {
        let total: u128 = self.weights.iter().map(|&weight| u128::from(weight)).sum();
        if total == 0 {
            let parts = u64::from(self.parts);
            return (0..=parts).map(|rank| share_of(rank, parts, things).0).collect();
        }
        let mut before = 0u128;
        let mut borders = vec![0];
        for &weight in &self.weights {
            before += u128::from(weight);
            let nearest = (2 * u128::from(things) * before + total) / (2 * total);
            borders.push(u64::try_from(nearest).unwrap_or(things));
        }
        borders
    }
}

/// A run of elements of one segment that one rank holds, counted from the segment's beginning.
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
}

/// What one rank holds of one segment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hand {
    /// Its runs in order; none is empty, and each begins where the one before it ends.
    pub runs: Vec<Run>,
    /// Elements of zeros after the runs that exist in no file.
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

/// Deals `segment` to the ranks of `shares` in contiguous runs, in the order of the ranks.
///
/// Runs of two ranks are the same or disjoint, and together they are the segment.
///
/// # Errors
/// [`Indivisible`] when `remainder` is [`Remainder::Refuse`], the shares are equal, and the units, the ranks that share a
/// group, or the shared pieces that they read do not come out even.
///
/// Source: heads to ranks as Megatron-LM and vLLM deal them, key/value heads shared by neighbouring ranks included
/// (grouped-query attention: Ainslie et al. 2023).
pub fn deal(segment: Segment, shares: &Shares, remainder: Remainder) -> Result<Vec<Hand>, Indivisible> {
    let remainder = match remainder {
        // Padding makes all alike; refusing asks for it.
        Remainder::Pad | Remainder::Refuse if !shares.are_equal() => Remainder::Uneven,
        other => other,
    };
    if remainder == Remainder::Pad && segment.shared().is_none() {
        return Ok(padded(segment.units(), segment.unit(), shares.parts, 1));
    }
    let borders = deal_units(segment, shares, remainder)?;
    let Some(pieces) = segment.shared() else {
        let run = |pair: &[u64]| Run {
            start: pair[0] * segment.unit(),
            stop: pair[1] * segment.unit(),
            replica: 0,
            replicas: 1,
        };
        let runs = borders.windows(2).map(run);
        return Ok(runs
            .map(|run| Hand { runs: Vec::from_iter((run.start < run.stop).then_some(run)), padding: 0 })
            .collect());
    };
    let hands = follow(&borders, segment, pieces);
    let held = |hand: &Hand| hand.runs.iter().map(|run| run.stop - run.start).sum::<u64>();
    if remainder == Remainder::Refuse && hands.windows(2).any(|pair| held(&pair[0]) != held(&pair[1])) {
        return Err(Indivisible { units: pieces, unit: segment.unit(), parts: shares.parts });
    }
    Ok(hands)
}

/// Where each rank's units begin, and where the last one's end.
fn deal_units(segment: Segment, shares: &Shares, remainder: Remainder) -> Result<Vec<u64>, Indivisible> {
    let (parts, ranks) = (shares.parts, u64::from(shares.parts));
    let (groups, per_group, unit) = (segment.groups(), segment.units_per_group(), segment.unit());
    let refuse = remainder == Remainder::Refuse;
    if groups >= ranks || per_group == 1 || !shares.are_equal() {
        let (things, thing) = if groups >= ranks { (groups, per_group) } else { (groups * per_group, 1) };
        if refuse && !things.is_multiple_of(ranks) {
            return Err(Indivisible { units: things, unit: thing * unit, parts });
        }
        return Ok(shares.borders(things).into_iter().map(|border| border * thing).collect());
    }
    // Fewer groups than ranks: each group to a run of ranks, and its units dealt among them.
    if refuse && !ranks.is_multiple_of(groups) {
        return Err(Indivisible { units: groups, unit: per_group * unit, parts });
    }
    let mut borders = vec![0];
    for group in 0..groups {
        let members = share_of(group, groups, ranks).1;
        if refuse && !per_group.is_multiple_of(members) {
            let parts = u32::try_from(members).unwrap_or(parts);
            return Err(Indivisible { units: per_group, unit, parts });
        }
        borders
            .extend((1..=members).map(|member| group * per_group + share_of(member, members, per_group).0));
    }
    Ok(borders)
}

/// Of `pieces` shared pieces, each rank holds those that its units read.
fn follow(borders: &[u64], segment: Segment, pieces: u64) -> Vec<Hand> {
    struct Reader {
        rank: usize,
        start: u64,
        stop: u64,
    }
    let units = u128::from(segment.units());
    let scaled = |border: u64| u128::from(border) * u128::from(pieces);
    let as_piece = |piece: u128| u64::try_from(piece).unwrap_or(pieces);
    let readers: Vec<Reader> = borders
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair[0] < pair[1])
        .map(|(rank, pair)| Reader {
            rank,
            start: as_piece(scaled(pair[0]) / units),
            stop: as_piece(scaled(pair[1]).div_ceil(units)),
        })
        .collect();
    // Between two borders of what is read, all pieces have the same readers, and these are neighbours.
    let mut cuts: Vec<u64> = readers.iter().flat_map(|reader| [reader.start, reader.stop]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut hands = vec![Hand::default(); borders.len() - 1];
    for cut in cuts.windows(2) {
        let first = readers.partition_point(|reader| reader.stop <= cut[0]);
        let end = readers.partition_point(|reader| reader.start <= cut[0]);
        let holders = &readers[first..end];
        for (replica, reader) in (0u32..).zip(holders) {
            hands[reader.rank].runs.push(Run {
                start: cut[0] * segment.unit(),
                stop: cut[1] * segment.unit(),
                replica,
                replicas: u32::try_from(holders.len()).unwrap_or(u32::MAX),
            });
        }
    }
    hands
}

/// The same number of units to every rank, a multiple of `multiple`, the missing ones made of zeros.
fn padded(units: u64, unit: u64, parts: u32, multiple: u64) -> Vec<Hand> {
    let each = units.div_ceil(u64::from(parts));
    let each = each.checked_next_multiple_of(multiple).unwrap_or(each);
    (0..u64::from(parts))
        .map(|rank| {
            let first = rank.saturating_mul(each).min(units);
            let last = (rank + 1).saturating_mul(each).min(units);
            let run = Run { start: first * unit, stop: last * unit, replica: 0, replicas: 1 };
            Hand {
                runs: Vec::from_iter((first < last).then_some(run)),
                padding: (each - (last - first)) * unit,
            }
        })
        .collect()
}

/// The same number of elements to every rank of `shares`, a multiple of `multiple`, the missing ones made of zeros.
pub(super) fn padded_to(segment: Segment, multiple: NonZero<u32>, shares: &Shares) -> Vec<Hand> {
    padded(segment.len(), 1, shares.parts, u64::from(multiple.get()))
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

    fn lengths(segment: Segment, shares: &Shares, remainder: Remainder) -> Vec<u64> {
        let hands = deal(segment, shares, remainder).unwrap();
        hands.iter().map(|hand| hand.runs.iter().map(|run| run.stop - run.start).sum()).collect()
    }

    fn refused(segment: Segment, parts: u32) -> (u64, u32) {
        let refused = deal(segment, &Shares::equal(parts), Remainder::Refuse).unwrap_err();
        (refused.units, refused.parts)
    }

    #[test]
    fn key_value_heads_are_shared_by_neighbours() {
        let (_, heads) = Segment::attention_heads(8, 2, 64).unwrap();
        let starts: Vec<_> = deal(heads, &Shares::equal(8), Remainder::Refuse)
            .unwrap()
            .iter()
            .map(|hand| (hand.runs.len(), hand.runs[0].start, hand.runs[0].replica, hand.runs[0].replicas))
            .collect();
        let expected = [
            (1, 0, 0, 4),
            (1, 0, 1, 4),
            (1, 0, 2, 4),
            (1, 0, 3, 4),
            (1, 64, 0, 4),
            (1, 64, 1, 4),
            (1, 64, 2, 4),
            (1, 64, 3, 4),
        ];
        assert_eq!(starts, expected);
    }

    #[test]
    fn query_heads_stay_with_their_key_value_head() {
        // Qwen2-7B: 28 query heads in 4 groups.
        let (heads, _) = Segment::attention_heads(28, 4, 1).unwrap();
        assert_eq!(refused(heads, 8), (7, 2));
        let uneven = |parts| lengths(heads, &Shares::equal(parts), Remainder::Uneven);
        assert_eq!(uneven(8), [4, 3, 4, 3, 4, 3, 4, 3]);
        assert_eq!(uneven(3), [14, 7, 7]);
    }

    #[test]
    fn a_unit_that_spans_groups_takes_every_piece_it_reads() {
        // Qwen2.5-0.5B in groups of 128: 7 units of two query heads, of which the fourth reads both key/value heads.
        let kv = Segment::new(7, 1, 64).unwrap().with_shared(2).unwrap();
        let hands = deal(kv, &Shares::equal(2), Remainder::Uneven).unwrap();
        let runs = |rank: usize| -> Vec<_> {
            hands[rank].runs.iter().map(|run| (run.start, run.stop, run.replica, run.replicas)).collect()
        };
        assert_eq!(runs(0), [(0, 64, 0, 1), (64, 128, 0, 2)]);
        assert_eq!(runs(1), [(64, 128, 1, 2)]);
        assert_eq!(refused(kv, 7), (2, 7));
    }

    #[test]
    fn uneven_dealing_gives_the_first_ranks_more_or_the_last_none() {
        let blocks = Segment::new(231, 1, 128).unwrap();
        assert_eq!(lengths(blocks, &Shares::equal(2), Remainder::Uneven), [116 * 128, 115 * 128]);
        let few = Segment::new(3, 1, 128).unwrap();
        assert_eq!(refused(few, 4), (3, 4));
        assert_eq!(lengths(few, &Shares::equal(4), Remainder::Uneven), [128, 128, 128, 0]);
    }

    #[test]
    fn weights_deal_in_proportion() {
        let (heads, kv) = Segment::attention_heads(64, 8, 2).unwrap();
        let shares = Shares::weighted(3, &[3, 3, 2]);
        assert_eq!(lengths(heads, &shares, Remainder::Refuse), [48, 48, 32]);
        assert_eq!(lengths(kv, &shares, Remainder::Refuse), [6, 6, 4]);
        let rows = Segment::elements(10).unwrap();
        assert_eq!(lengths(rows, &shares, Remainder::Pad), [4, 4, 2]);
        assert!(Shares::weighted(2, &[5, 5]).are_equal());
        // Along an axis of two copies the weights repeat.
        assert_eq!(lengths(rows, &Shares::weighted(4, &[3, 1]), Remainder::Uneven), [4, 1, 4, 1]);
    }

    #[test]
    fn padding_fills_the_last_ranks() {
        let rows = Segment::elements(5).unwrap();
        let hands = deal(rows, &Shares::equal(4), Remainder::Pad).unwrap();
        let seen: Vec<_> = hands
            .iter()
            .map(|hand| (hand.runs.iter().map(|run| run.stop - run.start).sum::<u64>(), hand.padding))
            .collect();
        assert_eq!(seen, [(2, 0), (2, 0), (1, 1), (0, 2)]);
    }
}
