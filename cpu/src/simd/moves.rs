//! Moves: of whole registers, of their low elements, of halves, between register files.

use core::marker::PhantomData;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, demand_alignment};
use crate::vector::V128;
use crate::vector::shuffle::{movhlps, movlhps, movsd, movss};
use crate::width::Width;

/// MOVUPS, MOVAPS and their kin between registers.
pub(crate) struct MoveReg<F>(PhantomData<F>);
impl<F: Form> Pure for MoveReg<F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = F::get(cpu, op.src);
        F::set(cpu, op.dst, value);
    }
}

/// MOVUPS, MOVAPS, LDDQU, MOVNTDQA and their kin from memory.
pub(crate) struct MoveLoad<F, A, const ALIGNED: bool>(PhantomData<(F, A)>);
impl<F: Form, A: Addressing, const ALIGNED: bool> Sem for MoveLoad<F, A, ALIGNED> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, F::BYTES, Use::Read)?;
        demand_alignment::<ALIGNED>(linear, F::BYTES)?;
        let value = F::load::<P>(cpu, linear, op.seg)?;
        F::set(cpu, op.dst, value);
        Ok(())
    }
}

/// MOVUPS, MOVAPS, MOVNTPS and their kin to memory.
pub(crate) struct MoveStore<F, A, const ALIGNED: bool>(PhantomData<(F, A)>);
impl<F: Form, A: Addressing, const ALIGNED: bool> Sem for MoveStore<F, A, ALIGNED> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, F::BYTES, Use::Write)?;
        demand_alignment::<ALIGNED>(linear, F::BYTES)?;
        let value = F::get(cpu, op.src);
        F::store::<P>(cpu, linear, op.seg, value)
    }
}

/// MOVQ xmm, xmm
pub(crate) struct MoveLow<F>(PhantomData<F>);
impl<F: Form> Pure for MoveLow<F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = cpu.vector.xmm(op.src).low();
        F::set_low(cpu, op.dst, V128::from_low(value));
    }
}

/// MOVD, MOVQ xmm, reg
pub(crate) struct FromGpr<T, F>(PhantomData<(T, F)>);
impl<T: Width, F: Form> Pure for FromGpr<T, F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = cpu.reg::<T>(op.src).zero_extend();
        F::set_low(cpu, op.dst, V128::from_low(value));
    }
}

/// MOVD, MOVQ reg, xmm
pub(crate) struct ToGpr<T>(PhantomData<T>);
impl<T: Width> Pure for ToGpr<T> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = T::truncate(cpu.vector.xmm(op.src).low());
        cpu.set_reg(op.dst, value);
    }
}

/// MOVD, MOVQ, MOVSS, MOVSD xmm, mem: the rest of the XMM register is cleared.
pub(crate) struct LoadLow<T, F, A>(PhantomData<(T, F, A)>);
impl<T: Width, F: Form, A: Addressing> Sem for LoadLow<T, F, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let value: T = P::load(cpu, linear, op.seg)?;
        F::set_low(cpu, op.dst, V128::from_low(value.zero_extend()));
        Ok(())
    }
}

/// MOVD, MOVQ, MOVSS, MOVSD, MOVLPS mem, xmm
pub(crate) struct StoreLow<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for StoreLow<T, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let value = T::truncate(cpu.vector.xmm(op.src).low());
        P::store(cpu, linear, op.seg, value)
    }
}

/// MOVHPS, MOVHPD mem, xmm
pub(crate) struct StoreHigh<A>(PhantomData<A>);
impl<A: Addressing> Sem for StoreHigh<A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, 8, Use::Write)?;
        let value = cpu.vector.xmm(op.src).high();
        P::store(cpu, linear, op.seg, value)
    }
}

/// A move that replaces part of a 128-bit register.
pub(crate) trait Merge {
    fn eval(a: V128, b: V128) -> V128;
}
/// MOVSS between registers
pub(crate) struct LowDword;
/// MOVSD between registers; MOVLPS, MOVLPD from memory
pub(crate) struct LowQword;
/// MOVLHPS; MOVHPS, MOVHPD from memory
pub(crate) struct HighQword;
/// MOVHLPS
pub(crate) struct HighToLow;
impl Merge for LowDword {
    #[inline(always)]
    fn eval(a: V128, b: V128) -> V128 {
        movss(a, b)
    }
}
impl Merge for LowQword {
    #[inline(always)]
    fn eval(a: V128, b: V128) -> V128 {
        movsd(a, b)
    }
}
impl Merge for HighQword {
    #[inline(always)]
    fn eval(a: V128, b: V128) -> V128 {
        movlhps(a, b)
    }
}
impl Merge for HighToLow {
    #[inline(always)]
    fn eval(a: V128, b: V128) -> V128 {
        movhlps(a, b)
    }
}

/// `dst := merge(aux, src)`
pub(crate) struct MergeReg<M, F>(PhantomData<(M, F)>);
impl<M: Merge, F: Form> Pure for MergeReg<M, F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = M::eval(cpu.vector.xmm(op.aux as u8), cpu.vector.xmm(op.src));
        F::set_low(cpu, op.dst, value);
    }
}

/// `dst := merge(aux, quadword in memory)`
pub(crate) struct MergeMem<M, F, A>(PhantomData<(M, F, A)>);
impl<M: Merge, F: Form, A: Addressing> Sem for MergeMem<M, F, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, 8, Use::Read)?;
        let value: u64 = P::load(cpu, linear, op.seg)?;
        let merged = M::eval(cpu.vector.xmm(op.aux as u8), V128::from_low(value));
        F::set_low(cpu, op.dst, merged);
        Ok(())
    }
}

/// MOVDDUP from memory in its 128-bit forms, which read 64 bits.
pub(crate) struct DuplicateMem<F>(PhantomData<F>);
impl<F: Form> Sem for DuplicateMem<F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 8, Use::Read)?;
        let value: u64 = P::load(cpu, linear, op.seg)?;
        F::set_low(cpu, op.dst, crate::vector::shuffle::movddup(V128::from_low(value)));
        Ok(())
    }
}

/// VZEROUPPER
pub(crate) struct ZeroUpper;
impl Pure for ZeroUpper {
    #[inline]
    fn exec(cpu: &mut Cpu, _op: &Op) {
        // Other modes keep the registers that only 64-bit mode can name.
        let count = if cpu.key.is_64() { 16 } else { 8 };
        for n in 0..count {
            cpu.vector.set_upper(n, V128::ZERO);
        }
    }
}

/// VZEROALL
pub(crate) struct ZeroAll;
impl Pure for ZeroAll {
    fn exec(cpu: &mut Cpu, _op: &Op) {
        let count = if cpu.key.is_64() { 16 } else { 8 };
        for n in 0..count {
            cpu.vector.set_ymm(n, [V128::ZERO; 2]);
        }
    }
}
