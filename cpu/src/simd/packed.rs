//! Computations on whole registers: lane by lane, with a third operand, by one count, and across lanes.

use core::marker::PhantomData;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, Lanewise, demand_alignment, imm8, load128, operand};
use crate::vector::{V128, V256};

/// `op dst, aux, src(register)`
pub(crate) struct PackedReg<O, F>(PhantomData<(O, F)>);
impl<O: Lanewise, F: Form> Pure for PackedReg<O, F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let result = F::lanes::<O>(F::get(cpu, op.aux as u8), F::get(cpu, op.src), imm8(op));
        F::set(cpu, op.dst, result);
    }
}

/// `op dst, aux, memory`
pub(crate) struct PackedMem<O, F, A>(PhantomData<(O, F, A)>);
impl<O: Lanewise, F: Form, A: Addressing> Sem for PackedMem<O, F, A> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = operand::<P, F, A>(cpu, op)?;
        let result = F::lanes::<O>(F::get(cpu, op.aux as u8), b, imm8(op));
        F::set(cpu, op.dst, result);
        Ok(())
    }
}

/// A shift of all elements by one count.
pub(crate) trait Count {
    fn eval(a: V128, count: u64) -> V128;
}

/// `shift dst, aux, src`: the count is the low quadword of an XMM register.
pub(crate) struct CountReg<O, F>(PhantomData<(O, F)>);
impl<O: Count, F: Form> Pure for CountReg<O, F> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let count = cpu.vector.xmm(op.src).low();
        shift::<O, F>(cpu, op, op.aux as u8, count);
    }
}

/// `shift dst, aux, imm8`
pub(crate) struct CountImm<O, F>(PhantomData<(O, F)>);
impl<O: Count, F: Form> Pure for CountImm<O, F> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        shift::<O, F>(cpu, op, op.aux as u8, imm8(op).into());
    }
}

/// `shift dst, aux, memory`: 128 bits are read in every form.
pub(crate) struct CountMem<O, F>(PhantomData<(O, F)>);
impl<O: Count, F: Form> Sem for CountMem<O, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 16, Use::Read)?;
        if F::ALIGNED {
            demand_alignment::<true>(linear, 16)?;
        }
        let count = load128::<P>(cpu, linear, op.seg)?.low();
        shift::<O, F>(cpu, op, op.aux as u8, count);
        Ok(())
    }
}

#[inline(always)]
fn shift<O: Count, F: Form>(cpu: &mut Cpu, op: &Op, source: u8, count: u64) {
    let [low, high] = F::widen(F::get(cpu, source));
    // The upper lane of a 128-bit form is zero and stays so.
    let result = [O::eval(low, count), if F::BYTES == 32 { O::eval(high, count) } else { high }];
    F::set(cpu, op.dst, F::narrow(result));
}

/// An instruction with a mask or key in a third register.
pub(crate) trait Ternary {
    fn eval(a: V128, b: V128, c: V128) -> V128;
}

/// `op dst, aux, src, third`: the third register's number is in `imm`.
pub(crate) struct TernaryReg<O, F>(PhantomData<(O, F)>);
impl<O: Ternary, F: Form> Pure for TernaryReg<O, F> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let b = F::get(cpu, op.src);
        ternary::<O, F>(cpu, op, b);
    }
}

/// The same with the second operand in memory.
pub(crate) struct TernaryMem<O, F>(PhantomData<(O, F)>);
impl<O: Ternary, F: Form> Sem for TernaryMem<O, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = operand::<P, F, Legacy>(cpu, op)?;
        ternary::<O, F>(cpu, op, b);
        Ok(())
    }
}

#[inline]
fn ternary<O: Ternary, F: Form>(cpu: &mut Cpu, op: &Op, b: F::Value) {
    let (a, b, c) = (F::widen(F::get(cpu, op.aux as u8)), F::widen(b), F::widen(F::get(cpu, imm8(op))));
    let high = if F::BYTES == 32 { O::eval(a[1], b[1], c[1]) } else { V128::ZERO };
    F::set(cpu, op.dst, F::narrow([O::eval(a[0], b[0], c[0]), high]));
}

/// A VEX.256 instruction that moves elements across lanes.
pub(crate) trait Crossing {
    fn eval(a: V256, b: V256, imm: u8) -> V256;
}

/// `op dst, aux, src`
pub(crate) struct CrossingReg<O>(PhantomData<O>);
impl<O: Crossing> Pure for CrossingReg<O> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let result = O::eval(cpu.vector.ymm(op.aux as u8), cpu.vector.ymm(op.src), imm8(op));
        cpu.vector.set_ymm(op.dst, result);
    }
}

/// `op dst, aux, memory`
pub(crate) struct CrossingMem<O>(PhantomData<O>);
impl<O: Crossing> Sem for CrossingMem<O> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = operand::<P, crate::simd::form::Vex256, Legacy>(cpu, op)?;
        let result = O::eval(cpu.vector.ymm(op.aux as u8), b, imm8(op));
        cpu.vector.set_ymm(op.dst, result);
        Ok(())
    }
}
