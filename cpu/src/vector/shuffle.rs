//! Shuffles that stay within 128 bits, and movement of single elements (Intel SDM volume 2, PSHUFB to PSHUFW,
//! PALIGNR, SHUFPS/SHUFPD, UNPCKHPD to UNPCKLPS, MOVSLDUP/MOVSHDUP/MOVDDUP, MOVHLPS/MOVLHPS, INSERTPS,
//! EXTRACTPS, PINSRB to PINSRW, PEXTRB to PEXTRW, VPERMILPS/VPERMILPD).
//!
//! AVX2 applies the shuffles lane by lane. MMX has forms of its own here, since its indices have one bit less.

use super::pack::{punpckhqdq, punpcklqdq};
use super::{Lane, V128};

/// Two bits of an immediate: the selector of doubleword `lane`.
#[inline]
const fn selector(imm: u8, lane: usize) -> usize {
    (imm >> (2 * lane) & 3) as usize
}

/// PSHUFB: byte `i` is the byte of `a` that `b[i][3:0]` selects, or 0 where `b[i][7]` is set.
#[inline]
pub fn pshufb(a: V128, b: V128) -> V128 {
    let table = a.to_bytes();
    let half = |selectors: u64| {
        let picked = (0..8).fold(0, |picked, i| {
            let selector = selectors >> (8 * i) & 15;
            picked | u64::from(table[selector as usize]) << (8 * i)
        });
        let cleared = (selectors >> 7 & 0x0101_0101_0101_0101) * 0xff;
        picked & !cleared
    };
    <u64 as Lane>::join([half(b.low()), half(b.high())])
}

/// The MMX form of [`pshufb`]: three selector bits.
#[inline]
pub fn pshufb_mmx(a: u64, b: u64) -> u64 {
    // Bit 3 of a selector is ignored, not an index into the upper half.
    pshufb(V128::from_low(a), V128::from_low(b & !0x0808_0808_0808_0808)).low()
}

/// PSHUFD: doubleword `i` is that of `a` which `imm[2i+1:2i]` selects.
#[inline]
pub fn pshufd(a: V128, imm: u8) -> V128 {
    let a = <u32 as Lane>::split(a);
    <u32 as Lane>::build(|i| a[selector(imm, i)])
}

/// PSHUFLW: PSHUFD of the four low words; the high quadword is kept.
#[inline]
pub fn pshuflw(a: V128, imm: u8) -> V128 {
    <u64 as Lane>::join([pshufw(a.low(), imm), a.high()])
}

/// PSHUFHW: PSHUFD of the four high words; the low quadword is kept.
#[inline]
pub fn pshufhw(a: V128, imm: u8) -> V128 {
    <u64 as Lane>::join([a.low(), pshufw(a.high(), imm)])
}

/// PSHUFW (MMX): word `i` is that of `a` which `imm[2i+1:2i]` selects.
#[inline]
pub fn pshufw(a: u64, imm: u8) -> u64 {
    let word = |i: u32| (a >> (16 * u32::from(imm >> (2 * i) & 3)) & 0xffff) << (16 * i);
    word(0) | word(1) | word(2) | word(3)
}

/// PALIGNR: the 16 bytes from byte `imm` of `a:b`, `b` being the low half; what lies above is 0.
#[inline]
pub fn palignr(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b, bits) = (a.to_u128(), b.to_u128(), 8 * u32::from(imm));
    V128::from_u128(if bits < 128 { b >> bits | a.unbounded_shl(128 - bits) } else { a.unbounded_shr(bits - 128) })
}

/// The MMX form of [`palignr`]: the 8 bytes from byte `imm` of `a:b`.
#[inline]
pub fn palignr_mmx(a: u64, b: u64, imm: u8) -> u64 {
    super::shift::psrldq(<u64 as Lane>::join([b, a]), imm).low()
}

/// SHUFPS: two doublewords of `a`, then two of `b`, each selected by two bits of `imm`.
#[inline]
pub fn shufps(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    <u32 as Lane>::join([a[selector(imm, 0)], a[selector(imm, 1)], b[selector(imm, 2)], b[selector(imm, 3)]])
}

/// SHUFPD: the quadword of `a` that `imm[0]` selects, then that of `b` by `imm[1]`. VEX.256: the upper lane uses
/// `imm >> 2`.
#[inline]
pub fn shufpd(a: V128, b: V128, imm: u8) -> V128 {
    let (a, b) = (<u64 as Lane>::split(a), <u64 as Lane>::split(b));
    <u64 as Lane>::join([a[usize::from(imm & 1)], b[usize::from(imm >> 1 & 1)]])
}

/// VPERMILPS with an immediate: doubleword `i` is that of `a` which `imm[2i+1:2i]` selects.
#[inline]
pub fn vpermilps(a: V128, imm: u8) -> V128 {
    pshufd(a, imm)
}

/// VPERMILPS with a control vector: doubleword `i` is that of `a` which `b[i][1:0]` selects.
#[inline]
pub fn vpermilps_var(a: V128, b: V128) -> V128 {
    let a = <u32 as Lane>::split(a);
    <u32 as Lane>::map(b, |selector| a[(selector & 3) as usize])
}

/// VPERMILPD with an immediate: quadword `i` is that of `a` which `imm[i]` selects. VEX.256: the upper lane uses
/// `imm >> 2`.
#[inline]
pub fn vpermilpd(a: V128, imm: u8) -> V128 {
    shufpd(a, a, imm)
}

/// VPERMILPD with a control vector: quadword `i` is that of `a` which bit 1 (not bit 0) of `b[i]` selects.
#[inline]
pub fn vpermilpd_var(a: V128, b: V128) -> V128 {
    let a = <u64 as Lane>::split(a);
    <u64 as Lane>::map(b, |selector| a[(selector >> 1 & 1) as usize])
}

/// MOVLHPS: the low quadword of `a` below that of `b`.
#[inline]
pub fn movlhps(a: V128, b: V128) -> V128 {
    punpcklqdq(a, b)
}

/// MOVHLPS: the high quadword of `b` below that of `a`.
#[inline]
pub fn movhlps(a: V128, b: V128) -> V128 {
    punpckhqdq(b, a)
}

/// MOVSD between registers, and MOVLPS/MOVLPD from memory: the low quadword of `b`, the high one of `a`.
#[inline]
pub fn movsd(a: V128, b: V128) -> V128 {
    <u64 as Lane>::join([b.low(), a.high()])
}

/// MOVSS between registers: doubleword 0 of `b`, the others of `a`.
#[inline]
pub fn movss(a: V128, b: V128) -> V128 {
    pinsrd(a, b.low() as u32, 0)
}

/// MOVSLDUP: the even doublewords, each twice.
#[inline]
pub fn movsldup(a: V128) -> V128 {
    let a = <u32 as Lane>::split(a);
    <u32 as Lane>::join([a[0], a[0], a[2], a[2]])
}

/// MOVSHDUP: the odd doublewords, each twice.
#[inline]
pub fn movshdup(a: V128) -> V128 {
    let a = <u32 as Lane>::split(a);
    <u32 as Lane>::join([a[1], a[1], a[3], a[3]])
}

/// MOVDDUP: the low quadword twice.
#[inline]
pub fn movddup(a: V128) -> V128 {
    a.low().splat()
}

/// INSERTPS from a register: the doubleword of `b` that `imm[7:6]` selects, then as [`insertps_m32`].
#[inline]
pub fn insertps(a: V128, b: V128, imm: u8) -> V128 {
    insertps_m32(a, pextrd(b, imm >> 6), imm)
}

/// INSERTPS from memory: `value` becomes the doubleword of `a` that `imm[5:4]` selects, then the doublewords with
/// their bit set in `imm[3:0]` are cleared.
#[inline]
pub fn insertps_m32(a: V128, value: u32, imm: u8) -> V128 {
    let mut lanes = <u32 as Lane>::split(a);
    lanes[usize::from(imm >> 4 & 3)] = value;
    for (i, lane) in lanes.iter_mut().enumerate() {
        if imm >> i & 1 != 0 {
            *lane = 0;
        }
    }
    <u32 as Lane>::join(lanes)
}

/// Defines insertion and extraction of one lane.
macro_rules! element {
    ($($(#[$doc:meta])* $insert:ident, $(#[$doc2:meta])* $extract:ident: $t:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $insert(a: V128, value: $t, imm: u8) -> V128 {
            let mut lanes = <$t as Lane>::split(a);
            lanes[usize::from(imm) % lanes.len()] = value;
            <$t as Lane>::join(lanes)
        }

        $(#[$doc2])*
        #[inline]
        pub fn $extract(a: V128, imm: u8) -> $t {
            let lanes = <$t as Lane>::split(a);
            lanes[usize::from(imm) % lanes.len()]
        }
    )*};
}

element! {
    /// PINSRB: `a` with byte `imm[3:0]` replaced.
    pinsrb,
    /// PEXTRB: byte `imm[3:0]`.
    pextrb: u8;
    /// PINSRW: `a` with word `imm[2:0]` replaced.
    pinsrw,
    /// PEXTRW: word `imm[2:0]`.
    pextrw: u16;
    /// PINSRD: `a` with doubleword `imm[1:0]` replaced.
    pinsrd,
    /// PEXTRD: doubleword `imm[1:0]`.
    pextrd: u32;
    /// PINSRQ: `a` with quadword `imm[0]` replaced.
    pinsrq,
    /// PEXTRQ: quadword `imm[0]`.
    pextrq: u64;
}

/// The MMX form of [`pinsrw`]: word `imm[1:0]`.
#[inline]
pub fn pinsrw_mmx(a: u64, value: u16, imm: u8) -> u64 {
    let at = 16 * u32::from(imm & 3);
    a & !(0xffff << at) | u64::from(value) << at
}

/// The MMX form of [`pextrw`]: word `imm[1:0]`.
#[inline]
pub fn pextrw_mmx(a: u64, imm: u8) -> u16 {
    (a >> (16 * u32::from(imm & 3))) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: V128 = V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
    const B: V128 = V128::from_u128(0x1f1e_1d1c_1b1a_1918_1716_1514_1312_1110);

    #[test]
    fn pshufb_selects_and_clears() {
        let reverse = <u8 as Lane>::build(|i| 0x70 | (15 - i as u8));
        assert_eq!(pshufb(A, reverse), V128::from_u128(A.to_u128().swap_bytes()));
        assert_eq!(pshufb(A, 0x8f_u8.splat()), V128::ZERO);
        assert_eq!(pshufb_mmx(A.low(), 0x0f80_0908_0706_0001), 0x0700_0100_0706_0001);
    }

    #[test]
    fn immediate_shuffles() {
        assert_eq!(pshufd(A, 0b00_01_10_11), V128::from_u128(0x0302_0100_0706_0504_0b0a_0908_0f0e_0d0c));
        assert_eq!(pshuflw(A, 0), V128::from_u128(0x0f0e_0d0c_0b0a_0908_0100_0100_0100_0100));
        assert_eq!(pshufhw(A, 0xff), V128::from_u128(0x0f0e_0f0e_0f0e_0f0e_0706_0504_0302_0100));
        assert_eq!(pshufw(A.low(), 0b00_01_10_11), 0x0100_0302_0504_0706);
        assert_eq!(shufps(A, B, 0b11_00_01_10), V128::from_u128(0x1f1e_1d1c_1312_1110_0706_0504_0b0a_0908));
        assert_eq!(shufpd(A, B, 0b01), <u64 as Lane>::join([A.high(), B.low()]));
        assert_eq!(shufpd(A, B, 0b10), <u64 as Lane>::join([A.low(), B.high()]));
        assert_eq!(vpermilps(A, 0x55), 0x0706_0504_u32.splat());
        assert_eq!(vpermilpd(A, 0b11), A.high().splat());
    }

    #[test]
    fn variable_shuffles() {
        let control = <u32 as Lane>::join([3, 6, 1, 0x8000_0000]);
        assert_eq!(vpermilps_var(A, control), pshufd(A, 0b00_01_10_11));
        assert_eq!(vpermilpd_var(A, <u64 as Lane>::join([2, 1])), <u64 as Lane>::join([A.high(), A.low()]));
    }

    #[test]
    fn palignr_slides_down() {
        assert_eq!(palignr(A, B, 0), B);
        assert_eq!(palignr(A, B, 16), A);
        assert_eq!(palignr(A, B, 12), V128::from_u128(0x0b0a_0908_0706_0504_0302_0100_1f1e_1d1c));
        assert_eq!(palignr(A, B, 31), V128::from_low(0x0f));
        assert_eq!(palignr(A, B, 255), V128::ZERO);
        assert_eq!(palignr_mmx(A.low(), B.low(), 4), 0x0302_0100_1716_1514);
        assert_eq!(palignr_mmx(A.low(), B.low(), 15), 0x07);
        assert_eq!(palignr_mmx(A.low(), B.low(), 16), 0);
    }

    #[test]
    fn halves_and_duplicates() {
        assert_eq!(movhlps(A, B), <u64 as Lane>::join([B.high(), A.high()]));
        assert_eq!(movsd(A, B), <u64 as Lane>::join([B.low(), A.high()]));
        assert_eq!(movss(A, B), V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_1312_1110));
        assert_eq!(movsldup(A), pshufd(A, 0b10_10_00_00));
        assert_eq!(movshdup(A), pshufd(A, 0b11_11_01_01));
        assert_eq!(movddup(A), A.low().splat());
    }

    #[test]
    fn elements() {
        assert_eq!(insertps(A, B, 0b1001_0001), V128::from_u128(0x0f0e_0d0c_0b0a_0908_1b1a_1918_0000_0000));
        assert_eq!(insertps_m32(A, 7, 0b1011_0111), V128::from_u128(7 << 96));
        assert_eq!(insertps(A, B, 0b0001_1111), V128::ZERO);
        assert_eq!((pextrb(A, 0x1e), pextrw(A, 9), pextrd(A, 3), pextrq(A, 1)), (14, 0x0302, 0x0f0e_0d0c, A.high()));
        assert_eq!(pinsrb(V128::ZERO, 0xab, 15), V128::from_u128(0xab << 120));
        assert_eq!(pinsrw(V128::ZERO, 0xabcd, 2), V128::from_u128(0xabcd << 32));
        assert_eq!(pinsrd(V128::ZERO, 0xabcd, 3), V128::from_u128(0xabcd << 96));
        assert_eq!(pinsrq(A, 5, 1), <u64 as Lane>::join([A.low(), 5]));
        assert_eq!(pinsrw_mmx(u64::MAX, 0, 6), 0xffff_0000_ffff_ffff);
        assert_eq!(pextrw_mmx(A.low(), 7), 0x0706);
    }
}
