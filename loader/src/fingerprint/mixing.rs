//! What is summed: the definition in words of 64 bits, each of which is two of those of the definition.

/// Bytes of a word.
pub(super) const WORD: usize = 8;

/// Words of a block: 4 KiB.
const BLOCK_WORDS: usize = 512;

/// Makes zeros count, twice in a word.
const C: u64 = 0x9e37_79b9_9e37_79b9;

/// Sums that do not wait for each other: enough for the widest vectors.
const LANES: usize = 32;

/// The factors of the low and of the high halves of a block's words.
static LOW: [u32; BLOCK_WORDS] = factors(0);
static HIGH: [u32; BLOCK_WORDS] = factors(1);

const fn factors(half: u32) -> [u32; BLOCK_WORDS] {
    let mut factors = [0; BLOCK_WORDS];
    let mut word = 0;
    while word < BLOCK_WORDS {
        #[allow(clippy::cast_possible_truncation)]
        let place = 2 * word as u32 + half;
        factors[word] = factor(place);
        word += 1;
    }
    factors
}

/// The factor of half-word `place` of a block: odd, of 24 bits. The constants are those of MurmurHash3's last step.
pub(super) const fn factor(place: u32) -> u32 {
    let mut value = place + 1;
    value ^= value >> 16;
    value = value.wrapping_mul(0x85eb_ca6b);
    value ^= value >> 13;
    value = value.wrapping_mul(0xc2b2_ae35);
    value ^= value >> 16;
    value & 0x00ff_ffff | 1
}

/// A mixer of two multiplications; the constants are those of Steele, Lea and Flood 2014 (SplitMix64).
#[inline]
pub(super) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The factor of block `block`: odd, of 64 bits.
#[inline]
fn block_factor(seed: u64, block: u64) -> u128 {
    (mix(seed.wrapping_add(block)) | 1) as u128
}

/// The sum of some bits of the tensor's word `index`.
pub(super) fn masked(seed: u64, index: u64, word: u64, held: u64) -> u128 {
    let place = usize::try_from(index % BLOCK_WORDS as u64).unwrap_or(0);
    let sum = products((word ^ C) & held, LOW[place], HIGH[place]);
    u128::from(sum).wrapping_mul(block_factor(seed, index / BLOCK_WORDS as u64))
}

/// The sum of the tensor's words from `index` on. It is written for the compiler to turn into vectors, of whatever width there is
/// where it is inlined.
#[inline(always)]
pub(super) fn sum(seed: u64, mut index: u64, mut words: &[[u8; WORD]]) -> u128 {
    let mut sum = 0u128;
    while !words.is_empty() {
        let place = usize::try_from(index % BLOCK_WORDS as u64).unwrap_or(0);
        let (block, rest) = words.split_at(words.len().min(BLOCK_WORDS - place));
        let factor = block_factor(seed, index / BLOCK_WORDS as u64);
        sum = sum.wrapping_add(block_sum(block, place).wrapping_mul(factor));
        index += block.len() as u64;
        words = rest;
    }
    sum
}

/// The sum of words of a block from its word `place` on, exactly.
#[inline(always)]
fn block_sum(words: &[[u8; WORD]], place: usize) -> u128 {
    let (low, high) = (&LOW[place..place + words.len()], &HIGH[place..place + words.len()]);
    // A lane sums at most 16 words, which are 32 products of 56 bits; so does what is left.
    let mut lanes = [0u64; LANES];
    let (words, last_words) = words.as_chunks::<LANES>();
    let (low, last_low) = low.as_chunks::<LANES>();
    let (high, last_high) = high.as_chunks::<LANES>();
    for ((words, low), high) in words.iter().zip(low).zip(high) {
        for lane in 0..LANES {
            lanes[lane] += products(u64::from_le_bytes(words[lane]) ^ C, low[lane], high[lane]);
        }
    }
    let mut last = 0;
    for ((word, low), high) in last_words.iter().zip(last_low).zip(last_high) {
        last += products(u64::from_le_bytes(*word) ^ C, *low, *high);
    }
    lanes.iter().fold(u128::from(last), |sum, &lane| sum + u128::from(lane))
}

/// Both halves of a word times their factors: less than 2^57.
#[inline(always)]
fn products(word: u64, low: u32, high: u32) -> u64 {
    #[allow(clippy::cast_possible_truncation)]
    let half = word as u32;
    u64::from(half) * low as u64 + (word >> 32) * high as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_factors_of_a_block_are_different_odd_and_small() {
        let all: BTreeSet<u32> = LOW.iter().chain(&HIGH).copied().collect();
        assert_eq!(all.len(), 2 * BLOCK_WORDS);
        assert!(all.iter().all(|factor| factor % 2 == 1 && *factor < 1 << 24));
    }

    #[test]
    fn no_sum_of_a_block_is_cut_off() {
        let word = (!C).to_le_bytes();
        let expected: u128 = LOW.iter().chain(&HIGH).map(|&factor| u128::from(factor) * 0xffff_ffff).sum();
        assert_eq!(block_sum(&[word; BLOCK_WORDS], 0), expected);
        assert!(expected > u128::from(u64::MAX));
        assert_eq!(block_sum(&[word; LANES - 1], 0), {
            let firsts = LOW[..LANES - 1].iter().chain(&HIGH[..LANES - 1]);
            firsts.map(|&factor| u128::from(factor) * 0xffff_ffff).sum::<u128>()
        });
    }
}
