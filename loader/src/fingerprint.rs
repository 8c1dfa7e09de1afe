//! A fingerprint of a tensor's bytes that does not depend on how the tensor is cut.
//!
//! `H(T) = Σ ((word_j xor C) and held_j) · key(j) mod 2^128`, over the little-endian 64-bit words of the whole tensor, where
//! `held_j` masks the bytes at hand. Whoever holds some bytes of a tensor adds their share; the shares of any cut into bytes
//! add up to the fingerprint of the whole, because the masks of one word have no bit in common. The xor makes zeros count,
//! the key makes the place count, and sums mod 2^128 keep the highest bits of every product (mod 2^64, words that differ in
//! their top bits only could be swapped unseen). It finds accidents; it is no signature against someone who plans one.

/// Makes zeros count: the fractional part of the golden ratio.
const C: u64 = 0x9e37_79b9_7f4a_7c15;

/// Bytes of a word.
const WORD: usize = 8;

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
        // Four sums that do not wait for each other; together they are the same sum.
        let mut sums = [0u128; 4];
        let (fours, ones) = words.as_chunks::<4>();
        for four in fours {
            for (sum, word) in sums.iter_mut().zip(four) {
                *sum = sum.wrapping_add(product(u64::from_le_bytes(*word) ^ C, key(seed, index)));
                index += 1;
            }
        }
        for word in ones {
            sums[0] = sums[0].wrapping_add(product(u64::from_le_bytes(*word) ^ C, key(seed, index)));
            index += 1;
        }
        self.sum = sums.into_iter().fold(self.sum, u128::wrapping_add);
        if !tail.is_empty() {
            self.add_part(seed, index, 0, tail);
        }
    }

    /// Adds some bytes of one word, from byte `first` of it on.
    fn add_part(&mut self, seed: u64, index: u64, first: usize, bytes: &[u8]) {
        let (mut word, mut held) = ([0; WORD], [0; WORD]);
        word[first..first + bytes.len()].copy_from_slice(bytes);
        held[first..first + bytes.len()].fill(0xff);
        let masked = (u64::from_le_bytes(word) ^ C) & u64::from_le_bytes(held);
        self.sum = self.sum.wrapping_add(product(masked, key(seed, index)));
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
    name.bytes().fold(name.len() as u64 ^ C, |seed, byte| mix(seed ^ u64::from(byte)))
}

/// The key of word `index`: odd, and unlike its neighbours'.
#[inline]
fn key(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index)) | 1
}

/// A mixer of two multiplications; the constants are those of Steele, Lea and Flood 2014 (SplitMix64).
#[inline]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[inline]
fn product(word: u64, key: u64) -> u128 {
    u128::from(word) * u128::from(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(bytes: &[u8]) -> Fingerprint {
        let mut sum = Fingerprint::default();
        sum.add(7, 0, bytes);
        sum
    }

    /// The definition, byte by byte.
    fn plain(seed: u64, bytes: &[u8]) -> u128 {
        let constant = C.to_le_bytes();
        (0u64..).zip(bytes).fold(0, |sum, (at, byte)| {
            let lane = usize::try_from(at % 8).unwrap();
            let share = u128::from(byte ^ constant[lane]) << (8 * lane);
            sum.wrapping_add(share.wrapping_mul(u128::from(key(seed, at / 8))))
        })
    }

    proptest! {
        #[test]
        fn the_shares_of_any_cut_add_up(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
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
        insta::assert_snapshot!(sum, @"1dff9e7783fea55286278296014f8ba0");
        assert_ne!(seed_of("a"), seed_of("b"));
        assert_eq!(Fingerprint::default().bytes(), 0);
    }
}
