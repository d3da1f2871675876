//! Packs with saturation and interleaving unpacks (Intel SDM volume 2, PACKSSWB/PACKSSDW, PACKUSWB, PACKUSDW,
//! PUNPCKHBW to PUNPCKLQDQ).
//!
//! AVX2 applies them lane by lane. The low unpacks are valid for MMX by truncation; packs and high unpacks draw
//! on the upper half of their operands and have MMX forms of their own.

use super::{Lane, V128};

/// Defines a pack for both widths: the lanes of `a` narrowed to the low half, those of `b` to the high half.
macro_rules! pack {
    ($($(#[$doc:meta])* $name:ident: $wide:ty => $narrow:ty as $lane:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128, b: V128) -> V128 {
            const HALF: usize = 16 / size_of::<$wide>();
            let narrow = |x: $wide| x.clamp(<$narrow>::MIN.into(), <$narrow>::MAX.into()) as $lane;
            let (a, b) = (<$wide as Lane>::split(a), <$wide as Lane>::split(b));
            let mut result = [0; 2 * HALF];
            for i in 0..HALF {
                result[i] = narrow(a[i]);
                result[HALF + i] = narrow(b[i]);
            }
            <$lane as Lane>::join(result)
        }
    )*};
}

pack! {
    /// PACKSSWB: signed words to signed bytes.
    packsswb: i16 => i8 as u8;
    /// PACKUSWB: signed words to unsigned bytes.
    packuswb: i16 => u8 as u8;
    /// PACKSSDW: signed doublewords to signed words.
    packssdw: i32 => i16 as u16;
    /// PACKUSDW: signed doublewords to unsigned words.
    packusdw: i32 => u16 as u16;
}

/// The MMX form of [`packsswb`].
#[inline]
pub fn packsswb_mmx(a: u64, b: u64) -> u64 {
    packsswb(<u64 as Lane>::join([a, b]), V128::ZERO).low()
}

/// The MMX form of [`packuswb`].
#[inline]
pub fn packuswb_mmx(a: u64, b: u64) -> u64 {
    packuswb(<u64 as Lane>::join([a, b]), V128::ZERO).low()
}

/// The MMX form of [`packssdw`].
#[inline]
pub fn packssdw_mmx(a: u64, b: u64) -> u64 {
    packssdw(<u64 as Lane>::join([a, b]), V128::ZERO).low()
}

/// Defines an unpack: lanes of `a` and `b` in turn, from the lower or the upper half.
macro_rules! unpack {
    ($($(#[$doc:meta])* $low:ident, $(#[$doc2:meta])* $high:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $low(a: V128, b: V128) -> V128 {
            const HALF: usize = 8 / size_of::<$t>();
            let (a, b) = (<$t as Lane>::split(a), <$t as Lane>::split(b));
            let mut result = a;
            for i in 0..HALF {
                result[2 * i] = a[i];
                result[2 * i + 1] = b[i];
            }
            <$t as Lane>::join(result)
        }

        $(#[$doc2])*
        #[inline]
        pub fn $high(a: V128, b: V128) -> V128 {
            const HALF: usize = 8 / size_of::<$t>();
            let (a, b) = (<$t as Lane>::split(a), <$t as Lane>::split(b));
            let mut result = a;
            for i in 0..HALF {
                result[2 * i] = a[HALF + i];
                result[2 * i + 1] = b[HALF + i];
            }
            <$t as Lane>::join(result)
        }
    )*};
}

unpack! {
    /// PUNPCKLBW: the low bytes of `a` and `b` in turn.
    punpcklbw,
    /// PUNPCKHBW: the high bytes of `a` and `b` in turn.
    punpckhbw: u8;
    /// PUNPCKLWD: the low words of `a` and `b` in turn.
    punpcklwd,
    /// PUNPCKHWD: the high words of `a` and `b` in turn.
    punpckhwd: u16;
    /// PUNPCKLDQ: the low doublewords of `a` and `b` in turn.
    punpckldq,
    /// PUNPCKHDQ: the high doublewords of `a` and `b` in turn.
    punpckhdq: u32;
    /// PUNPCKLQDQ: the low quadwords of `a` and `b`.
    punpcklqdq,
    /// PUNPCKHQDQ: the high quadwords of `a` and `b`.
    punpckhqdq: u64;
}

/// The MMX form of [`punpckhbw`].
#[inline]
pub fn punpckhbw_mmx(a: u64, b: u64) -> u64 {
    // The high half of an MMX register is the upper half of what the wide low unpack makes of all of it.
    punpcklbw(V128::from_low(a), V128::from_low(b)).high()
}

/// The MMX form of [`punpckhwd`].
#[inline]
pub fn punpckhwd_mmx(a: u64, b: u64) -> u64 {
    punpcklwd(V128::from_low(a), V128::from_low(b)).high()
}

/// The MMX form of [`punpckhdq`].
#[inline]
pub fn punpckhdq_mmx(a: u64, b: u64) -> u64 {
    punpckldq(V128::from_low(a), V128::from_low(b)).high()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::per_mmx;

    const A: V128 = V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    const B: V128 = V128::from_u128(0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110);

    #[test]
    fn packs_saturate() {
        let words = V128::from_u128(0x8000_7fff_0100_00ff_0080_007f_ffff_ff7f);
        assert_eq!(packsswb(words, V128::ZERO), V128::from_low(0x807f_7f7f_7f7f_ff80));
        assert_eq!(packuswb(words, V128::ZERO), V128::from_low(0x00ff_ffff_807f_0000));
        assert_eq!(packsswb(V128::ZERO, words).high(), 0x807f_7f7f_7f7f_ff80);
        let dwords = V128::from_u128(0x8000_0000_0001_0000_0000_ffff_ffff_ffff);
        assert_eq!(packssdw(dwords, V128::ZERO), V128::from_low(0x8000_7fff_7fff_ffff));
        assert_eq!(packusdw(dwords, V128::ZERO), V128::from_low(0x0000_ffff_ffff_0000));
    }

    #[test]
    fn mmx_packs_join_both_registers() {
        assert_eq!(packsswb_mmx(0x0100, 0xff00), 0x0000_0080_0000_007f);
        assert_eq!(packuswb_mmx(0x0100, 0xff00), 0x0000_0000_0000_00ff);
        assert_eq!(packssdw_mmx(0x8000, 0xffff_0000), 0x0000_8000_0000_7fff);
    }

    #[test]
    fn unpacks_interleave() {
        assert_eq!(punpcklbw(A, B), V128::from_u128(0x1707_1606_1505_1404_1303_1202_1101_1000));
        assert_eq!(punpckhbw(A, B), V128::from_u128(0x1f0f_1e0e_1d0d_1c0c_1b0b_1a0a_1909_1808));
        assert_eq!(punpcklwd(A, B), V128::from_u128(0x1716_0706_1514_0504_1312_0302_1110_0100));
        assert_eq!(punpckhwd(A, B), V128::from_u128(0x1f1e_0f0e_1d1c_0d0c_1b1a_0b0a_1918_0908));
        assert_eq!(punpckldq(A, B), V128::from_u128(0x1716_1514_0706_0504_1312_1110_0302_0100));
        assert_eq!(punpckhdq(A, B), V128::from_u128(0x1f1e_1d1c_0f0e_0d0c_1b1a_1918_0b0a_0908));
        assert_eq!(punpcklqdq(A, B), <u64 as Lane>::join([A.low(), B.low()]));
        assert_eq!(punpckhqdq(A, B), <u64 as Lane>::join([A.high(), B.high()]));
    }

    #[test]
    fn mmx_unpacks() {
        assert_eq!(per_mmx(A.low(), B.low(), punpcklbw), 0x1303_1202_1101_1000);
        assert_eq!(punpckhbw_mmx(A.low(), B.low()), 0x1707_1606_1505_1404);
        assert_eq!(punpckhwd_mmx(A.low(), B.low()), 0x1716_0706_1514_0504);
        assert_eq!(punpckhdq_mmx(A.low(), B.low()), 0x1716_1514_0706_0504);
    }
}
