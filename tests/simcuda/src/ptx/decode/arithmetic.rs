//! Arithmetic, logic and shuffling of bits.

use super::{Decoded, Decoder, Kind, ones};
use crate::ptx::{Op, syntax::Operand};

impl Decoder {
    /// Arithmetic on 16 bits: on 32, with signs if there are any, and cut again.
    pub(super) fn narrow(
        &mut self,
        name: &str,
        middle: &[&str],
        kind: Kind,
        to: u16,
        slots: &[u16],
    ) -> Decoded {
        let mut slots = slots.to_vec();
        let shift = matches!(name, "shl" | "shr");
        for (at, slot) in slots.iter_mut().enumerate().take(2) {
            if kind.signed && !(shift && at == 1) {
                self.one(Op::Extend16, self.spare[at], *slot);
                self.one(Op::Mask32, self.spare[at], self.spare[at]);
                *slot = self.spare[at];
            }
        }
        let wide = Kind { bits: 32, signed: kind.signed };
        match (name, middle) {
            ("mul", ["wide"]) => return self.arithmetic("mul", &["lo"], wide, to, &slots),
            ("mad", ["wide"]) => return self.arithmetic("mad", &["lo"], wide, to, &slots),
            ("add" | "sub" | "neg" | "not" | "and" | "or" | "xor" | "min" | "max" | "shl" | "shr", [])
            | ("div" | "rem", [])
            | ("mul" | "mad", ["lo"]) => self.arithmetic(name, middle, wide, to, &slots)?,
            _ => return Err(String::new()),
        }
        self.one(Op::Mask16, to, to);
        Ok(())
    }

    /// Arithmetic on 32 or 64 bits, and logic on predicates.
    pub(super) fn arithmetic(
        &mut self,
        name: &str,
        middle: &[&str],
        kind: Kind,
        to: u16,
        slots: &[u16],
    ) -> Decoded {
        let unknown = Err(String::new());
        let [zero, mask] = [self.constant(0)?, self.constant(ones(kind.bits))?];
        let logic = matches!(name, "and" | "or" | "xor" | "not");
        if !(matches!(kind.bits, 32 | 64) || kind.bits == 1 && logic) {
            return unknown;
        }
        let by_sign = |unsigned: Op, narrow: Op, wide: Op| {
            if kind.signed { kind.either(narrow, wide) } else { unsigned }
        };
        let [low, high] = [
            kind.either(Op::Multiply32, Op::Multiply64),
            match kind.signed {
                true => kind.either(Op::MultiplyHighS32, Op::MultiplyHighS64),
                false => kind.either(Op::MultiplyHighU32, Op::MultiplyHighU64),
            },
        ];
        let spare = self.spare[0];
        match (name, middle, slots) {
            ("add" | "sub" | "addc" | "subc", [] | ["cc"], [a, b]) => {
                let op = carrying(name, !middle.is_empty(), kind);
                self.two(op, to, *a, *b);
            }
            ("mul", ["lo"], [a, b]) => self.two(low, to, *a, *b),
            ("mul", ["hi"], [a, b]) => self.two(high, to, *a, *b),
            ("mul", ["wide"], [a, b]) if kind.bits == 32 => {
                let op = if kind.signed { Op::MultiplyWideS32 } else { Op::Multiply64 };
                self.two(op, to, *a, *b);
            }
            ("mad", ["lo"], [a, b, c]) => {
                self.emit(kind.either(Op::MultiplyAdd32, Op::MultiplyAdd64), to, [*a, *b, *c, 0]);
            }
            ("mad", ["wide"], [a, b, c]) if kind.bits == 32 => {
                let op = if kind.signed { Op::MultiplyWideS32 } else { Op::Multiply64 };
                self.two(op, spare, *a, *b);
                self.two(Op::Add64, to, spare, *c);
            }
            ("mad" | "madc", [half @ ("lo" | "hi"), set @ ..], [a, b, c]) if matches!(set, [] | ["cc"]) => {
                self.two(if *half == "lo" { low } else { high }, spare, *a, *b);
                let add = if name == "mad" { "add" } else { "addc" };
                self.two(carrying(add, !set.is_empty(), kind), to, spare, *c);
            }
            ("neg", [], [a]) => self.two(kind.either(Op::Subtract32, Op::Subtract64), to, zero, *a),
            ("abs", [], [a]) if kind.signed => {
                self.two(kind.either(Op::Subtract32, Op::Subtract64), spare, zero, *a);
                self.two(kind.either(Op::MaximumS32, Op::MaximumS64), to, *a, spare);
            }
            ("not", [], [a]) => self.two(Op::Xor, to, *a, mask),
            ("and", [], [a, b]) => self.two(Op::And, to, *a, *b),
            ("or", [], [a, b]) => self.two(Op::Or, to, *a, *b),
            ("xor", [], [a, b]) => self.two(Op::Xor, to, *a, *b),
            ("shl", [], [a, b]) => self.two(kind.either(Op::ShiftLeft32, Op::ShiftLeft64), to, *a, *b),
            ("shr", [], [a, b]) => {
                self.two(by_sign(Op::ShiftRightU, Op::ShiftRightS32, Op::ShiftRightS64), to, *a, *b);
            }
            ("min", [], [a, b]) => {
                self.two(by_sign(Op::MinimumU, Op::MinimumS32, Op::MinimumS64), to, *a, *b);
            }
            ("max", [], [a, b]) => {
                self.two(by_sign(Op::MaximumU, Op::MaximumS32, Op::MaximumS64), to, *a, *b);
            }
            ("div", [], [a, b]) => {
                let unsigned = kind.either(Op::DivideU32, Op::DivideU64);
                self.two(by_sign(unsigned, Op::DivideS32, Op::DivideS64), to, *a, *b);
            }
            ("rem", [], [a, b]) => {
                self.two(by_sign(Op::RemainderU, Op::RemainderS32, Op::RemainderS64), to, *a, *b);
            }
            ("popc", [], [a]) => self.one(Op::CountOnes, to, *a),
            ("clz", [], [a]) => self.one(kind.either(Op::LeadingZeros32, Op::LeadingZeros64), to, *a),
            ("brev", [], [a]) => self.one(kind.either(Op::Reverse32, Op::Reverse64), to, *a),
            _ => return unknown,
        }
        Ok(())
    }

    /// Shuffling of bits and bytes.
    pub(super) fn bits(&mut self, parts: &[&str], to: u16, sources: &[Operand]) -> Decoded {
        let (op, widths): (Op, &[u32]) = match parts {
            ["shf", "l", "wrap", "b32"] => (Op::FunnelLeftWrap, &[32; 3]),
            ["shf", "l", "clamp", "b32"] => (Op::FunnelLeftClamp, &[32; 3]),
            ["shf", "r", "wrap", "b32"] => (Op::FunnelRightWrap, &[32; 3]),
            ["shf", "r", "clamp", "b32"] => (Op::FunnelRightClamp, &[32; 3]),
            ["prmt", "b32"] => (Op::Permute, &[32; 3]),
            ["bfe", "u32"] => (Op::ExtractU32, &[32; 3]),
            ["bfe", "s32"] => (Op::ExtractS32, &[32; 3]),
            ["bfe", "u64"] => (Op::ExtractU64, &[64, 32, 32]),
            ["bfe", "s64"] => (Op::ExtractS64, &[64, 32, 32]),
            ["bfi", "b32"] => (Op::Insert32, &[32; 4]),
            ["bfi", "b64"] => (Op::Insert64, &[64, 64, 32, 32]),
            ["lop3", "b32"] => (Op::Logic3, &[32; 4]),
            _ => return Err(String::new()),
        };
        if sources.len() != widths.len() {
            return Err(String::new());
        }
        let mut slots = [0; 4];
        for ((slot, source), bits) in slots.iter_mut().zip(sources).zip(widths) {
            *slot = self.source(source, *bits)?;
        }
        self.emit(op, to, slots);
        Ok(())
    }
}

/// Addition or subtraction that uses or sets the carry.
fn carrying(name: &str, sets: bool, kind: Kind) -> Op {
    match (name, sets) {
        ("add", false) => kind.either(Op::Add32, Op::Add64),
        ("add", true) => kind.either(Op::AddSet32, Op::AddSet64),
        ("addc", false) => kind.either(Op::AddUse32, Op::AddUse64),
        ("addc", true) => kind.either(Op::AddUseSet32, Op::AddUseSet64),
        ("sub", false) => kind.either(Op::Subtract32, Op::Subtract64),
        ("sub", true) => kind.either(Op::SubtractSet32, Op::SubtractSet64),
        (_, false) => kind.either(Op::SubtractUse32, Op::SubtractUse64),
        (_, true) => kind.either(Op::SubtractUseSet32, Op::SubtractUseSet64),
    }
}
