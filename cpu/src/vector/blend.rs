//! Blends (Intel SDM volume 2, BLENDPS, BLENDPD, PBLENDW, VPBLENDD, PBLENDVB, BLENDVPS, BLENDVPD): `b` where the
//! control says so, `a` elsewhere.
//!
//! AVX2 applies them lane by lane.

use super::{Lane, V128};

/// Defines a blend by the bits of an immediate.
macro_rules! by_immediate {
    ($($(#[$doc:meta])* $name:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128, b: V128, imm: u8) -> V128 {
            let (mut result, b) = (<$t as Lane>::split(a), <$t as Lane>::split(b));
            for (i, (lane, from_b)) in result.iter_mut().zip(b).enumerate() {
                *lane = if imm >> i & 1 != 0 { from_b } else { *lane };
            }
            <$t as Lane>::join(result)
        }
    )*};
}

by_immediate! {
    /// PBLENDW: words by `imm[7:0]`. VEX.256: both lanes use the same immediate.
    pblendw: u16;
    /// BLENDPS: doublewords by `imm[3:0]`. VEX.256: the upper lane uses `imm >> 4`.
    blendps: u32;
    /// BLENDPD: quadwords by `imm[1:0]`. VEX.256: the upper lane uses `imm >> 2`.
    blendpd: u64;
}

/// VPBLENDD: doublewords by `imm[3:0]`. VEX.256: the upper lane uses `imm >> 4`.
#[inline]
pub fn vpblendd(a: V128, b: V128, imm: u8) -> V128 {
    blendps(a, b, imm)
}

/// PBLENDVB: bytes by the sign of those of `mask` (XMM0 in the legacy form).
#[inline]
pub fn pblendvb(a: V128, b: V128, mask: V128) -> V128 {
    let from_b = <i8 as Lane>::map(mask, |x| x >> 7);
    (a & !from_b) | (b & from_b)
}

/// BLENDVPS: doublewords by the sign of those of `mask` (XMM0 in the legacy form).
#[inline]
pub fn blendvps(a: V128, b: V128, mask: V128) -> V128 {
    let from_b = <i32 as Lane>::map(mask, |x| x >> 31);
    (a & !from_b) | (b & from_b)
}

/// BLENDVPD: quadwords by the sign of those of `mask` (XMM0 in the legacy form).
#[inline]
pub fn blendvpd(a: V128, b: V128, mask: V128) -> V128 {
    let from_b = <i64 as Lane>::map(mask, |x| x >> 63);
    (a & !from_b) | (b & from_b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediates() {
        let (a, b) = (V128::ZERO, V128::ONES);
        assert_eq!(pblendw(a, b, 0b1000_0010), V128::from_u128(0xffff << 112 | 0xffff << 16));
        assert_eq!(blendps(a, b, 0xf5), V128::from_u128(0xffff_ffff << 64 | 0xffff_ffff));
        assert_eq!(vpblendd(a, b, 0x08), V128::from_u128(0xffff_ffff << 96));
        assert_eq!(blendpd(a, b, 0xfe), V128::from_u128(u128::from(u64::MAX) << 64));
    }

    #[test]
    fn only_the_sign_of_the_mask_counts() {
        let (a, b) = (V128::ZERO, V128::ONES);
        let mask = V128::from_u128(0x8000_0000_0000_0000_7fff_ffff_8000_0080);
        assert_eq!(pblendvb(a, b, mask), V128::from_u128(0xff00_0000_0000_0000_00ff_ffff_ff00_00ff));
        assert_eq!(blendvps(a, b, mask), V128::from_u128(0xffff_ffff_0000_0000_0000_0000_ffff_ffff));
        assert_eq!(blendvpd(a, b, mask), V128::from_u128(u128::from(u64::MAX) << 64));
    }
}
