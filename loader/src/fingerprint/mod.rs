//! A fingerprint of a tensor's bytes that does not depend on how the tensor is cut.
//!
//! A tensor is taken for little-endian words of 32 bits, in blocks of 1024:
//!
//! `H(T) = Σ_b M(b) · S_b mod 2^128` over its blocks, with `S_b = Σ_i ((word_i xor C) and held_i) · a(i)` over a block's words,
//!
//! where `held` masks the bytes at hand, `a(i)` are 1024 different odd numbers of 24 bits, the same in every block, and `M(b)` is an
//! odd number of 64 bits that depends on the block and the tensor's name. Whoever holds some bytes of a tensor adds their share;
//! the shares of any cut into bytes add up to the fingerprint of the whole, because the masks of one word have no bit in common and
//! `S_b`, which has less than 67 bits, is never cut off before it is multiplied.
//!
//! What it finds: one word that differs by `d` changes the sum by `d·a·M`, and two words of a block that change places by
//! `d·(a - a')·M`; neither is 0 mod 2^128, for both factors before the odd `M` are small and not 0. Blocks that change places are
//! found because `M` differs; zeros count because of the xor; what is shifted meets other factors. It finds accidents; it is no
//! signature against someone who plans one.
//!
//! Words of 32 bits times 24 bits, because that is one cheap instruction on processors (eight lanes or sixteen at a time) and on
//! GPUs, and a whole block of such products can be summed exactly; the dear multiplication is one a block. So it runs at the speed
//! at which a cache gives the bytes.

mod dispatch;
mod mixing;

use mixing::WORD;

/// The sum over some bytes of a tensor. Sums over disjoint bytes add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fingerprint {
    sum: u128,
    bytes: u64,
}

impl Fingerprint {
    /// How many 64-bit numbers [`Fingerprint::to_limbs`] gives.
    pub const LIMBS: usize = 5;

    /// Adds the tensor's bytes from `in_tensor` on. `seed` is the tensor's, see [`seed_of`].
    pub fn add(&mut self, seed: u64, in_tensor: u64, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let mut index = in_tensor / WORD as u64;
        let before = in_tensor.to_le_bytes()[0] as usize % WORD;
        let mut rest = bytes;
        if before != 0 {
            let (head, tail) = rest.split_at(rest.len().min(WORD - before));
            self.add_part(seed, index, before, head);
            index += 1;
            rest = tail;
        }
        let (words, tail) = rest.as_chunks::<WORD>();
        self.sum = self.sum.wrapping_add(dispatch::sum(seed, index, words));
        index += words.len() as u64;
        if !tail.is_empty() {
            self.add_part(seed, index, 0, tail);
        }
    }

    /// Adds some bytes of one word, from byte `first` of it on.
    fn add_part(&mut self, seed: u64, index: u64, first: usize, bytes: &[u8]) {
        let (mut word, mut held) = ([0; WORD], [0; WORD]);
        word[first..first + bytes.len()].copy_from_slice(bytes);
        held[first..first + bytes.len()].fill(0xff);
        self.sum = self.sum.wrapping_add(mixing::masked(
            seed,
            index,
            u64::from_le_bytes(word),
            u64::from_le_bytes(held),
        ));
    }

    /// Adds what another holder of other bytes of the same tensor summed up.
    pub fn merge(&mut self, other: Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }

    /// How many bytes it is over.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What [`Display`](std::fmt::Display) wrote of a sum over `bytes` bytes: 32 hexadecimal digits.
    pub fn parse(text: &str, bytes: u64) -> Option<Self> {
        let is_hexadecimal = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let sum = u128::from_str_radix(text, 16).ok().filter(|_| is_hexadecimal)?;
        Some(Self { sum, bytes })
    }

    /// As 32-bit limbs and a count of bytes, which sums mod 2^64 over up to 2^32 ranks add up without losing a carry.
    pub fn to_limbs(self) -> [u64; Self::LIMBS] {
        // The mask leaves 32 bits, whatever is cut off.
        #[allow(clippy::cast_possible_truncation)]
        let limb = |place: u32| (self.sum >> (32 * place)) as u64 & 0xffff_ffff;
        [limb(0), limb(1), limb(2), limb(3), self.bytes]
    }

    /// From limbs that may each have grown beyond 32 bits by being summed.
    pub fn from_limbs(limbs: [u64; Self::LIMBS]) -> Self {
        let place = |limb: u64, place: u32| u128::from(limb) << (32 * place);
        let sum = (0u32..).zip(&limbs[..4]).fold(0u128, |sum, (at, &limb)| sum.wrapping_add(place(limb, at)));
        Self { sum, bytes: limbs[4] }
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.sum)
    }
}

/// The seed of the tensor called `name`: tensors with the same bytes have different fingerprints.
pub fn seed_of(name: &str) -> u64 {
    let begin = name.len() as u64 ^ 0x9e37_79b9_7f4a_7c15;
    name.bytes().fold(begin, |seed, byte| mixing::mix(seed ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::cast_possible_truncation)]
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> Fingerprint {
        let mut sum = Fingerprint::default();
        sum.add(7, 0, bytes);
        sum
    }

    /// The definition, byte by byte.
    fn plain(seed: u64, bytes: &[u8]) -> u128 {
        let constant = 0x9e37_79b9u32.to_le_bytes();
        (0u64..).zip(bytes).fold(0, |sum, (at, byte)| {
            let lane = usize::try_from(at % 4).unwrap();
            let share = u128::from(byte ^ constant[lane]) << (8 * lane);
            let factor = u128::from(mixing::factor(u32::try_from(at / 4 % 1024).unwrap()));
            let block = u128::from(mixing::mix(seed.wrapping_add(at / 4096)) | 1);
            sum.wrapping_add((share * factor).wrapping_mul(block))
        })
    }

    proptest! {
        #[test]
        fn the_shares_of_any_cut_add_up(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                (any::<u8>(), 4000usize..13_000).prop_map(|(seed, len)| (0..len).map(|at| ((at * at) >> 3) as u8 ^ seed).collect()),
                (3900usize..9000).prop_map(|len| vec![0xff; len]),
            ],
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = [0u64; Fingerprint::LIMBS];
            for part in cuts.windows(2) {
                let mut share = Fingerprint::default();
                share.add(7, part[0] as u64, &bytes[part[0]..part[1]]);
                for (total, limb) in sum.iter_mut().zip(share.to_limbs()) {
                    *total += limb;
                }
            }
            prop_assert_eq!(Fingerprint::from_limbs(sum), whole(&bytes));
            prop_assert_eq!(whole(&bytes).sum, plain(7, &bytes));
        }

        #[test]
        fn every_small_accident_changes_it(
            bytes in prop::collection::vec(any::<u8>(), 16..200),
            place in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(), bit in 0u32..8,
        ) {
            let expected = whole(&bytes);
            let (place, other) = (place.index(bytes.len()), other.index(bytes.len() / 8));
            let mut flipped = bytes.clone();
            flipped[place] ^= 1 << bit;
            prop_assert_ne!(whole(&flipped), expected);

            let mut swapped = bytes.clone();
            let words = swapped.as_chunks_mut::<8>().0;
            words.swap(place % words.len(), other % words.len());
            prop_assert_eq!(whole(&swapped) == expected, swapped == bytes);

            let mut zeroed = bytes.clone();
            zeroed[place..].fill(0);
            prop_assert_eq!(whole(&zeroed) == expected, zeroed == bytes);

            let mut rotated = bytes.clone();
            rotated.rotate_left(1);
            prop_assert_eq!(whole(&rotated) == expected, rotated == bytes);
        }

        /// The class that sums mod 2^64 miss: words that differ in the top bit only.
        #[test]
        fn words_that_differ_at_the_top_cannot_be_swapped(a in any::<u64>(), first in 0usize..8, second in 8usize..16) {
            let mut words = [a; 16];
            words[second] ^= 1 << 63;
            let bytes = |words: [u64; 16]| words.map(u64::to_le_bytes).concat();
            let before = whole(&bytes(words));
            words.swap(first, second);
            prop_assert_ne!(whole(&bytes(words)), before);
        }
    }

    #[test]
    fn the_value_stays_what_it_is() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut sum = Fingerprint::default();
        sum.add(seed_of("lm_head.weight"), 3, &bytes);
        insta::assert_snapshot!(sum, @"01709240f4a3edb21118532c2f7c21a0");
        assert_ne!(seed_of("a"), seed_of("b"));
        assert_eq!(Fingerprint::default().bytes(), 0);
    }
}
