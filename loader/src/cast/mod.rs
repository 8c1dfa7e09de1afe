//! Casts: floats that are loaded in another dtype than they are stored in.
//!
//! In come bytes of a tensor as it is stored; out go its bytes as it is loaded, rounded to the nearest value, to the even one of
//! two that are as near, as `torch` does it. [`Casts`] says which tensors of a checkpoint those are. It knows no file and no rank.

mod values;

use crate::schedule::ScheduleError;
use shardwright_planner::{
    checkpoint::{Catalog, Dtype},
    graph::NamePattern,
    plan::{CastDtype, Plan},
};
use std::ops::Range;

/// A cast from one dtype of floats to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cast {
    from: Stored,
    to: CastDtype,
}

/// What can be cast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stored {
    F16,
    BF16,
    F32,
    F64,
}

impl Cast {
    /// The cast of `from` to `to`; `None` where `from` is no float.
    pub fn new(from: Dtype, to: CastDtype) -> Option<Self> {
        let from = match from {
            Dtype::F16 => Stored::F16,
            Dtype::BF16 => Stored::BF16,
            Dtype::F32 => Stored::F32,
            Dtype::F64 => Stored::F64,
            _ => return None,
        };
        Some(Self { from, to })
    }

    /// Bytes of each element as it is stored.
    pub fn stored_bytes(self) -> usize {
        match self.from {
            Stored::F16 | Stored::BF16 => 2,
            Stored::F32 => 4,
            Stored::F64 => 8,
        }
    }

    /// Bytes of each element as it is loaded.
    pub fn loaded_bytes(self) -> usize {
        match self.to {
            CastDtype::F16 | CastDtype::BF16 => 2,
            CastDtype::F32 => 4,
        }
    }

    /// The dtype that it gives.
    pub fn loaded(self) -> CastDtype {
        self.to
    }

    /// The bytes of the stored tensor that the bytes `loaded` of the loaded one are cast from: of all elements that these touch.
    pub fn stored(self, loaded: Range<u64>) -> Range<u64> {
        let (from, to) = (self.stored_bytes() as u64, self.loaded_bytes() as u64);
        loaded.start / to * from..loaded.end.div_ceil(to) * from
    }

    /// Adds the elements of `stored` to `loaded`; a part of an element at its end is left out. True when a finite value became
    /// infinite, because it is too large for the dtype.
    pub fn apply(self, stored: &[u8], loaded: &mut Vec<u8>) -> bool {
        values::cast(self.from, self.to, stored, loaded)
    }
}

/// Which tensors of a checkpoint are cast, by their numbers in the catalog, and how long all are as they are loaded.
#[derive(Debug)]
pub struct Casts {
    casts: Vec<Option<Cast>>,
    lens: Vec<u64>,
}

impl Casts {
    /// The casts of a plan.
    ///
    /// # Errors
    /// [`ScheduleError`] when the plan and the catalog are not of one checkpoint.
    pub fn new(plan: &Plan, catalog: &Catalog) -> Result<Self, ScheduleError> {
        let entries = catalog.tensors();
        let mut this = Self::none(catalog);
        for group in &plan.tensors {
            let Some(to) = group.cast else { continue };
            for (name, _) in group.names.iter().flat_map(NamePattern::names) {
                let Some(id) = catalog.number_of(&name) else { return Err(ScheduleError::NotThere { name }) };
                let entry = &entries[id];
                let cast = Cast::new(entry.dtype, to).filter(|_| entry.dtype == group.dtype);
                let elements = cast.map(|cast| entry.bytes.len() / cast.stored_bytes() as u64);
                let bytes = cast
                    .zip(elements)
                    .and_then(|(cast, elements)| elements.checked_mul(cast.loaded_bytes() as u64));
                let Some(bytes) = bytes else { return Err(ScheduleError::Differs { name }) };
                (this.casts[id], this.lens[id]) = (cast, bytes);
            }
        }
        Ok(this)
    }

    /// No cast at all: every tensor as it is stored.
    pub fn none(catalog: &Catalog) -> Self {
        let lens: Vec<u64> = catalog.tensors().iter().map(|entry| entry.bytes.len()).collect();
        Self { casts: vec![None; lens.len()], lens }
    }

    /// How the tensor with this number is cast, if it is.
    pub fn of(&self, id: usize) -> Option<Cast> {
        self.casts.get(id).copied().flatten()
    }

    /// Bytes of the tensor with this number as it is loaded.
    pub fn len_of(&self, id: usize) -> u64 {
        self.lens.get(id).copied().unwrap_or(0)
    }
}
