//! Rounding of an exact intermediate result to a format, with overflow and underflow.
//!
//! Models Intel SDM vol. 1, 4.8.4 "Rounding", 4.9.1.4 "Numeric Overflow Exception", 4.9.1.5 "Numeric Underflow
//! Exception", 4.9.1.6 "Inexact-Result (Precision) Exception", 8.5.4 and 8.5.5. Tininess is detected after rounding
//! with an unbounded exponent, for SSE and x87 alike. The door is [`Exact`] with [`Exact::round`].

use super::env::{Env, Flags, Rounding};
use super::format::Format;

/// What x87 adds to, or subtracts from, the exponent of a register result when U or O is unmasked.
const BIAS_ADJUST: i32 = 24576;

/// A nonzero intermediate result: `(high + low * 2^-64) * 2^(exponent - 63)`, `high` with bit 63 set. Bit 0 of `low` may
/// be sticky, that is, stand for anything nonzero below it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exact {
    pub negative: bool,
    pub exponent: i32,
    pub high: u64,
    pub low: u64,
}

/// A significand cut to a number of bits.
struct Cut {
    /// Left-aligned.
    significand: u64,
    /// The significand wrapped to zero and stands for 2^64.
    carry: bool,
    inexact: bool,
    up: bool,
}

/// Cuts `high:low` to its leading `precision` bits.
#[inline(always)]
fn cut(negative: bool, high: u64, low: u64, precision: u32, rounding: Rounding) -> Cut {
    const HALF: u64 = 1 << 63;
    let drop = 64 - precision;
    let rest = if drop == 0 { low } else { (high << precision) | u64::from(low != 0) };
    let kept = high >> drop << drop;
    let inexact = rest != 0;
    let up = match rounding {
        Rounding::Nearest => rest > HALF || (rest == HALF && (high >> drop) & 1 != 0),
        Rounding::Down => negative && inexact,
        Rounding::Up => !negative && inexact,
        Rounding::Zero => false,
    };
    let (significand, carry) = kept.overflowing_add(u64::from(up) << drop);
    Cut { significand, carry, inexact, up }
}

/// Shifts right, gathering what falls out in bit 0.
#[inline(always)]
pub(super) fn shift_right_sticky(value: u128, count: u32) -> u128 {
    if count == 0 {
        value
    } else if count < 128 {
        (value >> count) | u128::from(value << (128 - count) != 0)
    } else {
        u128::from(value != 0)
    }
}

/// The flags of a rounding.
#[inline(always)]
fn rounding_flags(cut: &Cut) -> Flags {
    let inexact = Flags::from_bits_retain(u16::from(cut.inexact) << 5);
    let up = Flags::from_bits_retain(u16::from(cut.up) << 9);
    inexact.union(up)
}

impl Exact {
    /// From a nonzero 128-bit significand in any alignment; `exponent` is that of bit 127.
    #[inline(always)]
    pub fn from_u128(negative: bool, exponent: i32, significand: u128) -> Self {
        let shift = significand.leading_zeros();
        let significand = significand << shift;
        Self { negative, exponent: exponent - shift as i32, high: (significand >> 64) as u64, low: significand as u64 }
    }

    /// Rounds to the format's precision, or what x87 precision control makes of it.
    #[inline(always)]
    pub fn round<R: Format>(self, env: &mut Env) -> R::Bits {
        let precision = if R::X87 { env.precision as u32 } else { R::PRECISION };
        self.round_at::<R>(precision, env)
    }

    /// Rounds to the format's full precision, for what precision control does not govern.
    #[inline(always)]
    pub fn round_full<R: Format>(self, env: &mut Env) -> R::Bits {
        self.round_at::<R>(R::PRECISION, env)
    }

    #[inline(always)]
    fn round_at<R: Format>(self, precision: u32, env: &mut Env) -> R::Bits {
        let biased = self.exponent + R::BIAS;
        let cut = cut(self.negative, self.high, self.low, precision, env.rounding);
        let rounded = biased + i32::from(cut.carry);
        if biased >= 1 && rounded < R::MAX_BIASED {
            env.raise(rounding_flags(&cut));
            return R::pack(self.negative, rounded, cut.significand | (1 << 63));
        }
        if biased >= 1 {
            overflow::<R>(self.negative, rounded, &cut, precision, env)
        } else {
            self.underflow::<R>(rounded, &cut, precision, env)
        }
    }

    /// The result has, or may have, a magnitude below the least normal number.
    #[cold]
    fn underflow<R: Format>(self, rounded: i32, cut: &Cut, precision: u32, env: &mut Env) -> R::Bits {
        let tiny = rounded < 1;
        if tiny && !env.masked(Flags::UE) {
            env.raise(Flags::UE);
            if R::X87 && rounded + BIAS_ADJUST < 1 {
                // FSCALE alone reaches down here; processors then deliver zero in all rounding modes.
                env.raise(Flags::PE);
                return R::zero(self.negative);
            }
            env.raise(rounding_flags(cut));
            // Only the x87 result is ever written: SSE and x87 stores to memory keep the destination.
            let biased = if R::X87 { rounded + BIAS_ADJUST } else { 0 };
            return R::pack(self.negative, biased, cut.significand | (1 << 63));
        } else if tiny && !R::X87 && env.denormals.flush_results {
            env.raise(Flags::UE | Flags::PE);
            return R::zero(self.negative);
        }
        let shift = (1 - R::BIAS - self.exponent) as u32;
        let wide = shift_right_sticky((u128::from(self.high) << 64) | u128::from(self.low), shift);
        let cut = self::cut(self.negative, (wide >> 64) as u64, wide as u64, precision, env.rounding);
        env.raise(rounding_flags(&cut));
        if tiny && cut.inexact {
            env.raise(Flags::UE);
        }
        R::pack(self.negative, (cut.significand >> 63) as i32, cut.significand)
    }
}

/// The rounded result has a magnitude above the greatest number.
#[cold]
fn overflow<R: Format>(negative: bool, rounded: i32, cut: &Cut, precision: u32, env: &mut Env) -> R::Bits {
    env.raise(Flags::OE);
    if !env.masked(Flags::OE) {
        let adjusted = rounded - BIAS_ADJUST;
        if R::X87 && adjusted >= R::MAX_BIASED {
            // FSCALE alone reaches up here; processors then deliver infinity in all rounding modes.
            env.raise(Flags::PE | Flags::C1);
            return R::infinity(negative);
        }
        env.raise(rounding_flags(cut));
        // Only the x87 result is ever written: SSE and x87 stores to memory keep the destination.
        return if R::X87 { R::pack(negative, adjusted, cut.significand | (1 << 63)) } else { R::infinity(negative) };
    }
    env.raise(Flags::PE);
    let to_infinity = match env.rounding {
        Rounding::Nearest => true,
        Rounding::Down => negative,
        Rounding::Up => !negative,
        Rounding::Zero => false,
    };
    if to_infinity {
        env.raise(Flags::C1);
        R::infinity(negative)
    } else {
        R::greatest(negative, precision)
    }
}
