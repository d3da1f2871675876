//! Bitwise logic (Intel SDM volume 2, PAND, PANDN, POR, PXOR, and ANDPS to XORPD, which do the same to the bits).
//!
//! Valid for MMX by truncation and for AVX2 lane by lane.

use super::V128;

/// PAND, ANDPS, ANDPD.
#[inline]
pub fn pand(a: V128, b: V128) -> V128 {
    a & b
}

/// PANDN, ANDNPS, ANDNPD: `b` where `a` is clear.
#[inline]
pub fn pandn(a: V128, b: V128) -> V128 {
    !a & b
}

/// POR, ORPS, ORPD.
#[inline]
pub fn por(a: V128, b: V128) -> V128 {
    a | b
}

/// PXOR, XORPS, XORPD.
#[inline]
pub fn pxor(a: V128, b: V128) -> V128 {
    a ^ b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truth_tables() {
        let (a, b) = (V128::from_u128(0b0011), V128::from_u128(0b0101));
        assert_eq!(pand(a, b), V128::from_u128(0b0001));
        assert_eq!(pandn(a, b), V128::from_u128(0b0100));
        assert_eq!(por(a, b), V128::from_u128(0b0111));
        assert_eq!(pxor(a, b), V128::from_u128(0b0110));
    }
}
