//! What the interpreter runs: instructions of equal size whose operands are all slots of one file.
//!
//! A slot holds a register, a constant, a piece of the parameters or a place in the grid, always as 64 bits; narrower values
//! have zeros above. So most operations need no width.

/// How many slots a kernel can have.
pub(crate) const SLOTS: usize = 4096;

/// One instruction: what it does with slots `a`, `b`, `c` and `e`, and where the result goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Instruction {
    pub(crate) op: Op,
    /// The result's slot, or a branch's target.
    pub(crate) d: u16,
    pub(crate) a: u16,
    pub(crate) b: u16,
    pub(crate) c: u16,
    pub(crate) e: u16,
}

/// What an instruction does. Where a width matters, it stands in the name.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub(crate) enum Op {
    Move,
    Mask8,
    Mask16,
    Mask32,
    Extend8,
    Extend16,
    Extend32,
    Add32,
    Add64,
    Subtract32,
    Subtract64,
    Multiply32,
    Multiply64,
    MultiplyHighU32,
    MultiplyHighS32,
    MultiplyHighU64,
    MultiplyHighS64,
    MultiplyWideS32,
    MultiplyAdd32,
    MultiplyAdd64,
    /// `carry = a + b`; the others use it, set it, or both.
    AddSet32,
    AddSet64,
    AddUse32,
    AddUse64,
    AddUseSet32,
    AddUseSet64,
    SubtractSet32,
    SubtractSet64,
    SubtractUse32,
    SubtractUse64,
    SubtractUseSet32,
    SubtractUseSet64,
    And,
    Or,
    Xor,
    ShiftLeft32,
    ShiftLeft64,
    ShiftRightU,
    ShiftRightS32,
    ShiftRightS64,
    Equal,
    NotEqual,
    LessU,
    LessOrEqualU,
    LessS32,
    LessOrEqualS32,
    LessS64,
    LessOrEqualS64,
    /// `c ? a : b`.
    Select,
    MinimumU,
    MaximumU,
    MinimumS32,
    MaximumS32,
    MinimumS64,
    MaximumS64,
    DivideU32,
    DivideU64,
    RemainderU,
    DivideS32,
    DivideS64,
    RemainderS32,
    RemainderS64,
    CountOnes,
    LeadingZeros32,
    LeadingZeros64,
    Reverse32,
    Reverse64,
    Permute,
    ExtractU32,
    ExtractU64,
    ExtractS32,
    ExtractS64,
    /// The low `e` bits of `a` into `b` from bit `c`.
    Insert32,
    Insert64,
    FunnelLeftWrap,
    FunnelLeftClamp,
    FunnelRightWrap,
    FunnelRightClamp,
    /// Any function of three bits; `e` holds its table.
    Logic3,
    /// Traps unless `a + b` is a multiple of `c`.
    Aligned,
    /// From address `a + b`.
    Load8,
    Load16,
    Load32,
    Load64,
    /// `c` to address `a + b`.
    Store8,
    Store16,
    Store32,
    Store64,
    /// `c` at address `a + b`; `e` is no slot, but an [`Atomic`].
    Atomic32,
    Atomic64,
    /// `e` at address `a + b` if there is `c`.
    CompareAndSwap32,
    CompareAndSwap64,
    Branch,
    BranchIf,
    BranchUnless,
    Return,
    Trap,
}

/// What an atomic operation does to memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Atomic {
    Add,
    MinimumU,
    MaximumU,
    MinimumS,
    MaximumS,
    And,
    Or,
    Xor,
    Exchange,
}

impl Atomic {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 9] = [
        Self::Add,
        Self::MinimumU,
        Self::MaximumU,
        Self::MinimumS,
        Self::MaximumS,
        Self::And,
        Self::Or,
        Self::Xor,
        Self::Exchange,
    ];
}

/// A place in the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
}

/// What they are called.
pub(crate) const SPECIALS: [(&str, Special); 13] = [
    ("%tid.x", Special::Thread(0)),
    ("%tid.y", Special::Thread(1)),
    ("%tid.z", Special::Thread(2)),
    ("%ntid.x", Special::Threads(0)),
    ("%ntid.y", Special::Threads(1)),
    ("%ntid.z", Special::Threads(2)),
    ("%ctaid.x", Special::Block(0)),
    ("%ctaid.y", Special::Block(1)),
    ("%ctaid.z", Special::Block(2)),
    ("%nctaid.x", Special::Blocks(0)),
    ("%nctaid.y", Special::Blocks(1)),
    ("%nctaid.z", Special::Blocks(2)),
    ("%laneid", Special::Lane),
];
