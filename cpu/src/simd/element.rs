//! Single elements and lanes in and out, sign masks, tests, and widening moves.

use core::marker::PhantomData;

use emu_core::regs::Rflags;

use crate::address::{Addressing, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, Vex256, imm8, load128, operand};
use crate::simd::ops::Widen;
use crate::vector::compare::TestFlags;
use crate::vector::permute::{vextracti128, vinserti128};
use crate::vector::shuffle::insertps_m32;
use crate::vector::{V128, V256, compare, mask, shuffle};
use crate::width::Width;

/// An integer as an element of an XMM register, by the number in the immediate.
pub(crate) trait Element: Width {
    fn insert(a: V128, value: Self, imm: u8) -> V128;
    fn extract(a: V128, imm: u8) -> Self;
}

macro_rules! element {
    ($($T:ty: $insert:ident, $extract:ident;)*) => {$(
        impl Element for $T {
            fn insert(a: V128, value: $T, imm: u8) -> V128 {
                shuffle::$insert(a, value, imm)
            }
            fn extract(a: V128, imm: u8) -> $T {
                shuffle::$extract(a, imm)
            }
        }
    )*};
}

element! {
    u8: pinsrb, pextrb;
    u16: pinsrw, pextrw;
    u32: pinsrd, pextrd;
    u64: pinsrq, pextrq;
}

/// PINSRB, PINSRW, PINSRD, PINSRQ from a general register
pub(crate) struct InsertReg<E, F>(PhantomData<(E, F)>);
impl<E: Element, F: Form> Pure for InsertReg<E, F> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        // The byte form names the register's low byte whatever its number: no AH here.
        let value = E::truncate(cpu.reg::<u64>(op.src));
        let result = E::insert(cpu.vector.xmm(op.aux as u8), value, imm8(op));
        F::set_low(cpu, op.dst, result);
    }
}

/// The same from memory.
pub(crate) struct InsertMem<E, F>(PhantomData<(E, F)>);
impl<E: Element, F: Form> Sem for InsertMem<E, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, E::BYTES, Use::Read)?;
        let value: E = P::load(cpu, linear, op.seg)?;
        let result = E::insert(cpu.vector.xmm(op.aux as u8), value, imm8(op));
        F::set_low(cpu, op.dst, result);
        Ok(())
    }
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS to a general register, zero-extended
pub(crate) struct ExtractReg<E>(PhantomData<E>);
impl<E: Element> Pure for ExtractReg<E> {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let value = E::extract(cpu.vector.xmm(op.src), imm8(op)).zero_extend();
        cpu.set_reg(op.dst, value);
    }
}

/// The same to memory.
pub(crate) struct ExtractMem<E>(PhantomData<E>);
impl<E: Element> Sem for ExtractMem<E> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, E::BYTES, Use::Write)?;
        let value = E::extract(cpu.vector.xmm(op.src), imm8(op));
        P::store(cpu, linear, op.seg, value)
    }
}

/// INSERTPS from memory
pub(crate) struct InsertpsMem<F>(PhantomData<F>);
impl<F: Form> Sem for InsertpsMem<F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 4, Use::Read)?;
        let value: u32 = P::load(cpu, linear, op.seg)?;
        let result = insertps_m32(cpu.vector.xmm(op.aux as u8), value, imm8(op));
        F::set_low(cpu, op.dst, result);
        Ok(())
    }
}

/// VINSERTF128, VINSERTI128 from a register
pub(crate) struct InsertLane;
impl Pure for InsertLane {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let result = vinserti128(cpu.vector.ymm(op.aux as u8), cpu.vector.xmm(op.src), imm8(op));
        cpu.vector.set_ymm(op.dst, result);
    }
}

/// The same from memory.
pub(crate) struct InsertLaneMem;
impl Sem for InsertLaneMem {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 16, Use::Read)?;
        let lane = load128::<P>(cpu, linear, op.seg)?;
        let result = vinserti128(cpu.vector.ymm(op.aux as u8), lane, imm8(op));
        cpu.vector.set_ymm(op.dst, result);
        Ok(())
    }
}

/// VEXTRACTF128, VEXTRACTI128 to a register
pub(crate) struct ExtractLane;
impl Pure for ExtractLane {
    fn exec(cpu: &mut Cpu, op: &Op) {
        let lane = vextracti128(cpu.vector.ymm(op.src), imm8(op));
        cpu.vector.set_xmm_zero_upper(op.dst, lane);
    }
}

/// The same to memory.
pub(crate) struct ExtractLaneMem;
impl Sem for ExtractLaneMem {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, 16, Use::Write)?;
        let lane = vextracti128(cpu.vector.ymm(op.src), imm8(op));
        P::store(cpu, linear, op.seg, lane.to_u128())
    }
}

/// Sign bits of elements, as a number.
pub(crate) trait Signs {
    fn eval(a: V256) -> u32;
}
/// PMOVMSKB
pub(crate) struct OfBytes;
/// MOVMSKPS
pub(crate) struct OfDwords;
/// MOVMSKPD
pub(crate) struct OfQwords;
impl Signs for OfBytes {
    #[inline(always)]
    fn eval(a: V256) -> u32 {
        mask::vpmovmskb(a)
    }
}
impl Signs for OfDwords {
    #[inline(always)]
    fn eval(a: V256) -> u32 {
        mask::vmovmskps(a).into()
    }
}
impl Signs for OfQwords {
    #[inline(always)]
    fn eval(a: V256) -> u32 {
        mask::vmovmskpd(a).into()
    }
}

/// `mask reg, src`
pub(crate) struct MoveMask<M, F>(PhantomData<(M, F)>);
impl<M: Signs, F: Form> Pure for MoveMask<M, F> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let bits = M::eval(F::widen(F::get(cpu, op.src)));
        cpu.set_reg(op.dst, bits);
    }
}

/// A comparison of two registers that sets ZF and CF.
pub(crate) trait Test {
    fn eval(a: V128, b: V128) -> TestFlags;
}
/// PTEST
pub(crate) struct Ptest;
/// VTESTPS
pub(crate) struct Vtestps;
/// VTESTPD
pub(crate) struct Vtestpd;
impl Test for Ptest {
    #[inline]
    fn eval(a: V128, b: V128) -> TestFlags {
        compare::ptest(a, b)
    }
}
impl Test for Vtestps {
    #[inline]
    fn eval(a: V128, b: V128) -> TestFlags {
        compare::vtestps(a, b)
    }
}
impl Test for Vtestpd {
    #[inline]
    fn eval(a: V128, b: V128) -> TestFlags {
        compare::vtestpd(a, b)
    }
}

/// `test aux, src`
pub(crate) struct TestReg<T, F>(PhantomData<(T, F)>);
impl<T: Test, F: Form> Pure for TestReg<T, F> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let b = F::get(cpu, op.src);
        test::<T, F>(cpu, op, b);
    }
}

/// `test aux, memory`
pub(crate) struct TestMem<T, F>(PhantomData<(T, F)>);
impl<T: Test, F: Form> Sem for TestMem<T, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = operand::<P, F, Legacy>(cpu, op)?;
        test::<T, F>(cpu, op, b);
        Ok(())
    }
}

#[inline]
fn test<T: Test, F: Form>(cpu: &mut Cpu, op: &Op, b: F::Value) {
    let (a, b) = (F::widen(F::get(cpu, op.aux as u8)), F::widen(b));
    // The upper lanes of a 128-bit form are zero: both flags of that pair are set and change nothing.
    let flags = T::eval(a[0], b[0]) & T::eval(a[1], b[1]);
    let mut status = Rflags::empty();
    status.set(Rflags::ZF, flags.zf);
    status.set(Rflags::CF, flags.cf);
    cpu.flags.set_status(status);
}

/// PMOVSX, PMOVZX, broadcasts: from a register
pub(crate) struct WidenReg<W, F>(PhantomData<(W, F)>);
impl<W: Widen, F: Form> Pure for WidenReg<W, F> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let source = cpu.vector.xmm(op.src);
        widen::<W, F>(cpu, op, source);
    }
}

/// The same from memory, of which `aux` bytes are read.
pub(crate) struct WidenMem<W, F>(PhantomData<(W, F)>);
impl<W: Widen, F: Form> Sem for WidenMem<W, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = Legacy::linear(cpu, op, 0, op.aux.into(), Use::Read)?;
        let source = match op.aux {
            1 => V128::from_low(P::load::<u8>(cpu, linear, op.seg)?.into()),
            2 => V128::from_low(P::load::<u16>(cpu, linear, op.seg)?.into()),
            4 => V128::from_low(P::load::<u32>(cpu, linear, op.seg)?.into()),
            8 => V128::from_low(P::load::<u64>(cpu, linear, op.seg)?),
            // Only VEX.256 forms read as much, which want no alignment.
            _ => load128::<P>(cpu, linear, op.seg)?,
        };
        widen::<W, F>(cpu, op, source);
        Ok(())
    }
}

#[inline]
fn widen<W: Widen, F: Form>(cpu: &mut Cpu, op: &Op, source: V128) {
    let result = if F::BYTES == Vex256::BYTES { W::wide(source) } else { [W::narrow(source), V128::ZERO] };
    F::set(cpu, op.dst, F::narrow(result));
}
