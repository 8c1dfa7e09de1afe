//! What lies beside a module's weight: biases, scales, zero points, indexes.

use super::{
    declared::Quantisation,
    error::QuantisationError,
    layout::{Orientation, Sizes},
    packing::{declared_for, packed, packed_bits},
};
use crate::{
    checkpoint::Dtype,
    graph::Parameter,
    partition::{Logical, Storage, StoredDimension},
    quote::quote,
};

/// How a parameter other than the weight lies in the matrices; `None` when that is not known.
pub(super) fn beside(
    sizes: &Sizes<'_>,
    parameter: &Parameter,
    declared: Option<&Quantisation>,
    orientation: Orientation,
    quantised: bool,
) -> Result<Option<Storage>, QuantisationError> {
    let shape = &parameter.shape[..];
    let plain = StoredDimension::plain;
    let act_order = declared.is_some_and(|declared| declared.act_order);
    let everywhere = || Some(Storage::of(vec![StoredDimension::whole(); shape.len()]));
    let is_one_for_each_expert =
        shape.first().copied() == sizes.experts && shape.iter().skip(1).all(|&size| size == 1);
    let is_block_scale = shape.len() > 1 && declared.is_some_and(|declared| declared.block.is_some());
    if shape.iter().product::<u64>() == 1 && !is_block_scale {
        return Ok(everywhere());
    }
    Ok(match parameter.name.as_str() {
        "bias" | "_bias" => {
            let expected: Vec<u64> = match orientation.experts {
                true => sizes.experts.into_iter().chain([sizes.out]).collect(),
                false => vec![sizes.out],
            };
            if !shape.starts_with(&expected) {
                return Err(QuantisationError::shape(
                    parameter,
                    &format!("{expected:?}"),
                    "the module's weight",
                ));
            }
            let dims: &[Logical] =
                if orientation.experts { &[Logical::Expert, Logical::Out] } else { &[Logical::Out] };
            let mut dimensions: Vec<StoredDimension> = dims.iter().map(|&dim| plain(dim)).collect();
            dimensions.resize(shape.len(), StoredDimension::whole());
            Some(Storage { added_to_output: true, ..Storage::of(dimensions) })
        }
        // The whole module's shape, as a tensor; every rank can tell its own from its slices.
        "weight_shape" => everywhere(),
        "g_idx" | "weight_g_idx" => {
            exactly(sizes, parameter, &[sizes.input.unwrap_or(0)])?;
            Some(Storage::plain(&[Logical::In]))
        }
        "SCB" => {
            exactly(sizes, parameter, &[sizes.out])?;
            Some(Storage::plain(&[Logical::Out]))
        }
        "scales" => {
            let groups = groups(sizes, parameter, 0, declared, act_order)?;
            exactly(sizes, parameter, &[shape[0], sizes.out])?;
            Some(Storage::of(vec![groups, plain(Logical::Out)]))
        }
        "qzeros" => {
            let declared = declared_for(parameter, declared)?;
            let bits = packed_bits(&declared.bits, parameter, sizes.out, shape.get(1).copied())?;
            let groups = groups(sizes, parameter, 0, Some(&declared), act_order)?;
            Some(Storage::of(vec![groups, packed(Logical::Out, bits)]))
        }
        "weight_zero_point" if parameter.dtype == Dtype::I32 => {
            let declared = declared_for(parameter, declared)?;
            let bits = packed_bits(&declared.bits, parameter, sizes.out, shape.first().copied())?;
            let groups = groups(sizes, parameter, 1, Some(&declared), act_order)?;
            Some(Storage::of(vec![packed(Logical::Out, bits), groups]))
        }
        "weight_scale" | "weight_scale_inv" | "weight_zero_point" | "_scale" | "_scale_inv" | "_scales" => {
            Some(scale(sizes, parameter, declared, orientation, act_order)?)
        }
        // Numbers for the activations: one for all, or one for each input.
        "input_scale" | "activation_scale" | "input_zero_point" if shape == [sizes.input.unwrap_or(0)] => {
            Some(Storage::plain(&[Logical::In]))
        }
        _ if quantised && is_one_for_each_expert => {
            // One number for each expert.
            sizes.experts.map(|_| {
                let mut dimensions = vec![StoredDimension::whole(); shape.len()];
                dimensions[0] = plain(Logical::Expert);
                Storage::of(dimensions)
            })
        }
        _ => None,
    })
}

/// A scale whose dimensions follow the weight's, each with one number for all, for each feature or for each block.
fn scale(
    sizes: &Sizes<'_>,
    parameter: &Parameter,
    declared: Option<&Quantisation>,
    orientation: Orientation,
    act_order: bool,
) -> Result<Storage, QuantisationError> {
    let mut dims: Vec<(Logical, u64)> = Vec::new();
    if orientation.experts {
        dims.extend(sizes.experts.map(|experts| (Logical::Expert, experts)));
    }
    let features = [(Logical::Out, sizes.out), (Logical::In, sizes.input.unwrap_or(1))];
    let transposed = orientation.transposed && parameter.name != "_scales";
    match transposed {
        true => dims.extend(features.iter().rev()),
        false => dims.extend(features),
    }
    let shape = &parameter.shape;
    if shape.len() > dims.len() || (shape.len() + 1 < dims.len()) {
        return Err(QuantisationError::shape(
            parameter,
            "a number for each block of the weight",
            "the module's weight",
        ));
    }
    let mut dimensions = Vec::with_capacity(shape.len());
    for (dim, (&count, (logical, len))) in shape.iter().zip(dims).enumerate() {
        if logical == Logical::Expert && count != len && count != 1 {
            return Err(block_count(sizes, parameter, dim, (logical, len), None));
        }
        let blocks = match (logical, declared) {
            (Logical::Out, Some(declared)) => declared.block.iter().map(|block| block.0).collect(),
            (Logical::In, Some(declared)) if declared.block.is_some() => {
                declared.block.iter().map(|block| block.1).collect()
            }
            (Logical::In, Some(declared)) => declared.group_sizes.clone(),
            _ => Vec::new(),
        };
        let scattered = logical == Logical::In && act_order && count < len;
        dimensions.push(match block_size(sizes, parameter, dim, (logical, len), &blocks)? {
            _ if scattered => StoredDimension::whole(),
            Some(block) => StoredDimension::block(logical, block),
            None => StoredDimension::whole(),
        });
    }
    Ok(Storage::of(dimensions))
}

/// Elements in each of the blocks that dimension `dim` of `parameter` counts, of a logical dimension of `len`; `None` where one
/// number is for all of it.
fn block_size(
    sizes: &Sizes<'_>,
    parameter: &Parameter,
    dim: usize,
    (logical, len): (Logical, u64),
    declared: &[u64],
) -> Result<Option<u64>, QuantisationError> {
    let count = parameter.shape[dim];
    let wrong = || block_count(sizes, parameter, dim, (logical, len), declared.first().copied());
    // Blocks of two dimensions are declared for both; else one number for each output, or for all of them, goes too.
    let in_blocks = parameter.shape.len() > 1 && declared.len() == 1 && parameter.name.ends_with("_inv");
    match declared.iter().find(|&&block| len.div_ceil(block) == count && count > 1) {
        _ if count == len => Ok(Some(1)),
        Some(&block) => Ok(Some(block)),
        None if count == 1 && !(in_blocks && declared[0] < len) => Ok(None),
        None if count > 0 && len.is_multiple_of(count) => {
            let block = len / count;
            // Formats with blocks of a size of their own need not declare them.
            let of_the_format = block.is_power_of_two() && block <= 32;
            match declared.is_empty() || of_the_format {
                true => Ok(Some(block)),
                false => Err(wrong()),
            }
        }
        None => Err(wrong()),
    }
}

fn block_count(
    sizes: &Sizes<'_>,
    parameter: &Parameter,
    at: usize,
    (logical, len): (Logical, u64),
    declared: Option<u64>,
) -> QuantisationError {
    let what = match logical {
        Logical::Out => "outputs",
        Logical::In => "inputs",
        Logical::Expert => "experts",
    };
    let expected = match declared {
        Some(block) => format!("{} in dimension {at}", len.div_ceil(block)),
        None => format!("a number that divides {len} in dimension {at}"),
    };
    let of = declared.map_or(String::new(), |block| format!(" in blocks of {block}"));
    QuantisationError::shape(
        parameter,
        &expected,
        &format!("{len} {what} of {}{of}", quote(&sizes.module.name)),
    )
}

/// The groups of input features that a scale or zero point has in its dimension `dim`.
fn groups(
    sizes: &Sizes<'_>,
    parameter: &Parameter,
    dim: usize,
    declared: Option<&Quantisation>,
    act_order: bool,
) -> Result<StoredDimension, QuantisationError> {
    let 2 = parameter.shape.len() else {
        return Err(QuantisationError::shape(
            parameter,
            "2 dimensions",
            "a number for each group and output",
        ));
    };
    let input = sizes.input.unwrap_or(1);
    let declared = declared.map(|declared| declared.group_sizes.as_slice()).unwrap_or_default();
    let size = block_size(sizes, parameter, dim, (Logical::In, input), declared)?;
    Ok(match size {
        Some(size) if !act_order => StoredDimension::block(Logical::In, size),
        _ => StoredDimension::whole(),
    })
}

fn exactly(sizes: &Sizes<'_>, parameter: &Parameter, expected: &[u64]) -> Result<(), QuantisationError> {
    if parameter.shape == expected {
        return Ok(());
    }
    let (out, input) = (sizes.out, sizes.input.unwrap_or(1));
    let explained = format!("{input} inputs and {out} outputs of {}", quote(&sizes.module.name));
    Err(QuantisationError::shape(parameter, &format!("{expected:?}"), &explained))
}
