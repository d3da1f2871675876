//! The decoded form of an instruction, and how one hands over to the next.
//!
//! A block is a slice of [`Op`]s. Each op holds the address of its handler; a handler does its work and calls the
//! handler of the next op in tail position, which the compiler turns into a jump. The rest of the slice travels along as
//! [`Rest`], whose two pointers make a hand-over one compare and one addition; the end of a block, or of a shortened
//! run of it, is the end of the slice.
//!
//! Rules for handlers, without which the tail call becomes a call and costs host stack for each guest instruction:
//! no local whose address is taken may be alive at the hand-over, nothing may need dropping after it, and anything
//! complicated is an out-of-line callee. [`crate::exec`] measures at start-up whether the rules hold, and shortens
//! its runs if they do not.

use core::cell::Cell;

use crate::code::CodeCache;
use crate::cpu::Cpu;

/// Why a chain of handlers came back to the run loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Next {
    /// RIP is exact and every instruction before it has retired: look for events, find the next block.
    Boundary,
    /// As `Boundary`, after a direct branch whose target block could not be entered through its link.
    Unlinked,
    /// The instruction at RIP stopped; [`Cpu::trap`] says why.
    Trap,
}

/// The ops after the running one.
pub(crate) type Rest<'a> = core::slice::Iter<'a, Op>;

/// A handler. See the module for the rules.
pub(crate) type Handler = fn(&mut Cpu, &CodeCache, &Op, Rest<'_>) -> Next;

/// One decoded instruction (two, when a compare and its jump are fused).
#[derive(Clone, Debug)]
#[repr(C)]
pub(crate) struct Op {
    pub run: Handler,
    /// Immediate operand; for direct branches the link.
    pub imm: Cell<u64>,
    /// Displacement of the memory operand; for direct branches the target, relative to the block's first byte.
    pub disp: i32,
    /// Where the next instruction starts, relative to the block's first byte.
    pub ip: u16,
    /// Length of the instruction in bytes (of both, when fused).
    pub len: u8,
    /// Instructions from this one to the end of the block, inclusive: what has been charged and not yet executed.
    pub left: u8,
    /// First register operand; bit 7 marks AH, CH, DH, BH.
    pub dst: u8,
    /// Second register operand.
    pub src: u8,
    /// Base register of the memory operand ([`ZERO`] for none, [`RIP`] for RIP-relative).
    pub base: u8,
    /// Index register ([`ZERO`] for none).
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Segment of the memory operand.
    pub seg: u8,
    /// Whatever else the instruction needs (third operand, condition, immediate byte beside `imm`).
    pub aux: u16,
}

/// Register number that always reads as zero.
pub(crate) const ZERO: u8 = 16;
/// Register number of the address of the running block's first byte.
pub(crate) const RIP: u8 = 17;
/// Register number that always reads as 2^31, for a RIP-relative displacement that is out of range from the block.
pub(crate) const TWO_GIB: u8 = 18;
/// Numbers in the register file, a power of two so that a masked number needs no bounds check.
pub(crate) const GPR_SLOTS: usize = 32;
/// Bit in a byte register's number that selects bits 15:8.
pub(crate) const HIGH_BYTE: u8 = 0x80;

impl Op {
    /// Where this instruction starts, relative to the block's first byte.
    #[inline]
    pub fn start(&self) -> u64 {
        self.ip as u64 - self.len as u64
    }

    /// The block a direct branch belongs to.
    #[inline]
    pub fn own_block(&self) -> u32 {
        u32::from_le_bytes([self.dst, self.src, self.base, self.index])
    }

    /// Stores what [`Op::own_block`] gives back.
    pub fn set_own_block(&mut self, id: u32) {
        [self.dst, self.src, self.base, self.index] = id.to_le_bytes();
    }

    /// The link of a direct branch: the block it leads to when taken. When not taken the ops go on.
    #[inline]
    pub fn link(&self) -> u32 {
        self.imm.get() as u32
    }

    /// Sets it.
    pub fn set_link(&self, id: u32) {
        self.imm.set(id as u64);
    }
}

/// A direct branch whose link is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenLink {
    pub block: u32,
    /// The branch's position among the block's ops.
    pub op: usize,
}

const _: () = assert!(size_of::<Op>() == 32, "an op is half a cache line");

/// Hands over to the next op, or leaves at the end of the slice with an exact RIP.
macro_rules! next {
    ($cpu:ident, $code:ident, $op:ident, $rest:ident) => {{
        let mut rest: $crate::op::Rest<'_> = $rest;
        match rest.next() {
            Some(next) => return (next.run)($cpu, $code, next, rest),
            None => return $crate::exec::end_of_slice($cpu, $op),
        }
    }};
}
pub(crate) use next;
