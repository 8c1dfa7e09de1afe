//! Values, one after the other, from one dtype to another.
//!
//! All go by way of `F32`, some thousand at a time so that they stay in the cache: what is stored as `F64` is rounded to that
//! first, as `torch` does it.

use super::Stored;
use half::{
    bf16, f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use shardwright_planner::plan::CastDtype;

/// Elements that are cast at a time.
const AT_A_TIME: usize = 1024;

/// Adds the elements of `stored`, cast, to `loaded`, and says whether a finite value became infinite.
pub(super) fn cast(from: Stored, to: CastDtype, stored: &[u8], loaded: &mut Vec<u8>) -> bool {
    let mut too_large = false;
    match from {
        Stored::F16 => each::<2>(stored, |bytes, wide| {
            let mut bits = [0u16; AT_A_TIME];
            for (bits, bytes) in bits.iter_mut().zip(bytes) {
                *bits = u16::from_le_bytes(*bytes);
            }
            bits[..bytes.len()].reinterpret_cast::<f16>().convert_to_f32_slice(wide);
            too_large |= narrow(to, wide, loaded);
        }),
        Stored::BF16 => each::<2>(stored, |bytes, wide| {
            for (wide, bytes) in wide.iter_mut().zip(bytes) {
                *wide = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
            too_large |= narrow(to, wide, loaded);
        }),
        Stored::F32 => each::<4>(stored, |bytes, wide| {
            for (wide, bytes) in wide.iter_mut().zip(bytes) {
                *wide = f32::from_le_bytes(*bytes);
            }
            too_large |= narrow(to, wide, loaded);
        }),
        Stored::F64 => each::<8>(stored, |bytes, wide| {
            for (wide, bytes) in wide.iter_mut().zip(bytes) {
                let value = f64::from_le_bytes(*bytes);
                *wide = single(value);
                too_large |= wide.is_infinite() & value.is_finite();
            }
            too_large |= narrow(to, wide, loaded);
        }),
    }
    too_large
}

/// The nearest F32.
#[allow(clippy::cast_possible_truncation)]
fn single(value: f64) -> f32 {
    value as f32
}

/// Gives `with` the elements of `stored` some at a time, and room for as many wide ones.
fn each<const BYTES: usize>(stored: &[u8], mut with: impl FnMut(&[[u8; BYTES]], &mut [f32])) {
    let mut wide = [0f32; AT_A_TIME];
    for elements in stored.as_chunks::<BYTES>().0.chunks(AT_A_TIME) {
        with(elements, &mut wide[..elements.len()]);
    }
}

/// Adds `wide`, rounded to `to`, to `loaded`.
fn narrow(to: CastDtype, wide: &[f32], loaded: &mut Vec<u8>) -> bool {
    let at = loaded.len();
    match to {
        CastDtype::F32 => {
            loaded.resize(at + wide.len() * 4, 0);
            for (into, value) in loaded[at..].as_chunks_mut::<4>().0.iter_mut().zip(wide) {
                *into = value.to_le_bytes();
            }
            false
        }
        CastDtype::F16 => {
            let mut values = [f16::ZERO; AT_A_TIME];
            let values = &mut values[..wide.len()];
            values.convert_from_f32_slice(wide);
            loaded.resize(at + wide.len() * 2, 0);
            let mut too_large = false;
            for ((into, value), wide) in
                loaded[at..].as_chunks_mut::<2>().0.iter_mut().zip(&*values).zip(wide)
            {
                *into = value.to_le_bytes();
                too_large |= value.is_infinite() & wide.is_finite();
            }
            too_large
        }
        CastDtype::BF16 => {
            loaded.resize(at + wide.len() * 2, 0);
            let mut too_large = false;
            for (into, wide) in loaded[at..].as_chunks_mut::<2>().0.iter_mut().zip(wide) {
                let value = bf16::from_f32(*wide);
                *into = value.to_le_bytes();
                too_large |= value.is_infinite() & wide.is_finite();
            }
            too_large
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cast;
    use proptest::prelude::*;
    use shardwright_planner::{checkpoint::Dtype, plan::CastDtype};

    fn cast(from: Dtype, to: CastDtype, stored: &[u8]) -> (Vec<u8>, bool) {
        let mut loaded = Vec::new();
        let too_large = Cast::new(from, to).unwrap().apply(stored, &mut loaded);
        (loaded, too_large)
    }

    /// The value of a float of `exponent` and `fraction` bits behind its sign, by the definition of the format.
    fn value(bits: u64, exponent: u32, fraction: u32) -> f64 {
        let bias = (1i32 << (exponent - 1)) - 1;
        let sign = if bits >> (exponent + fraction) & 1 == 1 { -1.0 } else { 1.0 };
        let power = i32::try_from(bits >> fraction & ((1 << exponent) - 1)).unwrap();
        let rest = (bits & ((1 << fraction) - 1)) as f64 / (1u64 << fraction) as f64;
        match power {
            power if power == (1 << exponent) - 1 && rest == 0.0 => sign * f64::INFINITY,
            power if power == (1 << exponent) - 1 => f64::NAN,
            0 => sign * rest * 2f64.powi(1 - bias),
            power => sign * (1.0 + rest) * 2f64.powi(power - bias),
        }
    }

    /// The format that a dtype is of: bits of its exponent and fraction.
    fn format(dtype: Dtype) -> (u32, u32) {
        match dtype {
            Dtype::F16 => (5, 10),
            Dtype::BF16 => (8, 7),
            Dtype::F32 => (8, 23),
            _ => (11, 52),
        }
    }

    /// `bits` of `from` cast to `to` is the value of `to` that lies nearest, and of two the even one.
    fn is_nearest(from: Dtype, to: CastDtype, bits: u64) {
        let bytes = from.bitsize() / 8;
        let (loaded, too_large) = cast(from, to, &bits.to_le_bytes()[..bytes]);
        let mut whole = [0; 8];
        whole[..loaded.len()].copy_from_slice(&loaded);
        let (found, (exponent, fraction)) = (u64::from_le_bytes(whole), format(to.into()));
        let (exact, of) =
            (value(bits, format(from).0, format(from).1), |bits| value(bits, exponent, fraction));
        if exact.is_nan() {
            assert!(of(found).is_nan(), "{from} {bits:#x}");
            return;
        }
        let sign = 1 << (exponent + fraction);
        assert_eq!(found & sign != 0, exact.is_sign_negative());
        assert_eq!(too_large, exact.is_finite() && of(found).is_infinite(), "{from} {bits:#x} {found:#x}");
        let magnitude = found & !sign;
        // The largest there is ends half a step before what would come next: the same step as the one below it.
        let largest = (((1u64 << exponent) - 1) << fraction) - 1;
        let step =
            |at: u64| if at > largest { of(largest) + (of(largest) - of(largest - 1)) } else { of(at) };
        let off = |at: u64| (step(at) - exact.abs()).abs();
        if exact.is_infinite() {
            assert!(of(found).is_infinite());
            return;
        }
        for other in [magnitude.checked_sub(1), Some(magnitude + 1)].into_iter().flatten() {
            if other > largest + 1 {
                continue;
            }
            let even = magnitude & 1 == 0;
            assert!(
                off(magnitude) < off(other) || (off(magnitude) == off(other) && even),
                "{from} {bits:#x}: {found:#x}"
            );
        }
    }

    const TO: [CastDtype; 3] = [CastDtype::F16, CastDtype::BF16, CastDtype::F32];

    #[test]
    fn every_half_is_cast_to_the_nearest() {
        for to in TO {
            for bits in 0..=u64::from(u16::MAX) {
                is_nearest(Dtype::F16, to, bits);
                is_nearest(Dtype::BF16, to, bits);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn every_single_is_cast_to_the_nearest(bits in any::<u32>(), near in -70_000f32..70_000.0) {
            for to in TO {
                is_nearest(Dtype::F32, to, bits.into());
                is_nearest(Dtype::F32, to, near.to_bits().into());
                // Half way between two.
                is_nearest(Dtype::F32, to, u64::from(bits & 0xffff_0000 | 0x8000));
                is_nearest(Dtype::F32, to, u64::from(near.to_bits() & 0xffff_e000 | 0x1000));
            }
        }

        #[test]
        fn every_double_is_cast_by_way_of_the_nearest_single(any in any::<f64>(), near in -70_000f64..70_000.0) {
            for value in [any, near] {
                is_nearest(Dtype::F64, CastDtype::F32, value.to_bits());
                let single = cast(Dtype::F64, CastDtype::F32, &value.to_le_bytes());
                for to in [CastDtype::F16, CastDtype::BF16] {
                    let (loaded, too_large) = cast(Dtype::F32, to, &single.0);
                    prop_assert_eq!(cast(Dtype::F64, to, &value.to_le_bytes()), (loaded, too_large || single.1));
                }
            }
        }
    }

    #[test]
    fn any_number_of_elements_is_cast_and_a_part_of_one_is_left_out() {
        for count in [0usize, 1, 1023, 1024, 1025, 5000] {
            let stored: Vec<u8> =
                (0..count).flat_map(|at| (at as f32).to_le_bytes()).chain([1, 2, 3]).collect();
            let (loaded, too_large) = cast(Dtype::F32, CastDtype::BF16, &stored);
            assert!(!too_large && loaded.len() == count * 2);
            let (back, _) = cast(Dtype::BF16, CastDtype::F32, &loaded);
            for (at, bytes) in back.as_chunks::<4>().0.iter().enumerate() {
                let off = (f32::from_le_bytes(*bytes) - at as f32).abs();
                assert!(off <= at as f32 / 256.0, "{at}");
            }
        }
    }

    #[test]
    fn only_a_finite_value_can_be_too_large() {
        let stored = |value: f32| value.to_le_bytes();
        for (value, too_large) in
            [(f32::INFINITY, false), (f32::NAN, false), (65_519.0, false), (65_520.0, true)]
        {
            assert_eq!(cast(Dtype::F32, CastDtype::F16, &stored(value)).1, too_large, "{value}");
        }
        assert!(cast(Dtype::F32, CastDtype::BF16, &stored(f32::MAX)).1);
        assert!(cast(Dtype::F64, CastDtype::F32, &1e300f64.to_le_bytes()).1);
        assert_eq!(Cast::new(Dtype::I32, CastDtype::F32), None);
    }
}
