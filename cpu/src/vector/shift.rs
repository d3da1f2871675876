//! Shifts of lanes by one count, of the whole value by bytes, and of lanes each by its own count (Intel SDM
//! volume 2, PSLLW to PSRLDQ, VPSLLVD to VPSRLVQ).
//!
//! A count from a register or memory is the low 64 bits of the operand ([`V128::low`]); MMX uses its whole
//! register. An immediate is a count of 0 to 255. AVX2 applies the same count to both lanes, also that of a
//! register. The shifts by one count are valid for MMX by truncation.

use super::{Lane, V128};

/// Defines shifts by one count: logical ones clear the lanes when the count exceeds the lane, arithmetic ones
/// fill them with the sign.
macro_rules! by_count {
    ($($(#[$doc:meta])* $name:ident: $t:ty, $shift:tt, $over:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128, count: u64) -> V128 {
            let over: Option<u32> = $over;
            let count = match over {
                None if count >= u64::from(<$t>::BITS) => return V128::ZERO,
                None => count as u32,
                Some(last) => count.min(u64::from(last)) as u32,
            };
            <$t as Lane>::map(a, |x| x $shift count)
        }
    )*};
}

by_count! {
    /// PSLLW: words to the left; 0 from count 16.
    psllw: u16, <<, None;
    /// PSLLD: doublewords to the left; 0 from count 32.
    pslld: u32, <<, None;
    /// PSLLQ: quadwords to the left; 0 from count 64.
    psllq: u64, <<, None;
    /// PSRLW: words to the right; 0 from count 16.
    psrlw: u16, >>, None;
    /// PSRLD: doublewords to the right; 0 from count 32.
    psrld: u32, >>, None;
    /// PSRLQ: quadwords to the right; 0 from count 64.
    psrlq: u64, >>, None;
    /// PSRAW: signed words to the right; the sign from count 15.
    psraw: i16, >>, Some(15);
    /// PSRAD: signed doublewords to the right; the sign from count 31.
    psrad: i32, >>, Some(31);
}

/// PSLLDQ: the whole value to the left by `bytes`; 0 from 16.
#[inline]
pub fn pslldq(a: V128, bytes: u8) -> V128 {
    V128::from_u128(a.to_u128().unbounded_shl(8 * u32::from(bytes)))
}

/// PSRLDQ: the whole value to the right by `bytes`; 0 from 16.
#[inline]
pub fn psrldq(a: V128, bytes: u8) -> V128 {
    V128::from_u128(a.to_u128().unbounded_shr(8 * u32::from(bytes)))
}

/// VPSLLVD: doublewords to the left, each by the doubleword of `counts`; 0 from count 32.
#[inline]
pub fn vpsllvd(a: V128, counts: V128) -> V128 {
    <u32 as Lane>::zip(a, counts, |x, count| if count < 32 { x << (count & 31) } else { 0 })
}

/// VPSLLVQ: quadwords to the left, each by the quadword of `counts`; 0 from count 64.
#[inline]
pub fn vpsllvq(a: V128, counts: V128) -> V128 {
    <u64 as Lane>::zip(a, counts, |x, count| if count < 64 { x << (count & 63) } else { 0 })
}

/// VPSRLVD: doublewords to the right, each by the doubleword of `counts`; 0 from count 32.
#[inline]
pub fn vpsrlvd(a: V128, counts: V128) -> V128 {
    <u32 as Lane>::zip(a, counts, |x, count| if count < 32 { x >> (count & 31) } else { 0 })
}

/// VPSRLVQ: quadwords to the right, each by the quadword of `counts`; 0 from count 64.
#[inline]
pub fn vpsrlvq(a: V128, counts: V128) -> V128 {
    <u64 as Lane>::zip(a, counts, |x, count| if count < 64 { x >> (count & 63) } else { 0 })
}

/// VPSRAVD: signed doublewords to the right, each by the doubleword of `counts`; the sign from count 31.
#[inline]
pub fn vpsravd(a: V128, counts: V128) -> V128 {
    <u32 as Lane>::zip(a, counts, |x, count| (x as i32 >> count.min(31)) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::per_mmx;

    #[test]
    fn logical_shifts_end_in_zero() {
        assert_eq!(psllw(V128::ONES, 15), 0x8000_u16.splat());
        assert_eq!(psllw(V128::ONES, 16), V128::ZERO);
        assert_eq!(pslld(V128::ONES, 31), 0x8000_0000_u32.splat());
        assert_eq!(pslld(V128::ONES, 32), V128::ZERO);
        assert_eq!(psllq(V128::ONES, 63), (1_u64 << 63).splat());
        assert_eq!(psllq(V128::ONES, 64), V128::ZERO);
        assert_eq!(psrlw(V128::ONES, 15), 1_u16.splat());
        assert_eq!(psrlw(V128::ONES, 1 << 32), V128::ZERO);
        assert_eq!(psrld(V128::ONES, 31), 1_u32.splat());
        assert_eq!(psrld(V128::ONES, 32), V128::ZERO);
        assert_eq!(psrlq(V128::ONES, 63), 1_u64.splat());
        assert_eq!(psrlq(V128::ONES, u64::MAX), V128::ZERO);
    }

    #[test]
    fn arithmetic_shifts_end_in_the_sign() {
        assert_eq!(psraw(0x8000_u16.splat(), 3), 0xf000_u16.splat());
        assert_eq!(psraw(0x8000_u16.splat(), u64::MAX), V128::ONES);
        assert_eq!(psrad(0x8000_0000_u32.splat(), 1 << 32), V128::ONES);
        assert_eq!(psrad(0x4000_0000_u32.splat(), 40), V128::ZERO);
    }

    #[test]
    fn mmx_counts_are_the_whole_register() {
        assert_eq!(per_mmx(u64::MAX, 1 << 40, |a, b| psllw(a, b.low())), 0);
        assert_eq!(per_mmx(u64::MAX, 8, |a, b| psrlq(a, b.low())), u64::MAX >> 8);
    }

    #[test]
    fn byte_shifts() {
        let a = V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
        assert_eq!((pslldq(a, 0), psrldq(a, 0)), (a, a));
        assert_eq!(pslldq(a, 3), V128::from_u128(0x0c0b_0a09_0807_0605_0403_0201_0000_0000));
        assert_eq!(psrldq(a, 9), V128::from_u128(0x000f_0e0d_0c0b_0a09));
        assert_eq!((pslldq(a, 15), psrldq(a, 15)), (V128::ZERO, V128::from_low(0x0f)));
        assert_eq!((pslldq(a, 16), psrldq(a, 255)), (V128::ZERO, V128::ZERO));
    }

    #[test]
    fn each_lane_by_its_own_count() {
        let counts = <u32 as Lane>::join([0, 31, 32, u32::MAX]);
        assert_eq!(vpsllvd(V128::ONES, counts), <u32 as Lane>::join([u32::MAX, 1 << 31, 0, 0]));
        assert_eq!(vpsrlvd(V128::ONES, counts), <u32 as Lane>::join([u32::MAX, 1, 0, 0]));
        let negative = 0x8000_0000_u32.splat();
        let expected = <u32 as Lane>::join([0x8000_0000, u32::MAX, u32::MAX, u32::MAX]);
        assert_eq!(vpsravd(negative, counts), expected);
        let counts = <u64 as Lane>::join([63, 1 << 32]);
        assert_eq!(vpsllvq(V128::ONES, counts), <u64 as Lane>::join([1 << 63, 0]));
        assert_eq!(vpsrlvq(V128::ONES, counts), <u64 as Lane>::join([1, 0]));
    }
}
