//! A fingerprint of a tensor's bytes that does not depend on how the tensor is cut.
//!
//! A tensor is little-endian words of 32 bits, and every 1024 of them are a block, 4 KiB:
//!
//! `H(T) = Σ M(b) · S(b) mod 2^128` over the blocks `b`, where `S(b) = Σ ((word_i xor C) and held_i) · a(i)` over the block's
//! words is exact. `held_i` masks the bytes at hand; the key `a(i)` is odd, of 24 bits, and no other's in the block;
//! `M(b)` is odd, of 64 bits, from the tensor's seed and the block's number. `mixing` has the sum within a block, `vectors`
//! the same for vector units, and `dispatch` chooses.
//!
//! Whoever holds some bytes of a tensor adds their share; the shares of any cut into bytes add up to the fingerprint of the
//! whole: the masks of one word have no bit in common, and `S`, below 2^66, is summed without losing a carry.
//!
//! A GPU and a core both compute it as fast as they read: for each word one multiplication of 32 by 32 bits into 64
//! (`vpmuludq`, `IMAD.WIDE`), which is the widest that vector units have. Keys of 24 bits leave 8 bits above a product, so 256
//! are summed in 64 bits before a carry can be lost. The block's number is mixed and multiplied once for all its words.
//!
//! What it finds:
//!
//! - One word that changed, for certain. It changes `H` by `δ · a · M`, and neither `δ · a` below 2^56 nor an odd `M` has
//!   enough factors of two to make that 0 mod 2^128.
//! - Two words of a block that changed places, for certain: `(x - y) · (a(i) - a(k)) · M`, and no two keys are equal. Also two
//!   halves or bytes of two words, for an odd key is no other key times 2^8, 2^16 or 2^24. Words of two blocks change
//!   places unseen if `a(i) · M(b) = a(k) · M(c)`, which hardly any seed has.
//! - Two blocks that changed places and whose `S` differ: `(S - S') · (M(b) - M(c))`. The numbers `M` differ, but for one pair in
//!   2^63.
//! - A run that was not written and is zero, or holds any other constant: zeros count, thanks to the xor. Of a run within
//!   one block that held another constant, all words change by the same `δ`, and the keys do not add up to 0.
//! - What shifted, by bytes, words or blocks: each word meets another key, or each block another `M`.
//!
//! Where several words of one block change, nothing is certain: about one such accident in 2^24, divided by how much the words
//! change, leaves `S` as it was. That is worst for words that change by 1 only. Over several blocks the chances
//! multiply, unless multiples of `M` cancel. It finds accidents; it is no signature against someone who plans one.

mod dispatch;
mod mixing;
#[cfg(target_arch = "x86_64")]
mod vectors;

pub use dispatch::Form;
use mixing::BLOCK;

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
        self.add_with(Form::fastest(), seed, in_tensor, bytes);
    }

    /// The same with code of your choice, which changes how long it takes and nothing else.
    pub fn add_with(&mut self, form: Form, seed: u64, in_tensor: u64, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let mut block = in_tensor / BLOCK as u64;
        // The mask leaves 12 bits.
        #[allow(clippy::cast_possible_truncation)]
        let mut place = in_tensor as usize % BLOCK;
        let mut rest = bytes;
        while !rest.is_empty() {
            let (here, later) = rest.split_at(rest.len().min(BLOCK - place));
            let share = form.sum(place, here).wrapping_mul(multiplier(seed, block).into());
            self.sum = self.sum.wrapping_add(share);
            (rest, place) = (later, 0);
            block = block.wrapping_add(1);
        }
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
    name.bytes().fold(name.len() as u64 ^ 0x9e37_79b9_7f4a_7c15, |seed, byte| mix(seed ^ u64::from(byte)))
}

/// What the sum of block `block` is multiplied with: odd, and unlike its neighbours'.
#[inline]
fn multiplier(seed: u64, block: u64) -> u64 {
    mix(seed.wrapping_add(block)) | 1
}

/// A mixer of two multiplications; the constants are those of Steele, Lea and Flood 2014 (SplitMix64).
#[inline]
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
