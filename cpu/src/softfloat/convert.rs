//! Conversions: between formats, to and from integers, and rounding to an integral value.
//!
//! Models CVTSS2SD and its relatives, VCVTPH2PS/VCVTPS2PH, CVTSI2SD/CVTSD2SI/CVTTSD2SI and the unsigned forms of
//! AVX-512, FLD/FST/FILD/FIST/FISTTP with memory operands, ROUNDSS and FRNDINT (Intel SDM vol. 2; vol. 1, 4.8.3.6 and
//! table 4-10 "Masked responses" for the integer indefinite).

use super::env::{Denormals, Env, Flags, Rounding};
use super::format::{Class, F16, F32, F80, Format, Unpacked, propagate_one};
use super::round::Exact;

/// Converts between formats as CVTSS2SD, CVTSD2SS and FLD m32/m64 do: a signaling NaN is quieted with IE, a denormal
/// operand raises DE.
#[inline]
pub fn convert<A: Format, R: Format>(a: A::Bits, env: &mut Env) -> R::Bits {
    let a = A::operand(a, env);
    if a.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    convert_unpacked::<R>(&a, env)
}

/// Converts as FST and FSTP to m32 and m64 do: like [`convert`], but a denormal operand raises no DE.
#[inline]
pub fn store<R: Format>(a: F80, env: &mut Env) -> R::Bits {
    convert_unpacked::<R>(&F80::unpack(a), env)
}

/// VCVTPH2PS: exact, neither DAZ nor DE apply.
#[inline]
pub fn half_to_single(a: u16, env: &mut Env) -> u32 {
    convert_unpacked::<F32>(&F16::unpack(a), env)
}

/// VCVTPS2PH under `env` with the rounding of the immediate already in it: DAZ applies to the operand, FTZ does not
/// apply to the result.
#[inline]
pub fn single_to_half(a: u32, env: &mut Env) -> u16 {
    let kept = env.denormals;
    let a = F32::operand(a, env);
    if a.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    env.denormals = Denormals { flush_results: false, ..kept };
    let result = convert_unpacked::<F16>(&a, env);
    env.denormals = kept;
    result
}

#[inline(always)]
fn convert_unpacked<R: Format>(a: &Unpacked, env: &mut Env) -> R::Bits {
    match a.class {
        Class::Normal | Class::Denormal => {
            Exact { negative: a.negative, exponent: a.exponent, high: a.significand, low: 0 }.round_full::<R>(env)
        }
        Class::Zero => R::zero(a.negative),
        Class::Infinity => R::infinity(a.negative),
        Class::QuietNan | Class::SignalingNan | Class::Unsupported => propagate_one::<R>(a, env),
    }
}

/// Converts a signed integer: CVTSI2SS and its relatives, FILD (exact there).
#[inline]
pub fn from_i64<R: Format>(value: i64, env: &mut Env) -> R::Bits {
    convert_unpacked::<R>(&Unpacked::integer(value < 0, value.unsigned_abs()), env)
}

/// The magnitude of a finite number rounded to an integer, with the flags of the rounding. `None` from 2^64 on.
#[inline(always)]
fn integral_magnitude(a: &Unpacked, rounding: Rounding) -> Option<(u64, Flags)> {
    if a.class == Class::Zero {
        return Some((0, Flags::empty()));
    }
    if a.exponent >= 64 {
        return None;
    }
    // The integer part ends up in the upper half; anything below 2^-1 only needs to stay nonzero.
    let wide = u128::from(a.significand) << 64;
    let shift = (63 - a.exponent).min(66) as u32;
    let wide = super::round::shift_right_sticky(wide, shift);
    let (whole, rest) = ((wide >> 64) as u64, wide as u64);
    if rest == 0 {
        return Some((whole, Flags::empty()));
    }
    const HALF: u64 = 1 << 63;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || (rest == HALF && whole & 1 != 0),
        Rounding::Down => a.negative,
        Rounding::Up => !a.negative,
        Rounding::Zero => false,
    };
    // A fraction implies an exponent below 63, so this cannot wrap.
    Some((whole + u64::from(up), if up { Flags::PE | Flags::C1 } else { Flags::PE }))
}

/// Width of an integer operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IntWidth {
    /// A word.
    Bits16 = 16,
    /// A doubleword.
    Bits32 = 32,
    /// A quadword.
    Bits64 = 64,
}

/// Converts to a signed integer, sign extended to 64 bits. NaNs,
/// infinities and values out of range give the integer indefinite, `-2^(width - 1)`, and IE alone. Denormals raise no
/// DE; under DAZ they are exact zeros.
#[inline]
pub fn to_signed<A: Format>(a: A::Bits, width: IntWidth, rounding: Rounding, env: &mut Env) -> i64 {
    let a = A::operand(a, env);
    let indefinite = i64::MIN >> (64 - width as u32);
    let limit = indefinite.unsigned_abs();
    if a.class <= Class::Zero
        && let Some((magnitude, flags)) = integral_magnitude(&a, rounding)
        && magnitude < limit + u64::from(a.negative)
    {
        env.raise(flags);
        let value = magnitude as i64;
        return if a.negative { value.wrapping_neg() } else { value };
    }
    env.raise(Flags::IE);
    indefinite
}

/// Whether ROUNDxx reports that it changed the value (imm8 bit 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrecisionReport {
    /// PE is set if the value changes.
    Raise,
    /// PE is suppressed.
    Suppress,
}

/// Rounds to an integral value in the same format: ROUNDSS and its relatives. No DE for denormals.
#[inline]
pub fn round_to_integral<F: Format>(a: F::Bits, rounding: Rounding, report: PrecisionReport, env: &mut Env) -> F::Bits {
    let a = F::operand(a, env);
    match a.class {
        Class::Normal | Class::Denormal => {}
        Class::Zero => return F::zero(a.negative),
        Class::Infinity => return F::infinity(a.negative),
        _ => return propagate_one::<F>(&a, env),
    }
    if a.exponent >= 63 {
        return F::pack(a.negative, a.exponent + F::BIAS, a.significand);
    }
    let Some((magnitude, flags)) = integral_magnitude(&a, rounding) else {
        return F::pack(a.negative, a.exponent + F::BIAS, a.significand);
    };
    if report == PrecisionReport::Raise {
        env.raise(flags);
    }
    if magnitude == 0 {
        return F::zero(a.negative);
    }
    let shift = magnitude.leading_zeros() as i32;
    F::pack(a.negative, 63 - shift + F::BIAS, magnitude << shift)
}

/// FRNDINT: [`round_to_integral`] by the rounding control, with PE, and with DE for denormals.
#[inline]
pub fn frndint(a: F80, env: &mut Env) -> F80 {
    if F80::unpack(a).class == Class::Denormal {
        env.raise(Flags::DE);
    }
    round_to_integral::<F80>(a, env.rounding, PrecisionReport::Raise, env)
}
