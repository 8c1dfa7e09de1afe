//! Data types and reductions, by the numbers of `nccl.h`.

use super::refusal::Refusal;
use nccl_rs::sys::{data_type, reduction};
use std::ffi::c_int;

/// Bytes of an element of this type.
pub(super) fn element_bytes(data_type: c_int) -> Result<usize, Refusal> {
    match data_type {
        data_type::INT8 | data_type::UINT8 | data_type::FLOAT8_E4M3 | data_type::FLOAT8_E5M2 => Ok(1),
        data_type::FLOAT16 | data_type::BFLOAT16 => Ok(2),
        data_type::INT32 | data_type::UINT32 | data_type::FLOAT32 => Ok(4),
        data_type::INT64 | data_type::UINT64 | data_type::FLOAT64 => Ok(8),
        other => Err(Refusal::argument(format!("data type {other} does not exist"))),
    }
}

/// Combines `from` into `into`, element by element; both hold as many bytes.
pub(super) fn combine(
    data_type: c_int,
    reduction: c_int,
    into: &mut [u8],
    from: &[u8],
) -> Result<(), Refusal> {
    macro_rules! with {
        ($kind:ty, $sum:expr, $product:expr) => {
            each::<$kind, { size_of::<$kind>() }>(
                into,
                from,
                <$kind>::from_ne_bytes,
                <$kind>::to_ne_bytes,
                match reduction {
                    reduction::SUM => $sum,
                    reduction::PROD => $product,
                    reduction::MAX => |a, b| if b > a { b } else { a },
                    reduction::MIN => |a, b| if b < a { b } else { a },
                    other => return Err(Refusal::argument(format!("reduction {other} is not simulated"))),
                },
            )
        };
    }
    macro_rules! integer {
        ($kind:ty) => {
            with!($kind, <$kind>::wrapping_add, <$kind>::wrapping_mul)
        };
    }
    match data_type {
        data_type::INT8 => integer!(i8),
        data_type::UINT8 => integer!(u8),
        data_type::INT32 => integer!(i32),
        data_type::UINT32 => integer!(u32),
        data_type::INT64 => integer!(i64),
        data_type::UINT64 => integer!(u64),
        data_type::FLOAT32 => with!(f32, |a, b| a + b, |a, b| a * b),
        data_type::FLOAT64 => with!(f64, |a, b| a + b, |a, b| a * b),
        other => return Err(Refusal::argument(format!("arithmetic of data type {other} is not simulated"))),
    }
    Ok(())
}

/// Whether [`combine`] can do it.
pub(super) fn check(data_type: c_int, reduction: c_int) -> Result<(), Refusal> {
    combine(data_type, reduction, &mut [], &[])
}

fn each<T: Copy, const BYTES: usize>(
    into: &mut [u8],
    from: &[u8],
    read: fn([u8; BYTES]) -> T,
    write: fn(T) -> [u8; BYTES],
    with: fn(T, T) -> T,
) {
    for (into, from) in into.as_chunks_mut::<BYTES>().0.iter_mut().zip(from.as_chunks::<BYTES>().0) {
        *into = write(with(read(*into), read(*from)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined<const N: usize>(data_type: c_int, reduction: c_int, [into, from]: [[u8; N]; 2]) -> [u8; N] {
        let mut into = into;
        combine(data_type, reduction, &mut into, &from).unwrap();
        into
    }

    #[test]
    fn integers_wrap_and_keep_their_signs() {
        let unsigned = [u64::MAX, 3].map(u64::to_ne_bytes);
        assert_eq!(combined(data_type::UINT64, reduction::SUM, unsigned), 2_u64.to_ne_bytes());
        assert_eq!(combined(data_type::UINT64, reduction::MAX, unsigned), u64::MAX.to_ne_bytes());
        let signed = [-1_i64, 3].map(i64::to_ne_bytes);
        assert_eq!(combined(data_type::INT64, reduction::MAX, signed), 3_i64.to_ne_bytes());
        assert_eq!(combined(data_type::INT64, reduction::MIN, signed), (-1_i64).to_ne_bytes());
        assert_eq!(combined(data_type::INT8, reduction::PROD, [[0xff, 2], [3, 0xfe]]), [0xfd, 0xfc]);
    }

    #[test]
    fn floats_are_added_as_floats() {
        let floats = [1.5_f32, -0.25].map(f32::to_ne_bytes);
        assert_eq!(combined(data_type::FLOAT32, reduction::SUM, floats), 1.25_f32.to_ne_bytes());
        assert_eq!(combined(data_type::FLOAT32, reduction::MIN, floats), (-0.25_f32).to_ne_bytes());
    }

    #[test]
    fn what_is_not_simulated_is_refused() {
        for (data_type, reduction) in [
            (data_type::FLOAT16, 0),
            (data_type::INT8, reduction::AVG),
            (12, 0),
            (-1, 0),
            (0, -1),
            (0, c_int::MAX),
        ] {
            assert!(check(data_type, reduction).is_err(), "{data_type} {reduction}");
        }
        assert!(element_bytes(12).is_err() && element_bytes(-1).is_err());
    }
}
