//! Positive numbers with 128 significand bits, and 128-bit binary fractions, for the x87 functions.
//!
//! All operations truncate; the functions of this folder lose a few units of 2^-128 relative to the result, some sixty
//! bits below what is finally rounded.

use super::super::env::Env;
use super::super::format::{F80, Unpacked};
use super::super::round::{Exact, shift_right_sticky};

/// The upper half of the product: the product of two binary fractions.
#[inline]
pub(super) fn mul_high(a: u128, b: u128) -> u128 {
    const LOW: u128 = u64::MAX as u128;
    let (a1, a0, b1, b0) = (a >> 64, a & LOW, b >> 64, b & LOW);
    let (cross, other) = (a1 * b0, a0 * b1);
    let carry = ((a0 * b0) >> 64) + (cross & LOW) + (other & LOW);
    a1 * b1 + (cross >> 64) + (other >> 64) + (carry >> 64)
}

/// `n / d` as a binary fraction, for `n < d` and `d` with bit 127 set.
fn div_fraction(n: u128, d: u128) -> u128 {
    let (digit1, rest) = div_digit(n, d);
    let (digit0, _) = div_digit(rest, d);
    (u128::from(digit1) << 64) | u128::from(digit0)
}

/// One 64-bit digit of the quotient `n * 2^64 / d`, and the rest (schoolbook long division).
fn div_digit(n: u128, d: u128) -> (u64, u128) {
    let (d1, d0) = (d >> 64, d & u128::from(u64::MAX));
    // The estimate from the leading digit is at most two too great.
    let mut digit = (n / d1).min(u128::from(u64::MAX));
    let mut rest = n - digit * d1;
    while rest >> 64 == 0 && digit * d0 > rest << 64 {
        digit -= 1;
        rest += d1;
    }
    // What is left is below the divisor, so arithmetic modulo 2^128 yields it whatever the intermediate carries.
    (digit as u64, (rest << 64).wrapping_sub(digit.wrapping_mul(d0)))
}

/// Sums a series by Horner's rule: `c0 + z*(c1 + z*(c2 + ...))` as a fraction; the sum must stay below one.
pub(super) fn series(coefficients: &[u128], z: u128) -> u128 {
    coefficients.iter().rev().fold(0, |sum, c| c + mul_high(sum, z))
}

/// The same with alternating signs: `c0 - z*(c1 - z*(c2 - ...))`, for falling positive coefficients.
pub(super) fn alternating_series(coefficients: &[u128], z: u128) -> u128 {
    coefficients.iter().rev().fold(0, |sum, c| c - mul_high(sum, z))
}

/// A positive number, `significand * 2^(exponent - 127)` with bit 127 set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wide {
    pub exponent: i32,
    pub significand: u128,
}

impl Wide {
    /// From a nonzero significand in any alignment; `exponent` is that of bit 127.
    pub fn new(exponent: i32, significand: u128) -> Self {
        let shift = significand.leading_zeros();
        Self { exponent: exponent - shift as i32, significand: significand << shift }
    }

    /// The magnitude of a finite number that is not zero.
    pub fn magnitude(value: &Unpacked) -> Self {
        Self { exponent: value.exponent, significand: u128::from(value.significand) << 64 }
    }

    /// One minus a fraction below one half; a fraction of zero stands for something smaller than can be expressed.
    pub fn one_minus(fraction: u128) -> Self {
        Self { exponent: -1, significand: fraction.max(1).wrapping_neg() }
    }

    /// One plus a fraction.
    pub fn one_plus(fraction: u128) -> Self {
        Self { exponent: 0, significand: (1 << 127) | (fraction >> 1) }
    }

    /// The product.
    pub fn mul(self, other: Self) -> Self {
        Self::new(self.exponent + other.exponent + 1, mul_high(self.significand, other.significand))
    }

    /// The quotient.
    pub fn div(self, other: Self) -> Self {
        let (n, d) = (self.significand, other.significand);
        if n < d {
            Self::new(self.exponent - other.exponent - 1, div_fraction(n, d))
        } else {
            // One plus the quotient of what is above the divisor.
            let fraction = div_fraction(n - d, d);
            Self { exponent: self.exponent - other.exponent, significand: (1 << 127) | (fraction >> 1) }
        }
    }

    /// The sum with a number that is not greater.
    pub fn add(self, small: Self) -> Self {
        let small = shift_right_sticky(small.significand, (self.exponent - small.exponent) as u32);
        match self.significand.overflowing_add(small) {
            (sum, false) => Self { exponent: self.exponent, significand: sum },
            (sum, true) => Self { exponent: self.exponent + 1, significand: (1 << 127) | (sum >> 1) },
        }
    }

    /// The difference with a number that is less.
    pub fn sub(self, small: Self) -> Self {
        let small = shift_right_sticky(small.significand, (self.exponent - small.exponent) as u32);
        Self::new(self.exponent, self.significand - small)
    }

    /// The number, below one, as a fraction.
    pub fn fraction(self) -> u128 {
        shift_right_sticky(self.significand, (-1 - self.exponent) as u32)
    }

    /// Rounds an irrational result, which is never exactly what the bits say.
    pub fn round_inexact(self, negative: bool, env: &mut Env) -> F80 {
        let low = self.significand as u64 | 1;
        Exact { negative, exponent: self.exponent, high: (self.significand >> 64) as u64, low }.round_full::<F80>(env)
    }
}
