//! From bytes to blocks of ops. The only module that sees iced-x86.
//!
//! iced finds out which instruction the bytes are; the `select` files below, one an instruction group, choose the
//! handler for that encoding and fill in its [`Op`]. What the CPU model does not advertise, or the mode forbids,
//! becomes an op that raises #UD or #NM when it is executed.
//!
//! After a block is complete, two passes over it: flags that are set again before anybody could see them are left out,
//! and a compare and its conditional jump become one hand-over. Precise blocks get neither.

#[cfg(test)]
mod coverage;
mod guard;
mod operand;
mod select_branch;
mod select_fp;
mod select_fp_convert;
mod select_int;
mod select_more;
mod select_simd;
mod select_simd_element;
mod select_simd_mmx;
mod select_simd_packed;
mod select_system;
mod select_x87;
mod select_x87_stack;
mod select_xsave;

use core::cell::Cell;

use emu_core::cpu_model::{CpuModel, Vendor};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, RflagsBits};

use crate::dispatch::{Act, slow};
use crate::exec::MAX_INSTRUCTION;
use crate::exit::Trap;
use crate::int::branch;
use crate::mode::{CodeSize, ModeKey};
use crate::op::{Handler, Op, ZERO};
use crate::segment::FLAT;

/// Instructions in the longest block.
const MAX_UNITS: usize = 64;
/// Conditional branches that a block may go on after. More would save little, and decode more that is never reached.
const MAX_BRANCHES: usize = 3;
/// Bytes in the longest block.
pub(crate) const MAX_BLOCK: usize = MAX_UNITS * MAX_INSTRUCTION;

/// What is to be decoded.
pub(crate) struct Request<'a> {
    pub key: ModeKey,
    /// Address of the first byte, as RIP shows it.
    pub rip: u64,
    /// The number the block will have.
    pub id: u32,
    pub model: &'a CpuModel,
}

/// What came of it.
pub(crate) enum Decoded {
    Block {
        ops: Vec<Op>,
        units: u16,
        len_bytes: usize,
    },
    /// The very first instruction does not end in the bytes given.
    Straddles,
}

/// How an instruction leaves its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// It does not.
    No,
    /// By links: the op needs its block's number.
    Linked,
    /// By itself.
    Yes,
}

/// What the passes over a block need to know about one instruction.
pub(crate) struct Lowered {
    pub op: Op,
    pub ends: Ends,
    /// May stop, so that everything before it must be exact; also for whatever was not looked at closely.
    pub stops: bool,
    /// Status flags read, as iced's bits.
    pub reads: u32,
    /// Status flags that are always written.
    pub sets: u32,
    /// The same instruction without its flags.
    pub quiet: Option<Handler>,
    /// For a comparison: its handler when fused with Jcc of a condition.
    pub fuse: Option<fn(u8) -> Handler>,
    /// For a plain Jcc: its condition.
    pub condition: Option<u8>,
}

impl Lowered {
    /// An instruction about which nothing is assumed.
    pub fn new(op: Op) -> Lowered {
        Lowered { op, ends: Ends::No, stops: true, reads: ALL_FLAGS, sets: 0, quiet: None, fuse: None, condition: None }
    }
    pub fn ends(op: Op) -> Lowered {
        Lowered { ends: Ends::Yes, ..Lowered::new(op) }
    }
    /// Registers only, reading the flags iced says, setting none for sure.
    pub fn pure(op: Op, insn: &Instruction) -> Lowered {
        Lowered { stops: false, reads: insn.rflags_read() & ALL_FLAGS, ..Lowered::new(op) }
    }
}

/// The six status flags in iced's encoding.
pub(crate) const ALL_FLAGS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What the select files see.
pub(crate) struct Context<'a> {
    pub insn: &'a Instruction,
    pub bytes: &'a [u8],
    pub request: &'a Request<'a>,
    /// Offset of the next instruction from the block's first byte.
    pub ip: u16,
}

impl Context<'_> {
    pub fn is_64(&self) -> bool {
        self.request.key.is_64()
    }

    /// An op for this instruction with no operands yet.
    pub fn op(&self, run: Handler) -> Op {
        Op {
            run,
            imm: Cell::new(0),
            disp: 0,
            ip: self.ip,
            len: self.insn.len() as u8,
            left: 0,
            dst: ZERO,
            src: ZERO,
            base: ZERO,
            index: ZERO,
            scale: 0,
            seg: FLAT,
            aux: 0,
        }
    }
}

/// Raises #UD.
pub(crate) struct Undefined;
impl Act for Undefined {
    fn exec(_cpu: &mut crate::cpu::Cpu, _op: &Op) -> Result<(), Trap> {
        Err(emu_core::Exception::InvalidOpcode.into())
    }
}

/// Raises #NM.
pub(crate) struct NoDevice;
impl Act for NoDevice {
    fn exec(_cpu: &mut crate::cpu::Cpu, _op: &Op) -> Result<(), Trap> {
        Err(emu_core::Exception::DeviceNotAvailable.into())
    }
}

/// Raises #GP(0): more than fifteen bytes.
struct TooLong;
impl Act for TooLong {
    fn exec(_cpu: &mut crate::cpu::Cpu, _op: &Op) -> Result<(), Trap> {
        Err(emu_core::Exception::GP0.into())
    }
}

/// Whether bytes that do not decode would be an instruction, were it not for too many prefixes: decodes them again
/// with each prefix that can matter once.
fn is_too_long(context: &Context<'_>) -> bool {
    let Some(bytes) = context.bytes.get(..MAX_INSTRUCTION) else { return false };
    let rex = |b: &u8| context.is_64() && matches!(b, 0x40..=0x4f);
    let prefix = |b: &u8| matches!(b, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3) || rex(b);
    let count = bytes.iter().position(|b| !prefix(b)).unwrap_or(bytes.len());
    let (prefixes, rest) = bytes.split_at(count);
    let size = prefixes.iter().copied().find(|&b| b == 0x66);
    let repeat = prefixes.iter().copied().rfind(|b| matches!(b, 0xf2 | 0xf3));
    let rex = prefixes.last().copied().filter(rex);
    let mut short = Vec::with_capacity(2 * MAX_INSTRUCTION);
    short.extend(size.into_iter().chain(repeat).chain(rex));
    let kept = short.len();
    short.extend_from_slice(rest);
    short.resize(MAX_INSTRUCTION, 0);
    let insn = decoder(context.request, &short).decode();
    insn.code() != Code::INVALID && insn.len() - kept + count > MAX_INSTRUCTION
}

fn lower(context: &Context<'_>) -> Lowered {
    if context.insn.code() == Code::INVALID {
        let too_long = is_too_long(context);
        return Lowered::ends(context.op(if too_long { slow::<TooLong> } else { slow::<Undefined> }));
    }
    if let Some(refusal) = guard::refuses(context) {
        return Lowered::ends(context.op(refusal));
    }
    selected(context).unwrap_or_else(|| Lowered::ends(context.op(slow::<Undefined>)))
}

/// What executes an instruction that nothing refuses; `None` where no group has it.
fn selected(context: &Context<'_>) -> Option<Lowered> {
    select_branch::select(context)
        .or_else(|| select_int::select(context))
        .or_else(|| select_more::select(context))
        .or_else(|| select_simd::select(context))
        .or_else(|| select_fp::select(context))
        .or_else(|| select_x87::select(context))
        .or_else(|| select_xsave::select(context))
        .or_else(|| select_system::select(context))
}

fn decoder<'a>(request: &Request<'_>, bytes: &'a [u8]) -> Decoder<'a> {
    let bitness = match request.key.code_size() {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let options = match request.model.vendor() {
        Vendor::Amd => DecoderOptions::AMD,
        Vendor::Intel => DecoderOptions::NONE,
    };
    Decoder::with_ip(bitness, bytes, request.rip, options)
}

/// Decodes a block from `bytes`, which end where the page or the code segment does.
pub(crate) fn block(request: &Request<'_>, bytes: &[u8]) -> Decoded {
    let mut decoder = decoder(request, bytes);
    let mut lowered: Vec<Lowered> = Vec::with_capacity(16);
    let mut len_bytes = 0;
    let mut branches_left = if request.key.is_precise() { 0 } else { MAX_BRANCHES };
    while lowered.len() < MAX_UNITS && decoder.can_decode() {
        let insn = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let context = Context { insn: &insn, bytes: &bytes[len_bytes..], request, ip: decoder.position() as u16 };
        let one = lower(&context);
        len_bytes = decoder.position();
        let (ends, conditional) = (one.ends != Ends::No, one.condition.is_some());
        lowered.push(one);
        if conditional && branches_left > 0 {
            branches_left -= 1;
        } else if ends {
            break;
        }
    }
    if lowered.is_empty() {
        return Decoded::Straddles;
    }
    let (ops, units) = assemble(request, lowered);
    Decoded::Block { ops, units, len_bytes }
}

/// Decodes the one instruction at the start of `bytes`, followed by a hand-over. `None` when the bytes do not hold all
/// of it.
pub(crate) fn one(request: &Request<'_>, bytes: &[u8]) -> Option<(Vec<Op>, u16, usize)> {
    let mut decoder = decoder(request, bytes);
    let insn = decoder.decode();
    if decoder.last_error() == DecoderError::NoMoreBytes {
        return None;
    }
    let len_bytes = decoder.position();
    let context = Context { insn: &insn, bytes, request, ip: len_bytes as u16 };
    let (ops, units) = assemble(request, vec![lower(&context)]);
    Some((ops, units, len_bytes))
}

fn assemble(request: &Request<'_>, mut lowered: Vec<Lowered>) -> (Vec<Op>, u16) {
    let units = lowered.len();
    if !request.key.is_precise() {
        leave_out_dead_flags(&mut lowered);
        fuse(&mut lowered);
    }
    let open = lowered.last().is_some_and(|l| l.ends == Ends::No || l.condition.is_some());
    let end = lowered.last().map_or(0, |l| l.op.ip);
    let mut ops: Vec<Op> = Vec::with_capacity(units + 1);
    for (n, one) in lowered.into_iter().enumerate() {
        let mut op = one.op;
        op.left = (units - n) as u8;
        if one.ends == Ends::Linked {
            op.set_own_block(request.id);
        }
        ops.push(op);
    }
    if open {
        ops.push(hand_over(request, end));
    }
    (ops, units as u16)
}

/// What follows the last instruction of a block that was cut: no instruction, a jump to the next byte.
fn hand_over(request: &Request<'_>, end: u16) -> Op {
    let mut op = Op {
        run: branch::jmp,
        imm: Cell::new(0),
        disp: end as i32,
        ip: end,
        len: 0,
        left: 0,
        dst: ZERO,
        src: ZERO,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: FLAT,
        aux: 0,
    };
    op.set_own_block(request.id);
    op
}

/// Replaces an instruction by its quiet form when all the flags it sets are set again before anything reads them,
/// stops, or leaves the block.
fn leave_out_dead_flags(lowered: &mut [Lowered]) {
    let mut live = ALL_FLAGS;
    for one in lowered.iter_mut().rev() {
        if one.stops || one.ends != Ends::No {
            live = ALL_FLAGS;
            continue;
        }
        if let Some(quiet) = one.quiet
            && one.sets & live == 0
        {
            one.op.run = quiet;
        }
        live = live & !one.sets | one.reads;
    }
}

fn fuse(lowered: &mut [Lowered]) {
    for n in 1..lowered.len() {
        let (before, after) = lowered.split_at_mut(n);
        if let ([.., compare], [jump, ..]) = (before, after)
            && let (Some(fused), Some(condition)) = (compare.fuse, jump.condition)
        {
            compare.op.run = fused(condition);
        }
    }
}
