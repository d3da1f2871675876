//! Lane-wise integer arithmetic: addition and subtraction (wrapping and saturating), multiplication, averages,
//! minimum and maximum, absolute value and sign (Intel SDM volume 2, PABSB to PSUBUSW).
//!
//! All of these are valid for MMX by truncation and for AVX2 lane by lane.

use super::lanes::lanewise;
use super::{Lane, V128};

lanewise! {
    /// PADDB: wrapping sum of bytes.
    paddb: u8 = |x, y| x.wrapping_add(y);
    /// PADDW: wrapping sum of words.
    paddw: u16 = |x, y| x.wrapping_add(y);
    /// PADDD: wrapping sum of doublewords.
    paddd: u32 = |x, y| x.wrapping_add(y);
    /// PADDQ: wrapping sum of quadwords.
    paddq: u64 = |x, y| x.wrapping_add(y);
    /// PSUBB: wrapping difference of bytes.
    psubb: u8 = |x, y| x.wrapping_sub(y);
    /// PSUBW: wrapping difference of words.
    psubw: u16 = |x, y| x.wrapping_sub(y);
    /// PSUBD: wrapping difference of doublewords.
    psubd: u32 = |x, y| x.wrapping_sub(y);
    /// PSUBQ: wrapping difference of quadwords.
    psubq: u64 = |x, y| x.wrapping_sub(y);
    /// PADDSB: sum of signed bytes, saturating.
    paddsb: i8 = |x, y| x.saturating_add(y);
    /// PADDSW: sum of signed words, saturating.
    paddsw: i16 = |x, y| x.saturating_add(y);
    /// PADDUSB: sum of unsigned bytes, saturating.
    paddusb: u8 = |x, y| x.saturating_add(y);
    /// PADDUSW: sum of unsigned words, saturating.
    paddusw: u16 = |x, y| x.saturating_add(y);
    /// PSUBSB: difference of signed bytes, saturating.
    psubsb: i8 = |x, y| x.saturating_sub(y);
    /// PSUBSW: difference of signed words, saturating.
    psubsw: i16 = |x, y| x.saturating_sub(y);
    /// PSUBUSB: difference of unsigned bytes, not below 0.
    psubusb: u8 = |x, y| x.saturating_sub(y);
    /// PSUBUSW: difference of unsigned words, not below 0.
    psubusw: u16 = |x, y| x.saturating_sub(y);

    /// PMULLW: low half of the products of words.
    pmullw: u16 = |x, y| x.wrapping_mul(y);
    /// PMULHW: high half of the products of signed words.
    pmulhw: i16 = |x, y| ((i32::from(x) * i32::from(y)) >> 16) as i16;
    /// PMULHUW: high half of the products of unsigned words.
    pmulhuw: u16 = |x, y| ((u32::from(x) * u32::from(y)) >> 16) as u16;
    /// PMULHRSW: products of signed words as fixed-point numbers of 15 fraction bits, rounded to nearest. The one
    /// overflow, -1 times -1, wraps to -1.
    pmulhrsw: i16 = |x, y| ((((i32::from(x) * i32::from(y)) >> 14) + 1) >> 1) as i16;
    /// PMULLD: low half of the products of doublewords.
    pmulld: u32 = |x, y| x.wrapping_mul(y);
    /// PMULUDQ: full products of the unsigned doublewords in the even lanes.
    pmuludq: u64 = |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff);
    /// PMULDQ: full products of the signed doublewords in the even lanes.
    pmuldq: i64 = |x, y| i64::from(x as i32) * i64::from(y as i32);

    /// PAVGB: averages of unsigned bytes, halves rounded up.
    pavgb: u8 = |x, y| (u16::from(x) + u16::from(y)).div_ceil(2) as u8;
    /// PAVGW: averages of unsigned words, halves rounded up.
    pavgw: u16 = |x, y| (u32::from(x) + u32::from(y)).div_ceil(2) as u16;

    /// PMINSB: the smaller of signed bytes.
    pminsb: i8 = |x, y| x.min(y);
    /// PMINSW: the smaller of signed words.
    pminsw: i16 = |x, y| x.min(y);
    /// PMINSD: the smaller of signed doublewords.
    pminsd: i32 = |x, y| x.min(y);
    /// PMINUB: the smaller of unsigned bytes.
    pminub: u8 = |x, y| x.min(y);
    /// PMINUW: the smaller of unsigned words.
    pminuw: u16 = |x, y| x.min(y);
    /// PMINUD: the smaller of unsigned doublewords.
    pminud: u32 = |x, y| x.min(y);
    /// PMAXSB: the larger of signed bytes.
    pmaxsb: i8 = |x, y| x.max(y);
    /// PMAXSW: the larger of signed words.
    pmaxsw: i16 = |x, y| x.max(y);
    /// PMAXSD: the larger of signed doublewords.
    pmaxsd: i32 = |x, y| x.max(y);
    /// PMAXUB: the larger of unsigned bytes.
    pmaxub: u8 = |x, y| x.max(y);
    /// PMAXUW: the larger of unsigned words.
    pmaxuw: u16 = |x, y| x.max(y);
    /// PMAXUD: the larger of unsigned doublewords.
    pmaxud: u32 = |x, y| x.max(y);

    /// PSIGNB: bytes of `a` negated, kept or cleared by the sign of those of `b`.
    psignb: i8 = |x, y| if y < 0 { x.wrapping_neg() } else if y == 0 { 0 } else { x };
    /// PSIGNW: words of `a` negated, kept or cleared by the sign of those of `b`.
    psignw: i16 = |x, y| if y < 0 { x.wrapping_neg() } else if y == 0 { 0 } else { x };
    /// PSIGND: doublewords of `a` negated, kept or cleared by the sign of those of `b`.
    psignd: i32 = |x, y| if y < 0 { x.wrapping_neg() } else if y == 0 { 0 } else { x };
}

lanewise! {
    /// PABSB: absolute value of bytes; the most negative one stays as it is.
    pabsb: i8 = |x| x.wrapping_abs();
    /// PABSW: absolute value of words; the most negative one stays as it is.
    pabsw: i16 = |x| x.wrapping_abs();
    /// PABSD: absolute value of doublewords; the most negative one stays as it is.
    pabsd: i32 = |x| x.wrapping_abs();
}

/// PMADDWD: products of signed words, summed in pairs to doublewords. The one overflow, all four words -32768,
/// wraps.
#[inline]
pub fn pmaddwd(a: V128, b: V128) -> V128 {
    <i32 as Lane>::zip(a, b, |x, y| {
        let low = i32::from(x as i16) * i32::from(y as i16);
        let high = (x >> 16) * (y >> 16);
        low.wrapping_add(high)
    })
}

/// PMADDUBSW: unsigned bytes of `a` times signed bytes of `b`, summed in pairs to signed words, saturating.
#[inline]
pub fn pmaddubsw(a: V128, b: V128) -> V128 {
    <i16 as Lane>::zip(a, b, |x, y| {
        let low = (x & 0xff) * i16::from(y as i8);
        let high = ((x as u16) >> 8) as i16 * (y >> 8);
        low.saturating_add(high)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::{per_lane, per_mmx};

    fn bytes(f: impl Fn(u8) -> u8) -> V128 {
        <u8 as Lane>::build(|i| f(i as u8))
    }

    #[test]
    fn additions_wrap_or_saturate() {
        let (a, b) = (0x7f_u8.splat(), 0x02_u8.splat());
        assert_eq!(paddb(a, b), 0x81_u8.splat());
        assert_eq!(paddsb(a, b), 0x7f_u8.splat());
        assert_eq!(paddusb(0xff_u8.splat(), b), V128::ONES);
        assert_eq!(paddw(0xffff_u16.splat(), 2_u16.splat()), 1_u16.splat());
        assert_eq!(paddsw(i16::MIN.splat(), (-1_i16).splat()), i16::MIN.splat());
        assert_eq!(paddusw(0xfffe_u16.splat(), 3_u16.splat()), V128::ONES);
        assert_eq!(paddd(V128::ONES, 1_u32.splat()), V128::ZERO);
        assert_eq!(paddq(V128::ONES, 1_u64.splat()), V128::ZERO);
    }

    #[test]
    fn subtractions_wrap_or_saturate() {
        assert_eq!(psubb(V128::ZERO, 1_u8.splat()), V128::ONES);
        assert_eq!(psubw(V128::ZERO, 1_u16.splat()), V128::ONES);
        assert_eq!(psubd(V128::ZERO, 1_u32.splat()), V128::ONES);
        assert_eq!(psubq(V128::ZERO, 1_u64.splat()), V128::ONES);
        assert_eq!(psubusb(1_u8.splat(), 2_u8.splat()), V128::ZERO);
        assert_eq!(psubusw(1_u16.splat(), 2_u16.splat()), V128::ZERO);
        assert_eq!(psubsb(i8::MIN.splat(), 1_i8.splat()), i8::MIN.splat());
        assert_eq!(psubsw(i16::MAX.splat(), (-1_i16).splat()), i16::MAX.splat());
    }

    #[test]
    fn products() {
        let (a, b) = (0xfffe_u16.splat(), 3_u16.splat());
        assert_eq!(pmullw(a, b), 0xfffa_u16.splat());
        assert_eq!(pmulhw(a, b), V128::ONES);
        assert_eq!(pmulhuw(a, b), 2_u16.splat());
        assert_eq!(pmulhrsw(0x4000_i16.splat(), 0x4000_i16.splat()), 0x2000_i16.splat());
        assert_eq!(pmulhrsw(i16::MIN.splat(), i16::MIN.splat()), i16::MIN.splat());
        assert_eq!(pmulld(0x1_0001_u32.splat(), 0x1_0001_u32.splat()), 0x2_0001_u32.splat());
        assert_eq!(pmuludq(V128::ONES, V128::ONES), 0xffff_fffe_0000_0001_u64.splat());
        assert_eq!(pmuldq(V128::ONES, V128::ONES), 1_u64.splat());
    }

    #[test]
    fn multiply_and_add() {
        assert_eq!(pmaddwd(i16::MIN.splat(), i16::MIN.splat()), 0x8000_0000_u32.splat());
        assert_eq!(pmaddwd((-1_i16).splat(), 3_i16.splat()), (-6_i32).splat());
        assert_eq!(pmaddubsw(V128::ONES, 0x7f_u8.splat()), i16::MAX.splat());
        assert_eq!(pmaddubsw(V128::ONES, 0x80_u8.splat()), i16::MIN.splat());
        assert_eq!(pmaddubsw(2_u8.splat(), (-3_i8).splat()), (-12_i16).splat());
    }

    #[test]
    fn averages_round_up() {
        assert_eq!(pavgb(1_u8.splat(), 2_u8.splat()), 2_u8.splat());
        assert_eq!(pavgb(V128::ONES, V128::ONES), V128::ONES);
        assert_eq!(pavgw(V128::ONES, 0xfffe_u16.splat()), V128::ONES);
    }

    #[test]
    fn minimum_and_maximum_know_the_sign() {
        let (a, b) = (V128::ONES, 1_u8.splat());
        assert_eq!((pminsb(a, b), pmaxsb(a, b)), (a, b));
        assert_eq!((pminub(a, b), pmaxub(a, b)), (b, a));
        assert_eq!((pminsw(a, b), pmaxsw(a, b)), (a, b));
        assert_eq!((pminuw(a, b), pmaxuw(a, b)), (b, a));
        assert_eq!((pminsd(a, b), pmaxsd(a, b)), (a, b));
        assert_eq!((pminud(a, b), pmaxud(a, b)), (b, a));
    }

    #[test]
    fn absolute_value_and_sign() {
        assert_eq!(pabsb(i8::MIN.splat()), i8::MIN.splat());
        assert_eq!(pabsw((-5_i16).splat()), 5_i16.splat());
        assert_eq!(pabsd((-7_i32).splat()), 7_i32.splat());
        let a = bytes(|i| i);
        assert_eq!(psignb(a, V128::ZERO), V128::ZERO);
        assert_eq!(psignb(a, V128::ONES), bytes(|i| i.wrapping_neg()));
        assert_eq!(psignw(a, 1_i16.splat()), a);
        assert_eq!(psignd(i32::MIN.splat(), V128::ONES), i32::MIN.splat());
    }

    #[test]
    fn one_definition_serves_mmx_and_avx2() {
        assert_eq!(per_mmx(0x00ff, 0x0101, paddb), 0x0100);
        let (a, b) = ([V128::ONES, V128::ZERO], [1_u8.splat(), 2_u8.splat()]);
        assert_eq!(per_lane(a, b, paddb), [V128::ZERO, 2_u8.splat()]);
    }
}
