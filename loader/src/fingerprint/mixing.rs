//! The sum within one block: bytes at a place in the block → `S`, exactly.
//!
//! Two words of 32 bits are taken at a time, as the halves of one of 64, for that is how vector units multiply.

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;

/// Bytes of the two words that are taken at a time.
const PAIR: usize = 8;

/// Makes zeros count, in both words of a pair: the fractional part of the golden ratio.
pub(super) const C: u64 = 0x9e37_79b9_9e37_79b9;

/// The keys of a block, a pair of them as the halves of 64 bits.
static KEYS: Keys = Keys::new();

/// As aligned as a line of the cache, so that a vector of keys lies in one.
#[repr(align(64))]
struct Keys([u64; BLOCK / PAIR]);

impl Keys {
    const fn new() -> Self {
        let (mut keys, mut at) = ([0; BLOCK / PAIR], 0);
        let mut place = 0;
        while at < keys.len() {
            keys[at] = key(place) | key(place + 1) << 32;
            (at, place) = (at + 1, place + 2);
        }
        Self(keys)
    }
}

/// The key of the word at `place` in its block: 24 bits, odd, and no other word's.
pub(super) const fn key(place: u32) -> u64 {
    // The mixer that ends MurmurHash3 (Appleby 2008).
    let value = place + 1;
    let value = (value ^ value >> 16).wrapping_mul(0x85eb_ca6b);
    let value = (value ^ value >> 13).wrapping_mul(0xc2b2_ae35);
    ((value ^ value >> 16) & 0xff_ffff | 1) as u64
}

/// Sums up bytes of one block, from byte `place` of it on. `pairs` sums up pairs that are all there, each with its keys.
#[inline]
pub(super) fn sum(place: usize, bytes: &[u8], pairs: impl FnOnce(&[[u8; PAIR]], &[u64]) -> u128) -> u128 {
    let (skipped, first) = (place % PAIR, place.div_ceil(PAIR));
    let (head, rest) = bytes.split_at(if skipped == 0 { 0 } else { bytes.len().min(PAIR - skipped) });
    let (whole, tail) = rest.as_chunks();
    let after = first + whole.len();
    let mut sum = pairs(whole, &KEYS.0[first..after]);
    if !head.is_empty() {
        sum += u128::from(part(head, skipped, KEYS.0[first - 1]));
    }
    if !tail.is_empty() {
        sum += u128::from(part(tail, 0, KEYS.0[after]));
    }
    sum
}

/// Some bytes of a pair, from byte `skipped` of it on: one to seven.
#[inline]
fn part(bytes: &[u8], skipped: usize, keys: u64) -> u64 {
    let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let held = u64::MAX >> (64 - 8 * bytes.len());
    products(((word << (8 * skipped)) ^ C) & held << (8 * skipped), keys)
}

/// Of both words of a pair, less than 2^57 together.
#[inline]
pub(super) fn products(words: u64, keys: u64) -> u64 {
    (words & 0xffff_ffff) * (keys & 0xffff_ffff) + (words >> 32) * (keys >> 32)
}

/// Pairs that are all there, on any processor. Compilers make vectors of it.
pub(super) fn portable(words: &[[u8; PAIR]], keys: &[u64]) -> u128 {
    const AT_ONCE: usize = 16;
    let (steps, few) = words.as_chunks::<AT_ONCE>();
    let (step_keys, few_keys) = keys.as_chunks::<AT_ONCE>();
    // Apart for the lower and the upper words, as vectors have them.
    let (mut lower, mut upper) = ([0u64; AT_ONCE], [0u64; AT_ONCE]);
    for (words, keys) in steps.iter().zip(step_keys) {
        for at in 0..AT_ONCE {
            let word = u64::from_le_bytes(words[at]) ^ C;
            lower[at] += (word & 0xffff_ffff) * (keys[at] & 0xffff_ffff);
            upper[at] += (word >> 32) * (keys[at] >> 32);
        }
    }
    let few = few.iter().zip(few_keys);
    let few = few.map(|(word, keys)| products(u64::from_le_bytes(*word) ^ C, *keys)).sum();
    let mut lanes = [0; 4];
    for at in 0..AT_ONCE {
        lanes[at % 4] += lower[at] + upper[at];
    }
    total(lanes, few)
}

/// Adds four sums of a quarter of a block's words each, 256 at most, and the sum of a few more. 256 products of 56 bits are
/// less than 2^64, five such sums are not.
#[inline]
pub(super) fn total(lanes: [u64; 4], few: u64) -> u128 {
    lanes.into_iter().fold(u128::from(few), |sum, lane| sum + u128::from(lane))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn keys_are_odd_and_short_and_each_its_own() {
        let keys: Vec<u64> = KEYS.0.iter().flat_map(|pair| [pair & 0xffff_ffff, pair >> 32]).collect();
        assert_eq!(keys, (0..1024).map(key).collect::<Vec<_>>());
        assert!(keys.iter().all(|key| key % 2 == 1 && *key < 1 << 24));
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    }
}
