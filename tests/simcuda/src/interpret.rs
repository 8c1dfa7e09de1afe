//! Runs kernels: every thread of every block, one instruction after the other, each access to memory checked.
//!
//! In: a decoded kernel, its grid and parameters, and all the memory there is. Out: how many instructions ran, or the trap that
//! ended them. The blocks are dealt to the machine's cores; a block's threads run one after another, each to its end, so a
//! kernel whose threads wait for each other would find its limit. Registers hold what a thread before left there: a
//! kernel that reads one which it never wrote gets nonsense.

use crate::{
    bits,
    lock::lock,
    ptx::{Atomic, Instruction, Kernel, Op, SLOTS, Special},
};
use cudarc::driver::sys::CUresult;
use std::{
    sync::{
        Mutex,
        atomic::{
            AtomicBool, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed,
        },
    },
    thread,
};

/// Device memory that a kernel can use. `bytes` is where it is for us, as aligned as `address` is.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) address: u64,
    pub(crate) len: u64,
    pub(crate) bytes: *mut u8,
}

// SAFETY: it is an address; whoever makes one promises that it is valid for all threads (see `run`).
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

/// How many blocks, and threads in each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 3],
    pub(crate) threads: [u32; 3],
}

/// What ended a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trap {
    OutOfBounds,
    Misaligned,
    /// A thread ran past its limit.
    Runaway,
    /// The kernel itself asked for it.
    Asked,
}

impl Trap {
    /// What the driver says.
    pub(crate) fn code(self) -> CUresult {
        match self {
            Self::OutOfBounds => CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            Self::Misaligned => CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            Self::Runaway => CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
            Self::Asked => CUresult::CUDA_ERROR_LAUNCH_FAILED,
        }
    }
}

/// Runs `kernel`, and says how many instructions it took. No thread takes more than `limit`, give or take a loop's body.
///
/// # Safety
/// `regions` don't overlap, are sorted by address, and each is valid for reads and writes until this returns. Others may read and
/// write them meanwhile, as long as no reference points there.
pub(crate) unsafe fn run(
    kernel: &Kernel,
    grid: Grid,
    parameters: &[u8],
    regions: &[Region],
    limit: u64,
) -> Result<u64, Trap> {
    let mut slots = Box::new([0; SLOTS]);
    prepare(kernel, grid, parameters, &mut slots);
    let blocks: u64 = grid.blocks.iter().map(|count| u64::from(*count)).product();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let outcome = Mutex::new(Ok(0));
    let work = || {
        let mut slots = slots.clone();
        let mut memory = Memory { regions, last: 0 };
        let mut instructions = 0;
        loop {
            let block = next.fetch_add(1, Relaxed);
            if block >= blocks || stop.load(Relaxed) {
                break;
            }
            let ran = run_block(kernel, grid, block, &mut slots, &mut memory, limit);
            match ran {
                Ok(count) => instructions += count,
                Err(trap) => {
                    stop.store(true, Relaxed);
                    *lock(&outcome) = Err(trap);
                    return;
                }
            }
        }
        if let Ok(sum) = &mut *lock(&outcome) {
            *sum += instructions;
        }
    };
    let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    thread::scope(|scope| {
        for _ in 1..cores.min(blocks) {
            scope.spawn(work);
        }
        work();
    });
    *lock(&outcome)
}

/// Fills the slots that are the same for all threads.
fn prepare(kernel: &Kernel, grid: Grid, parameters: &[u8], slots: &mut [u64; SLOTS]) {
    for (slot, value) in &kernel.constants {
        slots[usize::from(*slot)] = *value;
    }
    for load in &kernel.loads {
        let mut bytes = [0; 8];
        bytes[..load.len].copy_from_slice(&parameters[load.offset..][..load.len]);
        let mut value = u64::from_le_bytes(bytes);
        if let Some(bits) = load.signed_bits {
            let above = 64 - 8 * u32::try_from(load.len).unwrap_or(8);
            value = ((value << above).cast_signed() >> above).cast_unsigned() & (u64::MAX >> (64 - bits));
        }
        slots[usize::from(load.slot)] = value;
    }
    for (special, slot) in &kernel.specials {
        match special {
            Special::Threads(axis) => slots[usize::from(*slot)] = grid.threads[*axis].into(),
            Special::Blocks(axis) => slots[usize::from(*slot)] = grid.blocks[*axis].into(),
            Special::Thread(_) | Special::Block(_) | Special::Lane => {}
        }
    }
}

fn run_block(
    kernel: &Kernel,
    grid: Grid,
    block: u64,
    slots: &mut [u64; SLOTS],
    memory: &mut Memory,
    limit: u64,
) -> Result<u64, Trap> {
    let [x, y, _] = grid.blocks.map(u64::from);
    let place = [block % x, block / x % y, block / x / y];
    for (special, slot) in &kernel.specials {
        if let Special::Block(axis) = special {
            slots[usize::from(*slot)] = place[*axis];
        }
    }
    let [x, y, z] = grid.threads.map(u64::from);
    let mut instructions = 0;
    for thread in 0..x * y * z {
        let place = [thread % x, thread / x % y, thread / x / y];
        for (special, slot) in &kernel.specials {
            match special {
                Special::Thread(axis) => slots[usize::from(*slot)] = place[*axis],
                Special::Lane => slots[usize::from(*slot)] = thread % 32,
                Special::Threads(_) | Special::Block(_) | Special::Blocks(_) => {}
            }
        }
        instructions += run_thread(&kernel.code, slots, memory, limit)?;
    }
    Ok(instructions)
}

/// The memory as one worker sees it.
struct Memory<'a> {
    regions: &'a [Region],
    /// The region of the last access, which is mostly that of the next.
    last: usize,
}

impl Memory<'_> {
    /// Where the `LEN` bytes at `address` are for us.
    #[inline(always)]
    fn locate<const LEN: u64>(&mut self, address: u64) -> Result<*mut u8, Trap> {
        if !address.is_multiple_of(LEN) {
            return Err(Trap::Misaligned);
        }
        if let Some(region) = self.regions.get(self.last)
            && let Some(place) = region.locate::<LEN>(address)
        {
            return Ok(place);
        }
        self.search::<LEN>(address)
    }

    #[cold]
    fn search<const LEN: u64>(&mut self, address: u64) -> Result<*mut u8, Trap> {
        let behind = self.regions.partition_point(|region| region.address <= address);
        self.last = behind.checked_sub(1).ok_or(Trap::OutOfBounds)?;
        self.regions[self.last].locate::<LEN>(address).ok_or(Trap::OutOfBounds)
    }
}

impl Region {
    #[inline(always)]
    fn locate<const LEN: u64>(&self, address: u64) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.address);
        if self.len < LEN || offset > self.len - LEN {
            return None;
        }
        Some(self.bytes.wrapping_add(usize::try_from(offset).ok()?))
    }
}

/// Runs one thread, and says how many instructions it took.
#[expect(clippy::cast_possible_truncation, reason = "operations on 32 bits use the lower half")]
#[expect(clippy::too_many_lines, reason = "one arm for each operation")]
fn run_thread(
    code: &[Instruction],
    slots: &mut [u64; SLOTS],
    memory: &mut Memory,
    limit: u64,
) -> Result<u64, Trap> {
    let (mut at, mut carry) = (0, false);
    // Instructions before the last branch that was taken, and where it led to.
    let (mut before, mut start) = (0_u64, 0);
    loop {
        let i = &code[at];
        at += 1;
        macro_rules! get {
            ($slot:ident) => {
                slots[usize::from(i.$slot) % SLOTS]
            };
        }
        macro_rules! set {
            ($value:expr) => {{
                let value = $value;
                slots[usize::from(i.d) % SLOTS] = value;
            }};
        }
        // Functions of one, two and three slots, in the width of their arguments.
        macro_rules! wide {
            ($function:expr) => {{
                let function: fn(u64, u64) -> u64 = $function;
                set!(function(get!(a), get!(b)))
            }};
        }
        macro_rules! half {
            ($function:expr) => {{
                let function: fn(u32, u32) -> u32 = $function;
                set!(u64::from(function(get!(a) as u32, get!(b) as u32)))
            }};
        }
        macro_rules! carrying {
            ($type:ty, $operation:ident, $uses:expr, $sets:expr) => {{
                let (first, one) = (get!(a) as $type).$operation(get!(b) as $type);
                let (result, two) = first.$operation(<$type>::from($uses && carry));
                if $sets {
                    carry = one || two;
                }
                set!(u64::from(result));
            }};
        }
        macro_rules! place {
            ($len:literal) => {
                memory.locate::<$len>(get!(a).wrapping_add(get!(b)))?
            };
        }
        macro_rules! load {
            ($atomic:ty, $len:literal) => {{
                let place = place!($len);
                // SAFETY: `place` is in a region, which is valid, and as aligned as the address.
                let value = unsafe { <$atomic>::from_ptr(place.cast()) }.load(Relaxed);
                set!(u64::from(value));
            }};
        }
        macro_rules! store {
            ($atomic:ty, $type:ty, $len:literal) => {{
                let place = place!($len);
                // SAFETY: as for loads.
                unsafe { <$atomic>::from_ptr(place.cast()) }.store(get!(c) as $type, Relaxed);
            }};
        }
        macro_rules! branch {
            () => {{
                before += (at - start) as u64;
                if before > limit {
                    return Err(Trap::Runaway);
                }
                at = usize::from(i.d);
                start = at;
            }};
        }
        match i.op {
            Op::Move => set!(get!(a)),
            Op::Mask8 => set!(get!(a) & 0xff),
            Op::Mask16 => set!(get!(a) & 0xffff),
            Op::Mask32 => set!(get!(a) & 0xffff_ffff),
            Op::Extend8 => set!(i64::from(get!(a) as u8 as i8).cast_unsigned()),
            Op::Extend16 => set!(i64::from(get!(a) as u16 as i16).cast_unsigned()),
            Op::Extend32 => set!(i64::from(get!(a) as u32 as i32).cast_unsigned()),
            Op::Add32 => half!(u32::wrapping_add),
            Op::Add64 => wide!(u64::wrapping_add),
            Op::Subtract32 => half!(u32::wrapping_sub),
            Op::Subtract64 => wide!(u64::wrapping_sub),
            Op::Multiply32 => half!(u32::wrapping_mul),
            Op::Multiply64 => wide!(u64::wrapping_mul),
            Op::MultiplyHighU32 => half!(|a, b| ((u64::from(a) * u64::from(b)) >> 32) as u32),
            Op::MultiplyHighS32 => {
                half!(|a, b| ((i64::from(a as i32) * i64::from(b as i32)).cast_unsigned() >> 32) as u32);
            }
            Op::MultiplyHighU64 => wide!(|a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64),
            Op::MultiplyHighS64 => {
                wide!(|a, b| {
                    let product = i128::from(a.cast_signed()) * i128::from(b.cast_signed());
                    (product.cast_unsigned() >> 64) as u64
                });
            }
            Op::MultiplyWideS32 => {
                wide!(|a, b| (i64::from(a as i32) * i64::from(b as i32)).cast_unsigned());
            }
            Op::MultiplyAdd32 => {
                set!(u64::from((get!(a) as u32).wrapping_mul(get!(b) as u32).wrapping_add(get!(c) as u32)));
            }
            Op::MultiplyAdd64 => set!(get!(a).wrapping_mul(get!(b)).wrapping_add(get!(c))),
            Op::AddSet32 => carrying!(u32, overflowing_add, false, true),
            Op::AddSet64 => carrying!(u64, overflowing_add, false, true),
            Op::AddUse32 => carrying!(u32, overflowing_add, true, false),
            Op::AddUse64 => carrying!(u64, overflowing_add, true, false),
            Op::AddUseSet32 => carrying!(u32, overflowing_add, true, true),
            Op::AddUseSet64 => carrying!(u64, overflowing_add, true, true),
            Op::SubtractSet32 => carrying!(u32, overflowing_sub, false, true),
            Op::SubtractSet64 => carrying!(u64, overflowing_sub, false, true),
            Op::SubtractUse32 => carrying!(u32, overflowing_sub, true, false),
            Op::SubtractUse64 => carrying!(u64, overflowing_sub, true, false),
            Op::SubtractUseSet32 => carrying!(u32, overflowing_sub, true, true),
            Op::SubtractUseSet64 => carrying!(u64, overflowing_sub, true, true),
            Op::And => wide!(|a, b| a & b),
            Op::Or => wide!(|a, b| a | b),
            Op::Xor => wide!(|a, b| a ^ b),
            // A shift by too much is one by all bits.
            Op::ShiftLeft32 => half!(|a, b| a.checked_shl(b).unwrap_or(0)),
            Op::ShiftLeft64 => wide!(|a, b| a.checked_shl(b as u32).unwrap_or(0)),
            Op::ShiftRightU => wide!(|a, b| a.checked_shr(b as u32).unwrap_or(0)),
            Op::ShiftRightS32 => half!(|a, b| (a.cast_signed() >> b.min(31)).cast_unsigned()),
            Op::ShiftRightS64 => wide!(|a, b| (a.cast_signed() >> (b as u32).min(63)).cast_unsigned()),
            Op::Equal => wide!(|a, b| u64::from(a == b)),
            Op::NotEqual => wide!(|a, b| u64::from(a != b)),
            Op::LessU => wide!(|a, b| u64::from(a < b)),
            Op::LessOrEqualU => wide!(|a, b| u64::from(a <= b)),
            Op::LessS32 => wide!(|a, b| u64::from((a as i32) < b as i32)),
            Op::LessOrEqualS32 => wide!(|a, b| u64::from(a as i32 <= b as i32)),
            Op::LessS64 => wide!(|a, b| u64::from(a.cast_signed() < b.cast_signed())),
            Op::LessOrEqualS64 => wide!(|a, b| u64::from(a.cast_signed() <= b.cast_signed())),
            Op::Select => set!(if get!(c) != 0 { get!(a) } else { get!(b) }),
            Op::MinimumU => wide!(u64::min),
            Op::MaximumU => wide!(u64::max),
            Op::MinimumS32 => half!(|a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned()),
            Op::MaximumS32 => half!(|a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned()),
            Op::MinimumS64 => wide!(|a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned()),
            Op::MaximumS64 => wide!(|a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned()),
            // Division by zero has no meaning in PTX; GPUs give all ones and leave the dividend.
            Op::DivideU32 => half!(|a, b| a.checked_div(b).unwrap_or(u32::MAX)),
            Op::DivideU64 => wide!(|a, b| a.checked_div(b).unwrap_or(u64::MAX)),
            Op::RemainderU => wide!(|a, b| a.checked_rem(b).unwrap_or(a)),
            Op::DivideS32 => half!(|a, b| match b {
                0 => u32::MAX,
                _ => a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned(),
            }),
            Op::DivideS64 => wide!(|a, b| match b {
                0 => u64::MAX,
                _ => a.cast_signed().wrapping_div(b.cast_signed()).cast_unsigned(),
            }),
            Op::RemainderS32 => half!(|a, b| match b {
                0 => a,
                _ => a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned(),
            }),
            Op::RemainderS64 => wide!(|a, b| match b {
                0 => a,
                _ => a.cast_signed().wrapping_rem(b.cast_signed()).cast_unsigned(),
            }),
            Op::CountOnes => set!(get!(a).count_ones().into()),
            Op::LeadingZeros32 => set!((get!(a) as u32).leading_zeros().into()),
            Op::LeadingZeros64 => set!(get!(a).leading_zeros().into()),
            Op::Reverse32 => set!((get!(a) as u32).reverse_bits().into()),
            Op::Reverse64 => set!(get!(a).reverse_bits()),
            Op::Permute => set!(bits::permute(get!(a) as u32, get!(b) as u32, get!(c) as u32).into()),
            Op::ExtractU32 => set!(bits::extract_unsigned(get!(a), get!(b), get!(c), 32)),
            Op::ExtractU64 => set!(bits::extract_unsigned(get!(a), get!(b), get!(c), 64)),
            Op::ExtractS32 => {
                let value = i64::from(get!(a) as u32 as i32);
                set!(bits::extract_signed(value, get!(b), get!(c), 32) & 0xffff_ffff);
            }
            Op::ExtractS64 => set!(bits::extract_signed(get!(a).cast_signed(), get!(b), get!(c), 64)),
            Op::Insert32 => set!(bits::insert(get!(a), get!(b), get!(c), get!(e)) & 0xffff_ffff),
            Op::Insert64 => set!(bits::insert(get!(a), get!(b), get!(c), get!(e))),
            Op::FunnelLeftWrap => set!((get!(b) << 32 | get!(a)) << (get!(c) & 31) >> 32),
            Op::FunnelLeftClamp => set!((get!(b) << 32 | get!(a)) << get!(c).min(32) >> 32),
            Op::FunnelRightWrap => set!((get!(b) << 32 | get!(a)) >> (get!(c) & 31) & 0xffff_ffff),
            Op::FunnelRightClamp => set!((get!(b) << 32 | get!(a)) >> get!(c).min(32) & 0xffff_ffff),
            Op::Logic3 => set!(bits::logic(get!(a), get!(b), get!(c), get!(e)) & 0xffff_ffff),
            Op::Aligned => {
                if !get!(a).wrapping_add(get!(b)).is_multiple_of(get!(c).max(1)) {
                    return Err(Trap::Misaligned);
                }
            }
            Op::Load8 => load!(AtomicU8, 1),
            Op::Load16 => load!(AtomicU16, 2),
            Op::Load32 => load!(AtomicU32, 4),
            Op::Load64 => load!(AtomicU64, 8),
            Op::Store8 => store!(AtomicU8, u8, 1),
            Op::Store16 => store!(AtomicU16, u16, 2),
            Op::Store32 => store!(AtomicU32, u32, 4),
            Op::Store64 => store!(AtomicU64, u64, 8),
            Op::Atomic32 => {
                let place = place!(4).cast();
                // SAFETY: as for loads.
                let (unsigned, signed) =
                    unsafe { (AtomicU32::from_ptr(place), AtomicI32::from_ptr(place.cast())) };
                let value = get!(c) as u32;
                let old = match Atomic::ALL[usize::from(i.e)] {
                    Atomic::Add => unsigned.fetch_add(value, Relaxed),
                    Atomic::MinimumU => unsigned.fetch_min(value, Relaxed),
                    Atomic::MaximumU => unsigned.fetch_max(value, Relaxed),
                    Atomic::MinimumS => signed.fetch_min(value.cast_signed(), Relaxed).cast_unsigned(),
                    Atomic::MaximumS => signed.fetch_max(value.cast_signed(), Relaxed).cast_unsigned(),
                    Atomic::And => unsigned.fetch_and(value, Relaxed),
                    Atomic::Or => unsigned.fetch_or(value, Relaxed),
                    Atomic::Xor => unsigned.fetch_xor(value, Relaxed),
                    Atomic::Exchange => unsigned.swap(value, Relaxed),
                };
                set!(old.into());
            }
            Op::Atomic64 => {
                let place = place!(8).cast();
                // SAFETY: as for loads.
                let (unsigned, signed) =
                    unsafe { (AtomicU64::from_ptr(place), AtomicI64::from_ptr(place.cast())) };
                let value = get!(c);
                set!(match Atomic::ALL[usize::from(i.e)] {
                    Atomic::Add => unsigned.fetch_add(value, Relaxed),
                    Atomic::MinimumU => unsigned.fetch_min(value, Relaxed),
                    Atomic::MaximumU => unsigned.fetch_max(value, Relaxed),
                    Atomic::MinimumS => signed.fetch_min(value.cast_signed(), Relaxed).cast_unsigned(),
                    Atomic::MaximumS => signed.fetch_max(value.cast_signed(), Relaxed).cast_unsigned(),
                    Atomic::And => unsigned.fetch_and(value, Relaxed),
                    Atomic::Or => unsigned.fetch_or(value, Relaxed),
                    Atomic::Xor => unsigned.fetch_xor(value, Relaxed),
                    Atomic::Exchange => unsigned.swap(value, Relaxed),
                });
            }
            Op::CompareAndSwap32 => {
                let place = place!(4);
                // SAFETY: as for loads.
                let word = unsafe { AtomicU32::from_ptr(place.cast()) };
                let old = word.compare_exchange(get!(c) as u32, get!(e) as u32, Relaxed, Relaxed);
                set!(old.unwrap_or_else(|old| old).into());
            }
            Op::CompareAndSwap64 => {
                let place = place!(8);
                // SAFETY: as for loads.
                let word = unsafe { AtomicU64::from_ptr(place.cast()) };
                let old = word.compare_exchange(get!(c), get!(e), Relaxed, Relaxed);
                set!(old.unwrap_or_else(|old| old));
            }
            Op::Branch => branch!(),
            Op::BranchIf => {
                if get!(a) != 0 {
                    branch!();
                }
            }
            Op::BranchUnless => {
                if get!(a) == 0 {
                    branch!();
                }
            }
            Op::Return => return Ok(before + (at - start) as u64),
            Op::Trap => return Err(Trap::Asked),
        }
    }
}
