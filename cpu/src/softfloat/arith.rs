//! Addition, subtraction, multiplication, division and square root.
//!
//! Models Intel SDM vol. 1, 4.8 and 4.9, and the tables of FADD, FMUL, FDIV and FSQRT in vol. 2 for the special
//! operands. Each operation exists in two forms: over one format, as SSE and AVX have it, and over mixed formats
//! (`*_mixed`), as x87 has it with a memory operand, where a narrow signaling NaN or denormal must still be seen as
//! what it was. Exceptions keep the priority of SDM vol. 1, 4.9.2: a NaN operand hides DE, IE and ZE hide DE.

use super::env::{Env, Flags};
use super::format::{Class, F80, Format, Unpacked, invalid, propagate, propagate_one};
use super::round::{Exact, shift_right_sticky};

/// Sets DE if one of the operands is denormal.
#[inline(always)]
pub(super) fn note_denormals(a: &Unpacked, b: &Unpacked, env: &mut Env) {
    if a.class == Class::Denormal || b.class == Class::Denormal {
        env.raise(Flags::DE);
    }
}

/// A finite number as an intermediate result.
fn exact(value: &Unpacked) -> Exact {
    Exact { negative: value.negative, exponent: value.exponent, high: value.significand, low: 0 }
}

/// `a + b`.
#[inline]
pub fn add<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    add_unpacked::<F>(F::operand(a, env), F::operand(b, env), env)
}

/// `a - b`. A NaN in `b` keeps its sign.
#[inline]
pub fn sub<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    add_unpacked::<F>(F::operand(a, env), F::operand(b, env).negate(), env)
}

/// `a * b`.
#[inline]
pub fn mul<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    mul_unpacked::<F>(F::operand(a, env), F::operand(b, env), env)
}

/// `a / b`.
#[inline]
pub fn div<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    div_unpacked::<F>(F::operand(a, env), F::operand(b, env), env)
}

/// `a + b` of two formats in a third.
#[inline]
pub fn add_mixed<A: Format, B: Format, R: Format>(a: A::Bits, b: B::Bits, env: &mut Env) -> R::Bits {
    add_unpacked::<R>(A::operand(a, env), B::operand(b, env), env)
}

/// `a - b` of two formats in a third.
#[inline]
pub fn sub_mixed<A: Format, B: Format, R: Format>(a: A::Bits, b: B::Bits, env: &mut Env) -> R::Bits {
    add_unpacked::<R>(A::operand(a, env), B::operand(b, env).negate(), env)
}

/// `a * b` of two formats in a third.
#[inline]
pub fn mul_mixed<A: Format, B: Format, R: Format>(a: A::Bits, b: B::Bits, env: &mut Env) -> R::Bits {
    mul_unpacked::<R>(A::operand(a, env), B::operand(b, env), env)
}

/// `a / b` of two formats in a third.
#[inline]
pub fn div_mixed<A: Format, B: Format, R: Format>(a: A::Bits, b: B::Bits, env: &mut Env) -> R::Bits {
    div_unpacked::<R>(A::operand(a, env), B::operand(b, env), env)
}

#[inline(always)]
fn add_unpacked<R: Format>(a: Unpacked, b: Unpacked, env: &mut Env) -> R::Bits {
    let worst = a.class.max(b.class);
    if worst > Class::Denormal {
        return add_special::<R>(&a, &b, env);
    }
    if worst == Class::Denormal {
        env.raise(Flags::DE);
    }
    let a_is_great = (a.exponent, a.significand) >= (b.exponent, b.significand);
    let (great, small) = if a_is_great { (a, b) } else { (b, a) };
    // One bit of headroom for the carry; 63 bits below the significands keep the sticky bit clear of the rounding.
    let left = u128::from(great.significand) << 63;
    let right = shift_right_sticky(u128::from(small.significand) << 63, (great.exponent - small.exponent) as u32);
    let sum = if great.negative == small.negative { left + right } else { left - right };
    if sum == 0 {
        return R::zero(env.rounding == super::Rounding::Down);
    }
    Exact::from_u128(great.negative, great.exponent + 1, sum).round::<R>(env)
}

#[cold]
fn add_special<R: Format>(a: &Unpacked, b: &Unpacked, env: &mut Env) -> R::Bits {
    if a.is_nan() || b.is_nan() {
        return propagate::<R>(a, b, env);
    }
    let negative = match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) if a.negative != b.negative => return invalid::<R>(env),
        (Class::Infinity, _) => a.negative,
        (_, Class::Infinity) => b.negative,
        (Class::Zero, Class::Zero) => {
            let negative = if a.negative == b.negative { a.negative } else { env.rounding == super::Rounding::Down };
            return R::zero(negative);
        }
        _ => {
            note_denormals(a, b, env);
            return exact(if a.class == Class::Zero { b } else { a }).round::<R>(env);
        }
    };
    note_denormals(a, b, env);
    R::infinity(negative)
}

#[inline(always)]
fn mul_unpacked<R: Format>(a: Unpacked, b: Unpacked, env: &mut Env) -> R::Bits {
    let worst = a.class.max(b.class);
    if worst > Class::Denormal {
        return mul_special::<R>(&a, &b, env);
    }
    if worst == Class::Denormal {
        env.raise(Flags::DE);
    }
    let product = u128::from(a.significand) * u128::from(b.significand);
    Exact::from_u128(a.negative != b.negative, a.exponent + b.exponent + 1, product).round::<R>(env)
}

/// The product of two numbers, finite and not zero, in the full 80-bit precision whatever the precision control.
pub(super) fn mul_unpacked_full(a: &Unpacked, b: &Unpacked, env: &mut Env) -> F80 {
    let product = u128::from(a.significand) * u128::from(b.significand);
    Exact::from_u128(a.negative != b.negative, a.exponent + b.exponent + 1, product).round_full::<F80>(env)
}

#[cold]
fn mul_special<R: Format>(a: &Unpacked, b: &Unpacked, env: &mut Env) -> R::Bits {
    if a.is_nan() || b.is_nan() {
        return propagate::<R>(a, b, env);
    }
    let negative = a.negative != b.negative;
    let infinite = a.class == Class::Infinity || b.class == Class::Infinity;
    if infinite && (a.class == Class::Zero || b.class == Class::Zero) {
        return invalid::<R>(env);
    }
    note_denormals(a, b, env);
    if infinite { R::infinity(negative) } else { R::zero(negative) }
}

/// The quotient of two left-aligned significands as an intermediate result with the exponent `exponent` for a ratio in
/// `[1, 2)`.
#[inline(always)]
fn quotient(negative: bool, exponent: i32, a: u64, b: u64) -> Exact {
    let less = a < b;
    let numerator = u128::from(a) << (63 + u32::from(less));
    let divisor = u128::from(b);
    let (high, rest) = ((numerator / divisor) as u64, (numerator % divisor) as u64);
    // Twice the rest against the divisor tells on which side of one half the rest of the quotient is.
    let low = match (rest, rest.cmp(&(b - rest))) {
        (0, _) => 0,
        (_, core::cmp::Ordering::Less) => 1,
        (_, core::cmp::Ordering::Equal) => 1 << 63,
        (_, core::cmp::Ordering::Greater) => (1 << 63) | 1,
    };
    Exact { negative, exponent: exponent - i32::from(less), high, low }
}

#[inline(always)]
fn div_unpacked<R: Format>(a: Unpacked, b: Unpacked, env: &mut Env) -> R::Bits {
    let worst = a.class.max(b.class);
    if worst > Class::Denormal {
        return div_special::<R>(&a, &b, env);
    }
    if worst == Class::Denormal {
        env.raise(Flags::DE);
    }
    quotient(a.negative != b.negative, a.exponent - b.exponent, a.significand, b.significand).round::<R>(env)
}

#[cold]
fn div_special<R: Format>(a: &Unpacked, b: &Unpacked, env: &mut Env) -> R::Bits {
    if a.is_nan() || b.is_nan() {
        return propagate::<R>(a, b, env);
    }
    let negative = a.negative != b.negative;
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) | (Class::Zero, Class::Zero) => return invalid::<R>(env),
        (Class::Infinity, _) => {
            note_denormals(a, b, env);
            return R::infinity(negative);
        }
        (_, Class::Zero) => {
            env.raise(Flags::ZE);
            return R::infinity(negative);
        }
        _ => {}
    }
    note_denormals(a, b, env);
    R::zero(negative)
}

/// The square root of `a`.
#[inline]
pub fn sqrt<F: Format>(a: F::Bits, env: &mut Env) -> F::Bits {
    let a = F::operand(a, env);
    match a.class {
        Class::Normal | Class::Denormal => {}
        Class::Zero => return F::zero(a.negative),
        Class::Infinity if !a.negative => return F::infinity(false),
        Class::Infinity => return invalid::<F>(env),
        _ => return propagate_one::<F>(&a, env),
    }
    if a.negative {
        return invalid::<F>(env);
    }
    if a.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    // With an even exponent, the radicand in [2^126, 2^128) has a root of exactly 64 bits.
    let radicand = u128::from(a.significand) << (63 + (a.exponent & 1) as u32);
    let root = radicand.isqrt();
    let rest = radicand - root * root;
    // (root + 1/2)^2 = root^2 + root + 1/4: the rest cannot sit exactly on one half.
    let low = if rest == 0 {
        0
    } else if rest <= root {
        1
    } else {
        (1 << 63) | 1
    };
    Exact { negative: false, exponent: a.exponent >> 1, high: root as u64, low }.round::<F>(env)
}
