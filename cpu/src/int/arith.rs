//! INC, DEC, NEG, NOT, MUL, IMUL, DIV, IDIV, MULX, ADCX, ADOX, and the sign extensions of rAX.

use core::marker::PhantomData;

use emu_core::Exception;
use emu_core::regs::Rflags;

use crate::address::{Addressing, Use};
use crate::cpu::Cpu;
use crate::dispatch::{Pure, Sem};
use crate::flags::Flags;
use crate::mem::Path;
use crate::op::Op;
use crate::width::Width;

/// An operation on one operand in place.
pub(crate) trait Unary {
    fn eval<T: Width>(a: T) -> T;
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T);
}
/// DEST := DEST + 1; CF is not touched.
pub(crate) struct Inc;
/// DEST := DEST - 1; CF is not touched.
pub(crate) struct Dec;
/// DEST := 0 - DEST
pub(crate) struct Neg;
/// DEST := NOT DEST; no flags.
pub(crate) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn eval<T: Width>(a: T) -> T {
        a.wrapping_add(T::ONE)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T) {
        let cf = flags.cf();
        flags.set_explicit(res, cf, res.sign() && !a.sign(), res.zero_extend() & 15 == 0);
    }
}
impl Unary for Dec {
    #[inline(always)]
    fn eval<T: Width>(a: T) -> T {
        a.wrapping_sub(T::ONE)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T) {
        let cf = flags.cf();
        flags.set_explicit(res, cf, a.sign() && !res.sign(), a.zero_extend() & 15 == 0);
    }
}
impl Unary for Neg {
    #[inline(always)]
    fn eval<T: Width>(a: T) -> T {
        T::ZERO.wrapping_sub(a)
    }
    #[inline(always)]
    fn flags<T: Width>(flags: &mut Flags, a: T, res: T) {
        flags.set_sub(res, a);
    }
}
impl Unary for Not {
    #[inline(always)]
    fn eval<T: Width>(a: T) -> T {
        !a
    }
    #[inline(always)]
    fn flags<T: Width>(_flags: &mut Flags, _a: T, _res: T) {}
}

/// `op reg`
pub(crate) struct UnaryReg<U, T, const QUIET: bool>(PhantomData<(U, T)>);
impl<U: Unary, T: Width, const QUIET: bool> Pure for UnaryReg<U, T, QUIET> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, op: &Op) {
        let a = cpu.reg::<T>(op.dst);
        let res = U::eval(a);
        if !QUIET {
            U::flags(&mut cpu.flags, a, res);
        }
        cpu.set_reg(op.dst, res);
    }
}

/// `op mem`
pub(crate) struct UnaryMem<U, T, A>(PhantomData<(U, T, A)>);
impl<U: Unary, T: Width, A: Addressing> Sem for UnaryMem<U, T, A> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Write)?;
        let (a, res) = P::update(cpu, linear, op.seg, |a: T| {
            let res = U::eval(a);
            (res, (a, res))
        })?;
        U::flags(&mut cpu.flags, a, res);
        Ok(())
    }
}

/// A source that may be in a register or in memory.
pub(crate) trait Operand {
    fn read<P: Path, T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, P::Stop>;
}
/// Register `src`.
pub(crate) struct Reg;
/// Memory.
pub(crate) struct Mem<A>(PhantomData<A>);

impl Operand for Reg {
    #[inline(always)]
    fn read<P: Path, T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, P::Stop> {
        Ok(cpu.reg(op.src))
    }
}
impl<A: Addressing> Operand for Mem<A> {
    #[inline(always)]
    fn read<P: Path, T: Width>(cpu: &mut Cpu, op: &Op) -> Result<T, P::Stop> {
        let linear = A::linear(cpu, op, 0, T::BYTES, Use::Read)?;
        P::load(cpu, linear, op.seg)
    }
}

#[inline(always)]
fn signed<T: Width>(value: T) -> i128 {
    value.sign_extend() as i64 as i128
}

#[inline(always)]
fn unsigned<T: Width>(value: T) -> u128 {
    value.zero_extend() as u128
}

/// Sets CF and OF to `overflow`. SF follows the low result; ZF, AF and PF, which the manuals leave undefined, follow it
/// too, or are clear.
#[inline(always)]
fn product_flags<T: Width>(flags: &mut Flags, low: T, overflow: bool) {
    flags.set_explicit(low, overflow, overflow, false);
}

/// IMUL reg, r/m: the low half.
pub(crate) struct Imul2<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Imul2<T, S> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::read::<P, T>(cpu, op)?;
        let a = cpu.reg::<T>(op.dst);
        multiply_low(cpu, op.dst, a, b);
        Ok(())
    }
}

/// IMUL reg, r/m, imm
pub(crate) struct Imul3<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Imul3<T, S> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let a = S::read::<P, T>(cpu, op)?;
        multiply_low(cpu, op.dst, a, T::truncate(op.imm.get()));
        Ok(())
    }
}

#[inline(always)]
fn multiply_low<T: Width>(cpu: &mut Cpu, dst: u8, a: T, b: T) {
    if T::BITS == 64 {
        let (low, overflow) = (a.sign_extend() as i64).overflowing_mul(b.sign_extend() as i64);
        product_flags(&mut cpu.flags, T::truncate(low as u64), overflow);
        cpu.set_reg(dst, T::truncate(low as u64));
    } else {
        let full = (a.sign_extend() as i64).wrapping_mul(b.sign_extend() as i64);
        let low = T::truncate(full as u64);
        product_flags(&mut cpu.flags, low, low.sign_extend() as i64 != full);
        cpu.set_reg(dst, low);
    }
}

/// Writes a double-width result to rDX:rAX, or to AX for bytes.
#[inline(always)]
fn set_double<T: Width>(cpu: &mut Cpu, low: T, high: T) {
    if T::BITS == 8 {
        cpu.set_reg(0, (low.zero_extend() | high.zero_extend() << 8) as u16);
    } else {
        cpu.set_reg(0, low);
        cpu.set_reg(2, high);
    }
}

/// MUL r/m: rDX:rAX := rAX * SRC
pub(crate) struct Mul<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Mul<T, S> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::read::<P, T>(cpu, op)?;
        let full = unsigned(cpu.reg::<T>(0)) * unsigned(b);
        let (low, high) = (T::truncate(full as u64), T::truncate((full >> T::BITS) as u64));
        product_flags(&mut cpu.flags, low, high != T::ZERO);
        set_double(cpu, low, high);
        Ok(())
    }
}

/// IMUL r/m: rDX:rAX := rAX * SRC, signed
pub(crate) struct Imul1<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Imul1<T, S> {
    #[inline]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::read::<P, T>(cpu, op)?;
        let full = signed(cpu.reg::<T>(0)) * signed(b);
        let (low, high) = (T::truncate(full as u64), T::truncate((full >> T::BITS) as u64));
        product_flags(&mut cpu.flags, low, signed(low) != full);
        set_double(cpu, low, high);
        Ok(())
    }
}

/// The dividend in rDX:rAX, or AX for bytes.
#[inline(always)]
fn dividend<T: Width>(cpu: &Cpu) -> u128 {
    if T::BITS == 8 {
        cpu.reg::<u16>(0) as u128
    } else {
        unsigned(cpu.reg::<T>(0)) | unsigned(cpu.reg::<T>(2)) << T::BITS
    }
}

/// DIV r/m. Flags, all undefined, are left alone.
pub(crate) struct Div<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Div<T, S> {
    #[inline(never)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let divisor = S::read::<P, T>(cpu, op)?;
        if divisor == T::ZERO {
            return Err(Exception::DivideError.into());
        }
        let n = dividend::<T>(cpu);
        let (quotient, remainder) = if n >> 64 == 0 {
            let (n, d) = (n as u64, divisor.zero_extend());
            ((n / d) as u128, n % d)
        } else {
            let d = unsigned(divisor);
            (n / d, (n % d) as u64)
        };
        if quotient >> T::BITS != 0 {
            return Err(Exception::DivideError.into());
        }
        set_double(cpu, T::truncate(quotient as u64), T::truncate(remainder));
        Ok(())
    }
}

/// IDIV r/m. Flags, all undefined, are left alone.
pub(crate) struct Idiv<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Idiv<T, S> {
    #[inline(never)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let divisor = signed(S::read::<P, T>(cpu, op)?);
        if divisor == 0 {
            return Err(Exception::DivideError.into());
        }
        let unused = 128 - 2 * T::BITS;
        let n = (dividend::<T>(cpu) << unused) as i128 >> unused;
        // The host divides 64 bits by itself, and 128 bits by a loop.
        let (quotient, remainder) = match (i64::try_from(n), i64::try_from(divisor)) {
            (Ok(n), Ok(d)) if d != -1 => ((n / d) as i128, (n % d) as i128),
            _ => match (n.checked_div(divisor), n.checked_rem(divisor)) {
                (Some(quotient), Some(remainder)) => (quotient, remainder),
                _ => return Err(Exception::DivideError.into()),
            },
        };
        let low = T::truncate(quotient as u64);
        if signed(low) != quotient {
            return Err(Exception::DivideError.into());
        }
        set_double(cpu, low, T::truncate(remainder as u64));
        Ok(())
    }
}

/// MULX: `aux` and then `dst` := the halves of rDX * SRC, no flags. Equal destinations get the high half.
pub(crate) struct Mulx<T, S>(PhantomData<(T, S)>);
impl<T: Width, S: Operand> Sem for Mulx<T, S> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let full = unsigned(S::read::<P, T>(cpu, op)?) * unsigned(cpu.reg::<T>(2));
        cpu.set_reg(op.aux as u8, T::truncate(full as u64));
        cpu.set_reg(op.dst, T::truncate((full >> T::BITS) as u64));
        Ok(())
    }
}

/// ADCX (through CF) and ADOX (through OF).
pub(crate) struct AddThrough<T, S, const OF: bool>(PhantomData<(T, S)>);
impl<T: Width, S: Operand, const OF: bool> Sem for AddThrough<T, S, OF> {
    #[inline(never)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::read::<P, T>(cpu, op)?;
        let flag = if OF { Rflags::OF } else { Rflags::CF };
        let mut status = cpu.flags.status();
        let sum = unsigned(cpu.reg::<T>(op.dst)) + unsigned(b) + status.contains(flag) as u128;
        status.set(flag, sum >> T::BITS != 0);
        cpu.flags.set_status(status);
        cpu.set_reg(op.dst, T::truncate(sum as u64));
        Ok(())
    }
}

/// CBW, CWDE, CDQE: the lower half of rAX extended into it. `T` is the half.
pub(crate) struct ExtendAx<T>(PhantomData<T>);
impl<T: Width> Pure for ExtendAx<T> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, _op: &Op) {
        let value = cpu.reg::<T>(0).sign_extend();
        match T::BITS {
            8 => cpu.set_reg(0, value as u16),
            16 => cpu.set_reg(0, value as u32),
            _ => cpu.set_reg(0, value),
        }
    }
}

/// CWD, CDQ, CQO: the sign of rAX in rDX.
pub(crate) struct SignToDx<T>(PhantomData<T>);
impl<T: Width> Pure for SignToDx<T> {
    #[inline(always)]
    fn exec(cpu: &mut Cpu, _op: &Op) {
        let sign = if cpu.reg::<T>(0).sign() { u64::MAX } else { 0 };
        cpu.set_reg(2, T::truncate(sign));
    }
}
