//! The four formats, and the one form in which all operations see their operands.
//!
//! Models Intel SDM vol. 1, 4.2.2 "Floating-Point Data Types", 4.8.3 "Real Number and Non-number Encodings" and 8.2.2
//! "Unsupported Double Extended-Precision Floating-Point Encodings and Pseudo-Denormals". [`Format`] is the door; its
//! implementors are [`F16`], [`F32`], [`F64`] (markers whose values are plain integers) and [`F80`] (its own value).
//!
//! Invariant: the significand of an [`Unpacked`] number has bit 63 set unless the number is zero, whatever the format
//! and also for denormals; the value is `significand * 2^(exponent - 63)`.

use super::env::{Env, Flags};

/// Half precision: 11 significand bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum F16 {}

/// Single precision: 24 significand bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum F32 {}

/// Double precision: 53 significand bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum F64 {}

/// An x87 double extended-precision value: 64 significand bits with an explicit integer bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct F80 {
    /// Sign in bit 15, biased exponent in bits 14:0.
    pub sign_exp: u16,
    /// Significand; bit 63 is the integer bit.
    pub significand: u64,
}

impl F80 {
    /// Plus zero.
    pub const ZERO: Self = Self::new(0, 0);
    /// Plus one.
    pub const ONE: Self = Self::new(0x3fff, 1 << 63);
    /// The QNaN floating-point indefinite, the masked response to an invalid operation.
    pub const INDEFINITE: Self = Self::new(0xffff, 3 << 62);

    /// A value from its two fields, as in memory.
    pub const fn new(sign_exp: u16, significand: u64) -> Self {
        Self { sign_exp, significand }
    }

    /// Whether the sign bit is set.
    #[inline]
    pub const fn is_negative(self) -> bool {
        self.sign_exp >> 15 != 0
    }

    /// FCHS: the sign inverted, whatever the value is.
    #[inline]
    pub const fn negate(self) -> Self {
        Self { sign_exp: self.sign_exp ^ 0x8000, ..self }
    }

    /// FABS: the sign cleared, whatever the value is.
    #[inline]
    pub const fn abs(self) -> Self {
        Self { sign_exp: self.sign_exp & 0x7fff, ..self }
    }

    /// The ten bytes in memory, low first.
    #[inline]
    pub const fn to_bytes(self) -> [u8; 10] {
        let [a, b, c, d, e, f, g, h] = self.significand.to_le_bytes();
        let [i, j] = self.sign_exp.to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j]
    }

    /// The value of ten bytes in memory, low first.
    #[inline]
    pub const fn from_bytes(bytes: [u8; 10]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j] = bytes;
        Self { sign_exp: u16::from_le_bytes([i, j]), significand: u64::from_le_bytes([a, b, c, d, e, f, g, h]) }
    }
}

/// The kinds of operand, ordered so that everything above [`Class::Denormal`] needs special treatment, everything from
/// [`Class::QuietNan`] on propagates, and everything from [`Class::SignalingNan`] on is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A normalized finite number.
    Normal,
    /// A denormal, or an x87 pseudo-denormal.
    Denormal,
    /// Zero of either sign.
    Zero,
    /// Infinity of either sign.
    Infinity,
    /// A quiet NaN.
    QuietNan,
    /// A signaling NaN.
    SignalingNan,
    /// An x87 encoding that the 387 and later refuse: unnormal, pseudo-NaN or pseudo-infinity.
    Unsupported,
}

/// An operand taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Sign bit.
    pub negative: bool,
    /// What kind of value this is.
    pub class: Class,
    /// Exponent of the significand's bit 63; meaningless unless finite and not zero.
    pub exponent: i32,
    /// Left-aligned significand. For NaNs the payload, with bit 63 set and the quiet bit at bit 62.
    pub significand: u64,
}

impl Unpacked {
    /// A zero.
    pub const fn zero(negative: bool) -> Self {
        Self { negative, class: Class::Zero, exponent: 0, significand: 0 }
    }

    /// An integer, exactly.
    pub const fn integer(negative: bool, magnitude: u64) -> Self {
        if magnitude == 0 {
            return Self::zero(negative);
        }
        let shift = magnitude.leading_zeros();
        Self { negative, class: Class::Normal, exponent: 63 - shift as i32, significand: magnitude << shift }
    }

    /// Whether this is a NaN or an encoding that is treated as one.
    #[inline]
    pub fn is_nan(&self) -> bool {
        self.class >= Class::QuietNan
    }

    /// The same number with the sign inverted; NaNs keep theirs.
    #[inline]
    pub fn negate(mut self) -> Self {
        self.negative ^= !self.is_nan();
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::F16 {}
    impl Sealed for super::F32 {}
    impl Sealed for super::F64 {}
    impl Sealed for super::F80 {}
}

/// A floating-point format.
pub trait Format: sealed::Sealed {
    /// How values are stored.
    type Bits: Copy + Eq + core::fmt::Debug;
    /// Significand bits, with the integer bit.
    const PRECISION: u32;
    /// Exponent bias, also the greatest exponent.
    const BIAS: i32;
    /// Whether x87 rules hold for results: NaN choice by significand, precision control, biased results for unmasked
    /// overflow and underflow, neither DAZ nor FTZ.
    const X87: bool;
    /// The biased exponent of infinities and NaNs.
    const MAX_BIASED: i32 = 2 * Self::BIAS + 1;

    /// Takes a value apart.
    fn unpack(bits: Self::Bits) -> Unpacked;

    /// Puts fields together. `significand` is left-aligned with the integer bit in bit 63; bits beyond the precision
    /// are dropped. `biased` is zero for zeros and denormals (integer bit clear).
    fn pack(negative: bool, biased: i32, significand: u64) -> Self::Bits;

    /// Infinity.
    #[inline]
    fn infinity(negative: bool) -> Self::Bits {
        Self::pack(negative, Self::MAX_BIASED, 1 << 63)
    }

    /// Zero.
    #[inline]
    fn zero(negative: bool) -> Self::Bits {
        Self::pack(negative, 0, 0)
    }

    /// The finite number of greatest magnitude with this many significand bits.
    #[inline]
    fn greatest(negative: bool, precision: u32) -> Self::Bits {
        Self::pack(negative, Self::MAX_BIASED - 1, !0 << (64 - precision))
    }

    /// The QNaN floating-point indefinite: negative, quiet bit only.
    #[inline]
    fn indefinite() -> Self::Bits {
        Self::pack(true, Self::MAX_BIASED, 3 << 62)
    }

    /// Takes an operand apart under the DAZ control of the environment.
    #[inline(always)]
    fn operand(bits: Self::Bits, env: &Env) -> Unpacked {
        let value = Self::unpack(bits);
        if !Self::X87 && value.class == Class::Denormal && env.denormals.operands_are_zero {
            return Unpacked::zero(value.negative);
        }
        value
    }
}

/// Unpacks an IEEE interchange encoding of `width` bits held in the low bits of `bits`.
#[inline(always)]
fn unpack_ieee(bits: u64, width: u32, precision: u32, bias: i32) -> Unpacked {
    let negative = (bits >> (width - 1)) & 1 != 0;
    let max_biased = 2 * bias + 1;
    let biased = ((bits >> (precision - 1)) as i32) & max_biased;
    let fraction = bits << (65 - precision) >> 1;
    if biased != 0 && biased != max_biased {
        return Unpacked { negative, class: Class::Normal, exponent: biased - bias, significand: fraction | (1 << 63) };
    }
    unpack_extreme(negative, biased != 0, fraction, 1 - bias)
}

/// The encodings with an exponent field of all zeros or all ones, given the fraction below the integer bit.
#[cold]
fn unpack_extreme(negative: bool, ones: bool, fraction: u64, least_exponent: i32) -> Unpacked {
    if ones {
        let class = match (fraction, fraction >> 62) {
            (0, _) => Class::Infinity,
            (_, 0) => Class::SignalingNan,
            _ => Class::QuietNan,
        };
        return Unpacked { negative, class, exponent: 0, significand: fraction | (1 << 63) };
    }
    if fraction == 0 {
        return Unpacked::zero(negative);
    }
    let shift = fraction.leading_zeros();
    Unpacked {
        negative,
        class: Class::Denormal,
        exponent: least_exponent - shift as i32,
        significand: fraction << shift,
    }
}

/// Packs an IEEE interchange encoding of `width` bits into the low bits of the result.
#[inline(always)]
fn pack_ieee(negative: bool, biased: i32, significand: u64, width: u32, precision: u32) -> u64 {
    (u64::from(negative) << (width - 1)) | ((biased as u64) << (precision - 1)) | (significand << 1 >> (65 - precision))
}

macro_rules! ieee_format {
    ($name:ident, $bits:ty, $precision:expr, $bias:expr) => {
        impl Format for $name {
            type Bits = $bits;
            const PRECISION: u32 = $precision;
            const BIAS: i32 = $bias;
            const X87: bool = false;

            #[inline(always)]
            fn unpack(bits: $bits) -> Unpacked {
                unpack_ieee(u64::from(bits), <$bits>::BITS, Self::PRECISION, Self::BIAS)
            }

            #[inline(always)]
            fn pack(negative: bool, biased: i32, significand: u64) -> $bits {
                pack_ieee(negative, biased, significand, <$bits>::BITS, Self::PRECISION) as $bits
            }
        }
    };
}

ieee_format!(F16, u16, 11, 15);
ieee_format!(F32, u32, 24, 127);
ieee_format!(F64, u64, 53, 1023);

impl Format for F80 {
    type Bits = Self;
    const PRECISION: u32 = 64;
    const BIAS: i32 = 16383;
    const X87: bool = true;

    #[inline(always)]
    fn unpack(bits: Self) -> Unpacked {
        let biased = i32::from(bits.sign_exp & 0x7fff);
        let normalized = bits.significand >> 63 != 0;
        if normalized && biased != 0 && biased != Self::MAX_BIASED {
            return Unpacked {
                negative: bits.is_negative(),
                class: Class::Normal,
                exponent: biased - Self::BIAS,
                significand: bits.significand,
            };
        }
        unpack_extended_extreme(bits)
    }

    #[inline(always)]
    fn pack(negative: bool, biased: i32, significand: u64) -> Self {
        Self { sign_exp: (u16::from(negative) << 15) | biased as u16, significand }
    }
}

/// The 80-bit encodings that are not normal numbers.
#[cold]
fn unpack_extended_extreme(bits: F80) -> Unpacked {
    let negative = bits.is_negative();
    let biased = bits.sign_exp & 0x7fff;
    if biased == 0 {
        // With the integer bit set this is a pseudo-denormal: the same exponent, no shift.
        return unpack_extreme_denormal(negative, bits.significand);
    }
    if bits.significand >> 63 == 0 {
        return Unpacked { negative, class: Class::Unsupported, exponent: 0, significand: bits.significand };
    }
    unpack_extreme(negative, true, bits.significand << 1 >> 1, 0)
}

/// An 80-bit value with an exponent field of zero.
fn unpack_extreme_denormal(negative: bool, significand: u64) -> Unpacked {
    if significand == 0 {
        return Unpacked::zero(negative);
    }
    let shift = significand.leading_zeros();
    Unpacked {
        negative,
        class: Class::Denormal,
        exponent: 1 - F80::BIAS - shift as i32,
        significand: significand << shift,
    }
}

/// The masked response to an invalid operation: IE and the indefinite QNaN.
#[cold]
pub(super) fn invalid<R: Format>(env: &mut Env) -> R::Bits {
    env.raise(Flags::IE);
    R::indefinite()
}

/// A NaN as a result, quieted; the payload loses its low bits in a narrower format.
fn quiet<R: Format>(nan: &Unpacked) -> R::Bits {
    R::pack(nan.negative, R::MAX_BIASED, nan.significand | (1 << 62))
}

/// The result of an operation of one NaN operand (SDM vol. 1, table 4-7).
#[cold]
pub(super) fn propagate_one<R: Format>(a: &Unpacked, env: &mut Env) -> R::Bits {
    if a.class >= Class::SignalingNan {
        env.raise(Flags::IE);
    }
    if a.class == Class::Unsupported { R::indefinite() } else { quiet::<R>(a) }
}

/// The result of an operation with at least one NaN among two operands: SSE takes the first NaN, x87 a quiet one
/// before a signaling one and else the greater significand (SDM vol. 1, table 4-7).
#[cold]
pub(super) fn propagate<R: Format>(a: &Unpacked, b: &Unpacked, env: &mut Env) -> R::Bits {
    let worst = a.class.max(b.class);
    if worst >= Class::SignalingNan {
        env.raise(Flags::IE);
    }
    if worst == Class::Unsupported {
        return R::indefinite();
    }
    let both = a.is_nan() && b.is_nan();
    if !(R::X87 && both) {
        return quiet::<R>(if a.is_nan() { a } else { b });
    }
    if a.class != b.class {
        return quiet::<R>(if a.class == Class::QuietNan { a } else { b });
    }
    let (a_payload, b_payload) = (a.significand | (1 << 62), b.significand | (1 << 62));
    let first = a_payload > b_payload || (a_payload == b_payload && !a.negative);
    quiet::<R>(if first { a } else { b })
}
