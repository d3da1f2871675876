//! XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.
//!
//! Processors take turns, so that a locked operation is an ordinary one; LOCK where the manuals forbid it is refused by
//! the decoder.

use core::marker::PhantomData;

use emu_core::Exception;

use crate::address::{Addressing, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Act, Pure, Sem};
use crate::exit::Trap;
use crate::mem::{Path, Slow};
use crate::op::Op;
use crate::width::Width;

/// XADD reg, reg
pub(crate) struct XaddReg<T>(PhantomData<T>);
impl<T: Width> Pure for XaddReg<T> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
        let sum = a.wrapping_add(b);
        cpu.flags.set_add(sum, b);
        cpu.set_reg(op.src, a);
        cpu.set_reg(op.dst, sum);
    }
}

/// XADD mem, reg
pub(crate) struct XaddMem<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for XaddMem<T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let b = cpu.reg::<T>(op.src);
        let a = P::update(cpu, linear, op.seg, |a: T| (a.wrapping_add(b), a))?;
        cpu.flags.set_add(a.wrapping_add(b), b);
        cpu.set_reg(op.src, a);
        Ok(())
    }
}

/// CMPXCHG reg, reg
pub(crate) struct CmpxchgReg<T>(PhantomData<T>);
impl<T: Width> Pure for CmpxchgReg<T> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let (expected, old) = (cpu.reg::<T>(0), cpu.reg::<T>(op.dst));
        cpu.flags.set_sub(expected.wrapping_sub(old), old);
        if expected == old {
            let new = cpu.reg::<T>(op.src);
            cpu.set_reg(op.dst, new);
        } else {
            cpu.set_reg(0, old);
        }
    }
}

/// CMPXCHG mem, reg. Memory is written either way.
pub(crate) struct CmpxchgMem<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for CmpxchgMem<T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let (expected, new) = (cpu.reg::<T>(0), cpu.reg::<T>(op.src));
        let old = P::update(cpu, linear, op.seg, |old: T| (if old == expected { new } else { old }, old))?;
        cpu.flags.set_sub(expected.wrapping_sub(old), old);
        if old != expected {
            cpu.set_reg(0, old);
        }
        Ok(())
    }
}

/// CMPXCHG8B mem
pub(crate) struct Cmpxchg8b<A>(PhantomData<A>);
impl<A: Addressing> Sem for Cmpxchg8b<A> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, 8, Use::Write)?;
        let pair = |cpu: &Cpu, low: u8, high: u8| cpu.reg::<u32>(low) as u64 | (cpu.reg::<u32>(high) as u64) << 32;
        let (expected, new) = (pair(cpu, 0, 2), pair(cpu, 3, 1));
        let old = P::update(cpu, linear, op.seg, |old: u64| (if old == expected { new } else { old }, old))?;
        cpu.flags.set_zf(old == expected);
        if old != expected {
            cpu.set_reg(0, old as u32);
            cpu.set_reg(2, (old >> 32) as u32);
        }
        Ok(())
    }
}

/// CMPXCHG16B mem: #GP(0) unless 16-byte aligned.
pub(crate) struct Cmpxchg16b<A>(PhantomData<A>);
impl<A: Addressing> Act for Cmpxchg16b<A> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        let linear = A::linear(cpu, op, 0, 16, Use::Write)?;
        if linear & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        let pair = |cpu: &Cpu, low: usize, high: usize| cpu.gpr[low] as u128 | (cpu.gpr[high] as u128) << 64;
        let (expected, new) = (pair(cpu, 0, 2), pair(cpu, 3, 1));
        let old = Slow::update(cpu, linear, op.seg, |old: u128| (if old == expected { new } else { old }, old))?;
        cpu.flags.set_zf(old == expected);
        if old != expected {
            cpu.set_reg(0, old as u64);
            cpu.set_reg(2, (old >> 64) as u64);
        }
        Ok(())
    }
}
