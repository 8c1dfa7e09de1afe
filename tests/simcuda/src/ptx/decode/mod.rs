//! From statements to instructions.
//!
//! In: an entry as it is written. Out: a [`Kernel`]. Every operand becomes a slot; what has no instruction of its own becomes
//! several. An opcode that isn't known in all its parts is refused by name.

mod access;
mod arithmetic;

use super::{
    Instruction, Kernel, Op, Parameter, ParameterLoad, SLOTS, SPECIALS, Special, Unknown,
    syntax::{Entry, Operand, Register, Statement, bits_of},
};
use std::collections::HashMap;

/// Why a statement can't be decoded: what is unknown in it.
type Decoded<T = ()> = Result<T, String>;

/// A type: how many bits, and whether they are signed.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    bits: u32,
    signed: bool,
}

impl Kind {
    /// A whole number's type.
    fn of(text: &str) -> Option<Self> {
        let bits = bits_of(text)?;
        (!text.starts_with('f')).then_some(Self { bits, signed: text.starts_with('s') })
    }

    /// One of two by its width, which is 32 or 64.
    fn either(self, narrow: Op, wide: Op) -> Op {
        if self.bits == 64 { wide } else { narrow }
    }
}

/// All ones in the low `bits`.
fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

struct Decoder {
    parameters: Vec<Parameter>,
    code: Vec<Instruction>,
    slots: usize,
    constants: HashMap<u64, u16>,
    loads: Vec<ParameterLoad>,
    specials: Vec<(Special, u16)>,
    /// Slots for what comes in between.
    spare: [u16; 4],
    /// Branches whose target is still a label.
    branches: Vec<(usize, String, usize)>,
}

/// Decodes an entry.
pub(super) fn kernel(entry: Entry) -> Result<Kernel, Unknown> {
    let mut decoder = Decoder {
        parameters: entry.parameters,
        code: Vec::new(),
        slots: entry.registers,
        constants: HashMap::new(),
        loads: Vec::new(),
        specials: Vec::new(),
        spare: [0; 4],
        branches: Vec::new(),
    };
    let too_large = || Unknown { line: 1, what: format!("`{}` is too large", entry.name) };
    for spare in 0..decoder.spare.len() {
        decoder.spare[spare] = decoder.slot().map_err(|_| too_large())?;
    }
    let mut starts = Vec::with_capacity(entry.statements.len() + 1);
    for statement in &entry.statements {
        starts.push(decoder.code.len());
        let unknown = |what| Unknown { line: statement.line, what };
        decoder.statement(statement).map_err(unknown)?;
    }
    starts.push(decoder.code.len());
    decoder.emit(Op::Return, 0, [0; 4]);
    for (at, label, line) in std::mem::take(&mut decoder.branches) {
        let unknown = || Unknown { line, what: format!("no label `{label}`") };
        let target = entry.labels.get(&label).and_then(|statement| starts.get(*statement));
        decoder.code[at].d = u16::try_from(*target.ok_or_else(unknown)?).map_err(|_| too_large())?;
    }
    if decoder.code.len() > usize::from(u16::MAX) {
        return Err(too_large());
    }
    Ok(Kernel {
        name: entry.name,
        parameters: decoder.parameters,
        parameter_bytes: entry.parameter_bytes,
        most_threads: entry.most_threads,
        registers: entry.registers,
        code: decoder.code,
        constants: decoder.constants.into_iter().map(|(value, slot)| (slot, value)).collect(),
        loads: decoder.loads,
        specials: decoder.specials,
    })
}

impl Decoder {
    fn slot(&mut self) -> Decoded<u16> {
        if self.slots >= SLOTS {
            return Err(format!("more than {SLOTS} registers and constants"));
        }
        self.slots += 1;
        u16::try_from(self.slots - 1).map_err(|_| "too many slots".into())
    }

    fn constant(&mut self, value: u64) -> Decoded<u16> {
        if let Some(slot) = self.constants.get(&value) {
            return Ok(*slot);
        }
        let slot = self.slot()?;
        self.constants.insert(value, slot);
        Ok(slot)
    }

    fn emit(&mut self, op: Op, d: u16, [a, b, c, e]: [u16; 4]) {
        self.code.push(Instruction { op, d, a, b, c, e });
    }

    fn two(&mut self, op: Op, d: u16, a: u16, b: u16) {
        self.emit(op, d, [a, b, 0, 0]);
    }

    fn one(&mut self, op: Op, d: u16, a: u16) {
        self.emit(op, d, [a, 0, 0, 0]);
    }

    fn register(register: Register) -> Decoded<u16> {
        u16::try_from(register.number).map_err(|_| "too many registers".into())
    }

    /// The slot of an operand that is read as `bits` bits.
    fn source(&mut self, operand: &Operand, bits: u32) -> Decoded<u16> {
        match operand {
            Operand::Register(register) => Self::register(*register),
            Operand::Number(value) => self.constant(value & ones(bits)),
            Operand::Name(name) => {
                let special = SPECIALS.iter().find(|(known, _)| known == name).map(|(_, special)| *special);
                let special = special.ok_or_else(|| format!("unknown name `{name}`"))?;
                if let Some((_, slot)) = self.specials.iter().find(|(known, _)| *known == special) {
                    return Ok(*slot);
                }
                let slot = self.slot()?;
                self.specials.push((special, slot));
                Ok(slot)
            }
            Operand::Not(register) => {
                let (slot, one, spare) = (Self::register(*register)?, self.constant(1)?, self.spare[3]);
                self.two(Op::Xor, spare, slot, one);
                Ok(spare)
            }
            Operand::Pair(..) | Operand::Address { .. } | Operand::Vector(_) => {
                Err("an operand that is no value".into())
            }
        }
    }

    fn target(operand: &Operand) -> Decoded<u16> {
        match operand {
            Operand::Register(register) => Self::register(*register),
            _ => Err("a result that is no register".into()),
        }
    }

    fn statement(&mut self, statement: &Statement) -> Decoded {
        let opcode = statement.opcode.as_str();
        let parts: Vec<&str> = opcode.split('.').collect();
        if let ["bra", rest @ ..] = parts.as_slice() {
            let ([Operand::Name(label)], [] | ["uni"]) = (statement.operands.as_slice(), rest) else {
                return Err(format!("unsupported `{opcode}`"));
            };
            self.branches.push((self.code.len(), label.clone(), statement.line));
            match statement.guard {
                None => self.emit(Op::Branch, 0, [0; 4]),
                Some((guard, opposite)) => self.branch_on(guard, !opposite)?,
            }
            return Ok(());
        }
        let skip = self.code.len();
        if let Some((guard, opposite)) = statement.guard {
            self.branch_on(guard, opposite)?;
        }
        // What is unknown further in says so itself; the rest is the opcode.
        self.unguarded(&parts, &statement.operands).map_err(|what| match what.is_empty() {
            true => format!("unsupported `{opcode}` with {} operands", statement.operands.len()),
            false => format!("unsupported `{opcode}`: {what}"),
        })?;
        if statement.guard.is_some() {
            self.code[skip].d = u16::try_from(self.code.len()).map_err(|_| "too much code")?;
        }
        Ok(())
    }

    fn branch_on(&mut self, guard: Register, if_true: bool) -> Decoded {
        let op = if if_true { Op::BranchIf } else { Op::BranchUnless };
        let guard = Self::register(guard)?;
        self.one(op, 0, guard);
        Ok(())
    }

    /// An empty error stands for the opcode as a whole.
    fn unguarded(&mut self, parts: &[&str], operands: &[Operand]) -> Decoded {
        let unknown = || Err(String::new());
        match (parts, operands) {
            (["ret" | "exit"], []) => self.emit(Op::Return, 0, [0; 4]),
            (["trap"], []) => self.emit(Op::Trap, 0, [0; 4]),
            // Threads don't depend on each other's writes, so fences order nothing.
            (["membar" | "fence", ..], []) => {}
            (["ld", space @ .., kind], [to, from]) => self.load(space, kind, to, from)?,
            (["st", space @ .., kind], [to, from]) => self.store(space, kind, to, from)?,
            (["atom", middle @ .., kind], [to, at, values @ ..]) => {
                let to = Self::target(to)?;
                self.atomic(middle, kind, to, at, values)?;
            }
            (["red", middle @ .., kind], [at, values @ ..]) => {
                self.atomic(middle, kind, self.spare[0], at, values)?;
            }
            (["cvta", "to", "global", "u64"] | ["cvta", "global", "u64"], [to, from]) => {
                let (to, from) = (Self::target(to)?, self.source(from, 64)?);
                self.one(Op::Move, to, from);
            }
            (["mov", kind], [to, from]) => self.moves(kind, to, from)?,
            (["cvt", to_kind, from_kind], [to, from]) => self.convert(to_kind, from_kind, to, from)?,
            (["setp", comparison, kind], [to, a, b]) => self.compare(comparison, None, kind, to, [a, b])?,
            (["setp", comparison, combine, kind], [to, a, b, c]) => {
                self.compare(comparison, Some((combine, c)), kind, to, [a, b])?;
            }
            (["selp", kind], [to, a, b, c]) => {
                let Some(kind) = Kind::of(kind) else { return unknown() };
                let (a, b) = (self.source(a, kind.bits)?, self.source(b, kind.bits)?);
                let (c, to) = (self.source(c, 1)?, Self::target(to)?);
                self.emit(Op::Select, to, [a, b, c, 0]);
            }
            (["shf", ..] | ["prmt", ..] | ["bfe", ..] | ["bfi", ..] | ["lop3", ..], [to, sources @ ..]) => {
                let to = Self::target(to)?;
                self.bits(parts, to, sources)?;
            }
            ([name, middle @ .., kind], [to, sources @ ..]) => {
                let Some(kind) = Kind::of(kind) else { return unknown() };
                let to = Self::target(to)?;
                let mut slots = Vec::new();
                for (at, source) in sources.iter().enumerate() {
                    // The third of `mad.wide` is as wide as the result; a shift's second has 32 bits.
                    let bits = match *name {
                        "mad" | "madc" if middle.contains(&"wide") && at == 2 => kind.bits * 2,
                        "shl" | "shr" if at == 1 => 32,
                        _ => kind.bits,
                    };
                    slots.push(self.source(source, bits)?);
                }
                if kind.bits == 16 {
                    self.narrow(name, middle, kind, to, &slots)?;
                } else {
                    self.arithmetic(name, middle, kind, to, &slots)?;
                }
            }
            _ => return unknown(),
        }
        Ok(())
    }

    fn moves(&mut self, kind: &str, to: &Operand, from: &Operand) -> Decoded {
        let bits = bits_of(kind).filter(|bits| *bits != 8).ok_or_else(String::new)?;
        match (to, from) {
            (Operand::Vector(parts), from) => {
                let from = self.source(from, bits)?;
                let part_bits = part_bits(parts, bits)?;
                // Moved away first: one of the parts may be where it comes from.
                self.one(Op::Move, self.spare[0], from);
                for (part, shift) in parts.iter().zip((0..).step_by(part_bits as usize)) {
                    let (to, shift) = (Self::target(part)?, self.constant(shift)?);
                    let mask = self.constant(ones(part_bits))?;
                    self.two(Op::ShiftRightU, self.spare[1], self.spare[0], shift);
                    self.two(Op::And, to, self.spare[1], mask);
                }
            }
            (to, Operand::Vector(parts)) => {
                let to = Self::target(to)?;
                let part_bits = part_bits(parts, bits)?;
                let zero = self.constant(0)?;
                self.one(Op::Move, self.spare[0], zero);
                for (part, shift) in parts.iter().zip((0..).step_by(part_bits as usize)) {
                    let (part, shift) = (self.source(part, part_bits)?, self.constant(shift)?);
                    self.two(Op::ShiftLeft64, self.spare[1], part, shift);
                    self.two(Op::Or, self.spare[0], self.spare[0], self.spare[1]);
                }
                self.one(Op::Move, to, self.spare[0]);
            }
            (to, from) => {
                let (to, from) = (Self::target(to)?, self.source(from, bits)?);
                self.one(Op::Move, to, from);
            }
        }
        Ok(())
    }

    fn convert(&mut self, to_kind: &str, from_kind: &str, to: &Operand, from: &Operand) -> Decoded {
        let (Some(to_kind), Some(from_kind)) = (Kind::of(to_kind), Kind::of(from_kind)) else {
            return Err(String::new());
        };
        let Operand::Register(register) = to else { return Err(String::new()) };
        let from = self.source(from, from_kind.bits)?;
        let to = Self::register(*register)?;
        if register.bits == to_kind.bits && to_kind.bits <= from_kind.bits {
            // Nothing is kept but the low bits, whatever the signs.
            let op = match to_kind.bits {
                16 => Op::Mask16,
                32 => Op::Mask32,
                _ => Op::Move,
            };
            self.one(op, to, from);
            return Ok(());
        }
        // As wide as the source says, then cut to the result's type, then as wide as its register.
        self.widen(to, from, from_kind);
        if to_kind.bits < from_kind.bits || to_kind.bits < register.bits {
            self.widen(to, to, to_kind);
        }
        if from_kind.signed || to_kind.signed {
            self.cut(to, register.bits);
        }
        Ok(())
    }

    /// Makes 64 bits of a value of `kind`.
    fn widen(&mut self, to: u16, from: u16, kind: Kind) {
        let op = match (kind.bits, kind.signed) {
            (8, true) => Op::Extend8,
            (16, true) => Op::Extend16,
            (32, true) => Op::Extend32,
            (8, false) => Op::Mask8,
            (16, false) => Op::Mask16,
            (32, false) => Op::Mask32,
            _ if to == from => return,
            _ => Op::Move,
        };
        self.one(op, to, from);
    }

    fn cut(&mut self, slot: u16, bits: u32) {
        match bits {
            16 => self.one(Op::Mask16, slot, slot),
            32 => self.one(Op::Mask32, slot, slot),
            _ => {}
        }
    }

    fn compare(
        &mut self,
        comparison: &str,
        combine: Option<(&str, &Operand)>,
        kind: &str,
        to: &Operand,
        [a, b]: [&Operand; 2],
    ) -> Decoded {
        let kind = Kind::of(kind).filter(|kind| kind.bits >= 16).ok_or_else(String::new)?;
        let (mut a, mut b) = (self.source(a, kind.bits)?, self.source(b, kind.bits)?);
        let mut signed = kind.signed;
        let (swap, less) = match comparison {
            "eq" | "ne" => (false, false),
            "lt" | "lo" => (false, true),
            "le" | "ls" => (false, false),
            "gt" | "hi" => (true, true),
            "ge" | "hs" => (true, false),
            _ => return Err(String::new()),
        };
        signed &= !matches!(comparison, "lo" | "ls" | "hi" | "hs");
        if signed && kind.bits == 16 {
            for (slot, spare) in [(&mut a, self.spare[0]), (&mut b, self.spare[1])] {
                self.one(Op::Extend16, spare, *slot);
                *slot = spare;
            }
        }
        if swap {
            std::mem::swap(&mut a, &mut b);
        }
        let op = match (comparison, less, signed, kind.bits) {
            ("eq", ..) => Op::Equal,
            ("ne", ..) => Op::NotEqual,
            (_, true, false, _) => Op::LessU,
            (_, false, false, _) => Op::LessOrEqualU,
            (_, true, true, 32) => Op::LessS32,
            (_, false, true, 32) => Op::LessOrEqualS32,
            (_, true, true, _) => Op::LessS64,
            (_, false, true, _) => Op::LessOrEqualS64,
        };
        let (first, second) = match to {
            Operand::Register(first) => (*first, None),
            Operand::Pair(first, second) => (*first, Some(*second)),
            _ => return Err("a result that is no predicate".into()),
        };
        let first = Self::register(first)?;
        let result = self.spare[2];
        self.two(op, if combine.is_none() && second.is_none() { first } else { result }, a, b);
        if combine.is_none() && second.is_none() {
            return Ok(());
        }
        let combined = match combine {
            None => None,
            Some((how, with)) => {
                let op = match how {
                    "and" => Op::And,
                    "or" => Op::Or,
                    "xor" => Op::Xor,
                    _ => return Err(String::new()),
                };
                // Kept, since the first result may be where it comes from.
                let with = self.source(with, 1)?;
                self.one(Op::Move, self.spare[3], with);
                Some(op)
            }
        };
        let one = self.constant(1)?;
        let both = [Some((first, false)), second.map(Self::register).transpose()?.map(|slot| (slot, true))];
        for (to, opposite) in both.into_iter().flatten() {
            if opposite {
                self.two(Op::Xor, result, result, one);
            }
            match combined {
                Some(op) => self.two(op, to, result, self.spare[3]),
                None => self.one(Op::Move, to, result),
            }
        }
        Ok(())
    }
}

/// How wide each part of a register is that is put together or taken apart.
fn part_bits(parts: &[Operand], bits: u32) -> Decoded<u32> {
    match (parts.len(), bits) {
        (2, 32 | 64) => Ok(bits / 2),
        (4, 64) => Ok(16),
        _ => Err(String::new()),
    }
}
