//! How the tensors of one module lie in its logical matrices.
//!
//! | stored as | parameters | what belongs together |
//! |---|---|---|
//! | plain | `weight [out, in]`, `bias [out]` | nothing |
//! | GPTQ | `qweight [in·bits/32, out]`, `qzeros [in/g, out·bits/32]`, `scales [in/g, out]`, `g_idx [in]` | words, groups of g inputs |
//! | AWQ | `qweight [in, out·bits/32]`, `qzeros [in/g, out·bits/32]`, `scales [in/g, out]` | words, groups of g inputs |
//! | compressed-tensors | `weight_packed [out, in·bits/32]`, `weight_scale [out, in/g]`, `weight_zero_point [out·bits/32, in/g]` | words, groups |
//! | FP8, INT8 | `weight [out, in]`, `weight_scale_inv [⌈out/b⌉, ⌈in/b⌉]` or `weight_scale []`, `[out]`, `[out, 1]` | blocks |
//! | NVFP4 | `weight` or `weight_packed` of bytes `[out, in/2]`, `weight_scale [out, in/16]`, scales of the whole | bytes, blocks of 16 |
//! | MXFP4 | `_blocks [experts, out, in/32, 16]`, `_scales [experts, out, in/32]` | blocks of 32 |
//!
//! Sources: the loaders of AutoGPTQ, AutoAWQ, compressed-tensors, ModelOpt, DeepSeek-V3 and gpt-oss. What is stored in a way
//! that cannot be cut (bitsandbytes' flattened weights) is held whole, and says why.

use super::{declared::Quantisation, error::QuantisationError, scales::beside, weight::read_weight};
use crate::{
    graph::Module,
    partition::{Logical, Storage},
    quote::quote,
};

/// How a module's matrix lies in a plain tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orientation {
    /// The outermost dimension counts experts.
    pub experts: bool,
    /// `[in, out]` instead of `[out, in]`.
    pub transposed: bool,
}

/// A module's logical matrices, and how each of its tensors lies in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Matrices in one tensor, where they are those of experts.
    pub experts: Option<u64>,
    /// Output features; for a vector its length.
    pub out: u64,
    /// Input features; `None` for a vector.
    pub input: Option<u64>,
    /// Sizes of further dimensions, which are never cut: a convolution's kernel.
    pub rest: Vec<u64>,
    /// Which of the module's parameters carries its numbers.
    pub weight: Option<usize>,
    /// For each parameter of the module, in order; `None` for one that is not understood.
    pub storages: Vec<Option<Storage>>,
    /// How the weights are packed, in words; `None` for plain ones.
    pub packing: Option<String>,
    /// Why the module cannot be cut at all, where it cannot.
    pub uncuttable: Option<String>,
}

impl Stored {
    /// What is stored in a way that is not known, or that cannot be cut, for which `why` gives the reason.
    pub(crate) fn whole(module: &Module, why: Option<String>) -> Self {
        let first = module.parameters.first();
        let shape = first.map_or(&[][..], |parameter| &parameter.shape);
        Self {
            experts: None,
            out: shape.first().copied().unwrap_or(1),
            input: shape.get(1).copied(),
            rest: shape.get(2..).unwrap_or_default().to_vec(),
            weight: None,
            storages: vec![None; module.parameters.len()],
            packing: None,
            uncuttable: why,
        }
    }

    /// Elements along `dim`.
    pub fn size(&self, dim: Logical) -> Option<u64> {
        match dim {
            Logical::Expert => self.experts,
            Logical::Out => Some(self.out),
            Logical::In => self.input,
        }
    }
}

/// The logical sizes of a module, while its parameters are read.
pub(super) struct Sizes<'a> {
    pub(super) module: &'a Module,
    pub(super) experts: Option<u64>,
    pub(super) out: u64,
    pub(super) input: Option<u64>,
}

/// How the tensors of `module` lie in its matrices.
///
/// # Errors
/// [`QuantisationError`] when a tensor is missing or of a wrong shape, or when `declared` and the tensors contradict each
/// other.
pub fn stored(
    module: &Module,
    declared: Option<&Quantisation>,
    orientation: Orientation,
) -> Result<Stored, QuantisationError> {
    let Some(mut stored) = read_weight(module, declared, orientation)? else {
        return Ok(Stored::whole(module, None));
    };
    let Some(at) = stored.weight.filter(|_| stored.uncuttable.is_none()) else { return Ok(stored) };
    if let Some(declared) = declared
        && stored.packing.is_some()
        && let Some(name) = declared.excluded_of(module)
    {
        let reason = format!("{} is excluded, but stored quantised", quote(name));
        return Err(QuantisationError::Contradiction { reason });
    }
    let sizes = Sizes { module, experts: stored.experts, out: stored.out, input: stored.input };
    for (number, parameter) in module.parameters.iter().enumerate() {
        if number != at {
            stored.storages[number] =
                beside(&sizes, parameter, declared, orientation, stored.packing.is_some())?;
        }
    }
    Ok(stored)
}
