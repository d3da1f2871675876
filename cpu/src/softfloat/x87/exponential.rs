//! F2XM1, FYL2X and FYL2XP1.
//!
//! Models the instructions of those names in Intel SDM vol. 2 with their tables of special operands. Results are
//! rounded by the rounding control (not the precision control), and wrong by less than 2^-40 of a unit in the last
//! place before the rounding. Where the manual calls a result undefined, F2XM1 returns operands beyond one unchanged
//! and FYL2XP1 operands of -1 or less, as AMD's processors do; elsewhere FYL2XP1 computes the function.

use super::super::arith;
use super::super::env::{Env, Flags};
use super::super::format::{Class, F80, Format, Unpacked, invalid, propagate_one};
use super::wide::{Wide, alternating_series, mul_high, series};
use super::{nan_response, tables};

/// F2XM1: `2^a - 1` for `a` from -1 to 1.
pub fn f2xm1(a: F80, env: &mut Env) -> F80 {
    let value = F80::unpack(a);
    match value.class {
        Class::Normal | Class::Denormal => {}
        Class::Zero => return a,
        Class::Infinity => return if value.negative { F80::ONE.negate() } else { a },
        Class::QuietNan | Class::SignalingNan | Class::Unsupported => return propagate_one::<F80>(&value, env),
    }
    if value.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    if value.exponent >= 0 {
        // Exact or undefined, but processors report an inexact result.
        env.raise(Flags::PE);
        let minus_one = value.negative && value.exponent == 0 && value.significand == 1 << 63;
        return if minus_one { F80::pack(true, F80::BIAS - 1, 1 << 63) } else { a };
    }
    // e^z - 1 = z * (1 + z * (1/2! + z * (1/3! + ...))) with z = a * ln 2.
    let z = Wide::magnitude(&value).mul(Wide { exponent: -1, significand: tables::LN_2 });
    let fraction = z.fraction();
    let factor = if value.negative {
        Wide::one_minus(mul_high(fraction, alternating_series(&tables::EXPONENTIAL, fraction)))
    } else {
        Wide::one_plus(mul_high(fraction, series(&tables::EXPONENTIAL, fraction)))
    };
    z.mul(factor).round_inexact(value.negative, env)
}

/// A logarithm of base two.
enum Log2 {
    /// The argument was a power of two.
    Integer(i32),
    /// It was not.
    Irrational { negative: bool, magnitude: Wide },
}

/// `log2((1 + s) / (1 - s))` for a nonzero `s` up to 0.172.
fn log2_of_ratio(s: Wide) -> Wide {
    let fraction = s.fraction();
    let square = mul_high(fraction, fraction);
    let factor = Wide::one_plus(mul_high(square, series(&tables::ODD_RECIPROCALS, square)));
    s.mul(factor).mul(Wide { exponent: 1, significand: tables::TWO_LOG2_E })
}

fn log2(x: Wide) -> Log2 {
    if x.significand == 1 << 127 {
        return Log2::Integer(x.exponent);
    }
    // x = m * 2^n with m between the square roots of 1/2 and of 2; then log2 m by (m - 1) / (m + 1).
    let above = x.significand < tables::SQRT_2;
    let n = if above { x.exponent } else { x.exponent + 1 };
    let (difference, sum) = if above {
        (x.significand - (1 << 127), Wide { exponent: 1, significand: (x.significand >> 1) + (1 << 126) })
    } else {
        (x.significand.wrapping_neg() >> 1, Wide { exponent: 0, significand: (x.significand >> 1) + (1 << 127) })
    };
    let magnitude = log2_of_ratio(Wide::new(0, difference).div(sum));
    if n == 0 {
        return Log2::Irrational { negative: !above, magnitude };
    }
    let whole = Wide::new(127, u128::from(n.unsigned_abs()));
    let same_sign = (n > 0) == above;
    let magnitude = if same_sign { whole.add(magnitude) } else { whole.sub(magnitude) };
    Log2::Irrational { negative: n < 0, magnitude }
}

/// `y * log` for a finite `y` that is not zero.
fn multiply(y: &Unpacked, log: Log2, env: &mut Env) -> F80 {
    match log {
        Log2::Integer(0) => F80::zero(y.negative),
        Log2::Integer(n) => {
            // Processors report an inexact result for these too, and with it underflow.
            env.raise(Flags::PE);
            let n = Unpacked::integer(n < 0, u64::from(n.unsigned_abs()));
            let result = arith::mul_unpacked_full(y, &n, env);
            if F80::unpack(result).class == Class::Denormal {
                env.raise(Flags::UE);
            }
            result
        }
        Log2::Irrational { negative, magnitude } => {
            Wide::magnitude(y).mul(magnitude).round_inexact(y.negative != negative, env)
        }
    }
}

/// `y * log` for a logarithm that is an infinity, or whose sign alone matters because `y` is infinite or zero.
fn limit(y: &Unpacked, negative: bool, infinite: bool) -> F80 {
    let negative = y.negative != negative;
    if infinite || y.class == Class::Infinity { F80::infinity(negative) } else { F80::zero(negative) }
}

/// FYL2X: `y * log2(x)` with `y` in ST(1) and `x` in ST(0).
pub fn fyl2x(y: F80, x: F80, env: &mut Env) -> F80 {
    let (x, y) = (F80::unpack(x), F80::unpack(y));
    if let Some(nan) = nan_response(&x, &y, env) {
        return nan;
    }
    if x.negative && x.class != Class::Zero {
        return invalid::<F80>(env);
    }
    let one = x.class == Class::Normal && x.exponent == 0 && x.significand == 1 << 63;
    let nothing = (x.class == Class::Infinity || x.class == Class::Zero) && y.class == Class::Zero;
    if nothing || (one && y.class == Class::Infinity) {
        return invalid::<F80>(env);
    }
    if x.class == Class::Zero && y.class != Class::Infinity {
        env.raise(Flags::ZE);
        return limit(&y, true, true);
    }
    arith::note_denormals(&x, &y, env);
    if x.class == Class::Zero || x.class == Class::Infinity {
        return limit(&y, x.class == Class::Zero, true);
    }
    if y.class == Class::Infinity || y.class == Class::Zero {
        return limit(&y, x.exponent < 0, false);
    }
    multiply(&y, log2(Wide::magnitude(&x)), env)
}

/// FYL2XP1: `y * log2(x + 1)` with `y` in ST(1) and `x` in ST(0).
pub fn fyl2xp1(y: F80, x: F80, env: &mut Env) -> F80 {
    let operand = x;
    let (x, y) = (F80::unpack(x), F80::unpack(y));
    if let Some(nan) = nan_response(&x, &y, env) {
        return nan;
    }
    let beyond = x.negative && x.class == Class::Infinity;
    let nothing = x.class == Class::Infinity && y.class == Class::Zero;
    if beyond || nothing || (x.class == Class::Zero && y.class == Class::Infinity) {
        return invalid::<F80>(env);
    }
    arith::note_denormals(&x, &y, env);
    if x.class == Class::Infinity || y.class == Class::Infinity {
        return limit(&y, x.negative, true);
    }
    if x.class == Class::Zero || y.class == Class::Zero {
        return F80::zero(y.negative != x.negative);
    }
    if x.negative && x.exponent >= 0 {
        env.raise(Flags::PE);
        return operand;
    }
    multiply(&y, log2_of_successor(&x), env)
}

/// `log2(x + 1)` for an `x` above -1 that is not zero.
fn log2_of_successor(x: &Unpacked) -> Log2 {
    let magnitude = Wide::magnitude(x);
    if x.exponent >= -2 {
        let one = Wide { exponent: 0, significand: 1 << 127 };
        return log2(match (x.negative, x.exponent >= 0) {
            (true, _) => one.sub(magnitude),
            (false, true) => magnitude.add(one),
            (false, false) => one.add(magnitude),
        });
    }
    // Near zero by x / (2 + x), which keeps the relative precision.
    let two = Wide { exponent: 1, significand: 1 << 127 };
    let sum = if x.negative { two.sub(magnitude) } else { two.add(magnitude) };
    Log2::Irrational { negative: x.negative, magnitude: log2_of_ratio(magnitude.div(sum)) }
}
