//! The widest vectors that this processor has.

use super::mixing::{self, WORD};

/// The same sum in instructions of some processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Those that every processor of the architecture has.
    Portable,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with its short vectors and products of 64 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Form {
    /// All of them, the widest first.
    const ALL: &[Self] = &[
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        Self::Portable,
    ];

    /// Whether this processor has it. What was found out is kept by the standard library.
    fn is_there(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512bw")
            }
        }
    }

    /// The sum of the tensor's words from `index` on, where this processor has the form, else in one that it has.
    fn sum(self, seed: u64, index: u64, words: &[[u8; WORD]]) -> u128 {
        match self {
            // SAFETY: the processor has what the function is compiled for.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if self.is_there() => unsafe { avx2(seed, index, words) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 if self.is_there() => unsafe { avx512(seed, index, words) },
            _ => mixing::sum(seed, index, words),
        }
    }
}

/// The sum of the tensor's words from `index` on.
pub(super) fn sum(seed: u64, index: u64, words: &[[u8; WORD]]) -> u128 {
    let widest = Form::ALL.iter().find(|form| form.is_there());
    widest.unwrap_or(&Form::Portable).sum(seed, index, words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2(seed: u64, index: u64, words: &[[u8; WORD]]) -> u128 {
    mixing::sum(seed, index, words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
fn avx512(seed: u64, index: u64, words: &[[u8; WORD]]) -> u128 {
    mixing::sum(seed, index, words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_form_gives_the_same_sum(
            seed in any::<u64>(), index in 0u64..2000, words in prop::collection::vec(any::<[u8; WORD]>(), 0..1300),
        ) {
            let expected = mixing::sum(seed, index, &words);
            for form in Form::ALL.iter().filter(|form| form.is_there()) {
                prop_assert_eq!(form.sum(seed, index, &words), expected, "{:?}", form);
            }
            prop_assert_eq!(sum(seed, index, &words), expected);
        }
    }
}
