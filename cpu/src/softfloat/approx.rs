//! RCPPS and RSQRTPS.
//!
//! Models Intel SDM vol. 1, 10.4.1.1 and the instructions in vol. 2, which only bound the relative error by
//! 1.5 * 2^-12. The results here are those of AMD's Zen 4: two table look-ups and a subtraction (`approx_tables`).
//! They depend neither on MXCSR nor on the host, and no exception is signaled: denormal operands count as zeros,
//! denormal results become zeros.

use super::approx_tables::{RECIPROCAL_BASE, RECIPROCAL_OFFSET, ROOT_BASE, ROOT_OFFSET};
use super::format::{Class, F32, Format, Unpacked};

/// The bits of the fraction that choose the table entries.
struct Index {
    high: usize,
    middle: usize,
    low: usize,
}

impl Index {
    fn of(a: u32) -> Self {
        let nibble = |shift: u32| (a >> shift & 15) as usize;
        Self { high: nibble(19), middle: nibble(15), low: nibble(11) }
    }
}

/// A table value, in units of 2^-13 and from 1/2 to 1, scaled by `2^exponent`; zero if that is below the normal range.
fn scaled(negative: bool, value: u16, exponent: i32) -> u32 {
    let shift = value.leading_zeros();
    let biased = exponent + F32::BIAS - 1 - (shift as i32 - 3);
    if biased < 1 {
        return F32::zero(negative);
    }
    F32::pack(negative, biased, u64::from(value) << (48 + shift))
}

/// What NaNs, zeros, denormals and plus infinity give, or `None` for the other operands.
fn special(value: &Unpacked) -> Option<u32> {
    match value.class {
        Class::Normal => None,
        Class::Zero | Class::Denormal => Some(F32::infinity(value.negative)),
        Class::Infinity => Some(F32::zero(value.negative)),
        _ => Some(F32::pack(value.negative, F32::MAX_BIASED, value.significand | (1 << 62))),
    }
}

/// RCPSS: about `1 / a`.
pub fn reciprocal(a: u32) -> u32 {
    let value = F32::unpack(a);
    if let Some(result) = special(&value) {
        return result;
    }
    let Index { high, middle, low } = Index::of(a);
    let entry = RECIPROCAL_BASE[high][middle] - u16::from(RECIPROCAL_OFFSET[high][low]);
    scaled(value.negative, entry, -value.exponent)
}

/// RSQRTSS: about `1 / sqrt(a)`; the indefinite QNaN for negative operands other than zeros and denormals.
pub fn reciprocal_sqrt(a: u32) -> u32 {
    let value = F32::unpack(a);
    if value.negative && matches!(value.class, Class::Normal | Class::Infinity) {
        return F32::indefinite();
    }
    if let Some(result) = special(&value) {
        return result;
    }
    let Index { high, middle, low } = Index::of(a);
    let row = high | ((value.exponent & 1) as usize) << 4;
    let entry = ROOT_BASE[row][middle] - u16::from(ROOT_OFFSET[row][low]);
    scaled(false, entry, -(value.exponent >> 1))
}
