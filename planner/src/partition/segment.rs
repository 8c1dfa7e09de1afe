//! Segments: the runs of a dimension that are dealt on their own, and what may not be cut in them.

use serde::{Deserialize, Serialize};

/// A run of one dimension that is dealt to ranks on its own: `groups × units_per_group` units.
///
/// A *unit* is the smallest piece that may not be cut: one element, a head, a quantisation block. A *group* is a run of
/// units that ranks share only when there are fewer groups than ranks: the query heads of one key/value head. With at
/// least as many groups as ranks, whole groups are dealt; with fewer, each group goes to a run of neighbouring ranks and
/// its units are dealt among these.
///
/// A segment has `unit` elements for each unit. Or it has *shared* pieces of `unit` elements, which the units read: the
/// key/value heads beside the query heads, dealt by the same units, each held by every rank whose units read it. Query
/// heads and key/value heads dealt this way always end up on the same rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Segment {
    groups: u64,
    units_per_group: u64,
    unit: u64,
    shared: Option<u64>,
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
    /// Shared pieces that are none, or as many as the units that share them.
    #[error("{pieces} pieces cannot be shared by {units} units")]
    Shared {
        /// Pieces.
        pieces: u64,
        /// Units.
        units: u64,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shared: Option<u64>,
}

fn one() -> u64 {
    1
}

// The signature is serde's.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_one(count: &u64) -> bool {
    *count == 1
}

impl Segment {
    /// `groups` groups of `units_per_group` units of `unit` elements.
    ///
    /// # Errors
    /// [`SegmentError::Size`] when a count is 0 or the length overflows.
    pub fn new(groups: u64, units_per_group: u64, unit: u64) -> Result<Self, SegmentError> {
        let len = groups.checked_mul(units_per_group).and_then(|units| units.checked_mul(unit));
        match len {
            Some(1..) => Ok(Self { groups, units_per_group, unit, shared: None }),
            _ => Err(SegmentError::Size { groups, units_per_group, unit }),
        }
    }

    /// Dealt by the same units, but made of `pieces` pieces, each of as many elements as a unit had.
    ///
    /// # Errors
    /// [`SegmentError::Shared`] when there are none, or as many as units, which would share nothing.
    pub fn with_shared(self, pieces: u64) -> Result<Self, SegmentError> {
        match pieces {
            1.. if pieces != self.units() && pieces.checked_mul(self.unit).is_some() => {
                Ok(Self { shared: Some(pieces), ..self })
            }
            _ => Err(SegmentError::Shared { pieces, units: self.units() }),
        }
    }

    /// `len` elements that may be cut anywhere.
    ///
    /// # Errors
    /// [`SegmentError::Size`] when `len` is 0.
    pub fn elements(len: u64) -> Result<Self, SegmentError> {
        Self::new(len, 1, 1)
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
        let query = Self::new(kv_heads, query_heads / kv_heads, head_size)?;
        let kv = if query_heads == kv_heads { query } else { query.with_shared(kv_heads)? };
        Ok((query, kv))
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

    /// The pieces that the units share, if the segment is made of these.
    pub fn shared(self) -> Option<u64> {
        self.shared
    }

    /// Units in all.
    pub fn units(self) -> u64 {
        self.groups * self.units_per_group
    }

    /// Elements in all.
    pub fn len(self) -> u64 {
        self.shared.unwrap_or(self.units()) * self.unit
    }

    /// Never: a segment has at least one element.
    pub fn is_empty(self) -> bool {
        false
    }

    /// The same run counted in stored elements, `stored` for each `logical` logical ones; pieces that begin or end inside
    /// a stored element are dealt together.
    ///
    /// # Errors
    /// [`SegmentError::Storage`] when that is impossible without cutting through a stored element.
    pub fn in_stored(self, logical: u64, stored: u64) -> Result<Self, SegmentError> {
        let refused = || SegmentError::Storage { len: self.len(), unit: logical };
        let as_stored = |elements: u64| {
            let product = u128::from(elements) * u128::from(stored);
            let exact = product.is_multiple_of(u128::from(logical.max(1)));
            exact.then(|| u64::try_from(product / u128::from(logical.max(1))).ok()).flatten()
        };
        if let Some(unit) = as_stored(self.unit) {
            return Self::sized(self.groups, self.units_per_group, unit, self.shared);
        }
        // Shared pieces that are smaller than a stored element: as many together as fill one.
        let together = logical / gcd(logical, self.unit.saturating_mul(stored)).max(1);
        let pieces =
            self.shared.filter(|pieces| pieces.is_multiple_of(together)).ok_or_else(refused)? / together;
        let unit = self.unit.checked_mul(together).and_then(as_stored).ok_or_else(refused)?;
        let shared = (pieces != self.units()).then_some(pieces);
        Self::sized(self.groups, self.units_per_group, unit, shared)
    }

    fn sized(groups: u64, per_group: u64, unit: u64, shared: Option<u64>) -> Result<Self, SegmentError> {
        let segment = Self::new(groups, per_group, unit)?;
        shared.map_or(Ok(segment), |pieces| segment.with_shared(pieces))
    }
}

impl TryFrom<Fields> for Segment {
    type Error = SegmentError;

    fn try_from(fields: Fields) -> Result<Self, SegmentError> {
        Self::sized(fields.groups, fields.units_per_group, fields.unit, fields.shared)
    }
}

impl From<Segment> for Fields {
    fn from(segment: Segment) -> Self {
        Self {
            groups: segment.groups,
            units_per_group: segment.units_per_group,
            unit: segment.unit,
            shared: segment.shared,
        }
    }
}

/// Least common multiple, if it can be counted.
pub(crate) fn lcm(a: u64, b: u64) -> Option<u64> {
    (a / gcd(a, b).max(1)).checked_mul(b)
}

/// Greatest common divisor; `gcd(a, 0) = a`.
pub(crate) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
