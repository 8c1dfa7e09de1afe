//! PTX: from the text that is shipped to code that can be run.
//!
//! `tokens` cuts the text, `syntax` makes statements of it, `decode` makes [`Instruction`]s of these. In: text. Out: a [`Program`], or
//! a [`Refusal`] with the line and what it couldn't understand. Only integer code whose threads don't depend on each other is
//! known: no shared or local memory, no barriers, votes or shuffles, no floating point, no functions but entries.

mod decode;
mod instruction;
mod syntax;
mod tokens;

pub(crate) use instruction::{Atomic, Instruction, Op, SLOTS, SPECIALS, Special};

use std::fmt;

/// The `sm_` of the GPUs here.
const TARGET: u32 = 90;

/// What a text holds.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) version: (u32, u32),
    pub(crate) kernels: Vec<Kernel>,
}

/// An entry, ready to run.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Size of each parameter and where it lies among their bytes.
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: usize,
    /// Most threads of a block.
    pub(crate) most_threads: u32,
    /// Registers that the text declares.
    pub(crate) registers: usize,
    pub(crate) code: Vec<Instruction>,
    /// Slots that hold a constant, and which.
    pub(crate) constants: Vec<(u16, u64)>,
    /// Slots that hold a piece of the parameters.
    pub(crate) loads: Vec<ParameterLoad>,
    /// Where a thread's place in the grid goes, for each of [`SPECIALS`] that is used.
    pub(crate) specials: Vec<(Special, u16)>,
}

/// A parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

/// A piece of the parameters that the code reads.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParameterLoad {
    pub(crate) slot: u16,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// Whether it is widened to the bits of its register with its sign, and to how many.
    pub(crate) signed_bits: Option<u32>,
}

/// Why a text doesn't load, in the words of the driver's log.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// `.version` is newer than the driver.
    Version(String),
    Invalid(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Version(text) | Self::Invalid(text)) = self;
        f.write_str(text)
    }
}

/// Something that a line says and that isn't known.
#[derive(Debug)]
struct Unknown {
    line: usize,
    what: String,
}

impl From<Unknown> for Refusal {
    fn from(Unknown { line, what }: Unknown) -> Self {
        Self::Invalid(format!("ptxas application ptx input, line {line}; error   : {what}"))
    }
}

/// Reads a text whose `.version` is `newest` at most.
pub(crate) fn load(text: &str, newest: (u32, u32)) -> Result<Program, Refusal> {
    let tokens = tokens::cut(text)?;
    let mut reader = syntax::Reader::new(&tokens);
    let (line, version) = reader.version()?;
    if version > newest {
        let ((major, minor), (newest_major, newest_minor)) = (version, newest);
        return Err(Refusal::Version(format!(
            "ptxas application ptx input, line {line}; fatal   : Unsupported .version {major}.{minor}; current \
             version is '{newest_major}.{newest_minor}'"
        )));
    }
    let mut kernels = Vec::new();
    while let Some(entry) = reader.entry()? {
        kernels.push(decode::kernel(entry)?);
    }
    Ok(Program { version, kernels })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(body: &str) -> String {
        format!(
            ".version 7.0\n.target sm_70\n.address_size 64\n.visible .entry k(.param .u64 k_0)\n{{\n\
             .reg .pred %p<2>;\n.reg .b32 %r<9>;\n.reg .b64 %rd<9>;\n{body}\nret;\n}}\n"
        )
    }

    #[test]
    fn what_cannot_run_is_named_with_its_line() {
        for (body, named) in [
            ("bar.sync 0;", "bar.sync"),
            ("shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;", "shfl.sync.bfly.b32"),
            ("ld.shared.u32 %r1, [%rd1];", "ld.shared.u32"),
            ("add.f32 %r1, %r2, %r3;", "add.f32"),
            ("add.s32 %r1, %r2, %r77;", "%r77"),
            ("add.s32 %r1, %r2;", "add.s32"),
            ("bra nowhere;", "nowhere"),
            (".shared .b32 x[4];", ".shared"),
            ("ld.param.u64 %rd1, [k_1];", "k_1"),
            ("ld.param.u64 %rd1, [k_0+4];", "k_0"),
        ] {
            let Refusal::Invalid(log) = load(&entry(body), (8, 7)).unwrap_err() else { panic!("{body}") };
            assert!(log.contains(named) && log.contains("line 9"), "{body}: {log}");
        }
    }

    #[test]
    fn newer_text_than_the_driver_is_refused_as_such() {
        let text = entry("").replace("7.0", "8.7");
        let refusal = load(&text, (7, 8)).unwrap_err();
        assert!(matches!(&refusal, Refusal::Version(log) if log.contains("8.7")), "{refusal}");
        assert!(load(&text, (8, 7)).is_ok());
        let text = entry("").replace("sm_70", "sm_100");
        assert!(matches!(load(&text, (8, 7)), Err(Refusal::Invalid(log)) if log.contains(".target")));
    }

    #[test]
    fn parameters_lie_as_in_a_struct() {
        let text = ".version 7.0\n.target sm_70\n.entry k(.param .u8 a, .param .u64 b, .param .align 4 .b8 c[6], \
                    .param .u16 d)\n.maxntid 128, 2, 1\n{ ret; }";
        let program = load(text, (8, 7)).unwrap();
        let kernel = &program.kernels[0];
        let places: Vec<_> = kernel.parameters.iter().map(|place| (place.offset, place.len)).collect();
        assert_eq!(places, [(0, 1), (8, 8), (16, 6), (22, 2)]);
        assert_eq!((kernel.parameter_bytes, kernel.most_threads), (24, 256));
    }

    #[test]
    fn no_text_makes_it_panic() {
        let whole = include_str!("../../fixtures/mixture.ptx");
        for end in (0..whole.len()).step_by(7) {
            let _ = load(&whole[..end], (8, 7));
            let _ = load(&format!("{}{}", &whole[..end], &whole[end + 3..]), (8, 7));
        }
    }
}
