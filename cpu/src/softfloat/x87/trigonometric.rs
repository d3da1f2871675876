//! FSIN, FCOS, FSINCOS, FPTAN and FPATAN.
//!
//! Models the instructions of those names in Intel SDM vol. 2 and vol. 1, 8.3.8 "Approximation of Pi": arguments are
//! reduced, exactly, by the 66-bit approximation of pi that hardware uses, `0xC90FDAA22168C234C * 2^-66`. FPATAN's
//! results use pi to 128 bits. Results are those of the exact function of the reduced argument, rounded by the rounding
//! control (not the precision control), and wrong by less than 2^-40 of a unit in the last place before the rounding.

use super::super::env::{Env, Flags};
use super::super::format::{Class, F80, Format, Unpacked, invalid, propagate_one};
use super::wide::{Wide, alternating_series, mul_high};
use super::{nan_response, tables};

/// Half of the 66-bit pi, in units of 2^-65.
const HALF_PI: u128 = 0x3_243f_6a88_85a3_08d3;

/// An argument reduced to at most a quarter of pi: `quadrant * pi/2 + rest`.
struct Reduced {
    quadrant: u8,
    negative: bool,
    rest: Wide,
}

/// What the operand of a circular function turned out to be.
enum Argument {
    /// Magnitude of 2^63 or more: C2 is set, nothing else happens.
    OutOfRange,
    /// NaN or infinity, with the response.
    Special(F80),
    Zero,
    Finite(Reduced),
}

impl Argument {
    fn of(a: F80, env: &mut Env) -> Self {
        let value = F80::unpack(a);
        match value.class {
            Class::Normal | Class::Denormal => {}
            Class::Zero => return Self::Zero,
            Class::Infinity => return Self::Special(invalid::<F80>(env)),
            Class::QuietNan | Class::SignalingNan | Class::Unsupported => {
                return Self::Special(propagate_one::<F80>(&value, env));
            }
        }
        if value.exponent >= 63 {
            return Self::OutOfRange;
        }
        if value.class == Class::Denormal {
            env.raise(Flags::DE);
        }
        Self::Finite(reduce(&value))
    }
}

fn reduce(value: &Unpacked) -> Reduced {
    if value.exponent < -1 {
        return Reduced { quadrant: 0, negative: value.negative, rest: Wide::magnitude(value) };
    }
    // In units of 2^-65 the argument is an integer below 2^128.
    let argument = u128::from(value.significand) << (value.exponent + 2);
    let (quotient, rest) = (argument / HALF_PI, argument % HALF_PI);
    let (quotient, rest, beyond) =
        if rest > HALF_PI / 2 { (quotient + 1, HALF_PI - rest, true) } else { (quotient, rest, false) };
    // The rest is not zero, because the odd HALF_PI is wider than any significand. A negative argument mirrors both.
    let quadrant = if value.negative { quotient.wrapping_neg() } else { quotient } as u8 & 3;
    Reduced { quadrant, negative: value.negative != beyond, rest: Wide::new(127 - 65, rest) }
}

impl Reduced {
    /// The sine or cosine of the rest with its sign, for the quadrant counted from the sine's.
    fn evaluate(&self, quadrant: u8) -> (bool, Wide) {
        let r = self.rest.fraction();
        let square = mul_high(r, r);
        let below_axis = quadrant & 2 != 0;
        if quadrant & 1 != 0 {
            let cosine = Wide::one_minus(mul_high(square, alternating_series(&tables::COSINE, square)));
            (below_axis, cosine)
        } else {
            let ratio = Wide::one_minus(mul_high(square, alternating_series(&tables::SINE, square)));
            (below_axis != self.negative, self.rest.mul(ratio))
        }
    }

    fn sine(&self) -> (bool, Wide) {
        self.evaluate(self.quadrant)
    }

    fn cosine(&self) -> (bool, Wide) {
        self.evaluate((self.quadrant + 1) & 3)
    }
}

/// FSIN. `None` if the operand is out of range: C2 is set and ST(0) unchanged.
pub fn fsin(a: F80, env: &mut Env) -> Option<F80> {
    match Argument::of(a, env) {
        Argument::OutOfRange => None,
        Argument::Special(value) => Some(value),
        Argument::Zero => Some(a),
        Argument::Finite(reduced) => {
            let (negative, sine) = reduced.sine();
            Some(sine.round_inexact(negative, env))
        }
    }
}

/// FCOS. `None` if the operand is out of range: C2 is set and ST(0) unchanged.
pub fn fcos(a: F80, env: &mut Env) -> Option<F80> {
    match Argument::of(a, env) {
        Argument::OutOfRange => None,
        Argument::Special(value) => Some(value),
        Argument::Zero => Some(F80::ONE),
        Argument::Finite(reduced) => {
            let (negative, cosine) = reduced.cosine();
            Some(cosine.round_inexact(negative, env))
        }
    }
}

/// FSINCOS: sine (replaces ST(0)) and cosine (pushed). `None` if the operand is out of range: C2 is set.
pub fn fsincos(a: F80, env: &mut Env) -> Option<(F80, F80)> {
    match Argument::of(a, env) {
        Argument::OutOfRange => None,
        Argument::Special(value) => Some((value, value)),
        Argument::Zero => Some((a, F80::ONE)),
        Argument::Finite(reduced) => {
            let ((sine_sign, sine), (cosine_sign, cosine)) = (reduced.sine(), reduced.cosine());
            Some((sine.round_inexact(sine_sign, env), cosine.round_inexact(cosine_sign, env)))
        }
    }
}

/// FPTAN: the tangent (replaces ST(0)) and what is pushed on top of it, which is 1.0, or the same NaN again. `None` if
/// the operand is out of range: C2 is set.
pub fn fptan(a: F80, env: &mut Env) -> Option<(F80, F80)> {
    match Argument::of(a, env) {
        Argument::OutOfRange => None,
        Argument::Special(value) => Some((value, value)),
        Argument::Zero => Some((a, F80::ONE)),
        Argument::Finite(reduced) => {
            if reduced.quadrant == 0 && reduced.rest.exponent < -40 {
                // The argument and a trifle: what the quotient below loses would fall on the wrong side of it.
                return Some((reduced.rest.round_inexact(reduced.negative, env), F80::ONE));
            }
            let ((sine_sign, sine), (cosine_sign, cosine)) = (reduced.sine(), reduced.cosine());
            Some((sine.div(cosine).round_inexact(sine_sign != cosine_sign, env), F80::ONE))
        }
    }
}

/// `pi` in eighths, as FPATAN's limits need it.
fn pi_eighths(eighths: u32) -> Wide {
    Wide::new(1, tables::PI / 8 * u128::from(eighths))
}

/// FPATAN: the angle of the point with ordinate `y` (ST(1)) and abscissa `x` (ST(0)).
pub fn fpatan(y: F80, x: F80, env: &mut Env) -> F80 {
    let (x, y) = (F80::unpack(x), F80::unpack(y));
    if let Some(nan) = nan_response(&x, &y, env) {
        return nan;
    }
    if x.class == Class::Denormal || y.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    let limit = match (y.class, x.class) {
        (Class::Infinity, Class::Infinity) => Some(if x.negative { 6 } else { 2 }),
        (Class::Infinity, _) => Some(4),
        (Class::Zero, _) | (_, Class::Infinity) => Some(if x.negative { 8 } else { 0 }),
        (_, Class::Zero) => Some(4),
        _ => None,
    };
    match limit {
        Some(0) => F80::zero(y.negative),
        Some(eighths) => pi_eighths(eighths).round_inexact(y.negative, env),
        None => arctangent(&y, &x).round_inexact(y.negative, env),
    }
}

/// The angle, from 0 to pi, for two finite numbers that are not zero; `y` counts by magnitude.
fn arctangent(y: &Unpacked, x: &Unpacked) -> Wide {
    let steep = (y.exponent, y.significand) > (x.exponent, x.significand);
    let angle = if steep { acute(x, y) } else { acute(y, x) };
    match (steep, x.negative) {
        (false, false) => angle,
        (false, true) => pi_eighths(8).sub(angle),
        (true, false) => pi_eighths(4).sub(angle),
        (true, true) => pi_eighths(4).add(angle),
    }
}

/// The arctangent of `small / great`, a ratio of magnitudes of at most one.
fn acute(small: &Unpacked, great: &Unpacked) -> Wide {
    let distance = (great.exponent - small.exponent) as u32;
    let step = if distance > 6 { 0 } else { nearest_step(small.significand, great.significand, distance) };
    if step == 0 {
        return small_arctangent(Wide::magnitude(small).div(Wide::magnitude(great)));
    }
    // atan(t) = atan(c) + atan((t - c) / (1 + t*c)) with c = step/32, as integers.
    let (y, x) = (u128::from(small.significand), u128::from(great.significand) << distance);
    let (ahead, behind) = (32 * y, step * x);
    let base = Wide::new(-1, tables::ARCTANGENTS[step as usize]);
    if ahead == behind {
        return base;
    }
    let denominator = Wide::new(127, 32 * x + step * y);
    let rest = small_arctangent(Wide::new(127, ahead.abs_diff(behind)).div(denominator));
    if ahead > behind { base.add(rest) } else { base.sub(rest) }
}

/// The 32nd nearest to the ratio of two significands, `small` shifted down by `distance`; at most 32.
fn nearest_step(small: u64, great: u64, distance: u32) -> u128 {
    ((u128::from(small) << (6 - distance)) / u128::from(great)).div_ceil(2)
}

/// The arctangent of a number up to 1/64.
fn small_arctangent(t: Wide) -> Wide {
    let fraction = t.fraction();
    let square = mul_high(fraction, fraction);
    t.mul(Wide::one_minus(mul_high(square, alternating_series(&tables::ODD_RECIPROCALS[..11], square))))
}
