//! Conversions of vector elements: between precisions, to and from integers (APM vol. 4, the CVT instructions).

use core::marker::PhantomData;

use emu_core::memory::Scalar;

use crate::address::{ADDRESS16, ADDRESS32, Addressing, Full64, Legacy, Use};
use crate::cpu::Cpu;
use crate::dispatch::Sem;
use crate::fp::operand::{Element, REGISTER, START_AGAIN};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, demand_alignment, imm8};
use crate::softfloat::convert::{half_to_single, single_to_half};
use crate::softfloat::{self as soft, Env, F32, F64, IntWidth, Rounding};
use crate::vector::{V128, V256};

/// One conversion. Elements are in the low bits.
pub(crate) trait Conversion {
    /// Bytes of a source element.
    const FROM: usize;
    /// Bytes of a result element.
    const TO: usize;
    fn one(value: u64, imm: u8, env: &mut Env) -> u64;
}

macro_rules! conversions {
    ($($(#[$doc:meta])* $Name:ident: $from:literal => $to:literal, |$value:ident, $imm:ident, $env:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $Name;
        impl Conversion for $Name {
            const FROM: usize = $from;
            const TO: usize = $to;
            fn one($value: u64, $imm: u8, $env: &mut Env) -> u64 {
                $body
            }
        }
    )*};
}

conversions! {
    /// CVTPS2PD
    SingleToDouble: 4 => 8, |value, _imm, env| soft::convert::<F32, F64>(value as u32, env);
    /// CVTPD2PS
    DoubleToSingle: 8 => 4, |value, _imm, env| soft::convert::<F64, F32>(value, env).into();
    /// CVTDQ2PS
    IntToSingle: 4 => 4, |value, _imm, env| soft::from_i64::<F32>(value as i32 as i64, env).into();
    /// CVTDQ2PD
    IntToDouble: 4 => 8, |value, _imm, env| soft::from_i64::<F64>(value as i32 as i64, env);
    /// CVTPS2DQ
    SingleToInt: 4 => 4, |value, _imm, env|
        u64::from(soft::to_signed::<F32>(value as u32, IntWidth::Bits32, env.rounding, env) as u32);
    /// CVTTPS2DQ
    SingleToIntTruncated: 4 => 4, |value, _imm, env|
        u64::from(soft::to_signed::<F32>(value as u32, IntWidth::Bits32, Rounding::Zero, env) as u32);
    /// CVTPD2DQ
    DoubleToInt: 8 => 4, |value, _imm, env|
        u64::from(soft::to_signed::<F64>(value, IntWidth::Bits32, env.rounding, env) as u32);
    /// CVTTPD2DQ
    DoubleToIntTruncated: 8 => 4, |value, _imm, env|
        u64::from(soft::to_signed::<F64>(value, IntWidth::Bits32, Rounding::Zero, env) as u32);
    /// VCVTPH2PS
    HalfToSingle: 2 => 4, |value, _imm, env| half_to_single(value as u16, env).into();
    /// VCVTPS2PH: imm8[2] chooses MXCSR's rounding, else imm8[1:0] is it.
    SingleToHalf: 4 => 2, |value, imm, env| {
        let kept = env.rounding;
        if imm & 4 == 0 {
            env.rounding = Rounding::from_rc(imm);
        }
        let result = single_to_half(value as u32, env);
        env.rounding = kept;
        result.into()
    };
}

/// Elements that form `F` converts by `C`.
const fn count<C: Conversion, F: Form>() -> usize {
    F::BYTES as usize / if C::FROM > C::TO { C::FROM } else { C::TO }
}

fn element(v: &V256, bytes: usize, n: usize) -> u64 {
    let at = n * bytes;
    v[at / 16].as_bytes()[at % 16..][..bytes].iter().rev().fold(0, |value, &byte| value << 8 | byte as u64)
}

fn set_element(v: &mut V256, bytes: usize, n: usize, value: u64) {
    let at = n * bytes;
    v[at / 16].as_bytes_mut()[at % 16..][..bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
}

/// The op's source of `bytes` bytes, zero-extended; a register gives all of itself.
fn source<P: Path, F: Form>(cpu: &mut Cpu, op: &Op, bytes: usize) -> Result<V256, P::Stop> {
    if op.aux & REGISTER != 0 {
        return Ok(cpu.vector.ymm(op.src));
    }
    let linear = Legacy::linear(cpu, op, 0, bytes as u64, Use::Read)?;
    if F::ALIGNED && bytes == 16 {
        demand_alignment::<true>(linear, 16)?;
    }
    Ok(match bytes {
        8 => [V128::from_low(P::load(cpu, linear, op.seg)?), V128::ZERO],
        16 => [V128::from_u128(P::load(cpu, linear, op.seg)?), V128::ZERO],
        _ => {
            let [a, b, c, d]: [u64; 4] = P::load(cpu, linear, op.seg)?;
            let lane = |low: u64, high: u64| V128::from_u128(u128::from(high) << 64 | u128::from(low));
            [lane(a, b), lane(c, d)]
        }
    })
}

fn convert<C: Conversion, F: Form>(from: &V256, imm: u8, env: &mut Env) -> V256 {
    let mut result = [V128::ZERO; 2];
    for n in 0..count::<C, F>() {
        set_element(&mut result, C::TO, n, C::one(element(from, C::FROM, n), imm, env));
    }
    result
}

/// `cvt dst, source` on all elements. A result shorter than the register is zero-extended.
pub(crate) struct PackedConvert<C, F>(PhantomData<(C, F)>);
impl<C: Conversion, F: Form> Sem for PackedConvert<C, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let from = source::<P, F>(cpu, op, count::<C, F>() * C::FROM)?;
        let mut env = cpu.sse_env();
        let result = convert::<C, F>(&from, imm8(op), &mut env);
        cpu.settle(&env)?;
        if count::<C, F>() * C::TO == 32 {
            cpu.vector.set_ymm(op.dst, result);
        } else {
            F::set_low(cpu, op.dst, result[0]);
        }
        Ok(())
    }
}

/// VCVTPS2PH to memory: `dst` is the source register.
pub(crate) struct StoreHalf<F>(PhantomData<F>);
impl<F: Form> Sem for StoreHalf<F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let bytes = (count::<SingleToHalf, F>() * 2) as u64;
        let mut env = cpu.sse_env();
        let result = convert::<SingleToHalf, F>(&cpu.vector.ymm(op.dst), imm8(op), &mut env)[0];
        if env.sse_outcome().write {
            // Flags follow the store, which may fail.
            let linear = Legacy::linear(cpu, op, 0, bytes, Use::Write)?;
            if bytes == 8 {
                P::store(cpu, linear, op.seg, result.low())?;
            } else {
                P::store(cpu, linear, op.seg, result.to_u128())?;
            }
        } else {
            let linear = Legacy::linear(cpu, op, 0, bytes, Use::Write)?;
            P::probe_store(cpu, linear, op.seg, bytes)?;
        }
        Ok(cpu.settle(&env)?)
    }
}

/// A general register or memory operand as a signed integer.
pub(crate) trait Integer: Scalar {
    const WIDTH: IntWidth;
    fn extend(self) -> i64;
    fn from_gpr(value: u64) -> Self;
    /// What the register holds after a result is written.
    fn to_gpr(value: i64) -> u64;
}
impl Integer for u32 {
    const WIDTH: IntWidth = IntWidth::Bits32;
    #[inline(always)]
    fn extend(self) -> i64 {
        self as i32 as i64
    }
    #[inline(always)]
    fn from_gpr(value: u64) -> u32 {
        value as u32
    }
    #[inline(always)]
    fn to_gpr(value: i64) -> u64 {
        value as u32 as u64
    }
}
impl Integer for u64 {
    const WIDTH: IntWidth = IntWidth::Bits64;
    #[inline(always)]
    fn extend(self) -> i64 {
        self as i64
    }
    #[inline(always)]
    fn from_gpr(value: u64) -> u64 {
        value
    }
    #[inline(always)]
    fn to_gpr(value: i64) -> u64 {
        value as u64
    }
}

/// What the host can convert without a doubt.
pub(crate) trait FastConvert: Element {
    /// From an integer, to nearest. `None` if that may be inexact and `inexact` does not allow it.
    fn from_integer(value: i64, inexact: bool) -> Option<Self::Raw>;
    /// To an integer, toward zero. `None` if it may be out of range, or inexact and `inexact` does not allow it.
    fn truncated(value: Self::Raw, width: IntWidth, inexact: bool) -> Option<i64>;
}

macro_rules! fast_convert {
    ($F:ty, $raw:ty, $float:ty, $precision:literal) => {
        impl FastConvert for $F {
            #[inline(always)]
            fn from_integer(value: i64, inexact: bool) -> Option<$raw> {
                let exact = value.unsigned_abs() <= 1 << $precision;
                (exact || inexact).then(|| (value as $float).to_bits())
            }
            #[inline(always)]
            fn truncated(value: $raw, width: IntWidth, inexact: bool) -> Option<i64> {
                let value = <$float>::from_bits(value);
                let limit = (1_u64 << (width as u32 - 1)) as $float;
                let whole = value as i64;
                // Comparisons with a NaN are false.
                (value.abs() < limit && (inexact || whole as $float == value)).then_some(whole)
            }
        }
    };
}
fast_convert!(F32, u32, f32, 24);
fast_convert!(F64, u64, f64, 53);

/// The linear address of a memory operand of any form. The fast path leaves those with limits or narrow addresses to the
/// slow one.
#[inline(always)]
fn operand_linear<P: Path>(cpu: &Cpu, op: &Op, len: u64) -> Result<u64, P::Stop> {
    if P::FAST {
        if !cpu.key.is_64() || op.scale & (ADDRESS16 | ADDRESS32) != 0 {
            return Err(START_AGAIN.into());
        }
        return Ok(Full64::linear(cpu, op, 0, len, Use::Read)?);
    }
    Ok(Legacy::linear(cpu, op, 0, len, Use::Read)?)
}

/// CVTSI2SS and CVTSI2SD: from a general register or memory, of type `T`.
pub(crate) struct FromInteger<E, T, F>(PhantomData<(E, T, F)>);
impl<E: FastConvert, T: Integer, F: Form> Sem for FromInteger<E, T, F> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let value = if op.aux & REGISTER != 0 {
            T::from_gpr(cpu.gpr[op.src as usize % 16])
        } else {
            let linear = operand_linear::<P>(cpu, op, size_of::<T>() as u64)?;
            P::load(cpu, linear, op.seg)?
        };
        let result = match E::from_integer(value.extend(), cpu.fast_mode().allowed()) {
            Some(result) => result,
            None if P::FAST => return Err(START_AGAIN.into()),
            None => {
                let mut env = cpu.sse_env();
                let result = soft::from_i64::<E>(value.extend(), &mut env);
                cpu.settle(&env)?;
                result
            }
        };
        F::set_lowest::<E>(cpu, op.dst, op.aux as u8, result);
        Ok(())
    }
}

/// CVTSS2SI, CVTSD2SI and, with `TRUNCATE`, CVTTSS2SI and CVTTSD2SI: to a general register, from a vector register
/// or memory.
pub(crate) struct ToInteger<E, T, const TRUNCATE: bool>(PhantomData<(E, T)>);
impl<E: FastConvert, T: Integer, const TRUNCATE: bool> Sem for ToInteger<E, T, TRUNCATE> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let value: E::Raw = if op.aux & REGISTER != 0 {
            E::lowest(cpu, op.src)
        } else {
            let linear = operand_linear::<P>(cpu, op, E::BYTES as u64)?;
            P::load(cpu, linear, op.seg)?
        };
        let certain = E::truncated(value, T::WIDTH, TRUNCATE && cpu.fast_mode().allowed());
        let result = match certain {
            Some(result) => result,
            None if P::FAST => return Err(START_AGAIN.into()),
            None => {
                let mut env = cpu.sse_env();
                let rounding = if TRUNCATE { Rounding::Zero } else { env.rounding };
                let result = soft::to_signed::<E>(value, T::WIDTH, rounding, &mut env);
                cpu.settle(&env)?;
                result
            }
        };
        cpu.gpr[op.dst as usize % 16] = T::to_gpr(result);
        Ok(())
    }
}

/// CVTSS2SD and CVTSD2SS.
pub(crate) struct Reformat<E, R, F>(PhantomData<(E, R, F)>);
impl<E: Element, R: Element, F: Form> Sem for Reformat<E, R, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let value: E::Raw = if op.aux & REGISTER != 0 {
            E::get(cpu.vector.xmm(op.src), 0)
        } else {
            let linear = Legacy::linear(cpu, op, 0, E::BYTES as u64, Use::Read)?;
            P::load(cpu, linear, op.seg)?
        };
        let mut env = cpu.sse_env();
        let result = soft::convert::<E, R>(value, &mut env);
        cpu.settle(&env)?;
        F::set_low(cpu, op.dst, R::put(cpu.vector.xmm(op.aux as u8), 0, result));
        Ok(())
    }
}
