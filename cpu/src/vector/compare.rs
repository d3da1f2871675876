//! Comparisons that leave a mask in each lane, and tests that leave flags (Intel SDM volume 2, PCMPEQB to
//! PCMPGTQ, PTEST, VTESTPD/VTESTPS).
//!
//! The comparisons are valid for MMX by truncation and for AVX2 lane by lane.

use super::lanes::lanewise;
use super::{Lane, V128};
use core::ops::BitAnd;

lanewise! {
    /// PCMPEQB: all ones in each byte that is equal.
    pcmpeqb: u8 = |x, y| if x == y { !0 } else { 0 };
    /// PCMPEQW: all ones in each word that is equal.
    pcmpeqw: u16 = |x, y| if x == y { !0 } else { 0 };
    /// PCMPEQD: all ones in each doubleword that is equal.
    pcmpeqd: u32 = |x, y| if x == y { !0 } else { 0 };
    /// PCMPEQQ: all ones in each quadword that is equal.
    pcmpeqq: u64 = |x, y| if x == y { !0 } else { 0 };
    /// PCMPGTB: all ones in each byte of `a` that is greater, as signed.
    pcmpgtb: i8 = |x, y| if x > y { !0 } else { 0 };
    /// PCMPGTW: all ones in each word of `a` that is greater, as signed.
    pcmpgtw: i16 = |x, y| if x > y { !0 } else { 0 };
    /// PCMPGTD: all ones in each doubleword of `a` that is greater, as signed.
    pcmpgtd: i32 = |x, y| if x > y { !0 } else { 0 };
    /// PCMPGTQ: all ones in each quadword of `a` that is greater, as signed.
    pcmpgtq: i64 = |x, y| if x > y { !0 } else { 0 };
}

/// What PTEST and its kin write to RFLAGS; OF, SF, AF and PF they clear.
///
/// The flags of a 256-bit test are those of its two lanes combined with `&`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TestFlags {
    /// No bit is set in both operands.
    pub zf: bool,
    /// No bit is set in the second operand alone.
    pub cf: bool,
}

impl BitAnd for TestFlags {
    type Output = TestFlags;
    #[inline]
    fn bitand(self, other: TestFlags) -> TestFlags {
        TestFlags { zf: self.zf & other.zf, cf: self.cf & other.cf }
    }
}

/// PTEST: ZF of `a AND b`, CF of `NOT a AND b`.
#[inline]
pub fn ptest(a: V128, b: V128) -> TestFlags {
    let (x, y) = (<u64 as Lane>::split(a), <u64 as Lane>::split(b));
    TestFlags { zf: (x[0] & y[0]) | (x[1] & y[1]) == 0, cf: (!x[0] & y[0]) | (!x[1] & y[1]) == 0 }
}

/// VTESTPS: PTEST of the sign bits of doublewords.
#[inline]
pub fn vtestps(a: V128, b: V128) -> TestFlags {
    ptest(a, b & 0x8000_0000_u32.splat())
}

/// VTESTPD: PTEST of the sign bits of quadwords.
#[inline]
pub fn vtestpd(a: V128, b: V128) -> TestFlags {
    ptest(a, b & 0x8000_0000_0000_0000_u64.splat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_fill_the_lane() {
        let a = V128::from_u128(0x0000_0000_0000_0002_0000_0001_0002_0380);
        let b = V128::from_u128(0x0000_0000_0000_0001_0000_0001_0001_037f);
        let eq_word = 0xffff_ffff_ffff_0000_ffff_ffff_0000_0000;
        assert_eq!(pcmpeqb(a, b), V128::from_u128(0xffff_ffff_ffff_ff00_ffff_ffff_ff00_ff00));
        assert_eq!(pcmpeqw(a, b), V128::from_u128(eq_word));
        assert_eq!(pcmpeqd(a, b), V128::from_u128(0xffff_ffff_0000_0000_ffff_ffff_0000_0000));
        assert_eq!(pcmpeqq(a, b), V128::ZERO);
        assert_eq!(pcmpgtb(a, b), V128::from_u128(0x0000_0000_0000_00ff_0000_0000_00ff_0000));
        assert_eq!(pcmpgtw(a, b), V128::from_u128(!eq_word));
        assert_eq!(pcmpgtd(a, b), V128::from_u128(0x0000_0000_ffff_ffff_0000_0000_ffff_ffff));
        assert_eq!(pcmpgtq(a, b), V128::ONES);
        assert_eq!(pcmpgtq(V128::ONES, V128::ZERO), V128::ZERO);
    }

    #[test]
    fn tests_combine_over_lanes() {
        let one = V128::from_u128(1 << 127);
        assert_eq!(ptest(one, one), TestFlags { zf: false, cf: true });
        assert_eq!(ptest(V128::ZERO, one), TestFlags { zf: true, cf: false });
        assert_eq!(ptest(one, V128::ZERO), TestFlags { zf: true, cf: true });
        assert_eq!(ptest(one, one) & ptest(V128::ZERO, one), TestFlags { zf: false, cf: false });
    }

    #[test]
    fn vtest_sees_only_signs() {
        let low_sign = V128::from_low(0x8000_0000);
        assert_eq!(vtestps(low_sign, low_sign), TestFlags { zf: false, cf: true });
        assert_eq!(vtestpd(low_sign, low_sign), TestFlags { zf: true, cf: true });
        assert_eq!(vtestpd(V128::ZERO, V128::ONES), TestFlags { zf: true, cf: false });
    }
}
