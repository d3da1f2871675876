//! AVX2 and AVX permutes that cross 128-bit lanes, broadcasts, and insertion and extraction of a lane (Intel SDM
//! volume 2, VPERM2F128/VPERM2I128, VPERMD, VPERMPS, VPERMQ, VPERMPD, VBROADCAST, VPBROADCAST, VINSERTF128/I128,
//! VEXTRACTF128/I128).

use super::{Lane, V128, V256};

/// VPERM2F128, VPERM2I128: each half of the result is one of the four lanes of `a` and `b`, or 0 where bit 3
/// (bit 7) of `imm` is set.
#[inline]
pub fn vperm2i128(a: V256, b: V256, imm: u8) -> V256 {
    let lanes = [a[0], a[1], b[0], b[1]];
    let pick = |control: u8| if control & 8 != 0 { V128::ZERO } else { lanes[usize::from(control & 3)] };
    [pick(imm), pick(imm >> 4)]
}

/// VPERMQ, VPERMPD: quadword `i` is that of `a` which `imm[2i+1:2i]` selects.
#[inline]
pub fn vpermq(a: V256, imm: u8) -> V256 {
    let lanes = [a[0].low(), a[0].high(), a[1].low(), a[1].high()];
    let pick = |i: u8| lanes[usize::from(imm >> (2 * i) & 3)];
    [<u64 as Lane>::join([pick(0), pick(1)]), <u64 as Lane>::join([pick(2), pick(3)])]
}

/// VPERMD, VPERMPS: doubleword `i` is that of `table` which `indices[i][2:0]` selects. In the VEX form the indices are
/// the first source, the table is the register or memory operand.
#[inline]
pub fn vpermd(indices: V256, table: V256) -> V256 {
    let mut lanes = [0; 8];
    lanes[..4].copy_from_slice(&<u32 as Lane>::split(table[0]));
    lanes[4..].copy_from_slice(&<u32 as Lane>::split(table[1]));
    indices.map(|half| <u32 as Lane>::map(half, |index| lanes[(index & 7) as usize]))
}

/// VINSERTF128, VINSERTI128: `a` with lane `imm[0]` replaced.
#[inline]
pub fn vinserti128(a: V256, lane: V128, imm: u8) -> V256 {
    if imm & 1 == 0 { [lane, a[1]] } else { [a[0], lane] }
}

/// VEXTRACTF128, VEXTRACTI128: lane `imm[0]`.
#[inline]
pub fn vextracti128(a: V256, imm: u8) -> V128 {
    a[usize::from(imm & 1)]
}

/// VPBROADCASTB: byte 0 everywhere; both lanes of a 256-bit result are this value.
#[inline]
pub fn vpbroadcastb(a: V128) -> V128 {
    (a.low() as u8).splat()
}

/// VPBROADCASTW: word 0 everywhere; both lanes of a 256-bit result are this value.
#[inline]
pub fn vpbroadcastw(a: V128) -> V128 {
    (a.low() as u16).splat()
}

/// VPBROADCASTD, VBROADCASTSS: doubleword 0 everywhere; both lanes of a 256-bit result are this value.
#[inline]
pub fn vpbroadcastd(a: V128) -> V128 {
    (a.low() as u32).splat()
}

/// VPBROADCASTQ, VBROADCASTSD: quadword 0 everywhere; both lanes of a 256-bit result are this value.
#[inline]
pub fn vpbroadcastq(a: V128) -> V128 {
    a.low().splat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dwords(first: u32) -> V256 {
        [<u32 as Lane>::build(|i| first + i as u32), <u32 as Lane>::build(|i| first + 4 + i as u32)]
    }

    #[test]
    fn lanes_are_chosen_or_cleared() {
        let (a, b) = (dwords(0), dwords(8));
        assert_eq!(vperm2i128(a, b, 0x20), [a[0], b[0]]);
        assert_eq!(vperm2i128(a, b, 0x31), [a[1], b[1]]);
        assert_eq!(vperm2i128(a, b, 0x83), [b[1], V128::ZERO]);
        assert_eq!(vperm2i128(a, b, 0x18), [V128::ZERO, a[1]]);
    }

    #[test]
    fn elements_cross_lanes() {
        let a = dwords(0);
        assert_eq!(vpermq(a, 0b11_10_01_00), a);
        assert_eq!(vpermq(a, 0b01_00_11_10), [a[1], a[0]]);
        assert_eq!(vpermq(a, 0b11), [<u64 as Lane>::join([a[1].high(), a[0].low()]), a[0].low().splat()]);
        let reverse = [<u32 as Lane>::build(|i| !(i as u32)), <u32 as Lane>::build(|i| !(4 + i as u32))];
        assert_eq!(
            vpermd(reverse, a),
            [<u32 as Lane>::build(|i| 7 - i as u32), <u32 as Lane>::build(|i| 3 - i as u32)]
        );
    }

    #[test]
    fn lane_insertion_and_extraction() {
        let a = dwords(0);
        assert_eq!(vinserti128(a, V128::ONES, 0xfe), [V128::ONES, a[1]]);
        assert_eq!(vinserti128(a, V128::ONES, 1), [a[0], V128::ONES]);
        assert_eq!((vextracti128(a, 2), vextracti128(a, 3)), (a[0], a[1]));
    }

    #[test]
    fn broadcasts_take_element_0() {
        let a = V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);
        assert_eq!(vpbroadcastb(a), V128::ZERO);
        assert_eq!(vpbroadcastw(a), 0x0100_u16.splat());
        assert_eq!(vpbroadcastd(a), 0x0302_0100_u32.splat());
        assert_eq!(vpbroadcastq(a), a.low().splat());
    }
}
