//! The tensor that carries a module's numbers, in each of the forms that it comes in.

use super::{
    declared::Quantisation,
    error::QuantisationError,
    layout::{Orientation, Stored},
    packing::{WORD_BITS, bits_of, declared_for, packed},
};
use crate::{
    checkpoint::Dtype,
    graph::{Module, Parameter},
    partition::{Logical, Storage, StoredDimension, gcd},
};

/// Packings of AWQ and GPTQ that are made for one kernel: their words mix what a cut would have to part.
const KERNEL_FORMATS: [&str; 6] = ["gemv", "gemv_fast", "gptq_p", "marlin", "ipex", "exllama"];

/// How the weight of `module` lies in its matrices, with nothing said yet of the tensors beside it; `None` where it has none.
///
/// # Errors
/// [`QuantisationError`] when what the weight cannot be read without is missing, or contradicts it.
pub(super) fn read_weight(
    module: &Module,
    declared: Option<&Quantisation>,
    orientation: Orientation,
) -> Result<Option<Stored>, QuantisationError> {
    let find = |names: &[&str]| {
        module.parameters.iter().position(|parameter| names.contains(&parameter.name.as_str()))
    };
    if module.parameters.iter().any(|parameter| parameter.name.starts_with("weight.")) {
        let why =
            "its weights are flattened in a form of their own, of which no part can be cut out".to_owned();
        return Ok(Some(Stored::whole(module, Some(why))));
    }
    if let Some(at) = find(&["qweight"]) {
        return gptq_or_awq(module, at, declared).map(Some);
    }
    if let Some(at) = find(&["weight_packed", "_packed"]) {
        return packed_rows(module, at, declared, orientation).map(Some);
    }
    if let Some(at) = find(&["_blocks"]) {
        return blocks(module, at).map(Some);
    }
    Ok(find(&["weight", "", "_weight"]).map(|at| plain(module, at, orientation)))
}

/// What follows from the dimensions of parameter number `at`.
fn stored_in(
    module: &Module,
    at: usize,
    dimensions: Vec<StoredDimension>,
    packing: Option<String>,
) -> Stored {
    let shape = &module.parameters[at].shape;
    let size = |dim: Logical| {
        let found = dimensions.iter().position(|stored| stored.logical == Some(dim))?;
        Some(shape[found] / dimensions[found].stored * dimensions[found].elements)
    };
    let rest = shape.iter().zip(&dimensions).filter(|(_, stored)| stored.logical.is_none());
    let mut stored = Stored {
        experts: size(Logical::Expert),
        out: size(Logical::Out).unwrap_or(1),
        input: size(Logical::In),
        rest: rest.map(|(&size, _)| size).collect(),
        weight: Some(at),
        storages: vec![None; module.parameters.len()],
        packing,
        uncuttable: None,
    };
    stored.storages[at] = Some(Storage::of(dimensions));
    stored
}

/// GPTQ packs input features, `[in·bits/32, out]`; AWQ packs output features, `[in, out·bits/32]`.
fn gptq_or_awq(
    module: &Module,
    at: usize,
    declared: Option<&Quantisation>,
) -> Result<Stored, QuantisationError> {
    let parameter = &module.parameters[at];
    let declared = declared_for(parameter, declared)?;
    let format = declared.format.as_deref().unwrap_or_default();
    if KERNEL_FORMATS.contains(&format) {
        let why = format!(
            "its weights are packed for one kernel ({} {format}), which cuts nothing",
            declared.method
        );
        return Ok(Stored::whole(module, Some(why)));
    }
    let &[rows, columns] = &parameter.shape[..] else {
        return Err(QuantisationError::shape(parameter, "2 dimensions", "a packed weight"));
    };
    let scales = required(module, "qweight", "scales")?;
    let &[groups, outputs] = &scales.shape[..] else {
        return Err(QuantisationError::shape(scales, "2 dimensions", "a scale for each group and output"));
    };
    let along_out = declared.method == "awq";
    // Of what is declared, the bits that the shapes have: of the outputs that are packed, or of the zero points.
    let zeros = module.parameter("qzeros").and_then(|zeros| zeros.shape.get(1).copied());
    let bits = bits_of(&declared.bits, parameter, usize::from(along_out), |bits| match along_out {
        true => outputs.checked_mul(bits) == Some(columns * WORD_BITS),
        false => zeros.is_none_or(|words| columns.checked_mul(bits) == Some(words * WORD_BITS)),
    })?;
    let (dimensions, input) = match along_out {
        true => (vec![StoredDimension::plain(Logical::In), packed(Logical::Out, bits)], rows),
        false => {
            (vec![packed(Logical::In, bits), StoredDimension::plain(Logical::Out)], rows * WORD_BITS / bits)
        }
    };
    let size = input.checked_div(groups).unwrap_or(0);
    let order = if declared.act_order { ", act-order" } else { "" };
    let packing = format!("{} of {bits} bit, a scale for {size} inputs{order}", declared.method);
    Ok(stored_in(module, at, dimensions, Some(packing)))
}

/// Rows of packed input features: `[out, in·bits/32]` of words, or `[out, in/2]` of bytes; perhaps of several experts.
fn packed_rows(
    module: &Module,
    at: usize,
    declared: Option<&Quantisation>,
    orientation: Orientation,
) -> Result<Stored, QuantisationError> {
    let parameter = &module.parameters[at];
    let mut dimensions: Vec<StoredDimension> = Vec::new();
    if orientation.experts {
        dimensions.push(StoredDimension::plain(Logical::Expert));
    }
    dimensions.push(StoredDimension::plain(Logical::Out));
    let Some(&words) =
        parameter.shape.get(dimensions.len()).filter(|_| parameter.shape.len() == dimensions.len() + 1)
    else {
        let expected = "a row of packed inputs for each output";
        return Err(QuantisationError::shape(parameter, expected, "a packed weight"));
    };
    let last = dimensions.len();
    let scale = required(module, &parameter.name, "weight_scale")?;
    if matches!(parameter.dtype, Dtype::U8 | Dtype::I8) {
        dimensions.push(StoredDimension::block(Logical::In, 2));
        return Ok(stored_in(module, at, dimensions, Some("4 bit, two in a byte".to_owned())));
    }
    let declared = declared_for(parameter, declared)?;
    if let [bits] = declared.bits[..]
        && !WORD_BITS.is_multiple_of(bits)
        && !words.is_multiple_of(bits / gcd(WORD_BITS, bits))
    {
        let why = format!("its weights of {bits} bit are packed with unused bits in each word");
        return Ok(Stored::whole(module, Some(why)));
    }
    let groups = scale.shape.get(last).copied().unwrap_or(1);
    let bits = bits_of(&declared.bits, parameter, last, |bits| {
        let input = words * WORD_BITS / bits;
        let grouped = declared.group_sizes.iter().any(|&size| input.div_ceil(size) == groups);
        groups == 1 || grouped || declared.group_sizes.is_empty()
    })?;
    dimensions.push(packed(Logical::In, bits));
    let size = (words * WORD_BITS / bits).checked_div(groups).unwrap_or(0);
    let packing = format!("{} of {bits} bit, a scale for {size} inputs", declared.method);
    Ok(stored_in(module, at, dimensions, Some(packing)))
}

/// Blocks of 32 input features in 16 bytes: `[experts, out, in/32, 16]`.
fn blocks(module: &Module, at: usize) -> Result<Stored, QuantisationError> {
    let parameter = &module.parameters[at];
    let [_, _, _, 16] = parameter.shape[..] else {
        let explained = "blocks of 32 values of 4 bit";
        return Err(QuantisationError::shape(parameter, "[experts, out, blocks, 16]", explained));
    };
    required(module, "_blocks", "_scales")?;
    let dimensions = vec![
        StoredDimension::plain(Logical::Expert),
        StoredDimension::plain(Logical::Out),
        StoredDimension::block(Logical::In, 32),
        StoredDimension::whole(),
    ];
    let stored = stored_in(module, at, dimensions, Some("mxfp4, blocks of 32 inputs".to_owned()));
    // The bytes of a block are no dimension of the matrix.
    Ok(Stored { rest: Vec::new(), ..stored })
}

/// One element for each weight, or two of 4 bit in a byte.
fn plain(module: &Module, at: usize, orientation: Orientation) -> Stored {
    let parameter = &module.parameters[at];
    let mut dimensions: Vec<StoredDimension> = Vec::new();
    let mut rest = parameter.shape.len();
    if orientation.experts && rest > 1 {
        dimensions.push(StoredDimension::plain(Logical::Expert));
        rest -= 1;
    }
    match rest {
        0 => {}
        1 => dimensions.push(StoredDimension::plain(Logical::Out)),
        _ if orientation.transposed => {
            dimensions.extend([Logical::In, Logical::Out].map(StoredDimension::plain));
        }
        2 => dimensions.extend([Logical::Out, Logical::In].map(StoredDimension::plain)),
        // A convolution: output channels, then what each of them has.
        _ => dimensions.push(StoredDimension::plain(Logical::Out)),
    }
    dimensions.resize(parameter.shape.len(), StoredDimension::whole());
    let scale = ["weight_scale", "weight_scale_inv", "_scale", "_scale_inv", "weight_scale_2", "SCB"]
        .iter()
        .find_map(|name| module.parameter(name));
    let packing = match (parameter.dtype, scale) {
        (Dtype::U8, Some(_)) if rest == 2 => {
            if let Some(last) = dimensions.last_mut() {
                *last = StoredDimension::block(Logical::In, 2);
            }
            Some("4 bit, two in a byte".to_owned())
        }
        (dtype, Some(scale)) => Some(format!("{dtype} with scales of {:?}", scale.shape)),
        _ => None,
    };
    stored_in(module, at, dimensions, packing)
}

/// The parameter called `lacks`, without which the one called `has` means nothing.
fn required<'a>(module: &'a Module, has: &str, lacks: &str) -> Result<&'a Parameter, QuantisationError> {
    module.parameter(lacks).ok_or_else(|| QuantisationError::Missing {
        module: module.name.clone(),
        has: has.to_owned(),
        lacks: lacks.to_owned(),
    })
}
