use super::*;
use mixing::{C, key};
use proptest::prelude::*;

const BLOCK_BYTES: u64 = BLOCK as u64;

fn whole(bytes: &[u8]) -> Fingerprint {
    let mut sum = Fingerprint::default();
    sum.add(7, 0, bytes);
    sum
}

/// The definition, byte by byte.
fn plain(seed: u64, in_tensor: u64, bytes: &[u8]) -> u128 {
    let constant = C.to_le_bytes();
    (in_tensor..).zip(bytes).fold(0, |sum, (at, byte)| {
        let (lane, place) = (at % 4, u32::try_from(at % BLOCK_BYTES / 4).unwrap());
        let share = u128::from(byte ^ constant[usize::try_from(lane).unwrap()]) << (8 * lane);
        let share = share * u128::from(key(place));
        sum.wrapping_add(share.wrapping_mul(u128::from(multiplier(seed, at / BLOCK_BYTES))))
    })
}

/// Bytes of any length up to a few blocks, mostly short.
fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..200),
        1 => prop::collection::vec(any::<u8>(), 0..3 * BLOCK),
    ]
}

proptest! {
    #[test]
    fn every_form_is_the_definition(bytes in some_bytes(), in_tensor in 0..3 * BLOCK_BYTES, skipped in 0usize..70) {
        let bytes = &bytes[skipped.min(bytes.len())..];
        let far = u64::MAX / BLOCK_BYTES * BLOCK_BYTES - 2 * BLOCK_BYTES;
        for at in [in_tensor, far] {
            let expected = Fingerprint { sum: plain(7, at, bytes), bytes: bytes.len() as u64 };
            for form in Form::all() {
                let mut found = Fingerprint::default();
                found.add_with(form, 7, at, bytes);
                prop_assert_eq!(found, expected, "{} at {}", form, at);
            }
        }
    }

    #[test]
    fn the_shares_of_any_cut_add_up(
        bytes in some_bytes(), in_tensor in 0..2 * BLOCK_BYTES,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let mut sum = [0u64; Fingerprint::LIMBS];
        for part in cuts.windows(2) {
            let mut share = Fingerprint::default();
            share.add(7, in_tensor + part[0] as u64, &bytes[part[0]..part[1]]);
            for (total, limb) in sum.iter_mut().zip(share.to_limbs()) {
                *total += limb;
            }
        }
        let mut expected = Fingerprint::default();
        expected.add(7, in_tensor, &bytes);
        prop_assert_eq!(Fingerprint::from_limbs(sum), expected);
    }

    #[test]
    fn every_small_accident_changes_it(
        bytes in prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 16..200), 1 => prop::collection::vec(any::<u8>(), BLOCK..3 * BLOCK),
        ],
        place in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(), bit in 0u32..8,
    ) {
        let expected = whole(&bytes);
        let place = place.index(bytes.len());
        let mut flipped = bytes.clone();
        flipped[place] ^= 1 << bit;
        prop_assert_ne!(whole(&flipped), expected);

        prop_assert!(swapped_is_found::<1>(&bytes, place, &other));
        prop_assert!(swapped_is_found::<2>(&bytes, place, &other));
        prop_assert!(swapped_is_found::<4>(&bytes, place, &other));
        prop_assert!(swapped_is_found::<8>(&bytes, place, &other));

        let mut zeroed = bytes.clone();
        zeroed[place..].fill(0);
        prop_assert_eq!(whole(&zeroed) == expected, zeroed == bytes);

        for by in [1, 4, 8] {
            let mut rotated = bytes.clone();
            rotated.rotate_left(by);
            prop_assert_eq!(whole(&rotated) == expected, rotated == bytes);
        }
    }

    #[test]
    fn words_that_differ_in_one_bit_cannot_be_swapped(
        word in any::<u32>(), bit in 0u32..32, first in 0usize..3000, second in 0usize..3000,
    ) {
        let mut words = [word; 3000];
        words[second] ^= 1 << bit;
        let bytes = |words: [u32; 3000]| words.map(u32::to_le_bytes).concat();
        let before = whole(&bytes(words));
        words.swap(first, second);
        prop_assert_eq!(whole(&bytes(words)) == before, first == second);
    }

    #[test]
    fn blocks_cannot_be_swapped_or_moved(blocks in prop::collection::vec(any::<u8>(), 2..6)) {
        let bytes = |blocks: &[u8]| blocks.iter().flat_map(|byte| [*byte; BLOCK]).collect::<Vec<u8>>();
        let before = whole(&bytes(&blocks));
        let mut other = blocks.clone();
        other.swap(0, 1);
        prop_assert_eq!(whole(&bytes(&other)) == before, other == blocks);
        let mut other = blocks.clone();
        other.rotate_left(1);
        prop_assert_eq!(whole(&bytes(&other)) == before, other == blocks);
    }
}

/// Swaps pieces of `N` bytes, and says whether that shows exactly if it changed something.
fn swapped_is_found<const N: usize>(bytes: &[u8], place: usize, other: &prop::sample::Index) -> bool {
    let mut swapped = bytes.to_vec();
    let pieces = swapped.as_chunks_mut::<N>().0;
    pieces.swap(place % pieces.len(), other.index(pieces.len()));
    (whole(&swapped) == whole(bytes)) == (swapped == bytes)
}

#[test]
fn the_largest_sum_of_a_block_loses_no_carry() {
    let bytes = [(!C).to_le_bytes(); BLOCK / 8].concat();
    let keys: u128 = (0..1024).map(|place| u128::from(key(place))).sum();
    let expected = keys * u128::from(u32::MAX) * u128::from(multiplier(7, 0));
    for form in Form::all() {
        let mut sum = Fingerprint::default();
        sum.add_with(form, 7, 0, &bytes);
        assert_eq!(sum.sum, expected, "{form}");
    }
}

#[test]
fn a_constant_run_in_place_of_another_is_found() {
    for (first, len) in [(0, 4), (100, 3000), (4000, 200), (0, 3 * BLOCK)] {
        let filled = |with: u8| {
            let mut bytes = vec![9; 3 * BLOCK];
            bytes[first..first + len].fill(with);
            whole(&bytes)
        };
        assert_ne!(filled(0), filled(0xff));
        assert_ne!(filled(0), whole(&vec![9; 3 * BLOCK]));
    }
}

#[test]
fn the_value_stays_what_it_is() {
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let mut sum = Fingerprint::default();
    sum.add(seed_of("lm_head.weight"), 3, &bytes[..256]);
    insta::assert_snapshot!(sum, @"01709240f4a3edb21118532c2f7c21a0");
    let mut sum = Fingerprint::default();
    sum.add(seed_of("lm_head.weight"), 3, &bytes);
    insta::assert_snapshot!(sum, @"2842db84889f2d3bfe87b7c0bccab364");
    assert_ne!(seed_of("a"), seed_of("b"));
    assert_eq!(Fingerprint::default().bytes(), 0);
}
