//! Which code sums up whole pairs: the fastest that this processor has instructions for. All give the same sums.

use super::mixing;
#[cfg(target_arch = "x86_64")]
use super::vectors;
use std::fmt;

/// Code that this processor can run. There is no other way to one than [`Form::all`], so who has one may use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form(Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Kind {
    /// The fastest last.
    const ALL: &[Self] = &[
        Self::Portable,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
    ];

    #[inline]
    fn runs_here(self) -> bool {
        match self {
            Self::Portable => true,
            // The processor is asked once: std keeps the answer.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
        }
    }
}

impl Form {
    /// All that this processor can run, the fastest last.
    #[inline]
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        Kind::ALL.iter().copied().filter(|kind| kind.runs_here()).map(Self)
    }

    /// The last of [`Form::all`].
    #[inline]
    pub fn fastest() -> Self {
        Self::all().next_back().unwrap_or(Self(Kind::Portable))
    }

    /// The exact sum over bytes of one block, from byte `place` of it on.
    #[inline]
    pub(super) fn sum(self, place: usize, bytes: &[u8]) -> u128 {
        match self.0 {
            Kind::Portable => mixing::sum(place, bytes, mixing::portable),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has AVX2, or `Form::all` would not have given this form.
            Kind::Avx2 => mixing::sum(place, bytes, |words, keys| unsafe { vectors::avx2(words, keys) }),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "AVX2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_the_last() {
        assert_eq!(Form::all().last(), Some(Form::fastest()));
        assert_eq!(Form::all().next().map(|form| form.to_string()).as_deref(), Some("portable"));
    }
}
