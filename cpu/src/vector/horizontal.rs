//! Sums, differences and minima across the lanes of one value (Intel SDM volume 2, PHADDW to PHSUBD, PSADBW,
//! MPSADBW, PHMINPOSUW).
//!
//! AVX2 applies each of them lane by lane. PSADBW is valid for MMX by truncation; the pairwise sums gather the
//! pairs of both operands into one result and so have MMX forms of their own.

use super::{Lane, V128};

/// Defines a pairwise instruction for both widths. The pairs of `a` give the low half of the result, those of `b`
/// the high half.
macro_rules! pairwise {
    ($($(#[$doc:meta])* $name:ident, $mmx:ident: $t:ty = |$x:ident, $y:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128, b: V128) -> V128 {
            const PAIRS: usize = 8 / size_of::<$t>();
            let (a, b) = (<$t as Lane>::split(a), <$t as Lane>::split(b));
            let mut result = a;
            for i in 0..PAIRS {
                let ($x, $y) = (a[2 * i], a[2 * i + 1]);
                result[i] = $body;
                let ($x, $y) = (b[2 * i], b[2 * i + 1]);
                result[PAIRS + i] = $body;
            }
            <$t as Lane>::join(result)
        }

        #[doc = concat!("The MMX form of [`", stringify!($name), "`].")]
        #[inline]
        pub fn $mmx(a: u64, b: u64) -> u64 {
            // The pairs of both registers, side by side, are the low half of the wide form.
            let both = <u64 as Lane>::join([a, b]);
            $name(both, both).low()
        }
    )*};
}

pairwise! {
    /// PHADDW: wrapping sums of adjacent words.
    phaddw, phaddw_mmx: i16 = |x, y| x.wrapping_add(y);
    /// PHADDD: wrapping sums of adjacent doublewords.
    phaddd, phaddd_mmx: i32 = |x, y| x.wrapping_add(y);
    /// PHADDSW: saturating sums of adjacent signed words.
    phaddsw, phaddsw_mmx: i16 = |x, y| x.saturating_add(y);
    /// PHSUBW: the lower word of each pair minus the upper, wrapping.
    phsubw, phsubw_mmx: i16 = |x, y| x.wrapping_sub(y);
    /// PHSUBD: the lower doubleword of each pair minus the upper, wrapping.
    phsubd, phsubd_mmx: i32 = |x, y| x.wrapping_sub(y);
    /// PHSUBSW: the lower signed word of each pair minus the upper, saturating.
    phsubsw, phsubsw_mmx: i16 = |x, y| x.saturating_sub(y);
}

/// PSADBW: in each quadword, the sum of the absolute differences of its unsigned bytes.
#[inline]
pub fn psadbw(a: V128, b: V128) -> V128 {
    let pairs = <u16 as Lane>::split(<u16 as Lane>::zip(a, b, |x, y| {
        (x & 0xff).abs_diff(y & 0xff) + (x >> 8).abs_diff(y >> 8)
    }));
    let sum = |from: usize| u64::from(pairs[from] + pairs[from + 1] + pairs[from + 2] + pairs[from + 3]);
    <u64 as Lane>::join([sum(0), sum(4)])
}

/// MPSADBW: word `i` is the sum of absolute differences of four bytes of `a` from `imm[2] * 4 + i` and the four
/// bytes of `b` from `imm[1:0] * 4`. VEX.256: the upper lane uses `imm >> 3`.
#[inline]
pub fn mpsadbw(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b) = (a.to_bytes(), b.to_bytes());
    let (from_a, from_b) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    <u16 as Lane>::build(|i| (0..4).map(|k| u16::from(a[from_a + i + k].abs_diff(b[from_b + k]))).sum())
}

/// PHMINPOSUW: the smallest unsigned word in word 0, the lowest index at which it stands in word 1, the rest clear.
#[inline]
pub fn phminposuw(a: V128) -> V128 {
    // The index below the value makes the smallest key also the first among equals.
    let keys = <u16 as Lane>::split(a).into_iter().zip(0_u32..).map(|(word, index)| u32::from(word) << 3 | index);
    let key = keys.min().unwrap_or(0);
    V128::from_low(u64::from(key >> 3 | (key & 7) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::per_mmx;

    const A: V128 = V128::from_u128(0x0008_0007_0006_0005_0004_0003_0002_0001);
    const B: V128 = V128::from_u128(0x8000_8000_7fff_0001_0000_0001_0005_fffe);

    #[test]
    fn pairs_of_a_are_below_those_of_b() {
        assert_eq!(phaddw(A, B), V128::from_u128(0x0000_8000_0001_0003_000f_000b_0007_0003));
        assert_eq!(phaddsw(A, B), V128::from_u128(0x8000_7fff_0001_0003_000f_000b_0007_0003));
        assert_eq!(phsubw(A, A), (-1_i16).splat());
        assert_eq!(phsubsw(B, A), V128::from_u128(0xffff_ffff_ffff_ffff_0000_8002_0001_fff9));
        assert_eq!(phaddd(A, B), V128::from_u128(0xffff_8001_0005_ffff_000e_000c_0006_0004));
        assert_eq!(phsubd(A, A), (-0x0002_0002_i32).splat());
    }

    #[test]
    fn mmx_pairs() {
        assert_eq!(phaddw_mmx(A.low(), B.low()), 0x0001_0003_0007_0003);
        assert_eq!(phaddd_mmx(A.low(), B.low()), 0x0005_ffff_0006_0004);
        assert_eq!(phsubw_mmx(A.low(), A.high()), u64::MAX);
        assert_eq!(phsubd_mmx(1, 2 << 32), 0xffff_fffe_0000_0001);
        assert_eq!(phaddsw_mmx(0x7fff_7fff, 0x8000_8000), 0x0000_8000_0000_7fff);
        assert_eq!(phsubsw_mmx(0x7fff_8000, 0), 0x8000);
    }

    #[test]
    fn sums_of_absolute_differences() {
        let (a, b) = (V128::from_u128(0xff << 64 | 3), V128::from_u128(5));
        assert_eq!(psadbw(a, b), V128::from_u128(0xff << 64 | 2));
        assert_eq!(psadbw(V128::ONES, V128::ZERO), 2040_u64.splat());
        assert_eq!(per_mmx(u64::MAX, 0, psadbw), 2040);
    }

    #[test]
    fn mpsadbw_slides_over_a() {
        let a = <u8 as Lane>::build(|i| i as u8);
        assert_eq!(mpsadbw(a, V128::ZERO, 0b000), <u16 as Lane>::build(|i| 4 * i as u16 + 6));
        assert_eq!(mpsadbw(a, V128::ZERO, 0b111), <u16 as Lane>::build(|i| 4 * i as u16 + 22));
        assert_eq!(mpsadbw(a, a, 0b110), <u16 as Lane>::build(|i| 4 * (4 - i as i16).unsigned_abs()));
    }

    #[test]
    fn the_first_minimum_is_reported() {
        assert_eq!(phminposuw(B), V128::from_low(0x0003_0000));
        assert_eq!(phminposuw(V128::ONES), V128::from_low(0x0000_ffff));
        assert_eq!(phminposuw(V128::from_u128(0x0001_0001_ffff_ffff_ffff_ffff_ffff_ffff)), V128::from_low(0x0006_0001));
    }
}
