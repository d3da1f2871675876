//! The x87 floating-point unit (APM vol. 1, "x87 Floating-Point Programming"; Intel SDM vol. 1, chapter 8).
//!
//! [`X87State`] is the register file with its stack, tags and error pointers; values are computed by
//! [`crate::softfloat`]. The instructions: [`control`] (control and status words, the stack pointer), [`environment`]
//! (FNSTENV, FNSAVE and back), [`transfer`], [`arith`], [`function`]; what the last three share is in [`stack`].
//!
//! The error pointers are those of the last instruction that was not a control instruction, with or without an
//! exception; the data pointer is that of the last one with a memory operand.
//!
//! Always true: FSW.ES and FSW.B tell whether FSW holds an exception that FCW does not mask; only the abridged tags are
//! kept, full ones are made when FNSTENV or FNSAVE asks.
//!
//! Left out on purpose: FERR# and IGNNE#. While CR0.NE is clear a pending exception is not reported and execution goes
//! on, as with IGNNE# asserted.

pub(crate) mod arith;
pub(crate) mod control;
pub(crate) mod environment;
pub(crate) mod function;
pub(crate) mod stack;
pub(crate) mod transfer;

use emu_core::Exception;
use emu_core::regs::Cr0;

use crate::cpu::Cpu;
use crate::op::Op;
use crate::softfloat::x87::fxam;
use crate::softfloat::{F80, Flags};

/// FSW: invalid operation.
pub(crate) const IE: u16 = 1 << 0;
/// FSW: stack fault.
pub(crate) const SF: u16 = 1 << 6;
/// FSW: error summary.
pub(crate) const ES: u16 = 1 << 7;
/// FSW: busy, a copy of [`ES`].
pub(crate) const BUSY: u16 = 1 << 15;
/// FSW: condition code 0.
pub(crate) const C0: u16 = 1 << 8;
/// FSW: condition code 1.
pub(crate) const C1: u16 = 1 << 9;
/// FSW: condition code 2.
pub(crate) const C2: u16 = 1 << 10;
/// FSW: condition code 3.
pub(crate) const C3: u16 = 1 << 14;
/// FSW: the stack top.
const TOP: u16 = 7 << 11;
/// The six exceptions, in FSW and as masks in FCW.
const EXCEPTIONS: u16 = Flags::EXCEPTIONS.bits();

/// x87 state (APM vol. 1, "x87 Floating-Point Programming").
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct X87State {
    /// Physical registers R0 to R7; ST(i) is register TOP+i. MMX registers are their significands.
    pub regs: [F80; 8],
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Bit n set: physical register n is not empty.
    pub valid: u8,
    /// Opcode of the last non-control instruction, 11 bits.
    pub fop: u16,
    /// Its address.
    pub fip: u64,
    /// Its code segment.
    pub fcs: u16,
    /// The address of its memory operand.
    pub fdp: u64,
    /// The segment of its memory operand.
    pub fds: u16,
}

/// What FNSTENV calls a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Tag {
    Valid = 0,
    Zero = 1,
    Special = 2,
    Empty = 3,
}

impl X87State {
    /// The control word after FNINIT.
    pub const FCW_RESET: u16 = 0x37f;
    /// Bits of the control word that hold what is written to them.
    const FCW_WRITABLE: u16 = 0x1f3f;
    /// The bit of the control word that always reads as one.
    const FCW_ONE: u16 = 0x40;

    /// After FNINIT.
    pub fn reset() -> X87State {
        X87State {
            regs: [F80::ZERO; 8],
            fcw: Self::FCW_RESET,
            fsw: 0,
            valid: 0,
            fop: 0,
            fip: 0,
            fcs: 0,
            fdp: 0,
            fds: 0,
        }
    }

    /// Number of the physical register that is ST(0).
    #[inline]
    pub fn top(&self) -> u8 {
        (self.fsw >> 11 & 7) as u8
    }

    /// Moves the stack top.
    #[inline]
    pub fn set_top(&mut self, top: u8) {
        self.fsw = self.fsw & !TOP | ((top & 7) as u16) << 11;
    }

    /// Number of the physical register that is ST(`i`).
    #[inline]
    pub fn physical(&self, i: u8) -> usize {
        (self.top() + i) as usize % 8
    }

    /// ST(`i`), whatever its tag.
    #[inline]
    pub fn st(&self, i: u8) -> F80 {
        self.regs[self.physical(i)]
    }

    /// Whether ST(`i`) is empty.
    #[inline]
    pub fn is_empty(&self, i: u8) -> bool {
        self.valid >> self.physical(i) & 1 == 0
    }

    /// Replaces ST(`i`), which is not empty afterwards.
    #[inline]
    pub fn set_st(&mut self, i: u8, value: F80) {
        let n = self.physical(i);
        self.regs[n] = value;
        self.valid |= 1 << n;
    }

    /// Makes ST(`i`) empty.
    #[inline]
    pub fn free(&mut self, i: u8) {
        self.valid &= !(1 << self.physical(i));
    }

    /// Makes ST(0) empty and moves the top off it.
    #[inline]
    pub fn pop(&mut self) {
        self.free(0);
        self.set_top(self.top() + 1);
    }

    /// Puts `value` on the stack, whether there is room or not.
    #[inline]
    pub fn push(&mut self, value: F80) {
        self.set_top(self.top().wrapping_sub(1));
        self.set_st(0, value);
    }

    /// Sets the control word.
    pub fn set_fcw(&mut self, fcw: u16) {
        self.fcw = fcw & Self::FCW_WRITABLE | Self::FCW_ONE;
        self.summarise();
    }

    /// Brings ES and B up to date.
    #[inline]
    pub fn summarise(&mut self) {
        self.fsw &= !(ES | BUSY);
        if self.fsw & !self.fcw & EXCEPTIONS != 0 {
            self.fsw |= ES | BUSY;
        }
    }

    /// Whether an unmasked exception waits for the next waiting instruction.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.fsw & ES != 0
    }

    /// The tag of physical register `n`.
    fn tag(&self, n: usize) -> Tag {
        if self.valid >> n & 1 == 0 {
            return Tag::Empty;
        }
        match fxam(self.regs[n]) {
            C2 => Tag::Valid,
            C3 => Tag::Zero,
            _ => Tag::Special,
        }
    }

    /// The full tag word.
    pub fn full_tags(&self) -> u16 {
        (0..8).fold(0, |word, n| word | (self.tag(n) as u16) << (2 * n))
    }

    /// Takes what a full tag word says of emptiness; the other tags follow from the registers.
    pub fn set_full_tags(&mut self, word: u16) {
        self.valid = (0..8).fold(0, |valid, n| valid | u8::from(word >> (2 * n) & 3 != Tag::Empty as u16) << n);
    }

    /// Whether everything is as after FNINIT with clear registers: the initial configuration of the XSAVE component.
    pub fn is_initial(&self) -> bool {
        *self == X87State::reset()
    }
}

impl Cpu {
    /// #MF if an unmasked x87 exception is pending: the first thing of every waiting x87 and every MMX instruction.
    #[inline]
    pub fn check_x87_pending(&self) -> Result<(), Exception> {
        if self.x87.is_pending() && self.control.cr0.contains(Cr0::NE) {
            return Err(Exception::X87FloatingPoint);
        }
        Ok(())
    }

    /// Width in bytes of the environment that FNSTENV and its kin use, from the op's operand size in [`Op::dst`].
    #[inline]
    fn environment_word(op: &Op) -> u64 {
        op.dst as u64
    }
}
