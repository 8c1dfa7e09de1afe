//! What may not be cut, agreed among all modules of a block.
//!
//! A cut through a block's inner dimension goes through every module that has it: where `down_proj` is cut between groups of
//! 128 inputs, `gate_proj` and `up_proj` are cut at the same features, and query heads go with the columns of `o_proj` that
//! read them. Dimensions of one block that are dealt by the same units are a *space*; the units of a space are made so coarse
//! that no cut goes through a pack, a group or a block of any tensor in it.

use super::fit::Fitted;
use crate::{
    graph::{Module, Parameter},
    model::Dimension,
    partition::{Logical, Segment, SegmentError, Split, Storage, gcd, lcm},
};
use std::collections::BTreeMap;

/// Which space a dimension belongs to: its block, and how many units it has in how many groups.
type Key = (String, u64, u64);

/// The spaces of a checkpoint, with how many units of each belong together.
#[derive(Debug, Default)]
pub(super) struct Spaces(BTreeMap<Key, Option<u64>>);

/// A dimension that cannot be cut at all, with the elements that would have to stay together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) dimension: Dimension,
    pub(super) together: u64,
}

impl Spaces {
    /// Joins what `module` asks for.
    pub(super) fn add(&mut self, module: &Module, fitted: &Fitted) {
        let Some((logical, dimensions)) = &fitted.split else { return };
        let storage = storage_unit(module, fitted, *logical);
        for dimension in dimensions {
            let together = storage.and_then(|storage| units_together(dimension, storage));
            let joined = self.0.entry(key(module, dimension)).or_insert(Some(1));
            *joined = (*joined).zip(together).and_then(|(a, b)| lcm(a, b));
        }
    }

    /// The segments that `dimensions` of `module` are dealt in.
    pub(super) fn segments(&self, module: &Module, dimensions: &[Dimension]) -> Result<Vec<Segment>, Whole> {
        dimensions
            .iter()
            .map(|dimension| {
                let together = self.0.get(&key(module, dimension)).copied().flatten();
                let whole = || {
                    let each = (dimension.len() / dimension.units.max(1)).max(1);
                    let together = together.and_then(|units| units.checked_mul(each)).unwrap_or(u64::MAX);
                    Whole { dimension: dimension.clone(), together }
                };
                let units =
                    together.filter(|units| dimension.units.is_multiple_of(*units)).ok_or_else(whole)?;
                segment(dimension, units).map_err(|_| whole())
            })
            .collect()
    }
}

/// The segment of a dimension of whose units `together` are dealt as one.
fn segment(dimension: &Dimension, together: u64) -> Result<Segment, SegmentError> {
    let &Dimension { count, unit, units, groups, .. } = dimension;
    let per_group = units / groups;
    // Where a dealt unit spans groups, these lose their meaning.
    let (groups, per_group) = match per_group.is_multiple_of(together) {
        true => (groups, per_group / together),
        false => (units / together, 1),
    };
    let dealt = groups * per_group;
    if count.is_multiple_of(dealt) && (count >= units || count == dealt) {
        return Segment::new(groups, per_group, unit.saturating_mul(count / dealt));
    }
    Segment::new(groups, per_group, unit)?.with_shared(count)
}

/// Logical elements along `logical` that some tensor of the module keeps together.
fn storage_unit(module: &Module, fitted: &Fitted, logical: Logical) -> Option<u64> {
    let mut unit = 1;
    for (parameter, storage) in module.parameters.iter().zip(&fitted.stored.storages) {
        let Some(storage) = storage else { continue };
        unit = lcm(unit, storage.unit(logical)?)?;
        unit = lcm(unit, byte_unit(parameter, storage, logical))?;
    }
    Some(unit)
}

/// Logical elements along `logical` that fill whole bytes, where elements are smaller than a byte.
fn byte_unit(parameter: &Parameter, storage: &Storage, logical: Logical) -> u64 {
    let stored = storage.dimensions.iter().position(|stored| stored.logical == Some(logical));
    stored.map_or(1, |dim| {
        let elements = storage.dimensions[dim].elements;
        Split::byte_unit(&parameter.shape, dim, parameter.dtype.bitsize() as u64).saturating_mul(elements)
    })
}

/// Of the units by which `dimension` is dealt, how many belong together so that no cut goes through `storage` elements.
fn units_together(dimension: &Dimension, storage: u64) -> Option<u64> {
    let &Dimension { count, unit, units, .. } = dimension;
    if count >= units {
        let each = unit.checked_mul(count / units)?;
        return Some(storage / gcd(storage, each));
    }
    // Pieces that units share: those in one stored element go with all the units that read them.
    let pieces = storage / gcd(storage, unit);
    match pieces {
        1 => Some(1),
        _ if units.is_multiple_of(count) => pieces.checked_mul(units / count),
        _ => Some(units),
    }
}

fn key(module: &Module, dimension: &Dimension) -> Key {
    (module.block().to_owned(), dimension.units, dimension.groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::{Remainder, Shares, deal};
    use proptest::prelude::*;

    /// Query heads, key/value heads and plain features, of small sizes.
    fn dimension() -> impl Strategy<Value = Dimension> {
        (1u64..9, 1u64..9, 1u64..33, 0..3).prop_map(|(groups, per_group, unit, kind)| {
            let units = groups * per_group;
            let named =
                |count, unit, groups| Dimension { units, groups, ..Dimension::of_any_size("x", count, unit) };
            match kind {
                0 => named(units, unit, groups),
                1 => named(groups, unit, groups),
                // Two elements for each unit, side by side.
                _ => named(units * 2, unit, units),
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Whatever a stored element holds together stays on one rank, over any number of ranks.
        #[test]
        fn no_cut_goes_through_a_stored_element(
            dimension in dimension(), storage in 1u64..130, parts in 1u32..9,
        ) {
            let Some(together) = units_together(&dimension, storage) else { return Ok(()) };
            if !dimension.units.is_multiple_of(together) {
                return Ok(());
            }
            let Ok(segment) = segment(&dimension, together) else { return Ok(()) };
            prop_assert_eq!(segment.len(), dimension.len());
            // Where the whole is no multiple, nothing is cut at all.
            if !dimension.len().is_multiple_of(storage) {
                return Ok(());
            }
            let Ok(stored) = segment.in_stored(storage, 1) else { return Ok(()) };
            let cuts = |segment| -> Vec<u64> {
                let hands = deal(segment, &Shares::equal(parts), Remainder::Uneven).unwrap();
                hands.iter().flat_map(|hand| &hand.runs).flat_map(|run| [run.start, run.stop]).collect()
            };
            let logical: Vec<u64> = cuts(stored).iter().map(|cut| cut * storage).collect();
            prop_assert_eq!(cuts(segment), logical, "{:?} in {}", dimension, storage);
        }

        /// What is dealt by the same units in a block is cut at the same places.
        #[test]
        fn dimensions_of_one_space_are_cut_alike(
            groups in 1u64..9, per_group in 1u64..9, storage in 1u64..130, parts in 1u32..9, unit in 1u64..65,
        ) {
            let units = groups * per_group;
            let of = |count, unit| Dimension { units, groups, ..Dimension::of_any_size("x", count, unit) };
            let (heads, each) = (of(units, unit), of(units, 1));
            let Some(together) = units_together(&heads, storage).filter(|t| units.is_multiple_of(*t)) else {
                return Ok(());
            };
            let (heads, each) = (segment(&heads, together).unwrap(), segment(&each, together).unwrap());
            let runs = |segment| -> Vec<(u64, u64)> {
                let hands = deal(segment, &Shares::equal(parts), Remainder::Uneven).unwrap();
                hands.iter().map(|hand| hand.runs.first().map_or((0, 0), |run| (run.start, run.stop))).collect()
            };
            let scaled: Vec<(u64, u64)> = runs(each).iter().map(|(a, b)| (a * unit, b * unit)).collect();
            prop_assert_eq!(runs(heads), scaled);
        }
    }
}
