//! Segments: the runs of a dimension that are dealt on their own, and what may not be cut in them.

use serde::{Deserialize, Serialize};

/// A run of one dimension that is dealt to ranks on its own: `groups × units_per_group` units of `unit` elements each.
///
/// A *unit* is the smallest piece that may not be cut: one element, a head, a quantisation block. A *group* is a run of
/// units that ranks share only when there are fewer groups than ranks: the query heads of one key/value head. With at
/// least as many groups as ranks, whole groups are dealt; with fewer, each group goes to a run of neighbouring ranks and
/// its units are dealt among these. Query heads and key/value heads dealt this way always end up on the same rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Segment {
    groups: u64,
    units_per_group: u64,
    unit: u64,
    when_few: WhenFew,
}

/// What happens to ranks beyond the last unit when a segment has fewer units than there are ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFew {
    /// They would hold nothing: refused, unless the dealing may be uneven.
    #[default]
    Refuse,
    /// Each unit is held by `ranks / units` neighbouring ranks (key/value heads under grouped-query attention).
    Share,
}

/// Sizes that make no segment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// A count of 0, or a product that overflows.
    #[error("a segment of {groups} groups × {units_per_group} units × {unit} elements cannot be dealt")]
    Size {
        /// Groups.
        groups: u64,
        /// Units in each.
        units_per_group: u64,
        /// Elements in each unit.
        unit: u64,
    },
    /// The stored form asks for coarser units than the segment's length can be cut into.
    #[error("{len} elements cannot be cut into units of {unit}, as how they are stored asks")]
    Storage {
        /// Elements in the segment.
        len: u64,
        /// Elements that belong together.
        unit: u64,
    },
}

/// A segment as it is written in a plan, before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    groups: u64,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    units_per_group: u64,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    unit: u64,
    #[serde(default, skip_serializing_if = "is_default")]
    when_few: WhenFew,
}

fn one() -> u64 {
    1
}

// The signatures are serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(count: &u64) -> bool {
    *count == 1
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_default(when_few: &WhenFew) -> bool {
    *when_few == WhenFew::default()
}

impl Segment {
    /// `groups` groups of `units_per_group` units of `unit` elements.
    ///
    /// # Errors
    /// [`SegmentError::Size`] when a count is 0 or the length overflows.
    pub fn new(
        groups: u64,
        units_per_group: u64,
        unit: u64,
        when_few: WhenFew,
    ) -> Result<Self, SegmentError> {
        let len = groups.checked_mul(units_per_group).and_then(|units| units.checked_mul(unit));
        match len {
            Some(1..) => Ok(Self { groups, units_per_group, unit, when_few }),
            _ => Err(SegmentError::Size { groups, units_per_group, unit }),
        }
    }

    /// `len` elements that may be cut anywhere.
    ///
    /// # Errors
    /// [`SegmentError::Size`] when `len` is 0.
    pub fn elements(len: u64) -> Result<Self, SegmentError> {
        Self::new(len, 1, 1, WhenFew::Refuse)
    }

    /// The segments of query heads and of key/value heads of `head_size` elements each, dealt so that every rank has the
    /// key/value heads that its query heads read.
    ///
    /// With as many key/value heads as query heads there is nothing to share: both are dealt alike.
    ///
    /// # Errors
    /// [`SegmentError::Size`] when a count is 0 or `query_heads` is no multiple of `kv_heads`.
    pub fn attention_heads(
        query_heads: u64,
        kv_heads: u64,
        head_size: u64,
    ) -> Result<(Self, Self), SegmentError> {
        if kv_heads == 0 || !query_heads.is_multiple_of(kv_heads) {
            return Err(SegmentError::Size {
                groups: kv_heads,
                units_per_group: query_heads,
                unit: head_size,
            });
        }
        let per_group = query_heads / kv_heads;
        let when_few = match per_group {
            1 => WhenFew::Refuse,
            _ => WhenFew::Share,
        };
        Ok((
            Self::new(kv_heads, per_group, head_size, WhenFew::Refuse)?,
            Self::new(kv_heads, 1, head_size, when_few)?,
        ))
    }

    /// Groups of units that ranks share only when there are fewer of them than ranks.
    pub fn groups(self) -> u64 {
        self.groups
    }

    /// Units in each group.
    pub fn units_per_group(self) -> u64 {
        self.units_per_group
    }

    /// Elements in each unit.
    pub fn unit(self) -> u64 {
        self.unit
    }

    /// What happens when there are fewer units than ranks.
    pub fn when_few(self) -> WhenFew {
        self.when_few
    }

    /// Units in all.
    pub fn units(self) -> u64 {
        self.groups * self.units_per_group
    }

    /// Elements in all.
    pub fn len(self) -> u64 {
        self.units() * self.unit
    }

    /// Never: a segment has at least one element.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The same run with units so coarse that each is also a multiple of `storage_unit` elements: the least common
    /// multiple of what the role asks and what the storage asks.
    ///
    /// # Errors
    /// [`SegmentError::Storage`] when the segment's length is no multiple of that.
    pub fn coarsened(self, storage_unit: u64) -> Result<Self, SegmentError> {
        if storage_unit <= 1 || self.unit.is_multiple_of(storage_unit) {
            return Ok(self);
        }
        let refused = SegmentError::Storage { len: self.len(), unit: storage_unit };
        let Some(unit) = (self.unit / gcd(self.unit, storage_unit)).checked_mul(storage_unit) else {
            return Err(refused);
        };
        let group_len = self.units_per_group * self.unit;
        if group_len.is_multiple_of(unit) {
            return Self::new(self.groups, group_len / unit, unit, self.when_few);
        }
        // A unit now spans groups: the groups lose their meaning and the units are dealt one by one.
        if self.len().is_multiple_of(unit) {
            return Self::new(self.len() / unit, 1, unit, self.when_few);
        }
        Err(refused)
    }

    /// The same run counted in stored elements of `factor` logical ones each.
    ///
    /// # Errors
    /// [`SegmentError::Storage`] when a unit is no multiple of `factor`: [`Segment::coarsened`] first.
    pub fn stored(self, factor: u64) -> Result<Self, SegmentError> {
        if factor == 0 || !self.unit.is_multiple_of(factor) {
            return Err(SegmentError::Storage { len: self.unit, unit: factor });
        }
        Self::new(self.groups, self.units_per_group, self.unit / factor, self.when_few)
    }
}

impl TryFrom<Fields> for Segment {
    type Error = SegmentError;

    fn try_from(fields: Fields) -> Result<Self, SegmentError> {
        Self::new(fields.groups, fields.units_per_group, fields.unit, fields.when_few)
    }
}

impl From<Segment> for Fields {
    fn from(segment: Segment) -> Self {
        Self {
            groups: segment.groups,
            units_per_group: segment.units_per_group,
            unit: segment.unit,
            when_few: segment.when_few,
        }
    }
}

/// Greatest common divisor; `gcd(a, 0) = a`.
pub(crate) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
