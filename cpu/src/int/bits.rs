//! BT, BTS, BTR, BTC; BSF, BSR, POPCNT, LZCNT, TZCNT; BMI1 and BMI2; MOVBE; CRC32.
//!
//! BSF and BSR of zero set ZF and leave the destination as it was (APM vol. 3 says so; Intel processors do it). Flags
//! that the manuals leave undefined follow the result where a rule gives them, else are cleared.

use core::marker::PhantomData;

use emu_core::regs::Rflags;

use crate::address::{Addressing, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::int::arith::Operand;
use crate::mem::Path;
use crate::op::Op;
use crate::vector::bits;
use crate::width::Width;

/// What becomes of the tested bit.
pub(crate) trait BitOp {
    const STORES: bool = true;
    fn apply<T: Width>(value: T, mask: T) -> T;
}
/// BT
pub(crate) struct Bt;
/// BTS
pub(crate) struct Bts;
/// BTR
pub(crate) struct Btr;
/// BTC
pub(crate) struct Btc;
impl BitOp for Bt {
    const STORES: bool = false;
    #[inline(always)]
    fn apply<T: Width>(value: T, _mask: T) -> T {
        value
    }
}
impl BitOp for Bts {
    #[inline(always)]
    fn apply<T: Width>(value: T, mask: T) -> T {
        value | mask
    }
}
impl BitOp for Btr {
    #[inline(always)]
    fn apply<T: Width>(value: T, mask: T) -> T {
        value & !mask
    }
}
impl BitOp for Btc {
    #[inline(always)]
    fn apply<T: Width>(value: T, mask: T) -> T {
        value ^ mask
    }
}

/// `bt* reg, reg|imm`: the index is taken modulo the width.
pub(crate) struct BitReg<B, T, const IMM: bool>(PhantomData<(B, T)>);
impl<B: BitOp, T: Width, const IMM: bool> Pure for BitReg<B, T, IMM> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let index = if IMM { op.imm.get() } else { cpu.reg::<T>(op.src).zero_extend() } as u32 % T::BITS;
        let value = cpu.reg::<T>(op.dst);
        cpu.flags.set_cf(value >> index & T::ONE != T::ZERO);
        if B::STORES {
            cpu.set_reg(op.dst, B::apply(value, T::ONE << index));
        }
    }
}

/// `bt* mem, reg|imm`: a register index is signed and reaches outside the operand.
pub(crate) struct BitMem<B, T, A, const IMM: bool>(PhantomData<(B, T, A)>);
impl<B: BitOp, T: Width, A: Addressing, const IMM: bool> Sem for BitMem<B, T, A, IMM> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let (index, offset) = if IMM {
            (op.imm.get() as u32 % T::BITS, 0)
        } else {
            let index = cpu.reg::<T>(op.src).sign_extend() as i64;
            (index as u32 % T::BITS, (index >> (3 + T::LOG)).wrapping_mul(T::BYTES as i64) as u64)
        };
        let mask = T::ONE << index;
        let old = if B::STORES {
            let linear = A::linear(cpu, op, offset, T::BYTES, Use::Write)?;
            P::update(cpu, linear, op.seg, |old: T| (B::apply(old, mask), old))?
        } else {
            let linear = A::linear(cpu, op, offset, T::BYTES, Use::Read)?;
            P::load(cpu, linear, op.seg)?
        };
        cpu.flags.set_cf(old & mask != T::ZERO);
        Ok(())
    }
}

/// A count of bits.
pub(crate) trait Scan {
    /// The result, `None` to keep the destination.
    fn eval<T: Width>(a: T) -> Option<u64>;
    fn flags<T: Width>(cpu: &mut Cpu, a: T, res: Option<u64>);
}
/// Index of the lowest set bit.
pub(crate) struct Bsf;
/// Index of the highest set bit.
pub(crate) struct Bsr;
/// Trailing zeros.
pub(crate) struct Tzcnt;
/// Leading zeros.
pub(crate) struct Lzcnt;
/// Set bits.
pub(crate) struct Popcnt;

fn leading_zeros<T: Width>(a: T) -> u32 {
    a.zero_extend().leading_zeros() - (64 - T::BITS)
}

impl Scan for Bsf {
    #[inline]
    fn eval<T: Width>(a: T) -> Option<u64> {
        (a != T::ZERO).then(|| a.zero_extend().trailing_zeros() as u64)
    }
    #[inline]
    fn flags<T: Width>(cpu: &mut Cpu, a: T, _res: Option<u64>) {
        cpu.flags.set_zf(a == T::ZERO);
    }
}
impl Scan for Bsr {
    #[inline]
    fn eval<T: Width>(a: T) -> Option<u64> {
        (a != T::ZERO).then(|| (T::BITS - 1 - leading_zeros(a)) as u64)
    }
    #[inline]
    fn flags<T: Width>(cpu: &mut Cpu, a: T, _res: Option<u64>) {
        cpu.flags.set_zf(a == T::ZERO);
    }
}

/// CF from an operand of zero, ZF from a result of zero.
fn count_flags<T: Width>(cpu: &mut Cpu, a: T, res: Option<u64>) {
    let mut status = cpu.flags.status();
    status.set(Rflags::CF, a == T::ZERO);
    status.set(Rflags::ZF, res == Some(0));
    cpu.flags.set_status(status);
}
impl Scan for Tzcnt {
    #[inline]
    fn eval<T: Width>(a: T) -> Option<u64> {
        Some(a.zero_extend().trailing_zeros().min(T::BITS) as u64)
    }
    #[inline]
    fn flags<T: Width>(cpu: &mut Cpu, a: T, res: Option<u64>) {
        count_flags(cpu, a, res);
    }
}
impl Scan for Lzcnt {
    #[inline]
    fn eval<T: Width>(a: T) -> Option<u64> {
        Some(leading_zeros(a) as u64)
    }
    #[inline]
    fn flags<T: Width>(cpu: &mut Cpu, a: T, res: Option<u64>) {
        count_flags(cpu, a, res);
    }
}
impl Scan for Popcnt {
    #[inline]
    fn eval<T: Width>(a: T) -> Option<u64> {
        Some(a.zero_extend().count_ones() as u64)
    }
    #[inline]
    fn flags<T: Width>(cpu: &mut Cpu, a: T, _res: Option<u64>) {
        let zero = if a == T::ZERO { Rflags::ZF } else { Rflags::empty() };
        cpu.flags.set_status(zero);
    }
}

/// `scan reg, r/m`
pub(crate) struct ScanOp<C, T, S>(PhantomData<(C, T, S)>);
impl<C: Scan, T: Width, S: Operand> Sem for ScanOp<C, T, S> {
    #[inline(never)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let a = S::read::<P, T>(cpu, op)?;
        let res = C::eval(a);
        C::flags(cpu, a, res);
        if let Some(res) = res {
            cpu.set_reg(op.dst, T::truncate(res));
        }
        Ok(())
    }
}

/// `op dst, src(r/m), aux(reg)` and friends of BMI1 and BMI2.
pub(crate) trait Bmi {
    /// Whether flags are defined by it.
    const FLAGS: bool = true;
    /// The result, and CF. `a` is the r/m operand, `b` the VEX register (or the other source).
    fn eval<T: Width>(a: T, b: T) -> (T, bool);
}
/// NOT b AND a
pub(crate) struct Andn;
/// b bits 7:0 start, 15:8 length, of a
pub(crate) struct Bextr;
/// Lowest set bit of a
pub(crate) struct Blsi;
/// Mask up to the lowest set bit of a
pub(crate) struct Blsmsk;
/// a without its lowest set bit
pub(crate) struct Blsr;
/// a without the bits from b bits 7:0 up
pub(crate) struct Bzhi;
/// Low bits of b to the positions in mask a
pub(crate) struct Pdep;
/// Bits of b at the positions in mask a to the low end
pub(crate) struct Pext;

impl Bmi for Andn {
    fn eval<T: Width>(a: T, b: T) -> (T, bool) {
        (!b & a, false)
    }
}
impl Bmi for Bextr {
    fn eval<T: Width>(a: T, b: T) -> (T, bool) {
        let (start, len) = (b.zero_extend() as u8 as u32, (b.zero_extend() >> 8) as u8 as u32);
        let shifted = if start >= T::BITS { 0 } else { a.zero_extend() >> start };
        let mask = if len >= 64 { u64::MAX } else { (1 << len) - 1 };
        (T::truncate(shifted & mask), false)
    }
}
impl Bmi for Blsi {
    fn eval<T: Width>(a: T, _b: T) -> (T, bool) {
        (a & T::ZERO.wrapping_sub(a), a != T::ZERO)
    }
}
impl Bmi for Blsmsk {
    fn eval<T: Width>(a: T, _b: T) -> (T, bool) {
        (a ^ a.wrapping_sub(T::ONE), a == T::ZERO)
    }
}
impl Bmi for Blsr {
    fn eval<T: Width>(a: T, _b: T) -> (T, bool) {
        (a & a.wrapping_sub(T::ONE), a == T::ZERO)
    }
}
impl Bmi for Bzhi {
    fn eval<T: Width>(a: T, b: T) -> (T, bool) {
        let n = b.zero_extend() as u8 as u32;
        if n >= T::BITS { (a, true) } else { (a & (T::ONE << n).wrapping_sub(T::ONE), false) }
    }
}
impl Bmi for Pdep {
    const FLAGS: bool = false;
    fn eval<T: Width>(a: T, b: T) -> (T, bool) {
        (T::truncate(bits::pdep(b.zero_extend(), a.zero_extend())), false)
    }
}
impl Bmi for Pext {
    const FLAGS: bool = false;
    fn eval<T: Width>(a: T, b: T) -> (T, bool) {
        (T::truncate(bits::pext(b.zero_extend(), a.zero_extend())), false)
    }
}

/// See [`Bmi`]: `dst := op(r/m, reg aux)`.
pub(crate) struct BmiOp<B, T, S>(PhantomData<(B, T, S)>);
impl<B: Bmi, T: Width, S: Operand> Sem for BmiOp<B, T, S> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let a = S::read::<P, T>(cpu, op)?;
        let (res, cf) = B::eval(a, cpu.reg::<T>(op.aux as u8));
        if B::FLAGS {
            cpu.flags.set_explicit(res, cf, false, false);
        }
        cpu.set_reg(op.dst, res);
        Ok(())
    }
}

/// MOVBE reg, mem
pub(crate) struct LoadSwapped<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for LoadSwapped<T, A> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let value: T = P::load(cpu, linear, op.seg)?;
        cpu.set_reg(op.dst, swapped(value));
        Ok(())
    }
}

/// MOVBE mem, reg
pub(crate) struct StoreSwapped<T, A>(PhantomData<(T, A)>);
impl<T: Width, A: Addressing> Sem for StoreSwapped<T, A> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let value = swapped(cpu.reg::<T>(op.src));
        P::store(cpu, linear, op.seg, value)
    }
}

fn swapped<T: Width>(value: T) -> T {
    T::truncate(value.zero_extend().swap_bytes() >> (64 - T::BITS))
}

/// CRC32 reg, r/m of width `T`; the destination has 32 bits and is zero-extended.
pub(crate) struct Crc32<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Crc32<T, S> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let data = S::read::<P, T>(cpu, op)?.zero_extend();
        let crc = cpu.reg::<u32>(op.dst);
        let res = match T::BITS {
            8 => bits::crc32_u8(crc, data as u8),
            16 => bits::crc32_u16(crc, data as u16),
            32 => bits::crc32_u32(crc, data as u32),
            _ => bits::crc32_u64(crc, data),
        };
        cpu.set_reg(op.dst, res);
        Ok(())
    }
}
