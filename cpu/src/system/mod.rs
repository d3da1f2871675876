//! What belongs to the operating system: event delivery, segment loads, control registers, privileged instructions.
//!
//! APM vol. 2, chapters "System Resources", "Segmented Virtual Memory", "Exceptions and Interrupts", "Task Management",
//! "Software Debug and Performance Resources"; APM vol. 3, "System Instruction Reference".
//!
//! Operands are decoded in one way for the whole group: [`operand`] and [`store_operand`] take a register or memory by
//! what the op says, because none of these instructions is hot enough for an instance of its own.
//!
//! Left out on purpose: system-management mode, virtual-8086 mode extensions and protected-mode virtual interrupts
//! (CR4.VME and CR4.PVI do not exist), MONITOR and MWAIT, performance counters, control-flow enforcement.

pub(crate) mod cache;
pub(crate) mod control;
pub(crate) mod debug;
pub(crate) mod deliver;
pub(crate) mod descriptor;
pub(crate) mod far;
pub(crate) mod flags;
pub(crate) mod identity;
pub(crate) mod interrupt;
pub(crate) mod io;
pub(crate) mod iret;
pub(crate) mod load;
pub(crate) mod msr;
pub(crate) mod reset;
pub(crate) mod stack;
pub(crate) mod syscall;
pub(crate) mod tables;
pub(crate) mod task;
pub(crate) mod verify;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;

/// [`Op::base`] of an op whose operand is a register (in [`Op::src`]); no register file has this number.
pub(crate) const REGISTER: u8 = 0xff;

/// Reads the op's register or memory operand of `bytes` bytes.
pub(crate) fn operand(cpu: &mut Cpu, op: &Op, bytes: u8) -> Result<u64, Trap> {
    if op.base == REGISTER {
        return Ok(read_reg(cpu, op.src, bytes));
    }
    let linear = Legacy::linear(cpu, op, 0, bytes as u64, Use::Read)?;
    Ok(match bytes {
        1 => Slow::load::<u8>(cpu, linear, op.seg)? as u64,
        2 => Slow::load::<u16>(cpu, linear, op.seg)? as u64,
        4 => Slow::load::<u32>(cpu, linear, op.seg)? as u64,
        _ => Slow::load::<u64>(cpu, linear, op.seg)?,
    })
}

/// Writes `value` to the op's register, as wide as [`Op::aux`] says, or sixteen bits of it to memory.
pub(crate) fn store_operand(cpu: &mut Cpu, op: &Op, value: u64) -> Result<(), Trap> {
    if op.base == REGISTER {
        write_reg(cpu, op.src, op.aux as u8, value);
        return Ok(());
    }
    let linear = Legacy::linear(cpu, op, 0, 2, Use::Write)?;
    Slow::store(cpu, linear, op.seg, value as u16)
}

/// The low `bytes` bytes of a register.
pub(crate) fn read_reg(cpu: &Cpu, n: u8, bytes: u8) -> u64 {
    match bytes {
        1 => cpu.reg::<u8>(n) as u64,
        2 => cpu.reg::<u16>(n) as u64,
        4 => cpu.reg::<u32>(n) as u64,
        _ => cpu.reg::<u64>(n),
    }
}

/// Writes the low `bytes` bytes of a register, by the rule of that width.
pub(crate) fn write_reg(cpu: &mut Cpu, n: u8, bytes: u8, value: u64) {
    match bytes {
        1 => cpu.set_reg(n, value as u8),
        2 => cpu.set_reg(n, value as u16),
        4 => cpu.set_reg(n, value as u32),
        _ => cpu.set_reg(n, value),
    }
}

/// EDX:EAX
pub(crate) fn edx_eax(cpu: &Cpu) -> u64 {
    (cpu.reg::<u32>(2) as u64) << 32 | cpu.reg::<u32>(0) as u64
}

/// Writes EDX:EAX; the upper halves of RDX and RAX become zero.
pub(crate) fn set_edx_eax(cpu: &mut Cpu, value: u64) {
    cpu.set_reg(0, value as u32);
    cpu.set_reg(2, (value >> 32) as u32);
}
