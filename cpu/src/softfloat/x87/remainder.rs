//! FPREM and FPREM1.
//!
//! Models Intel SDM vol. 2, FPREM and FPREM1 "Partial Remainder". When the exponents differ by 64 or more, one
//! execution reduces the exponent by `32 + D mod 32` with `D` the difference, which the manual leaves to the
//! implementation within 32 to 63.

use super::super::env::{Env, Flags};
use super::super::format::{Class, F80, Format, Unpacked, invalid};
use super::super::round::Exact;
use super::nan_response;

/// A remainder and the condition codes that come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remainder {
    /// The new ST(0).
    pub value: F80,
    /// C2: the reduction is incomplete. The quotient bits are then zero.
    pub incomplete: bool,
    /// The quotient's low three bits: bit 2 is C0, bit 1 is C3, bit 0 is C1.
    pub quotient: u8,
}

/// How the quotient is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quotient {
    Truncated,
    Nearest,
}

/// FPREM: the remainder of `a / b` with the quotient truncated, as the 8087 had it.
pub fn fprem(a: F80, b: F80, env: &mut Env) -> Remainder {
    remainder(a, b, Quotient::Truncated, env)
}

/// FPREM1: the remainder of `a / b` with the quotient rounded to nearest even, as IEEE 754 has it.
pub fn fprem1(a: F80, b: F80, env: &mut Env) -> Remainder {
    remainder(a, b, Quotient::Nearest, env)
}

fn remainder(a: F80, b: F80, kind: Quotient, env: &mut Env) -> Remainder {
    let complete = |value| Remainder { value, incomplete: false, quotient: 0 };
    let (a, b) = (F80::unpack(a), F80::unpack(b));
    if let Some(nan) = nan_response(&a, &b, env) {
        return complete(nan);
    }
    if a.class == Class::Infinity || b.class == Class::Zero {
        return complete(invalid::<F80>(env));
    }
    if a.class == Class::Denormal || b.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    if a.class == Class::Zero {
        return complete(F80::zero(a.negative));
    }
    if b.class == Class::Infinity {
        return complete(finish(a.negative, a.exponent, a.significand, env));
    }
    let difference = a.exponent - b.exponent;
    if difference >= 64 {
        let reduced = 32 + difference % 32;
        let rest = modulo(&a, &b, reduced as u32).1;
        let value = finish(a.negative, b.exponent + difference - reduced, rest, env);
        return Remainder { value, incomplete: true, quotient: 0 };
    }
    match kind {
        Quotient::Truncated if difference < 0 => complete(finish(a.negative, a.exponent, a.significand, env)),
        Quotient::Truncated => {
            let (quotient, rest) = modulo(&a, &b, difference as u32);
            let value = finish(a.negative, b.exponent, rest, env);
            Remainder { value, incomplete: false, quotient: quotient as u8 & 7 }
        }
        Quotient::Nearest => nearest(&a, &b, difference, env),
    }
}

/// The quotient and the remainder of `a * 2^shift / b`, significands as integers.
fn modulo(a: &Unpacked, b: &Unpacked, shift: u32) -> (u128, u64) {
    let (dividend, divisor) = (u128::from(a.significand) << shift, u128::from(b.significand));
    (dividend / divisor, (dividend % divisor) as u64)
}

fn nearest(a: &Unpacked, b: &Unpacked, difference: i32, env: &mut Env) -> Remainder {
    let complete = |value, quotient| Remainder { value, incomplete: false, quotient };
    if difference < -1 {
        return complete(finish(a.negative, a.exponent, a.significand, env), 0);
    }
    if difference == -1 {
        // a lies between b/4 and b: above b/2 the quotient is one. At exactly b/2 the even quotient is zero.
        if a.significand <= b.significand {
            return complete(finish(a.negative, a.exponent, a.significand, env), 0);
        }
        let rest = (u128::from(b.significand) << 1) - u128::from(a.significand);
        return complete(finish(!a.negative, a.exponent, rest as u64, env), 1);
    }
    let (quotient, rest) = modulo(a, b, difference as u32);
    let twice = u128::from(rest) << 1;
    let divisor = u128::from(b.significand);
    if twice > divisor || (twice == divisor && quotient & 1 != 0) {
        let value = finish(!a.negative, b.exponent, b.significand - rest, env);
        return complete(value, (quotient + 1) as u8 & 7);
    }
    complete(finish(a.negative, b.exponent, rest, env), quotient as u8 & 7)
}

/// A remainder as a value; zero keeps the sign of the dividend. Always exact.
fn finish(negative: bool, exponent: i32, significand: u64, env: &mut Env) -> F80 {
    if significand == 0 {
        return F80::zero(negative);
    }
    Exact::from_u128(negative, exponent, u128::from(significand) << 64).round_full::<F80>(env)
}
