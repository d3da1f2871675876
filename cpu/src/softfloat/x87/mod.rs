//! What only x87 has: classification, constants, scaling, partial remainders, packed decimal, and the functions.
//!
//! Models Intel SDM vol. 1, 8.3 "x87 FPU Instruction Set" and the result tables of the instructions in vol. 2. The
//! stack, its tags and stack faults are the caller's, as are FLD, FST, FILD and FIST, which are conversions of
//! [`super::convert`](mod@super::convert), FADD and its kin ([`super::arith`]), and FCHS and FABS ([`F80::negate`],
//! [`F80::abs`]).

mod bcd;
mod exponential;
mod remainder;
mod tables;
mod trigonometric;
mod wide;

pub use bcd::{fbld, fbstp};
pub use exponential::{f2xm1, fyl2x, fyl2xp1};
#[cfg(test)]
pub use remainder::Remainder;
pub use remainder::{fprem, fprem1};
pub use trigonometric::{fcos, fpatan, fptan, fsin, fsincos};

use super::convert;
use super::env::{Env, Flags, Rounding};
use super::format::{Class, F80, Format, Unpacked, invalid, propagate, propagate_one};
use super::round::Exact;

/// FXAM's condition codes for a register that is not empty: C3, C2 and C0 at their places in the status word. C1 is the
/// sign, [`F80::is_negative`].
pub fn fxam(a: F80) -> u16 {
    const C0: u16 = 1 << 8;
    const C2: u16 = 1 << 10;
    const C3: u16 = 1 << 14;
    match F80::unpack(a).class {
        Class::Unsupported => 0,
        Class::QuietNan | Class::SignalingNan => C0,
        Class::Normal => C2,
        Class::Infinity => C2 | C0,
        Class::Zero => C3,
        Class::Denormal => C3 | C2,
    }
}

/// The irrational constants that x87 loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constant {
    /// FLDPI.
    Pi,
    /// FLDL2T: log2(10).
    Log2Of10,
    /// FLDL2E: log2(e).
    Log2OfE,
    /// FLDLG2: log10(2).
    Log10Of2,
    /// FLDLN2: ln(2).
    LnOf2,
}

/// Loads a constant by the rounding control (not the precision control). No flags.
pub fn constant(which: Constant, rounding: Rounding) -> F80 {
    // The exponent, and 128 bits truncated.
    let (exponent, high, low) = match which {
        Constant::Pi => (1, 0xc90f_daa2_2168_c234, 0xc4c6_628b_80dc_1cd1),
        Constant::Log2Of10 => (1, 0xd49a_784b_cd1b_8afe, 0x492b_f6ff_4daf_db4c),
        Constant::Log2OfE => (0, 0xb8aa_3b29_5c17_f0bb, 0xbe87_fed0_691d_3e88),
        Constant::Log10Of2 => (-2, 0x9a20_9a84_fbcf_f798, 0x8f89_59ac_0b7c_9178),
        Constant::LnOf2 => (-1, 0xb172_17f7_d1cf_79ab, 0xc9e3_b398_03f2_f6af),
    };
    let mut env = Env { rounding, ..Env::DEFAULT };
    Exact { negative: false, exponent, high, low }.round_full::<F80>(&mut env)
}

/// The response to two operands of which one is a NaN, or `None` if neither is.
fn nan_response(a: &Unpacked, b: &Unpacked, env: &mut Env) -> Option<F80> {
    (a.is_nan() || b.is_nan()).then(|| propagate::<F80>(a, b, env))
}

/// FSCALE: `a * 2^trunc(b)`, with `a` in ST(0) and `b` in ST(1).
pub fn fscale(a: F80, b: F80, env: &mut Env) -> F80 {
    let (a, b) = (F80::unpack(a), F80::unpack(b));
    if let Some(nan) = nan_response(&a, &b, env) {
        return nan;
    }
    if b.class == Class::Infinity {
        let meaningless = if b.negative { Class::Infinity } else { Class::Zero };
        if a.class == meaningless {
            return invalid::<F80>(env);
        }
        if a.class == Class::Denormal {
            env.raise(Flags::DE);
        }
        return if b.negative { F80::zero(a.negative) } else { F80::infinity(a.negative) };
    }
    if a.class == Class::Denormal || b.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    match a.class {
        Class::Zero => return F80::zero(a.negative),
        Class::Infinity => return F80::infinity(a.negative),
        _ => {}
    }
    // From 2^17 on every finite number overflows or vanishes, even with a biased exponent.
    let magnitude = match (b.class, b.exponent) {
        (Class::Zero, _) | (_, ..0) => 0,
        (_, 0..17) => (b.significand >> (63 - b.exponent)) as i32,
        _ => 1 << 17,
    };
    let scale = if b.negative { -magnitude } else { magnitude };
    Exact { negative: a.negative, exponent: a.exponent + scale, high: a.significand, low: 0 }.round_full::<F80>(env)
}

/// FXTRACT's two results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extracted {
    /// The unbiased exponent, which replaces ST(0).
    pub exponent: F80,
    /// The significand with an exponent of zero, which is pushed.
    pub significand: F80,
}

/// FXTRACT: separates exponent and significand.
pub fn fxtract(a: F80, env: &mut Env) -> Extracted {
    let value = F80::unpack(a);
    match value.class {
        Class::Normal | Class::Denormal => {}
        Class::Zero => {
            env.raise(Flags::ZE);
            return Extracted { exponent: F80::infinity(true), significand: a };
        }
        Class::Infinity => return Extracted { exponent: F80::infinity(false), significand: a },
        Class::QuietNan | Class::SignalingNan | Class::Unsupported => {
            let nan = propagate_one::<F80>(&value, env);
            return Extracted { exponent: nan, significand: nan };
        }
    }
    if value.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    // Both are exact, so this sets no flag.
    let exponent = convert::from_i64::<F80>(i64::from(value.exponent), env);
    Extracted { exponent, significand: F80::pack(value.negative, F80::BIAS, value.significand) }
}
