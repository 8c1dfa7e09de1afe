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

use super::{declared::Quantisation, error::QuantisationError};
use crate::{
    checkpoint::Dtype,
    graph::{Module, Parameter},
    partition::{Logical, Storage, StoredDimension, gcd},
};

/// Bits of the words that integer weights are packed into.
const WORD_BITS: u64 = 32;

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
struct Sizes<'a> {
    module: &'a Module,
    experts: Option<u64>,
    out: u64,
    input: Option<u64>,
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
    let weight = read_weight(module, declared, orientation)?;
    let Some(Weight { sizes, mut stored, at }) = weight else { return Ok(whole(module, None)) };
    if stored.uncuttable.is_some() {
        return Ok(stored);
    }
    if let Some(declared) = declared
        && stored.packing.is_some()
        && let Some(name) = declared.excluded_of(module)
    {
        let reason = format!("{} is excluded, but stored quantised", crate::quote::quote(name));
        return Err(QuantisationError::Contradiction { reason });
    }
    for (number, parameter) in module.parameters.iter().enumerate() {
        if number != at {
            stored.storages[number] =
                beside(&sizes, parameter, declared, orientation, stored.packing.is_some())?;
        }
    }
    Ok(stored)
}

/// A module that is held whole: nothing is known of how it could be cut, or why it cannot.
fn whole(module: &Module, why: Option<String>) -> Stored {
    let first = module.parameters.first();
    let shape = first.map_or(&[][..], |parameter| &parameter.shape);
    Stored {
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

/// The tensor that carries a module's numbers.
struct Weight<'a> {
    sizes: Sizes<'a>,
    stored: Stored,
    at: usize,
}

fn read_weight<'a>(
    module: &'a Module,
    declared: Option<&Quantisation>,
    orientation: Orientation,
) -> Result<Option<Weight<'a>>, QuantisationError> {
    let find = |names: &[&str]| {
        module.parameters.iter().position(|parameter| names.contains(&parameter.name.as_str()))
    };
    let made = |at: usize, dimensions: Vec<StoredDimension>, packing: Option<String>| {
        let shape = &module.parameters[at].shape;
        let size = |dim: Logical| {
            let found = dimensions.iter().position(|stored| stored.logical == Some(dim))?;
            Some(shape[found] / dimensions[found].stored * dimensions[found].elements)
        };
        let rest = shape.iter().zip(&dimensions).filter(|(_, stored)| stored.logical.is_none());
        let mut storages = vec![None; module.parameters.len()];
        let stored = Stored {
            experts: size(Logical::Expert),
            out: size(Logical::Out).unwrap_or(1),
            input: size(Logical::In),
            rest: rest.map(|(&size, _)| size).collect(),
            weight: Some(at),
            storages: Vec::new(),
            packing,
            uncuttable: None,
        };
        let sizes = Sizes { module, experts: stored.experts, out: stored.out, input: stored.input };
        storages[at] = Some(Storage::of(dimensions));
        Some(Weight { sizes, stored: Stored { storages, ..stored }, at })
    };
    let plain = StoredDimension::plain;

    if module.parameters.iter().any(|parameter| parameter.name.starts_with("weight.")) {
        let why =
            "its weights are flattened in a form of their own, of which no part can be cut out".to_owned();
        return Ok(Some(uncuttable(module, why)));
    }
    if let Some(at) = find(&["qweight"]) {
        let parameter = &module.parameters[at];
        let declared = declared_for(parameter, declared)?;
        let format = declared.format.as_deref().unwrap_or_default();
        if ["gemv", "gemv_fast", "gptq_p", "marlin", "ipex", "exllama"].contains(&format) {
            let why = format!(
                "its weights are packed for one kernel ({} {format}), which cuts nothing",
                declared.method
            );
            return Ok(Some(uncuttable(module, why)));
        }
        let along_out = declared.method == "awq";
        let &[rows, columns] = &parameter.shape[..] else {
            return Err(wrong(parameter, "2 dimensions", "a packed weight"));
        };
        let scales = required(module, "qweight", "scales")?;
        let &[groups, outputs] = &scales.shape[..] else {
            return Err(wrong(scales, "2 dimensions", "a scale for each group and output"));
        };
        // Of what is declared, the bits that the shapes have: of the outputs that are packed, or of the inputs in groups.
        let zeros = module.parameter("qzeros").and_then(|zeros| zeros.shape.get(1).copied());
        let bits = bits_of(&declared.bits, parameter, usize::from(along_out), |bits| match along_out {
            true => outputs.checked_mul(bits) == Some(columns * WORD_BITS),
            false => zeros.is_none_or(|words| columns.checked_mul(bits) == Some(words * WORD_BITS)),
        })?;
        let packed = |logical| packed(logical, bits);
        let (dimensions, input) = match along_out {
            true => (vec![plain(Logical::In), packed(Logical::Out)], rows),
            false => (vec![packed(Logical::In), plain(Logical::Out)], rows * WORD_BITS / bits),
        };
        let size = input.checked_div(groups).unwrap_or(0);
        let order = if declared.act_order { ", act-order" } else { "" };
        let packing = format!("{} of {bits} bit, a scale for {size} inputs{order}", declared.method);
        return Ok(made(at, dimensions, Some(packing)));
    }
    if let Some(at) = find(&["weight_packed", "_packed"]) {
        let parameter = &module.parameters[at];
        let (last, outer) = match parameter.shape.split_last() {
            Some((_, outer)) if outer.len() == 1 + usize::from(orientation.experts) => (outer.len(), outer),
            _ => return Err(wrong(parameter, "a row of packed inputs for each output", "a packed weight")),
        };
        let mut dimensions: Vec<StoredDimension> = Vec::new();
        if outer.len() == 2 {
            dimensions.push(plain(Logical::Expert));
        }
        dimensions.push(plain(Logical::Out));
        let scale = required(module, &parameter.name, "weight_scale")?;
        let words = match parameter.dtype {
            Dtype::U8 | Dtype::I8 => {
                dimensions.push(StoredDimension::block(Logical::In, 2));
                "4 bit, two in a byte".to_owned()
            }
            _ => {
                let declared = declared_for(parameter, declared)?;
                let words = parameter.shape[last];
                let groups = scale.shape.get(last).copied().unwrap_or(1);
                if let [bits] = declared.bits[..]
                    && WORD_BITS % bits != 0
                    && !words.is_multiple_of(bits / gcd(WORD_BITS, bits))
                {
                    let why = format!("its weights of {bits} bit are packed with unused bits in each word");
                    return Ok(Some(uncuttable(module, why)));
                }
                let bits = bits_of(&declared.bits, parameter, last, |bits| {
                    let input = words * WORD_BITS / bits;
                    let grouped = declared.group_sizes.iter().any(|&size| input.div_ceil(size) == groups);
                    groups == 1 || grouped || declared.group_sizes.is_empty()
                })?;
                dimensions.push(packed(Logical::In, bits));
                let size = (words * WORD_BITS / bits).checked_div(groups).unwrap_or(0);
                format!("{} of {bits} bit, a scale for {size} inputs", declared.method)
            }
        };
        return Ok(made(at, dimensions, Some(words)));
    }
    if let Some(at) = find(&["_blocks"]) {
        let parameter = &module.parameters[at];
        let [_, _, _, 16] = parameter.shape[..] else {
            return Err(wrong(parameter, "[experts, out, blocks, 16]", "blocks of 32 values of 4 bit"));
        };
        required(module, "_blocks", "_scales")?;
        let dimensions = vec![
            plain(Logical::Expert),
            plain(Logical::Out),
            StoredDimension::block(Logical::In, 32),
            StoredDimension::whole(),
        ];
        let made = made(at, dimensions, Some("mxfp4, blocks of 32 inputs".to_owned()));
        // The bytes of a block are no dimension of the matrix.
        return Ok(made.map(|mut weight| {
            weight.stored.rest.clear();
            weight
        }));
    }
    let Some(at) = find(&["weight", "", "_weight"]) else { return Ok(None) };
    let parameter = &module.parameters[at];
    let scale = ["weight_scale", "weight_scale_inv", "_scale", "_scale_inv", "weight_scale_2", "SCB"]
        .iter()
        .find_map(|name| module.parameter(name));
    let mut dimensions: Vec<StoredDimension> = Vec::new();
    let mut rest = &parameter.shape[..];
    if orientation.experts && rest.len() > 1 {
        dimensions.push(plain(Logical::Expert));
        rest = &rest[1..];
    }
    match rest.len() {
        0 => {}
        1 => dimensions.push(plain(Logical::Out)),
        _ if orientation.transposed => dimensions.extend([plain(Logical::In), plain(Logical::Out)]),
        // A convolution: output channels, then what each of them has.
        3.. => dimensions.extend([plain(Logical::Out), StoredDimension::whole()]),
        _ => dimensions.extend([plain(Logical::Out), plain(Logical::In)]),
    }
    while dimensions.len() < parameter.shape.len() {
        dimensions.push(StoredDimension::whole());
    }
    let packing = match (parameter.dtype, scale) {
        (Dtype::U8, Some(_)) if rest.len() == 2 => {
            if let Some(last) = dimensions.last_mut() {
                *last = StoredDimension::block(Logical::In, 2);
            }
            Some("4 bit, two in a byte".to_owned())
        }
        (_, Some(scale)) => Some(format!("{} with scales of {:?}", parameter.dtype, scale.shape)),
        _ => None,
    };
    Ok(made(at, dimensions, packing))
}

/// A module whose weights cannot be cut.
fn uncuttable(module: &Module, why: String) -> Weight<'_> {
    Weight {
        sizes: Sizes { module, experts: None, out: 1, input: None },
        stored: whole(module, Some(why)),
        at: 0,
    }
}

/// How a parameter other than the weight lies in the matrices; `None` when that is not known.
fn beside(
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
                return Err(wrong(parameter, &format!("{expected:?}"), "the module's weight"));
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
        _ if quantised && shape.iter().product::<u64>() <= sizes.experts.unwrap_or(1) => {
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
        return Err(wrong(parameter, "a number for each block of the weight", "the module's weight"));
    }
    let mut dimensions = Vec::with_capacity(shape.len());
    for (dim, (&count, (logical, len))) in shape.iter().zip(dims).enumerate() {
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
    wrong(parameter, &expected, &format!("{len} {what} of {}{of}", crate::quote::quote(&sizes.module.name)))
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
        return Err(wrong(parameter, "2 dimensions", "a number for each group and output"));
    };
    let input = sizes.input.unwrap_or(1);
    let declared = declared.map(|declared| declared.group_sizes.as_slice()).unwrap_or_default();
    let size = block_size(sizes, parameter, dim, (Logical::In, input), declared)?;
    Ok(match size {
        Some(size) if !act_order => StoredDimension::block(Logical::In, size),
        _ => StoredDimension::whole(),
    })
}

/// Words of 32 bits that hold weights of `bits` bits.
fn packed(logical: Logical, bits: u64) -> StoredDimension {
    // The fewest weights that fill whole words: 8 in 1 word of 4 bits, 32 in 3 words of 3 bits.
    let common = gcd(WORD_BITS, bits);
    StoredDimension { logical: Some(logical), elements: WORD_BITS / common, stored: bits / common }
}

/// Of the bits that are declared, those that weights in `parameter` have, whose dimension `dim` is packed.
fn bits_of(
    declared: &[u64],
    parameter: &Parameter,
    dim: usize,
    goes_with_the_others: impl Fn(u64) -> bool,
) -> Result<u64, QuantisationError> {
    let words = parameter.shape.get(dim).copied().unwrap_or(0);
    let fills = |bits: u64| words.is_multiple_of(bits / gcd(WORD_BITS, bits));
    declared.iter().copied().find(|&bits| fills(bits) && goes_with_the_others(bits)).ok_or_else(|| {
        let bits: Vec<String> = declared.iter().map(u64::to_string).collect();
        let reason = format!(
            "{} has {words} words in dimension {dim}, which with weights of {} bit do not go with its scales and zeros",
            crate::quote::quote(&parameter.collapsed),
            bits.join(" or ")
        );
        QuantisationError::Contradiction { reason }
    })
}

/// The bits of zero points, of which `words` words hold `count`.
fn packed_bits(
    declared: &[u64],
    parameter: &Parameter,
    count: u64,
    words: Option<u64>,
) -> Result<u64, QuantisationError> {
    let words = words.unwrap_or(0);
    let fits = |bits: &&u64| count.checked_mul(**bits).is_some_and(|total| total == words * WORD_BITS);
    declared.iter().find(fits).copied().ok_or_else(|| {
        wrong(parameter, &format!("words for {count} numbers of {declared:?} bit"), "the module's weight")
    })
}

/// What is declared, which packed weights cannot be read without.
fn declared_for(
    parameter: &Parameter,
    declared: Option<&Quantisation>,
) -> Result<Quantisation, QuantisationError> {
    let found = declared.filter(|declared| !declared.bits.is_empty());
    // AWQ's and the first GPTQ's weights have 4 bits where nothing else is said.
    let by_default = declared.filter(|declared| ["awq", "gptq"].contains(&declared.method.as_str()));
    match (found, by_default) {
        (Some(found), _) => Ok(found.clone()),
        (None, Some(found)) => Ok(Quantisation { bits: vec![4], ..found.clone() }),
        (None, None) => {
            let name = crate::quote::quote(&parameter.collapsed);
            let reason =
                format!("{name} holds packed weights, but config.json does not say of how many bits");
            Err(QuantisationError::Contradiction { reason })
        }
    }
}

fn required<'a>(module: &'a Module, has: &str, lacks: &str) -> Result<&'a Parameter, QuantisationError> {
    module.parameter(lacks).ok_or_else(|| QuantisationError::Missing {
        module: module.name.clone(),
        has: has.to_owned(),
        lacks: lacks.to_owned(),
    })
}

fn exactly(sizes: &Sizes<'_>, parameter: &Parameter, expected: &[u64]) -> Result<(), QuantisationError> {
    if parameter.shape == expected {
        return Ok(());
    }
    let (out, input) = (sizes.out, sizes.input.unwrap_or(1));
    let explained =
        format!("{input} inputs and {out} outputs of {}", crate::quote::quote(&sizes.module.name));
    Err(wrong(parameter, &format!("{expected:?}"), &explained))
}

fn wrong(parameter: &Parameter, expected: &str, explained: &str) -> QuantisationError {
    QuantisationError::WrongShape {
        tensor: parameter.collapsed.clone(),
        found: parameter.shape.clone(),
        expected: expected.to_owned(),
        explained: explained.to_owned(),
    }
}
