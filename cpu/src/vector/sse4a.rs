//! The bit-field moves of SSE4A (AMD APM volume 4, EXTRQ, INSERTQ).
//!
//! A length of 0 means 64. A field that would reach beyond bit 63 is undefined by the manual; here it ends at bit
//! 63. The upper half of the result is undefined too; here, as on Zen 4, it is 0.

use super::V128;

/// The field of an EXTRQ or INSERTQ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    length: u32,
    index: u32,
}

impl Field {
    /// The field of the immediate forms: `length` first, then `index`. Of both only 6 bits count.
    #[inline]
    pub const fn from_imm(length: u8, index: u8) -> Field {
        Field { length: (length & 0x3f) as u32, index: (index & 0x3f) as u32 }
    }

    /// The field of the register form of EXTRQ, in the low quadword of its second operand.
    #[inline]
    pub fn of_extrq(b: V128) -> Field {
        Field::from_imm(b.low() as u8, (b.low() >> 8) as u8)
    }

    /// The field of the register form of INSERTQ, in the high quadword of its second operand.
    #[inline]
    pub fn of_insertq(b: V128) -> Field {
        Field::from_imm(b.high() as u8, (b.high() >> 8) as u8)
    }

    /// As many ones as the field is long.
    const fn ones(self) -> u64 {
        if self.length == 0 { u64::MAX } else { u64::MAX >> (64 - self.length) }
    }
}

/// EXTRQ: the field of the low quadword of `a`, moved down to bit 0 and zero-extended.
#[inline]
pub fn extrq(a: V128, field: Field) -> V128 {
    V128::from_low(a.low() >> field.index & field.ones())
}

/// INSERTQ: the low quadword of `a` with the field replaced by the low bits of `b`.
#[inline]
pub fn insertq(a: V128, b: V128, field: Field) -> V128 {
    let place = field.ones() << field.index;
    V128::from_low(a.low() & !place | b.low() << field.index & place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::Lane;

    const A: V128 = V128::from_u128(0x0123_4567_89ab_cdef << 64 | 0xfedc_ba98_7654_3210);

    #[test]
    fn fields_are_extracted() {
        assert_eq!(extrq(A, Field::from_imm(12, 8)).low(), 0x432);
        assert_eq!(extrq(A, Field::from_imm(64, 0)).low(), A.low());
        assert_eq!(extrq(A, Field::of_extrq(V128::from_low(0x3c08))).low(), 0xf);
        assert_eq!(extrq(A, Field::from_imm(12, 8)).high(), 0);
    }

    #[test]
    fn fields_are_inserted() {
        assert_eq!(insertq(A, V128::ONES, Field::from_imm(12, 8)).low(), 0xfedc_ba98_765f_ff10);
        assert_eq!(insertq(A, V128::ZERO, Field::from_imm(0, 0)).low(), 0);
        let control = <u64 as Lane>::join([0xa, 0x3c04]);
        assert_eq!(insertq(A, control, Field::of_insertq(control)).low(), 0xaedc_ba98_7654_3210);
    }
}
