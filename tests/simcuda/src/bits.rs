//! Operations on bits that have a name in PTX, but none in Rust.

/// Four bytes of eight, chosen by four digits; a digit of 8 or more spreads the byte's sign.
pub(crate) fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let from = (u64::from(b) << 32 | u64::from(a)).to_le_bytes();
    let byte = |at: u32| {
        let digit = selector >> (4 * at);
        let byte = from[(digit & 7) as usize];
        if digit & 8 != 0 { (byte.cast_signed() >> 7).cast_unsigned() } else { byte }
    };
    u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// Bits of `value` from `position` on.
pub(crate) fn extract_unsigned(value: u64, position: u64, len: u64, bits: u64) -> u64 {
    let (position, len) = (position & 0xff, len & 0xff);
    if position >= bits || len == 0 {
        return 0;
    }
    value >> position & (u64::MAX >> (64 - len.min(bits)))
}

/// The same with the sign of the field's highest bit; `value` is extended to 64 bits.
pub(crate) fn extract_signed(value: i64, position: u64, len: u64, bits: u64) -> u64 {
    let (position, len) = (position & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    let last = (position + len - 1).min(bits - 1);
    let above = 63 - last;
    ((value << above) >> (above + position.min(last))).cast_unsigned()
        | if position > last { (value >> (bits - 1)).cast_unsigned() } else { 0 }
}

/// The low `len` bits of `from` in place of those of `into` from `position` on.
pub(crate) fn insert(from: u64, into: u64, position: u64, len: u64) -> u64 {
    let (position, len) = (position & 0xff, len & 0xff);
    if position >= 64 || len == 0 {
        return into;
    }
    let mask = (u64::MAX >> (64 - len.min(64))) << position;
    into & !mask | (from << position) & mask
}

/// The function of three bits whose results are the bits of `table`.
pub(crate) fn logic(a: u64, b: u64, c: u64, table: u64) -> u64 {
    let one = |at: u64| {
        let choose = |word: u64, bit: u64| if at >> bit & 1 == 1 { word } else { !word };
        if table >> at & 1 == 1 { choose(a, 2) & choose(b, 1) & choose(c, 0) } else { 0 }
    };
    (0..8).fold(0, |all, at| all | one(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `bfe` and `bfi` bit by bit, as the PTX manual writes them.
    fn plain_extract(value: u64, position: u64, len: u64, bits: u64, signed: bool) -> u64 {
        let bit = |at: u64| value >> at & 1;
        let last = bits - 1;
        let sign = if !signed || len == 0 { 0 } else { bit((position + len - 1).min(last)) };
        let one = |at: u64| if at < len && position + at <= last { bit(position + at) } else { sign };
        (0..bits).fold(0, |all, at| all | one(at) << at)
    }

    fn plain_insert(from: u64, into: u64, position: u64, len: u64, bits: u64) -> u64 {
        let taken = |at: u64| at >= position && at - position < len;
        let one = |at: u64| if taken(at) { from >> (at - position) & 1 } else { into >> at & 1 };
        (0..bits).fold(0, |all, at| all | one(at) << at)
    }

    #[test]
    fn fields_are_those_of_the_manual() {
        let words = [0, 1, u64::MAX, 0x89ab_cdef_0123_4567, 1 << 63, 0xffff_ffff, 0x8000_0000];
        let places = [0, 1, 7, 31, 32, 33, 63, 64, 200, 255];
        for (word, other) in words.iter().flat_map(|word| words.iter().map(move |other| (*word, *other))) {
            for (position, len) in
                places.iter().flat_map(|place| places.iter().map(move |len| (*place, *len)))
            {
                let (half, other_half) = (word & 0xffff_ffff, other & 0xffff_ffff);
                let extended = i64::from(u32::try_from(half).unwrap().cast_signed());
                let of = format!("{word:#x} {other:#x} {position} {len}");
                assert_eq!(
                    extract_unsigned(word, position, len, 64),
                    plain_extract(word, position, len, 64, false),
                    "{of}"
                );
                assert_eq!(
                    extract_unsigned(half, position, len, 32),
                    plain_extract(half, position, len, 32, false),
                    "{of}"
                );
                assert_eq!(
                    extract_signed(word.cast_signed(), position, len, 64),
                    plain_extract(word, position, len, 64, true),
                    "{of}"
                );
                assert_eq!(
                    extract_signed(extended, position, len, 32) & 0xffff_ffff,
                    plain_extract(half, position, len, 32, true),
                    "{of}"
                );
                assert_eq!(
                    insert(word, other, position, len),
                    plain_insert(word, other, position, len, 64),
                    "{of}"
                );
                assert_eq!(
                    insert(half, other_half, position, len) & 0xffff_ffff,
                    plain_insert(half, other_half, position, len, 32),
                    "{of}"
                );
            }
        }
    }

    #[test]
    fn bytes_are_chosen_by_digits_and_bits_by_a_table() {
        assert_eq!(permute(0x8899_aabb, 0x0011_2233, 0x7410), 0x0033_aabb);
        assert_eq!(permute(0x8899_aabb, 0x0011_2233, 0xfb80), 0x00ff_ffbb);
        let (a, b, c) = (0xf0, 0xcc, 0xaa);
        assert_eq!(logic(a, b, c, 0x80) & 0xff, a & b & c);
        assert_eq!(logic(a, b, c, 0x96) & 0xff, a ^ b ^ c);
        assert_eq!(logic(a, b, c, 0xe8) & 0xff, (a & b) | (a & c) | (b & c));
    }
}
