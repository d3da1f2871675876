//! Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD, and the flagless SHLX, SHRX, SARX, RORX.
//!
//! Counts are masked to 5 bits (6 for 64-bit operands); a masked count of zero leaves flags alone. Where the manuals
//! leave a flag undefined (OF for counts above one, AF always) the flag follows the formula for a count of one, and AF
//! is cleared.

use core::marker::PhantomData;

use crate::address::{Addressing, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::flags::Flags;
use crate::mem::Path;
use crate::op::Op;
use crate::width::Width;

/// A shift by a masked, non-zero count.
pub(crate) trait Shift {
    /// The result, and how to set the flags from the operand, the result and the count.
    fn eval<T: Width>(a: T, count: u32, carry: bool) -> T;
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, carry: bool);
    /// RCL and RCR take CF in.
    const CARRIES: bool = false;
}

pub(crate) struct Shl;
pub(crate) struct Shr;
pub(crate) struct Sar;
pub(crate) struct Rol;
pub(crate) struct Ror;
pub(crate) struct Rcl;
pub(crate) struct Rcr;

#[inline(always)]
fn bit<T: Width>(value: T, n: u32) -> bool {
    n < T::BITS && (value >> n) & T::ONE != T::ZERO
}

impl Shift for Shl {
    #[inline(always)]
    fn eval<T: Width>(a: T, count: u32, _carry: bool) -> T {
        if count >= T::BITS { T::ZERO } else { a << count }
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, _carry: bool) {
        let cf = count <= T::BITS && bit(a, T::BITS - count);
        flags.set_explicit(res, cf, res.sign() != cf, false);
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn eval<T: Width>(a: T, count: u32, _carry: bool) -> T {
        if count >= T::BITS { T::ZERO } else { a >> count }
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, _carry: bool) {
        // OF is the sign of the operand: the two top bits of the result differ only by it.
        flags.set_explicit(
            res,
            bit(a, count - 1),
            res.sign() != bit(res, T::BITS - 2) || count == 1 && a.sign(),
            false,
        );
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn eval<T: Width>(a: T, count: u32, _carry: bool) -> T {
        T::truncate(((a.sign_extend() as i64) >> count.min(63)) as u64)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, _carry: bool) {
        let cf = (a.sign_extend() as i64) >> (count - 1).min(63) & 1 != 0;
        flags.set_explicit(res, cf, false, false);
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn eval<T: Width>(a: T, count: u32, _carry: bool) -> T {
        let n = count % T::BITS;
        if n == 0 { a } else { a << n | a >> (T::BITS - n) }
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, res: T, _count: u32, _carry: bool) {
        let cf = res & T::ONE != T::ZERO;
        flags.set_cf_of(cf, res.sign() != cf);
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn eval<T: Width>(a: T, count: u32, _carry: bool) -> T {
        let n = count % T::BITS;
        if n == 0 { a } else { a >> n | a << (T::BITS - n) }
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, _a: T, res: T, _count: u32, _carry: bool) {
        flags.set_cf_of(res.sign(), res.sign() != bit(res, T::BITS - 2));
    }
}

/// The operand with CF above it, rotated left by `count` modulo its BITS + 1.
#[inline(always)]
fn rotate_through<T: Width>(a: T, carry: bool, count: u32) -> (T, bool) {
    let wide = T::BITS + 1;
    let n = count % wide;
    let value = a.zero_extend() as u128 | (carry as u128) << T::BITS;
    let rotated = if n == 0 { value } else { value << n | value >> (wide - n) };
    (T::truncate(rotated as u64), rotated >> T::BITS & 1 != 0)
}

impl Shift for Rcl {
    const CARRIES: bool = true;
    #[inline]
    fn eval<T: Width>(a: T, count: u32, carry: bool) -> T {
        rotate_through(a, carry, count).0
    }
    #[inline]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, carry: bool) {
        if count.is_multiple_of(T::BITS + 1) {
            return;
        }
        let cf = rotate_through(a, carry, count).1;
        flags.set_cf_of(cf, res.sign() != cf);
    }
}

impl Shift for Rcr {
    const CARRIES: bool = true;
    #[inline]
    fn eval<T: Width>(a: T, count: u32, carry: bool) -> T {
        let wide = T::BITS + 1;
        rotate_through(a, carry, wide - count % wide).0
    }
    #[inline]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T, count: u32, carry: bool) {
        let wide = T::BITS + 1;
        if count.is_multiple_of(wide) {
            return;
        }
        let cf = rotate_through(a, carry, wide - count % wide).1;
        flags.set_cf_of(cf, res.sign() != bit(res, T::BITS - 2));
    }
}

/// Where the count comes from.
pub(crate) trait Count {
    fn get(cpu: &Cpu, op: &Op) -> u32;
}
/// The immediate (1 for the short forms).
pub(crate) struct ByImm;
/// CL.
pub(crate) struct ByCl;
impl Count for ByImm {
    #[inline(always)]
    fn get(_cpu: &Cpu, op: &Op) -> u32 {
        op.imm.get() as u32
    }
}
impl Count for ByCl {
    #[inline(always)]
    fn get(cpu: &Cpu, _op: &Op) -> u32 {
        cpu.gpr[1] as u32
    }
}

#[inline(always)]
fn masked<T: Width>(count: u32) -> u32 {
    count & if T::BITS == 64 { 63 } else { 31 }
}

/// `shift reg, count`
pub(crate) struct ShiftReg<S, T, N, const QUIET: bool>(PhantomData<(S, T, N)>);
impl<S: Shift, T: Width, N: Count, const QUIET: bool> Pure for ShiftReg<S, T, N, QUIET> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let count = masked::<T>(N::get(cpu, op));
        let a = cpu.reg::<T>(op.dst);
        if count == 0 {
            // A 32-bit destination is zero-extended all the same.
            cpu.set_reg(op.dst, a);
            return;
        }
        let carry = S::CARRIES && cpu.flags.cf();
        let res = S::eval(a, count, carry);
        if !QUIET {
            S::flags(&mut cpu.flags, a, res, count, carry);
        }
        cpu.set_reg(op.dst, res);
    }
}

/// `shift mem, count`
pub(crate) struct ShiftMem<S, T, N, A>(PhantomData<(S, T, N, A)>);
impl<S: Shift, T: Width, N: Count, A: Addressing> Sem for ShiftMem<S, T, N, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let count = masked::<T>(N::get(cpu, op));
        let carry = S::CARRIES && cpu.flags.cf();
        let (a, res) = P::update(cpu, linear, op.seg, |a: T| {
            let res = if count == 0 { a } else { S::eval(a, count, carry) };
            (res, (a, res))
        })?;
        if count != 0 {
            S::flags(&mut cpu.flags, a, res, count, carry);
        }
        Ok(())
    }
}

/// Which way a double shift goes.
pub(crate) trait DoubleShift {
    fn eval<T: Width>(a: T, b: T, count: u32) -> (T, bool);
}
/// SHLD: DEST shifted left, filled from SRC's top.
pub(crate) struct Shld;
/// SHRD: DEST shifted right, filled from SRC's bottom.
pub(crate) struct Shrd;

impl DoubleShift for Shld {
    fn eval<T: Width>(a: T, b: T, count: u32) -> (T, bool) {
        // For 16-bit operands counts above 16 go on through a third copy: DEST, SRC, DEST.
        let bits = T::BITS;
        let all = (a.zero_extend() as u128) << bits | b.zero_extend() as u128;
        if count <= bits {
            let res = if count == bits { b } else { T::truncate((all << count >> bits) as u64) };
            (res, bit(a, bits - count))
        } else {
            let n = count - bits;
            let next = (b.zero_extend() as u128) << bits | a.zero_extend() as u128;
            (T::truncate((next << n >> bits) as u64), bit(b, bits - n))
        }
    }
}

impl DoubleShift for Shrd {
    fn eval<T: Width>(a: T, b: T, count: u32) -> (T, bool) {
        let bits = T::BITS;
        let all = (b.zero_extend() as u128) << bits | a.zero_extend() as u128;
        if count <= bits {
            (T::truncate((all >> count) as u64), bit(a, count - 1))
        } else {
            let n = count - bits;
            let next = (a.zero_extend() as u128) << bits | b.zero_extend() as u128;
            (T::truncate((next >> n) as u64), bit(b, n - 1))
        }
    }
}

/// `shld/shrd reg, reg, count`
pub(crate) struct DoubleReg<S, T, N>(PhantomData<(S, T, N)>);
impl<S: DoubleShift, T: Width, N: Count> Pure for DoubleReg<S, T, N> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let count = masked::<T>(N::get(cpu, op));
        let (a, b) = (cpu.reg::<T>(op.dst), cpu.reg::<T>(op.src));
        if count == 0 {
            cpu.set_reg(op.dst, a);
            return;
        }
        let (res, cf) = S::eval(a, b, count);
        cpu.flags.set_explicit(res, cf, a.sign() != res.sign(), false);
        cpu.set_reg(op.dst, res);
    }
}

/// `shld/shrd mem, reg, count`
pub(crate) struct DoubleMem<S, T, N, A>(PhantomData<(S, T, N, A)>);
impl<S: DoubleShift, T: Width, N: Count, A: Addressing> Sem for DoubleMem<S, T, N, A> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let count = masked::<T>(N::get(cpu, op));
        let b = cpu.reg::<T>(op.src);
        let (a, res, cf) = P::update(cpu, linear, op.seg, |a: T| {
            let (res, cf) = if count == 0 { (a, false) } else { S::eval(a, b, count) };
            (res, (a, res, cf))
        })?;
        if count != 0 {
            cpu.flags.set_explicit(res, cf, a.sign() != res.sign(), false);
        }
        Ok(())
    }
}

/// SHLX, SHRX, SARX, RORX: `dst := src shifted`, count in register `aux` or immediate, no flags.
pub(crate) struct FlaglessReg<S, T, const IMM: bool>(PhantomData<(S, T)>);
impl<S: Shift, T: Width, const IMM: bool> Pure for FlaglessReg<S, T, IMM> {
    #[inline]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let count = flagless_count::<T, IMM>(cpu, op);
        let res = S::eval(cpu.reg::<T>(op.src), count, false);
        cpu.set_reg(op.dst, res);
    }
}

/// The same from memory.
pub(crate) struct FlaglessMem<S, T, A, const IMM: bool>(PhantomData<(S, T, A)>);
impl<S: Shift, T: Width, A: Addressing, const IMM: bool> Sem for FlaglessMem<S, T, A, IMM> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        let a: T = P::load(cpu, linear, op.seg)?;
        let count = flagless_count::<T, IMM>(cpu, op);
        cpu.set_reg(op.dst, S::eval(a, count, false));
        Ok(())
    }
}

#[inline(always)]
fn flagless_count<T: Width, const IMM: bool>(cpu: &Cpu, op: &Op) -> u32 {
    masked::<T>(if IMM { op.imm.get() as u32 } else { cpu.reg::<u32>(op.aux as u8) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu_core::regs::Rflags;

    /// One bit at a time, as the manuals' pseudo-code does it.
    fn naive(kind: u8, a: u8, count: u32, carry: bool) -> (u8, bool) {
        let (mut v, mut c) = (a, carry);
        for _ in 0..count {
            (v, c) = match kind {
                0 => (v << 1, v & 0x80 != 0),
                1 => (v >> 1, v & 1 != 0),
                2 => (((v as i8) >> 1) as u8, v & 1 != 0),
                3 => (v.rotate_left(1), v & 0x80 != 0),
                4 => (v.rotate_right(1), v & 1 != 0),
                5 => (v << 1 | c as u8, v & 0x80 != 0),
                _ => (v >> 1 | (c as u8) << 7, v & 1 != 0),
            };
        }
        (v, c)
    }

    #[test]
    fn every_8_bit_shift_by_every_count() {
        fn check<S: Shift>(kind: u8) {
            for a in 0..=255_u8 {
                for count in 1..32 {
                    for carry in [false, true] {
                        let (want, cf) = naive(kind, a, count, carry);
                        let mut flags = Flags::new();
                        flags.set_cf(carry);
                        let res = S::eval(a, count, S::CARRIES && carry);
                        S::flags(&mut flags, a, res, count, S::CARRIES && carry);
                        assert_eq!((res, flags.cf()), (want, cf), "kind {kind} {a:#x} by {count} carry {carry}");
                        if count == 1 {
                            let of = match kind {
                                0 | 3 | 5 => (want & 0x80 != 0) != cf,
                                1 => a & 0x80 != 0,
                                2 => false,
                                _ => (want ^ want << 1) & 0x80 != 0,
                            };
                            assert_eq!(flags.status().contains(Rflags::OF), of, "OF of kind {kind} {a:#x} {carry}");
                        }
                    }
                }
            }
        }
        check::<Shl>(0);
        check::<Shr>(1);
        check::<Sar>(2);
        check::<Rol>(3);
        check::<Ror>(4);
        check::<Rcl>(5);
        check::<Rcr>(6);
    }

    #[test]
    fn double_shifts() {
        assert_eq!(Shld::eval(0x1234_u16, 0xabcd, 4), (0x234a, true));
        assert_eq!(Shrd::eval(0x1234_u16, 0xabcd, 4), (0xd123, false));
        assert_eq!(Shld::eval(0x8000_0001_u32, 0x8000_0000, 1), (3, true));
        assert_eq!(Shrd::eval(1_u64, 1, 63), (2, false));
    }
}
