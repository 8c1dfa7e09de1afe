//! Statements: what the words of a PTX text mean for each other.
//!
//! Registers are resolved here, since their names belong to blocks; labels are not.

use super::{Parameter, Refusal, TARGET, Unknown, tokens::Token};
use crate::settings;
use std::collections::HashMap;

/// A register: its number among all of the entry, and its bits (1 for predicates).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Register {
    pub(super) number: usize,
    pub(super) bits: u32,
}

/// What an instruction works with.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Register(Register),
    /// `!%p1`.
    Not(Register),
    /// `%p1|%p2`.
    Pair(Register, Register),
    Number(u64),
    /// A label, a parameter, a special register.
    Name(String),
    /// `[base+offset]`.
    Address {
        base: Box<Operand>,
        offset: i64,
    },
    /// `{a, b}`.
    Vector(Vec<Operand>),
}

/// An instruction as it is written.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: usize,
    /// The predicate it depends on, and whether on its opposite.
    pub(super) guard: Option<(Register, bool)>,
    pub(super) opcode: String,
    pub(super) operands: Vec<Operand>,
}

/// An entry as it is written.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) parameters: Vec<Parameter>,
    pub(super) parameter_bytes: usize,
    pub(super) most_threads: u32,
    pub(super) registers: usize,
    pub(super) statements: Vec<Statement>,
    /// Which statement a label stands before.
    pub(super) labels: HashMap<String, usize>,
}

type Read<T> = Result<T, Unknown>;

/// Reads tokens in order.
pub(super) struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    /// Names of registers, the innermost block last.
    scopes: Vec<HashMap<String, Registers>>,
    registers: usize,
}

/// What one name of a declaration stands for: `%r<5>` is five.
#[derive(Clone, Copy)]
struct Registers {
    first: usize,
    /// `None` if the name is the register.
    count: Option<usize>,
    bits: u32,
}

/// A limit on what a text declares.
const MOST_REGISTERS: usize = 1 << 16;

impl<'a> Reader<'a> {
    pub(super) fn new(tokens: &'a [Token<'a>]) -> Self {
        Self { tokens, at: 0, scopes: Vec::new(), registers: 0 }
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    fn unknown<T>(&self, what: impl Into<String>) -> Read<T> {
        Err(Unknown { line: self.line(), what: what.into() })
    }

    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).map_or("", |token| token.text)
    }

    fn next(&mut self) -> Read<&'a str> {
        let Some(token) = self.tokens.get(self.at) else { return self.unknown("unexpected end of the text") };
        self.at += 1;
        Ok(token.text)
    }

    fn take(&mut self, text: &str) -> bool {
        let there = self.peek() == text;
        self.at += usize::from(there);
        there
    }

    fn expect(&mut self, text: &str) -> Read<()> {
        if self.take(text) {
            Ok(())
        } else {
            self.unknown(format!("`{text}` expected, not `{}`", self.peek()))
        }
    }

    fn count(&mut self) -> Read<usize> {
        let text = self.next()?;
        match text.parse() {
            Ok(count) => Ok(count),
            Err(_) => self.unknown(format!("a number expected, not `{text}`")),
        }
    }

    fn skip_past(&mut self, end: &str) -> Read<()> {
        while self.next()? != end {}
        Ok(())
    }

    fn skip_line(&mut self) {
        let line = self.line();
        while self.tokens.get(self.at).is_some_and(|token| token.line == line) {
            self.at += 1;
        }
    }

    /// The version the text is written in, and where it says so.
    pub(super) fn version(&mut self) -> Read<(usize, (u32, u32))> {
        let line = self.line();
        self.expect(".version")?;
        let text = self.next()?;
        match settings::ptx_version(text) {
            Some(version) => Ok((line, version)),
            None => self.unknown(format!("no version: `{text}`")),
        }
    }

    /// The next entry, if there is one.
    pub(super) fn entry(&mut self) -> Result<Option<Entry>, Refusal> {
        loop {
            match self.peek() {
                "" => return Ok(None),
                ".target" => {
                    let line = self.line();
                    self.at += 1;
                    self.target(line)?;
                }
                ".address_size" => {
                    self.at += 1;
                    if self.count()? != 64 {
                        self.unknown::<()>("only .address_size 64")?;
                    }
                }
                ".file" => self.skip_line(),
                ".visible" | ".weak" => self.at += 1,
                ".entry" => {
                    self.at += 1;
                    return Ok(Some(self.entry_itself()?));
                }
                other => self.unknown(format!("unsupported `{other}`"))?,
            }
        }
    }

    fn target(&mut self, line: usize) -> Read<()> {
        let text = self.next()?;
        let digits =
            text.strip_prefix("sm_").map(|rest| rest.trim_end_matches(|c: char| !c.is_ascii_digit()));
        let Some(target) = digits.and_then(|digits| digits.parse::<u32>().ok()) else {
            return self.unknown(format!("unknown .target `{text}`"));
        };
        if target > TARGET {
            let what = "SM version specified by .target is higher than default SM version assumed";
            return Err(Unknown { line, what: what.into() });
        }
        while self.take(",") {
            self.next()?;
        }
        Ok(())
    }

    fn entry_itself(&mut self) -> Read<Entry> {
        let mut entry = Entry {
            name: self.next()?.to_owned(),
            parameters: Vec::new(),
            parameter_bytes: 0,
            most_threads: 1024,
            registers: 0,
            statements: Vec::new(),
            labels: HashMap::new(),
        };
        if self.take("(") {
            while !self.take(")") {
                self.parameter(&mut entry)?;
                self.take(",");
            }
        }
        while !self.take("{") {
            match self.next()? {
                ".maxntid" | ".reqntid" => {
                    let mut threads = self.count()?;
                    while self.take(",") {
                        threads = threads.saturating_mul(self.count()?);
                    }
                    entry.most_threads = u32::try_from(threads).unwrap_or(u32::MAX).min(1024);
                }
                ".minnctapersm" | ".maxnreg" => drop(self.count()?),
                other => self.unknown(format!("unsupported `{other}`"))?,
            }
        }
        self.scopes = vec![HashMap::new()];
        self.registers = 0;
        while !self.scopes.is_empty() {
            self.statement(&mut entry)?;
        }
        entry.registers = self.registers;
        Ok(entry)
    }

    fn parameter(&mut self, entry: &mut Entry) -> Read<()> {
        self.expect(".param")?;
        let mut align = if self.take(".align") { Some(self.count()?) } else { None };
        let kind = self.next()?;
        let Some(size) = bits_of(kind).filter(|bits| *bits >= 8).map(|bits| bits as usize / 8) else {
            return self.unknown(format!("unsupported parameter of type `{kind}`"));
        };
        if self.take(".ptr") {
            while matches!(self.peek(), ".global" | ".align") {
                if self.next()? == ".align" {
                    self.count()?;
                }
            }
        }
        let name = self.next()?.to_owned();
        let mut len = size;
        if self.take("[") {
            len = size.saturating_mul(self.count()?);
            self.expect("]")?;
        }
        let align = align.get_or_insert(size);
        if !align.is_power_of_two() || *align > 128 || len > 4096 {
            return self.unknown(format!("no parameter: `{name}`"));
        }
        let offset = entry.parameter_bytes.next_multiple_of(*align);
        entry.parameter_bytes = offset + len;
        if entry.parameter_bytes > 4096 {
            return self.unknown("more than 4096 bytes of parameters");
        }
        entry.parameters.push(Parameter { name, offset, len });
        Ok(())
    }

    fn statement(&mut self, entry: &mut Entry) -> Read<()> {
        let line = self.line();
        let mut guard = None;
        if self.take("@") {
            let opposite = self.take("!");
            let name = self.next()?;
            guard = Some((self.predicate(name)?, opposite));
        }
        let word = self.next()?;
        match word {
            "{" => self.scopes.push(HashMap::new()),
            "}" => drop(self.scopes.pop()),
            ".reg" => self.declaration()?,
            ".pragma" => self.skip_past(";")?,
            ".loc" => {
                self.at -= 1;
                self.skip_line();
            }
            _ if word.starts_with('.') => {
                self.at -= 1;
                self.unknown(format!("unsupported `{word}`"))?;
            }
            _ if self.take(":") => {
                entry.labels.insert(word.to_owned(), entry.statements.len());
            }
            _ => {
                let operands = self.operands()?;
                entry.statements.push(Statement { line, guard, opcode: word.to_owned(), operands });
            }
        }
        Ok(())
    }

    fn declaration(&mut self) -> Read<()> {
        let kind = self.next()?;
        let Some(bits) = bits_of(kind).filter(|bits| *bits != 8) else {
            return self.unknown(format!("unsupported registers of type `{kind}`"));
        };
        loop {
            let name = self.next()?;
            let mut count = None;
            if self.take("<") {
                count = Some(self.count()?);
                self.expect(">")?;
            }
            let first = self.registers;
            self.registers += count.unwrap_or(1).min(MOST_REGISTERS);
            if self.registers > MOST_REGISTERS {
                return self.unknown("too many registers");
            }
            if let Some(scope) = self.scopes.last_mut() {
                scope.insert(name.to_owned(), Registers { first, count, bits });
            }
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    fn register(&self, name: &str) -> Option<Register> {
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = name[stem.len()..].parse::<usize>();
        self.scopes.iter().rev().find_map(|scope| {
            if let Some(Registers { first, count: None, bits }) = scope.get(name) {
                return Some(Register { number: *first, bits: *bits });
            }
            let registers = scope.get(stem)?;
            let number = number.as_ref().ok().filter(|number| **number < registers.count.unwrap_or(0))?;
            Some(Register { number: registers.first + number, bits: registers.bits })
        })
    }

    fn predicate(&self, name: &str) -> Read<Register> {
        match self.register(name) {
            Some(register) if register.bits == 1 => Ok(register),
            _ => self.unknown(format!("no predicate: `{name}`")),
        }
    }

    fn operands(&mut self) -> Read<Vec<Operand>> {
        let mut operands = Vec::new();
        if self.take(";") {
            return Ok(operands);
        }
        loop {
            operands.push(self.operand()?);
            if !self.take(",") {
                self.expect(";")?;
                return Ok(operands);
            }
        }
    }

    fn operand(&mut self) -> Read<Operand> {
        match self.next()? {
            "!" => {
                let name = self.next()?;
                Ok(Operand::Not(self.predicate(name)?))
            }
            "-" => {
                let text = self.next()?;
                Ok(Operand::Number(self.number(text)?.wrapping_neg()))
            }
            "[" => {
                let base = Box::new(self.simple_operand()?);
                let mut offset = 0;
                if self.take("+") {
                    let minus = self.take("-");
                    let text = self.next()?;
                    let number = self.number(text)?.cast_signed();
                    offset = if minus { number.wrapping_neg() } else { number };
                } else if self.take("-") {
                    let text = self.next()?;
                    offset = self.number(text)?.cast_signed().wrapping_neg();
                }
                self.expect("]")?;
                Ok(Operand::Address { base, offset })
            }
            "{" => {
                let mut parts = vec![self.simple_operand()?];
                while self.take(",") {
                    parts.push(self.simple_operand()?);
                }
                self.expect("}")?;
                Ok(Operand::Vector(parts))
            }
            word => {
                let operand = self.word_as_operand(word)?;
                match operand {
                    Operand::Register(first) if self.take("|") => {
                        let name = self.next()?;
                        Ok(Operand::Pair(first, self.predicate(name)?))
                    }
                    other => Ok(other),
                }
            }
        }
    }

    fn simple_operand(&mut self) -> Read<Operand> {
        let word = self.next()?;
        self.word_as_operand(word)
    }

    fn word_as_operand(&self, word: &str) -> Read<Operand> {
        match word.chars().next() {
            Some(first) if first.is_ascii_digit() => Ok(Operand::Number(self.number(word)?)),
            Some(first) if first.is_ascii_alphabetic() || "_$%".contains(first) => {
                Ok(self.register(word).map_or(Operand::Name(word.to_owned()), Operand::Register))
            }
            _ => self.unknown(format!("unexpected `{word}`")),
        }
    }

    fn number(&self, text: &str) -> Read<u64> {
        let digits = text.trim_end_matches('U');
        let read = match digits.get(..2) {
            Some("0x" | "0X") => u64::from_str_radix(&digits[2..], 16),
            Some("0b" | "0B") => u64::from_str_radix(&digits[2..], 2),
            _ if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
            _ => digits.parse(),
        };
        read.or_else(|_| self.unknown(format!("no whole number: `{text}`")))
    }
}

/// How many bits a type has; floating point counts too, as something that is loaded and stored.
pub(super) fn bits_of(kind: &str) -> Option<u32> {
    match kind.trim_start_matches('.') {
        "pred" => Some(1),
        "b8" | "u8" | "s8" => Some(8),
        "b16" | "u16" | "s16" => Some(16),
        "b32" | "u32" | "s32" | "f32" => Some(32),
        "b64" | "u64" | "s64" | "f64" => Some(64),
        _ => None,
    }
}
