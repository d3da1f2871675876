//! PCLMULQDQ (Intel SDM volume 2, PCLMULQDQ).

use super::V128;

/// PCLMULQDQ: the carry-less product of the quadword of `a` that `imm[0]` selects and that of `b` by `imm[4]`.
#[inline]
pub fn pclmulqdq(a: V128, b: V128, imm: u8) -> V128 {
    let x = if imm & 0x01 == 0 { a.low() } else { a.high() };
    let y = if imm & 0x10 == 0 { b.low() } else { b.high() };
    V128::from_u128(multiply(x, y))
}

/// The product of polynomials over GF(2), four bits of `y` at a time.
fn multiply(x: u64, y: u64) -> u128 {
    let x = u128::from(x);
    let mut multiples = [0; 16];
    multiples[1] = x;
    for i in 1..8 {
        multiples[2 * i] = multiples[i] << 1;
        multiples[2 * i + 1] = multiples[2 * i] ^ x;
    }
    (0..16).rev().fold(0, |product, digit| product << 4 ^ multiples[(y >> (4 * digit) & 15) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Lane;

    #[test]
    fn the_products_of_published_halves() {
        let a = V128::from_u128(0x7b5b_5465_7374_5665_6374_6f72_5d53_475d);
        let b = V128::from_u128(0x4869_2853_6861_7929_5b47_7565_726f_6e5d);
        assert_eq!(pclmulqdq(a, b, 0x00), V128::from_u128(0x1d4d_84c8_5c34_40c0_9296_33d5_d36f_0451));
        assert_eq!(pclmulqdq(a, b, 0x10), V128::from_u128(0x1bd1_7c8d_556a_b5a1_7fa5_40ac_2a28_1315));
        assert_eq!(pclmulqdq(a, b, 0x01), V128::from_u128(0x1a2b_f6db_3a30_862f_babf_262d_f4b7_d5c9));
        assert_eq!(pclmulqdq(a, b, 0xff), V128::from_u128(0x1d1e_1f2c_592e_7c45_d66e_e03e_410f_d4ed));
    }

    #[test]
    fn squares_spread_the_bits() {
        assert_eq!(pclmulqdq(V128::ONES, V128::ONES, 0), 0x5555_5555_5555_5555_u64.splat());
    }
}
