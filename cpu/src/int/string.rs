//! MOVS, CMPS, STOS, LODS, SCAS, with and without REP.
//!
//! A repeated instruction is interruptible between iterations: registers show the iterations done, RIP stays on the
//! instruction until the last. Each iteration costs one unit of time. Where nobody could see the difference (one page
//! of plain memory at a time, upwards), whole runs of elements are moved or stored at once.

use core::marker::PhantomData;

use crate::address::{Use, linear_in_segment};
use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::flags::Flags;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::segment::SegReg;
use crate::width::Width;
use emu_core::regs::Rflags;

const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;
const ES: u8 = SegReg::Es as u8;

/// Repetition prefix, in `aux`.
pub(crate) const ONCE: u16 = 0;
/// REP, REPE.
pub(crate) const REP: u16 = 1;
/// REPNE.
pub(crate) const REPNE: u16 = 2;

/// What one iteration does.
pub(crate) trait StringOp {
    /// Whether rSI and rDI move.
    const SOURCE: bool;
    const DESTINATION: bool;
    /// Whether ZF ends the repetition.
    const COMPARES: bool = false;
    /// One iteration at the given addresses. Changes nothing if it fails.
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Result<(), Trap>;
    /// Does up to `count` iterations upwards at once; returns how many, 0 if it had better be done singly.
    fn bulk<T: Width>(_cpu: &mut Cpu, _source: u64, _destination: u64, _count: u64) -> u64 {
        0
    }
}

pub(crate) struct Movs;
pub(crate) struct Cmps;
pub(crate) struct Stos;
pub(crate) struct Lods;
pub(crate) struct Scas;

pub(crate) fn source<T: Width>(cpu: &Cpu, op: &Op, address: u64) -> Result<u64, Trap> {
    Ok(linear_in_segment(cpu, op.seg, address, T::BYTES, Use::Read)?)
}

pub(crate) fn destination<T: Width>(cpu: &Cpu, address: u64, usage: Use) -> Result<u64, Trap> {
    Ok(linear_in_segment(cpu, ES, address, T::BYTES, usage)?)
}

/// Elements of width `T` from `linear` to the end of its page.
fn in_page<T: Width>(linear: u64) -> u64 {
    (0x1000 - (linear & 0xfff)) >> T::LOG
}

impl StringOp for Movs {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, from: u64, to: u64) -> Result<(), Trap> {
        let from = source::<T>(cpu, op, from)?;
        let value: T = Slow::load(cpu, from, op.seg)?;
        let to = destination::<T>(cpu, to, Use::Write)?;
        Slow::store(cpu, to, ES, value)
    }
    fn bulk<T: Width>(cpu: &mut Cpu, from: u64, to: u64, count: u64) -> u64 {
        let n = count.min(in_page::<T>(from)).min(in_page::<T>(to));
        let len = (n << T::LOG) as usize;
        match cpu.mmu.fast.copy_bytes(to, from, len, T::BYTES as usize) {
            Some(()) => n,
            None => 0,
        }
    }
}

impl StringOp for Stos {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, _op: &Op, _from: u64, to: u64) -> Result<(), Trap> {
        let to = destination::<T>(cpu, to, Use::Write)?;
        let value = cpu.reg::<T>(0);
        Slow::store(cpu, to, ES, value)
    }
    fn bulk<T: Width>(cpu: &mut Cpu, _from: u64, to: u64, count: u64) -> u64 {
        let n = count.min(in_page::<T>(to));
        let value = cpu.reg::<T>(0);
        match cpu.mmu.fast.fill_bytes(to, value, n as usize) {
            Some(()) => n,
            None => 0,
        }
    }
}

impl StringOp for Lods {
    const SOURCE: bool = true;
    const DESTINATION: bool = false;
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, from: u64, _to: u64) -> Result<(), Trap> {
        let from = source::<T>(cpu, op, from)?;
        let value: T = Slow::load(cpu, from, op.seg)?;
        cpu.set_reg(0, value);
        Ok(())
    }
}

fn compare<T: Width>(flags: &mut Flags, a: T, b: T) {
    flags.set_sub(a.wrapping_sub(b), b);
}

fn cmps_source<T: Width>(cpu: &mut Cpu, op: &Op, from: u64) -> Result<T, Trap> {
    let from = source::<T>(cpu, op, from)?;
    Slow::load(cpu, from, op.seg)
}

fn cmps_destination<T: Width>(cpu: &mut Cpu, to: u64) -> Result<T, Trap> {
    let to = destination::<T>(cpu, to, Use::Read)?;
    Slow::load(cpu, to, ES)
}

impl StringOp for Cmps {
    const SOURCE: bool = true;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, op: &Op, from: u64, to: u64) -> Result<(), Trap> {
        // Where both operands fault, the one reported is the one that Zen reads first.
        let (a, b): (T, T) = if op.aux == REP && T::LOG == 0 {
            let a = cmps_source(cpu, op, from)?;
            (a, cmps_destination(cpu, to)?)
        } else {
            let b = cmps_destination(cpu, to)?;
            (cmps_source(cpu, op, from)?, b)
        };
        compare(&mut cpu.flags, a, b);
        Ok(())
    }
}

impl StringOp for Scas {
    const SOURCE: bool = false;
    const DESTINATION: bool = true;
    const COMPARES: bool = true;
    fn step<T: Width>(cpu: &mut Cpu, _op: &Op, _from: u64, to: u64) -> Result<(), Trap> {
        let to = destination::<T>(cpu, to, Use::Read)?;
        let b: T = Slow::load(cpu, to, ES)?;
        let a = cpu.reg::<T>(0);
        compare(&mut cpu.flags, a, b);
        Ok(())
    }
}

/// A string instruction: operand width `T`; address width in bits in `scale`, repetition in `aux`.
pub(crate) struct StringInsn<S, T>(PhantomData<(S, T)>);

impl<S: StringOp, T: Width> Act for StringInsn<S, T> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let mask = match op.scale {
            16 => 0xffff,
            32 => 0xffff_ffff,
            _ => u64::MAX,
        };
        if op.aux == ONCE {
            S::step::<T>(cpu, op, cpu.gpr[RSI as usize] & mask, cpu.gpr[RDI as usize] & mask)?;
            advance::<S, T>(cpu, mask, 1);
            return Ok(());
        }
        let mut count = cpu.gpr[RCX as usize] & mask;
        if count == 0 {
            // Nothing happens, but a 32-bit address size cuts nothing either: registers keep their values.
            return Ok(());
        }
        // One iteration is paid for by the instruction itself.
        let mut paid = 1 + cpu.budget.max(0) as u64;
        let mut done = 0_u64;
        let upwards = !cpu.flags.other.contains(Rflags::DF);
        let stopped = loop {
            let (from, to) = (cpu.gpr[RSI as usize] & mask, cpu.gpr[RDI as usize] & mask);
            let room = count.min(paid);
            let flat = cpu.key.is_64() && mask == u64::MAX && upwards && !S::COMPARES;
            let mut n = 0;
            if flat && room > 1 {
                let from = from.wrapping_add(cpu.seg_base[op.seg as usize % 8]);
                n = S::bulk::<T>(cpu, from, to, room);
            }
            if n == 0 {
                if let Err(trap) = S::step::<T>(cpu, op, from, to) {
                    break Some(trap);
                }
                n = 1;
                if !cpu.latch.is_empty() {
                    cpu.latch.clear();
                }
            }
            advance::<S, T>(cpu, mask, n);
            count -= n;
            set_count(cpu, mask, count);
            done += n;
            paid -= n;
            let satisfied = match (S::COMPARES, op.aux) {
                (false, _) => false,
                (true, REPNE) => cpu.flags.zf(),
                (true, _) => !cpu.flags.zf(),
            };
            if count == 0 || satisfied {
                break None;
            }
            if paid == 0 || cpu.attention {
                break Some(Trap::Paused);
            }
        };
        match stopped {
            None => {
                cpu.budget -= done as i64 - 1;
                Ok(())
            }
            // The instruction's own unit is given back with the stop; what was done is charged here.
            Some(trap) => {
                cpu.budget -= done as i64;
                Err(trap)
            }
        }
    }
}

fn set_count(cpu: &mut Cpu, mask: u64, count: u64) {
    write_masked(cpu, RCX, mask, count);
}

fn write_masked(cpu: &mut Cpu, reg: u8, mask: u64, value: u64) {
    match mask {
        0xffff => cpu.set_reg(reg, value as u16),
        0xffff_ffff => cpu.set_reg(reg, value as u32),
        _ => cpu.set_reg(reg, value),
    }
}

fn advance<S: StringOp, T: Width>(cpu: &mut Cpu, mask: u64, elements: u64) {
    let bytes = elements << T::LOG;
    let step = if cpu.flags.other.contains(Rflags::DF) { bytes.wrapping_neg() } else { bytes };
    if S::SOURCE {
        write_masked(cpu, RSI, mask, cpu.gpr[RSI as usize].wrapping_add(step));
    }
    if S::DESTINATION {
        write_masked(cpu, RDI, mask, cpu.gpr[RDI as usize].wrapping_add(step));
    }
}
