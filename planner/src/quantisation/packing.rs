//! Weights of a few bits in words of 32.

use super::{declared::Quantisation, error::QuantisationError};
use crate::{
    graph::Parameter,
    partition::{Logical, StoredDimension, gcd},
    quote::quote,
};

/// Bits of the words that integer weights are packed into.
pub(super) const WORD_BITS: u64 = 32;

/// Words of 32 bits that hold weights of `bits` bits.
pub(super) fn packed(logical: Logical, bits: u64) -> StoredDimension {
    // The fewest weights that fill whole words: 8 in 1 word of 4 bits, 32 in 3 words of 3 bits.
    let common = gcd(WORD_BITS, bits);
    StoredDimension { logical: Some(logical), elements: WORD_BITS / common, stored: bits / common }
}

/// Of the bits that are declared, those that weights in `parameter` have, whose dimension `dim` is packed.
pub(super) fn bits_of(
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
            quote(&parameter.collapsed),
            bits.join(" or ")
        );
        QuantisationError::Contradiction { reason }
    })
}

/// The bits of zero points, of which `words` words hold `count`.
pub(super) fn packed_bits(
    declared: &[u64],
    parameter: &Parameter,
    count: u64,
    words: Option<u64>,
) -> Result<u64, QuantisationError> {
    let words = words.unwrap_or(0);
    let fits = |bits: &&u64| count.checked_mul(**bits).is_some_and(|total| total == words * WORD_BITS);
    declared.iter().find(fits).copied().ok_or_else(|| {
        QuantisationError::shape(
            parameter,
            &format!("words for {count} numbers of {declared:?} bit"),
            "the module's weight",
        )
    })
}

/// What is declared, which packed weights cannot be read without.
pub(super) fn declared_for(
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
            let name = quote(&parameter.collapsed);
            let reason =
                format!("{name} holds packed weights, but config.json does not say of how many bits");
            Err(QuantisationError::Contradiction { reason })
        }
    }
}
