//! Fused multiply-add.
//!
//! Models the VFMADD family: Intel SDM vol. 1, 14.5 "Fused-Multiply-ADD (FMA) Extensions" with its tables of special
//! operands. The negating and subtracting members are the caller's: it inverts the sign of an input that is not a NaN
//! with [`negate_number`].

use super::arith::note_denormals;
use super::env::{Env, Flags, Rounding};
use super::format::{Class, Format, Unpacked, invalid, propagate, propagate_one};
use super::round::{Exact, shift_right_sticky};

/// The value with its sign inverted, unless it is a NaN.
#[inline]
pub fn negate_number<F: Format>(bits: F::Bits) -> F::Bits {
    let value = F::unpack(bits);
    let biased = match value.class {
        Class::Zero => return F::zero(!value.negative),
        Class::Infinity => return F::infinity(!value.negative),
        Class::Normal => value.exponent + F::BIAS,
        Class::Denormal => {
            let shift = (1 - F::BIAS - value.exponent) as u32;
            return F::pack(!value.negative, 0, value.significand >> shift);
        }
        Class::QuietNan | Class::SignalingNan | Class::Unsupported => return bits,
    };
    F::pack(!value.negative, biased, value.significand)
}

/// `a * b + c` with one rounding, for the formats of SSE and AVX. A NaN result is the first NaN of `a`, `b`, `c`. With
/// operands numbered as in the manual the instruction forms pass: 132 `(1, 3, 2)`, 213 `(2, 1, 3)`, 231 `(2, 3, 1)`.
#[inline]
pub fn fma<F: Format>(a: F::Bits, b: F::Bits, c: F::Bits, env: &mut Env) -> F::Bits {
    const { assert!(F::PRECISION <= 53, "the product of wider significands leaves no headroom in 128 bits") };
    let (a, b, c) = (F::operand(a, env), F::operand(b, env), F::operand(c, env));
    let worst = a.class.max(b.class).max(c.class);
    if worst > Class::Denormal {
        return fma_special::<F>(&a, &b, &c, env);
    }
    if worst == Class::Denormal {
        env.raise(Flags::DE);
    }
    let (exponent, product) = product(&a, &b);
    let negative = a.negative != b.negative;
    let addend = u128::from(c.significand) << 63;
    let (great, small, distance, sign) = if (exponent, product) >= (c.exponent, addend) {
        (product, addend, exponent - c.exponent, negative)
    } else {
        (addend, product, c.exponent - exponent, c.negative)
    };
    let small = shift_right_sticky(small, distance as u32);
    let sum = if negative == c.negative { great + small } else { great - small };
    if sum == 0 {
        return F::zero(env.rounding == Rounding::Down);
    }
    Exact::from_u128(sign, exponent.max(c.exponent) + 1, sum).round::<F>(env)
}

/// The exact product with its leading bit at bit 126, and that bit's exponent.
#[inline(always)]
fn product(a: &Unpacked, b: &Unpacked) -> (i32, u128) {
    let product = u128::from(a.significand) * u128::from(b.significand);
    let top = (product >> 127) as u32;
    (a.exponent + b.exponent + top as i32, product >> top)
}

#[cold]
fn fma_special<F: Format>(a: &Unpacked, b: &Unpacked, c: &Unpacked, env: &mut Env) -> F::Bits {
    let product_invalid = (a.class == Class::Infinity && b.class == Class::Zero)
        || (a.class == Class::Zero && b.class == Class::Infinity);
    if a.is_nan() || b.is_nan() || c.is_nan() {
        let signaling = a.class.max(b.class).max(c.class) >= Class::SignalingNan;
        if signaling {
            env.raise(Flags::IE);
        }
        return if a.is_nan() || b.is_nan() { propagate::<F>(a, b, env) } else { propagate_one::<F>(c, env) };
    }
    let negative = a.negative != b.negative;
    let infinite = a.class == Class::Infinity || b.class == Class::Infinity;
    if product_invalid || (infinite && c.class == Class::Infinity && c.negative != negative) {
        return invalid::<F>(env);
    }
    note_denormals(a, b, env);
    note_denormals(c, c, env);
    if infinite {
        return F::infinity(negative);
    }
    if c.class == Class::Infinity {
        return F::infinity(c.negative);
    }
    let product_zero = a.class == Class::Zero || b.class == Class::Zero;
    match (product_zero, c.class == Class::Zero) {
        (true, true) => F::zero(if negative == c.negative { negative } else { env.rounding == Rounding::Down }),
        (true, false) => {
            Exact { negative: c.negative, exponent: c.exponent, high: c.significand, low: 0 }.round::<F>(env)
        }
        (false, _) => {
            let (exponent, product) = product(a, b);
            Exact::from_u128(negative, exponent + 1, product).round::<F>(env)
        }
    }
}
