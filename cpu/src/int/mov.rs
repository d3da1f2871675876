//! MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, BSWAP.

use core::marker::PhantomData;

use crate::address::{Addressing, Use, effective};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::flags::Condition;
use crate::int::alu::Source;
use crate::mem::Path;
use crate::op::Op;
use crate::width::Width;

/// MOV reg, reg|imm
pub(crate) struct MovReg<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Source> Pure for MovReg<T, S> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = S::get::<T>(cpu, op);
        cpu.set_reg(op.dst, value);
    }
}

/// MOV reg, mem
pub(crate) struct Load<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for Load<T, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let value: T = P::load(cpu, linear, op.seg)?;
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

/// MOV mem, reg|imm
pub(crate) struct Store<T, S, A>(PhantomData<(T, S, A)>);
impl<T: Width, S: Source, A: Addressing> Sem for Store<T, S, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let value = S::get::<T>(cpu, op);
        P::store(cpu, linear, op.seg, value)
    }
}

/// How a narrow value becomes a wide one.
pub(crate) trait Extend {
    fn extend<N: Width, W: Width>(value: N) -> W;
}
/// MOVZX
pub(crate) struct Zero;
/// MOVSX, MOVSXD
pub(crate) struct Sign;
impl Extend for Zero {
    #[inline(always)]
    fn extend<N: Width, W: Width>(value: N) -> W {
        W::truncate(value.zero_extend())
    }
}
impl Extend for Sign {
    #[inline(always)]
    fn extend<N: Width, W: Width>(value: N) -> W {
        W::truncate(value.sign_extend())
    }
}

/// MOVZX/MOVSX reg, reg
pub(crate) struct ExtendReg<E, N, W>(PhantomData<(E, N, W)>);
impl<E: Extend, N: Width, W: Width> Pure for ExtendReg<E, N, W> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value: W = E::extend::<N, W>(cpu.reg(op.src));
        cpu.set_reg(op.dst, value);
    }
}

/// MOVZX/MOVSX reg, mem
pub(crate) struct ExtendMem<E, N, W, A>(PhantomData<(E, N, W, A)>);
impl<E: Extend, N: Width, W: Width, A: Addressing> Sem for ExtendMem<E, N, W, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, N::BYTES, Use::Read)?;
        let value: N = P::load(cpu, linear, op.seg)?;
        cpu.set_reg(op.dst, E::extend::<N, W>(value));
        Ok(())
    }
}

/// LEA. The address is cut to the address size (in `aux`, bits), then to the operand.
pub(crate) struct Lea<T>(PhantomData<T>);
impl<T: Width> Pure for Lea<T> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let address = effective(cpu, op) & (u64::MAX >> op.aux);
        cpu.set_reg(op.dst, T::truncate(address));
    }
}

/// LEA reg, [base + disp] with 64-bit addresses
pub(crate) struct LeaBase<T>(PhantomData<T>);
impl<T: Width> Pure for LeaBase<T> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let base: u64 = cpu.reg(op.base);
        cpu.set_reg(op.dst, T::truncate(base.wrapping_add(op.disp as i64 as u64)));
    }
}

/// XCHG reg, reg
pub(crate) struct XchgReg<T>(PhantomData<T>);
impl<T: Width> Pure for XchgReg<T> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
        cpu.set_reg(op.dst, b);
        cpu.set_reg(op.src, a);
    }
}

/// XCHG mem, reg
pub(crate) struct XchgMem<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for XchgMem<T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let new = cpu.reg::<T>(op.src);
        let old = P::update(cpu, linear, op.seg, |old: T| (new, old))?;
        cpu.set_reg(op.src, old);
        Ok(())
    }
}

/// CMOVcc reg, reg. A 32-bit destination is zero-extended either way.
pub(crate) struct CmovReg<C, T>(PhantomData<(C, T)>);
impl<C: Condition, T: Width> Pure for CmovReg<C, T> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = if C::holds(&cpu.flags) { cpu.reg::<T>(op.src) } else { cpu.reg::<T>(op.dst) };
        cpu.set_reg(op.dst, value);
    }
}

/// CMOVcc reg, mem. Memory is read either way.
pub(crate) struct CmovMem<C, T, A>(PhantomData<(C, T, A)>);
impl<C: Condition, T: Width, A: Addressing> Sem for CmovMem<C, T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let loaded: T = P::load(cpu, linear, op.seg)?;
        let value = if C::holds(&cpu.flags) { loaded } else { cpu.reg::<T>(op.dst) };
        cpu.set_reg(op.dst, value);
        Ok(())
    }
}

/// SETcc reg
pub(crate) struct SetReg<C>(PhantomData<C>);
impl<C: Condition> Pure for SetReg<C> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = C::holds(&cpu.flags) as u8;
        cpu.set_reg(op.dst, value);
    }
}

/// SETcc mem
pub(crate) struct SetMem<C, A>(PhantomData<(C, A)>);
impl<C: Condition, A: Addressing> Sem for SetMem<C, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, 1, Use::Write)?;
        let value = C::holds(&cpu.flags) as u8;
        P::store(cpu, linear, op.seg, value)
    }
}

/// BSWAP r32, r64; of a 16-bit register the result is zero, as processors do it.
pub(crate) struct Bswap<T>(PhantomData<T>);
impl<T: Width> Pure for Bswap<T> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value: u64 = cpu.reg(op.dst);
        let swapped = if T::BITS == 16 { 0 } else { value.swap_bytes() >> (64 - T::BITS) };
        cpu.set_reg(op.dst, T::truncate(swapped));
    }
}
