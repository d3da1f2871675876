//! Masks made of sign bits, and the elements that a masked move touches (Intel SDM volume 2, PMOVMSKB, MOVMSKPS,
//! MOVMSKPD, MASKMOVQ, MASKMOVDQU, VMASKMOV, VPMASKMOV).
//!
//! A masked move accesses only the elements of its [`ElementMask`], and faults only for those. A masked load
//! writes 0 to the others.

use super::{Lane, V128, V256};

/// PMOVMSKB: the sign bits of the bytes, that of byte 0 lowest. An MMX operand, zero-extended, yields 8 bits.
#[inline]
pub fn pmovmskb(a: V128) -> u16 {
    // The product moves bit 8i of the operand to bit 56 + i; no two terms meet in one bit.
    let gather = |half: u64| (half >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    (gather(a.low()) | gather(a.high()) << 8) as u16
}

/// MOVMSKPS: the sign bits of the doublewords.
#[inline]
pub fn movmskps(a: V128) -> u8 {
    let signs = |half: u64| half >> 31 & 1 | half >> 62 & 2;
    (signs(a.low()) | signs(a.high()) << 2) as u8
}

/// MOVMSKPD: the sign bits of the quadwords.
#[inline]
pub fn movmskpd(a: V128) -> u8 {
    (a.low() >> 63 | a.high() >> 62 & 2) as u8
}

/// VPMOVMSKB of a YMM register.
#[inline]
pub fn vpmovmskb(a: V256) -> u32 {
    u32::from(pmovmskb(a[0])) | u32::from(pmovmskb(a[1])) << 16
}

/// VMOVMSKPS of a YMM register.
#[inline]
pub fn vmovmskps(a: V256) -> u8 {
    movmskps(a[0]) | movmskps(a[1]) << 4
}

/// VMOVMSKPD of a YMM register.
#[inline]
pub fn vmovmskpd(a: V256) -> u8 {
    movmskpd(a[0]) | movmskpd(a[1]) << 2
}

/// The elements that a masked move touches, as a set of their numbers; iterates from the lowest.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ElementMask(u32);

impl ElementMask {
    /// MASKMOVDQU: the bytes with their sign set in `mask`; MASKMOVQ gives its mask zero-extended.
    #[inline]
    pub fn of_bytes(mask: V128) -> ElementMask {
        ElementMask(pmovmskb(mask).into())
    }

    /// VMASKMOVPS, VPMASKMOVD: the doublewords with their sign set. For the 128-bit form the upper lane is ZERO.
    #[inline]
    pub fn of_dwords(mask: V256) -> ElementMask {
        ElementMask(vmovmskps(mask).into())
    }

    /// VMASKMOVPD, VPMASKMOVQ: the quadwords with their sign set. For the 128-bit form the upper lane is ZERO.
    #[inline]
    pub fn of_qwords(mask: V256) -> ElementMask {
        ElementMask(vmovmskpd(mask).into())
    }

    /// Element `element` is touched.
    #[inline]
    pub const fn contains(self, element: usize) -> bool {
        element < 32 && self.0 >> element & 1 != 0
    }
}

impl Iterator for ElementMask {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let element = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (element < 32).then_some(element)
    }
}

/// Doubleword `element` (0 to 7, higher numbers wrap) of a YMM register.
#[inline]
pub fn dword(a: V256, element: usize) -> u32 {
    <u32 as Lane>::split(a[element >> 2 & 1])[element & 3]
}

/// Quadword `element` (0 to 3, higher numbers wrap) of a YMM register.
#[inline]
pub fn qword(a: V256, element: usize) -> u64 {
    <u64 as Lane>::split(a[element >> 1 & 1])[element & 1]
}

/// Replaces doubleword `element` (0 to 7, higher numbers wrap) of a YMM register.
#[inline]
pub fn set_dword(a: &mut V256, element: usize, value: u32) {
    let lane = &mut a[element >> 2 & 1];
    let mut dwords = <u32 as Lane>::split(*lane);
    dwords[element & 3] = value;
    *lane = <u32 as Lane>::join(dwords);
}

/// Replaces quadword `element` (0 to 3, higher numbers wrap) of a YMM register.
#[inline]
pub fn set_qword(a: &mut V256, element: usize, value: u64) {
    let lane = &mut a[element >> 1 & 1];
    let mut qwords = <u64 as Lane>::split(*lane);
    qwords[element & 1] = value;
    *lane = <u64 as Lane>::join(qwords);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNS: V128 = V128::from_u128(0x8000_0000_7fff_ffff_ff00_0080_8000_0001);

    #[test]
    fn sign_masks() {
        assert_eq!(pmovmskb(SIGNS), 0b1000_0111_1001_1000);
        assert_eq!(pmovmskb(V128::ONES), 0xffff);
        assert_eq!(pmovmskb(V128::from_low(u64::MAX)), 0xff);
        assert_eq!(movmskps(SIGNS), 0b1011);
        assert_eq!(movmskpd(SIGNS), 0b11);
        let wide = [SIGNS, V128::from_low(1 << 63)];
        assert_eq!(vpmovmskb(wide), 0x0080_0000 | u32::from(pmovmskb(SIGNS)));
        assert_eq!(vmovmskps(wide), 0b0010_1011);
        assert_eq!(vmovmskpd(wide), 0b0111);
    }

    #[test]
    fn each_byte_has_its_own_bit() {
        for i in 0..16 {
            assert_eq!(pmovmskb(V128::from_u128(0x80 << (8 * i))), 1 << i);
        }
    }

    #[test]
    fn element_masks_iterate_upwards() {
        let wide = [SIGNS, V128::from_low(1 << 63)];
        let mask = ElementMask::of_dwords(wide);
        assert_eq!(mask.collect::<Vec<_>>(), [0, 1, 3, 5]);
        assert!(mask.contains(5) && !mask.contains(2) && !mask.contains(40));
        assert_eq!(ElementMask::of_qwords(wide).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(ElementMask::of_bytes(SIGNS).next(), Some(3));
        assert_eq!(ElementMask::of_bytes(V128::ZERO).next(), None);
        assert_eq!(ElementMask::default().next(), None);
    }

    #[test]
    fn elements_of_a_ymm_register() {
        let mut wide = [V128::ZERO; 2];
        set_dword(&mut wide, 6, 7);
        set_qword(&mut wide, 1, 9);
        assert_eq!((dword(wide, 6), dword(wide, 2), qword(wide, 3), qword(wide, 1)), (7, 9, 7, 9));
    }
}
