//! Accesses to memory and parameters.

use super::{Decoded, Decoder, Kind};
use crate::ptx::{
    Atomic, Op, ParameterLoad,
    syntax::{Operand, bits_of},
};

impl Decoder {
    /// Slots of an address and its offset.
    fn address(&mut self, operand: &Operand) -> Decoded<[u16; 2]> {
        let Operand::Address { base, offset } = operand else { return Err("an address expected".into()) };
        Ok([self.source(base, 64)?, self.constant(offset.cast_unsigned())?])
    }

    pub(super) fn load(&mut self, space: &[&str], kind: &str, to: &Operand, from: &Operand) -> Decoded {
        let kind = Kind {
            bits: bits_of(kind).filter(|b| *b >= 8).ok_or_else(String::new)?,
            signed: kind.starts_with('s'),
        };
        if space.contains(&"param") {
            return self.load_parameter(space, kind, to, from);
        }
        let parts = vector(space, to)?;
        let [address, offset] = self.address(from)?;
        self.check_vector(parts.len(), kind, [address, offset])?;
        let op = match kind.bits {
            8 => Op::Load8,
            16 => Op::Load16,
            32 => Op::Load32,
            _ => Op::Load64,
        };
        let mut loads = Vec::new();
        for (part, at) in parts.iter().zip(0_u64..) {
            let Operand::Register(register) = part else { return Err(String::new()) };
            let offset = self.offset_more(offset, at * u64::from(kind.bits / 8))?;
            loads.push((*register, Self::register(*register)?, offset));
        }
        // The register that the address is in comes last.
        loads.sort_by_key(|(_, slot, _)| *slot == address);
        for (register, slot, offset) in loads {
            self.two(op, slot, address, offset);
            if kind.signed && kind.bits < register.bits {
                self.widen(slot, slot, kind);
                self.cut(slot, register.bits);
            }
        }
        Ok(())
    }

    fn load_parameter(&mut self, space: &[&str], kind: Kind, to: &Operand, from: &Operand) -> Decoded {
        let Operand::Address { base, offset } = from else { return Err(String::new()) };
        let space: Vec<&str> = space.iter().copied().filter(|word| *word != "param").collect();
        let parts = vector(&space, to)?;
        let Operand::Name(name) = &**base else { return Err("a parameter expected".into()) };
        let place = self.parameters.iter().find(|parameter| parameter.name == *name);
        let place = place.ok_or_else(|| format!("no parameter `{name}`"))?;
        let (len, offset) = (kind.bits as usize / 8, usize::try_from(*offset).map_err(|_| String::new())?);
        let end = offset.checked_add(len * parts.len());
        if end.is_none_or(|end| end > place.len) {
            return Err(format!("past the end of `{name}`"));
        }
        let first = place.offset + offset;
        for (part, offset) in parts.iter().zip((first..).step_by(len)) {
            let Operand::Register(register) = part else { return Err(String::new()) };
            let slot = self.slot()?;
            let signed_bits = kind.signed.then_some(register.bits);
            self.loads.push(ParameterLoad { slot, offset, len, signed_bits });
            let to = Self::register(*register)?;
            self.one(Op::Move, to, slot);
        }
        Ok(())
    }

    pub(super) fn store(&mut self, space: &[&str], kind: &str, to: &Operand, from: &Operand) -> Decoded {
        let kind =
            Kind { bits: bits_of(kind).filter(|bits| *bits >= 8).ok_or_else(String::new)?, signed: false };
        let parts = vector(space, from)?;
        let [address, offset] = self.address(to)?;
        self.check_vector(parts.len(), kind, [address, offset])?;
        let op = match kind.bits {
            8 => Op::Store8,
            16 => Op::Store16,
            32 => Op::Store32,
            _ => Op::Store64,
        };
        for (part, at) in parts.iter().zip(0_u64..) {
            let value = self.source(part, kind.bits)?;
            let offset = self.offset_more(offset, at * u64::from(kind.bits / 8))?;
            self.emit(op, 0, [address, offset, value, 0]);
        }
        Ok(())
    }

    fn check_vector(&mut self, count: usize, kind: Kind, [address, offset]: [u16; 2]) -> Decoded {
        if count > 1 {
            let align = self.constant(count as u64 * u64::from(kind.bits / 8))?;
            self.emit(Op::Aligned, 0, [address, offset, align, 0]);
        }
        Ok(())
    }

    /// The slot of a constant that is `more` than that of `slot`.
    fn offset_more(&mut self, slot: u16, more: u64) -> Decoded<u16> {
        let value = self.constants.iter().find(|(_, known)| **known == slot).map(|(value, _)| *value);
        self.constant(value.unwrap_or_default().wrapping_add(more))
    }

    pub(super) fn atomic(
        &mut self,
        middle: &[&str],
        kind: &str,
        to: u16,
        at: &Operand,
        values: &[Operand],
    ) -> Decoded {
        let kind = Kind::of(kind).filter(|kind| matches!(kind.bits, 32 | 64)).ok_or_else(String::new)?;
        let is_modifier = |word: &&str| {
            matches!(
                *word,
                "global" | "relaxed" | "acquire" | "release" | "acq_rel" | "cta" | "gpu" | "sys" | "cluster"
            )
        };
        let names: Vec<&str> = middle.iter().copied().filter(|word| !is_modifier(word)).collect();
        let [address, offset] = self.address(at)?;
        let operation = match (names.as_slice(), kind.signed) {
            (["cas"], _) => {
                let [expected, new] = values else { return Err(String::new()) };
                let (expected, new) = (self.source(expected, kind.bits)?, self.source(new, kind.bits)?);
                let op = kind.either(Op::CompareAndSwap32, Op::CompareAndSwap64);
                self.emit(op, to, [address, offset, expected, new]);
                return Ok(());
            }
            (["add"], _) => Atomic::Add,
            (["min"], false) => Atomic::MinimumU,
            (["max"], false) => Atomic::MaximumU,
            (["min"], true) => Atomic::MinimumS,
            (["max"], true) => Atomic::MaximumS,
            (["and"], _) => Atomic::And,
            (["or"], _) => Atomic::Or,
            (["xor"], _) => Atomic::Xor,
            (["exch"], _) => Atomic::Exchange,
            _ => return Err(String::new()),
        };
        let [value] = values else { return Err(String::new()) };
        let value = self.source(value, kind.bits)?;
        self.emit(kind.either(Op::Atomic32, Op::Atomic64), to, [address, offset, value, operation as u16]);
        Ok(())
    }
}

/// The values of an access, and whether its modifiers allow it at all.
fn vector(space: &[&str], value: &Operand) -> Decoded<Vec<Operand>> {
    let mut count = 1;
    for word in space {
        match *word {
            "global" | "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "volatile" | "weak"
            | "relaxed" | "acquire" | "release" | "cta" | "gpu" | "sys" | "cluster" => {}
            "v2" => count = 2,
            "v4" => count = 4,
            _ if word.starts_with("L1::") || word.starts_with("L2::") => {}
            _ => return Err(String::new()),
        }
    }
    match value {
        Operand::Vector(parts) if parts.len() == count => Ok(parts.clone()),
        _ if count == 1 => Ok(vec![value.clone()]),
        _ => Err(String::new()),
    }
}
