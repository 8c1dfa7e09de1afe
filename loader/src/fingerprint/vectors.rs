//! The sum of pairs that are all there, by the vector units of x86-64. Compilers make slower code of [`super::mixing::portable`].

use super::mixing::{C, products, total};
use std::{arch::x86_64::*, iter::zip};

/// Four pairs a vector.
const PAIRS: usize = 4;

/// Vectors that are summed up apart, so that none waits for another.
const AT_ONCE: usize = 4;

/// [`super::mixing::portable`] with AVX2.
#[target_feature(enable = "avx2")]
pub(super) fn avx2(words: &[[u8; 8]], keys: &[u64]) -> u128 {
    let ((vectors, few), (vector_keys, few_keys)) = (words.as_chunks::<PAIRS>(), keys.as_chunks::<PAIRS>());
    let (steps, last) = vectors.as_chunks::<AT_ONCE>();
    let (step_keys, last_keys) = vector_keys.as_chunks::<AT_ONCE>();
    let mut sums = [_mm256_setzero_si256(); AT_ONCE];
    let mut upper = sums;
    for (words, keys) in zip(steps, step_keys) {
        for at in 0..AT_ONCE {
            (sums[at], upper[at]) = add(sums[at], upper[at], &words[at], &keys[at]);
        }
    }
    for (at, (words, keys)) in zip(last, last_keys).enumerate() {
        (sums[at], upper[at]) = add(sums[at], upper[at], words, keys);
    }
    let sum = zip(sums, upper).fold(_mm256_setzero_si256(), |sum, (lower, upper)| {
        _mm256_add_epi64(sum, _mm256_add_epi64(lower, upper))
    });
    let lanes = [
        _mm256_extract_epi64::<0>(sum),
        _mm256_extract_epi64::<1>(sum),
        _mm256_extract_epi64::<2>(sum),
        _mm256_extract_epi64::<3>(sum),
    ];
    let few = zip(few, few_keys).map(|(word, keys)| products(u64::from_le_bytes(*word) ^ C, *keys)).sum();
    total(lanes.map(i64::cast_unsigned), few)
}

/// Adds the products of four pairs, those of their lower and of their upper words apart.
#[inline]
#[target_feature(enable = "avx2")]
fn add(lower: __m256i, upper: __m256i, words: &[[u8; 8]; PAIRS], keys: &[u64; PAIRS]) -> (__m256i, __m256i) {
    // To the upper halves' place in the lower ones.
    const UPPER: i32 = 0b11_11_01_01;
    let words = _mm256_xor_si256(vector(words.map(u64::from_le_bytes)), _mm256_set1_epi64x(C.cast_signed()));
    let keys = vector(*keys);
    let upper_words = _mm256_shuffle_epi32::<UPPER>(words);
    let upper_keys = _mm256_shuffle_epi32::<UPPER>(keys);
    (
        _mm256_add_epi64(lower, _mm256_mul_epu32(words, keys)),
        _mm256_add_epi64(upper, _mm256_mul_epu32(upper_words, upper_keys)),
    )
}

/// One load, once it is compiled.
#[inline]
#[target_feature(enable = "avx2")]
fn vector(words: [u64; PAIRS]) -> __m256i {
    let [a, b, c, d] = words.map(u64::cast_signed);
    _mm256_set_epi64x(d, c, b, a)
}
