//! Effective and linear addresses of memory operands.
//!
//! In 64-bit mode with 64-bit addresses nothing but FS and GS has a base and nothing has a limit: those forms are
//! instantiated for speed. Every other form goes through [`Legacy`], which masks, checks limits and types, and is used
//! on the slow path alone.

use emu_core::Exception;
use emu_core::exception::SelectorError;

use crate::cpu::Cpu;
use crate::op::{GPR_SLOTS, Op};
use crate::segment::{FLAT, SegReg};

/// What an operand is used for, as far as segment types care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Read,
    Write,
}

/// A way to form the linear address of an op's memory operand.
pub(crate) trait Addressing {
    /// The address of `len` bytes at the operand plus `offset`.
    fn linear(cpu: &Cpu, op: &Op, offset: u64, len: u64, usage: Use) -> Result<u64, Exception>;
}

/// Base register plus displacement, no segment base.
pub(crate) struct Base64;
/// Base, scaled index, displacement, and the base of FS or GS.
pub(crate) struct Full64;
/// Everything else: 16- and 32-bit addresses, segment limits and types.
pub(crate) struct Legacy;

/// A 64-bit absolute address, in the immediate.
pub(crate) struct Absolute;

/// Bits of [`Op::scale`] above the scale itself.
pub(crate) const SCALE_MASK: u8 = 3;
/// The address has 16 bits.
pub(crate) const ADDRESS16: u8 = 1 << 2;
/// The address has 32 bits.
pub(crate) const ADDRESS32: u8 = 1 << 3;

impl Addressing for Base64 {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op, offset: u64, _len: u64, _usage: Use) -> Result<u64, Exception> {
        let base = cpu.gpr[op.base as usize % GPR_SLOTS];
        Ok(base.wrapping_add(op.disp as i64 as u64).wrapping_add(offset))
    }
}

impl Addressing for Full64 {
    #[inline(always)]
    fn linear(cpu: &Cpu, op: &Op, offset: u64, _len: u64, _usage: Use) -> Result<u64, Exception> {
        let segment = cpu.seg_base[op.seg as usize % 8];
        Ok(effective(cpu, op).wrapping_add(segment).wrapping_add(offset))
    }
}

impl Addressing for Legacy {
    #[inline(never)]
    fn linear(cpu: &Cpu, op: &Op, offset: u64, len: u64, usage: Use) -> Result<u64, Exception> {
        let address = effective(cpu, op).wrapping_add(offset);
        let address = if op.scale & ADDRESS16 != 0 {
            address & 0xffff
        } else if op.scale & ADDRESS32 != 0 {
            address & 0xffff_ffff
        } else {
            address
        };
        linear_in_segment(cpu, op.seg, address, len, usage)
    }
}

impl Addressing for Absolute {
    fn linear(cpu: &Cpu, op: &Op, offset: u64, len: u64, usage: Use) -> Result<u64, Exception> {
        linear_in_segment(cpu, op.seg, op.imm.get().wrapping_add(offset), len, usage)
    }
}

/// The effective address before any masking.
#[inline(always)]
pub(crate) fn effective(cpu: &Cpu, op: &Op) -> u64 {
    let base = cpu.gpr[op.base as usize % GPR_SLOTS];
    let index = cpu.gpr[op.index as usize % GPR_SLOTS];
    base.wrapping_add(index << (op.scale & SCALE_MASK)).wrapping_add(op.disp as i64 as u64)
}

/// The linear address of `len` bytes at offset `address` of segment `seg`, after the checks of the current mode.
pub(crate) fn linear_in_segment(cpu: &Cpu, seg: u8, address: u64, len: u64, usage: Use) -> Result<u64, Exception> {
    let base = cpu.seg_base[seg as usize % 8];
    if cpu.key.is_64() || seg == FLAT {
        return Ok(base.wrapping_add(address));
    }
    let refuse = || {
        if seg == SegReg::Ss as u8 { Exception::StackFault(SelectorError::NONE) } else { Exception::GP0 }
    };
    let segment = &cpu.segments.regs[(seg as usize).min(5)];
    if cpu.key.is_protected() {
        let allowed = segment.attributes.p()
            && match usage {
                Use::Read => segment.attributes.is_readable(),
                Use::Write => segment.attributes.is_writable(),
            };
        if !allowed {
            return Err(refuse());
        }
    }
    if !segment.contains(address, len) {
        return Err(refuse());
    }
    Ok(base.wrapping_add(address) & 0xffff_ffff)
}
