//! The SHA extensions (Intel SDM volume 2, SHA1RNDS4 to SHA256RNDS2; FIPS 180 for the functions).
//!
//! Doubleword 3 of an operand holds the earliest word of a schedule and the first named word of a state.

use super::{Lane, V128};

/// SHA1RNDS4: four rounds on A, B, C, D in `a`, with E already added to the first of the message words in `b`.
/// `imm[1:0]` chooses the function and the constant.
#[inline]
pub fn sha1rnds4(a: V128, b: V128, imm: u8) -> V128 {
    let choose = |b: u32, c: u32, d: u32| (b & c) ^ (!b & d);
    let parity = |b: u32, c: u32, d: u32| b ^ c ^ d;
    let majority = |b: u32, c: u32, d: u32| (b & c) ^ (b & d) ^ (c & d);
    match imm & 3 {
        0 => four_rounds(a, b, 0x5a82_7999, choose),
        1 => four_rounds(a, b, 0x6ed9_eba1, parity),
        2 => four_rounds(a, b, 0x8f1b_bcdc, majority),
        _ => four_rounds(a, b, 0xca62_c1d6, parity),
    }
}

#[inline]
fn four_rounds(state: V128, words: V128, constant: u32, f: impl Fn(u32, u32, u32) -> u32) -> V128 {
    let [mut d, mut c, mut b, mut a] = <u32 as Lane>::split(state);
    let mut e = 0_u32;
    for word in <u32 as Lane>::split(words).into_iter().rev() {
        let next = f(b, c, d).wrapping_add(a.rotate_left(5)).wrapping_add(word).wrapping_add(e).wrapping_add(constant);
        (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
    }
    <u32 as Lane>::join([d, c, b, a])
}

/// SHA1NEXTE: `b` with the E that results of the A in `a` added to its doubleword 3.
#[inline]
pub fn sha1nexte(a: V128, b: V128) -> V128 {
    let (a, mut b) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    b[3] = b[3].wrapping_add(a[3].rotate_left(30));
    <u32 as Lane>::join(b)
}

/// SHA1MSG1: the first half of the next four words of the schedule, from words 0 to 3 in `a` and 4 to 7 in `b`.
#[inline]
pub fn sha1msg1(a: V128, b: V128) -> V128 {
    let ([w3, w2, w1, w0], [_, _, w5, w4]) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    <u32 as Lane>::join([w5 ^ w3, w4 ^ w2, w3 ^ w1, w2 ^ w0])
}

/// SHA1MSG2: the second half, from the first half in `a` and words 12 to 15 in `b`.
#[inline]
pub fn sha1msg2(a: V128, b: V128) -> V128 {
    let ([a0, a1, a2, a3], [w15, w14, w13, _]) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    let w16 = (a3 ^ w13).rotate_left(1);
    let w17 = (a2 ^ w14).rotate_left(1);
    let w18 = (a1 ^ w15).rotate_left(1);
    let w19 = (a0 ^ w16).rotate_left(1);
    <u32 as Lane>::join([w19, w18, w17, w16])
}

/// SHA256RNDS2: two rounds on C, D, G, H in `a` and A, B, E, F in `b`, with the two sums of message word and constant
/// in the low half of `wk` (XMM0). The result is the new A, B, E, F; the new C, D, G, H are `b`.
#[inline]
pub fn sha256rnds2(a: V128, b: V128, wk: V128) -> V128 {
    let ([mut h, mut g, mut d, mut c], [mut f, mut e, mut b, mut a]) =
        (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    let [wk0, wk1, _, _] = <u32 as Lane>::split(wk);
    for wk in [wk0, wk1] {
        let choose = (e & f) ^ (!e & g);
        let sum1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let majority = (a & b) ^ (a & c) ^ (b & c);
        let sum0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t = choose.wrapping_add(sum1).wrapping_add(wk).wrapping_add(h);
        (h, g, f, e) = (g, f, e, t.wrapping_add(d));
        (d, c, b, a) = (c, b, a, t.wrapping_add(majority).wrapping_add(sum0));
    }
    <u32 as Lane>::join([f, e, b, a])
}

/// SHA256MSG1: the first half of the next four words of the schedule, from words 0 to 3 in `a` and word 4 in `b`. Here
/// the earliest word is doubleword 0.
#[inline]
pub fn sha256msg1(a: V128, b: V128) -> V128 {
    let sigma0 = |x: u32| x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
    let ([w0, w1, w2, w3], [w4, _, _, _]) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    let next = |w: u32, after: u32| w.wrapping_add(sigma0(after));
    <u32 as Lane>::join([next(w0, w1), next(w1, w2), next(w2, w3), next(w3, w4)])
}

/// SHA256MSG2: the second half, from the first half with words 9 to 12 added in `a` and words 12 to 15 in `b`. Here
/// the earliest word is doubleword 0.
#[inline]
pub fn sha256msg2(a: V128, b: V128) -> V128 {
    let sigma1 = |x: u32| x.rotate_right(17) ^ x.rotate_right(19) ^ (x >> 10);
    let ([a0, a1, a2, a3], [_, _, w14, w15]) = (<u32 as Lane>::split(a), <u32 as Lane>::split(b));
    let w16 = a0.wrapping_add(sigma1(w14));
    let w17 = a1.wrapping_add(sigma1(w15));
    let w18 = a2.wrapping_add(sigma1(w16));
    let w19 = a3.wrapping_add(sigma1(w17));
    <u32 as Lane>::join([w16, w17, w18, w19])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vector::arith::paddd;
    use crate::vector::shuffle::palignr;

    /// The padded block of the message "abc".
    fn abc() -> [u32; 16] {
        let mut block = [0; 16];
        block[0] = 0x6162_6380;
        block[15] = 24;
        block
    }

    #[test]
    fn sha1_of_abc() {
        // FIPS 180, the example of one block, computed as software does it with these instructions.
        let block = abc();
        let mut schedule: Vec<V128> = (0..4).map(|i| <u32 as Lane>::build(|lane| block[4 * i + 3 - lane])).collect();
        for i in 4..20 {
            let half = sha1msg1(schedule[i - 4], schedule[i - 3]) ^ schedule[i - 2];
            let next = sha1msg2(half, schedule[i - 1]);
            schedule.push(next);
        }
        let start = <u32 as Lane>::join([0x1032_5476, 0x98ba_dcfe, 0xefcd_ab89, 0x6745_2301]);
        let e_start = V128::from_u128(0xc3d2_e1f0 << 96);
        let (mut state, mut before) = (start, V128::ZERO);
        for (i, words) in schedule.iter().enumerate() {
            let with_e = if i == 0 { paddd(e_start, *words) } else { sha1nexte(before, *words) };
            before = state;
            state = sha1rnds4(state, with_e, (i / 5) as u8);
        }
        let digest = paddd(state, start);
        assert_eq!(<u32 as Lane>::split(digest), [0x7850_c26c, 0xba3e_2571, 0x4706_816a, 0xa999_3e36]);
        assert_eq!(<u32 as Lane>::split(sha1nexte(before, e_start))[3], 0x9cd0_d89d);
    }

    /// The constants of SHA-256: the first 32 fraction bits of the cube roots of the first 64 primes.
    fn constants() -> Vec<u32> {
        let primes = (2_u128..).filter(|n| (2..*n).all(|d| n % d != 0)).take(64);
        primes
            .map(|prime| {
                // The root of prime * 2^96, found bit by bit, has 32 fraction bits.
                let root = (0..36).rev().fold(0_u128, |root, bit| {
                    let tried = root | 1 << bit;
                    if tried * tried * tried <= prime << 96 { tried } else { root }
                });
                root as u32
            })
            .collect()
    }

    #[test]
    fn sha256_of_abc() {
        let block = abc();
        let mut schedule: Vec<V128> = (0..4).map(|i| <u32 as Lane>::build(|lane| block[4 * i + lane])).collect();
        for i in 4..16 {
            let half = sha256msg1(schedule[i - 4], schedule[i - 3]);
            let nine_to_twelve = palignr(schedule[i - 1], schedule[i - 2], 4);
            schedule.push(sha256msg2(paddd(half, nine_to_twelve), schedule[i - 1]));
        }
        let k = constants();
        assert_eq!((k[0], k[63]), (0x428a_2f98, 0xc671_78f2));
        let abef_start = <u32 as Lane>::join([0x9b05_688c, 0x510e_527f, 0xbb67_ae85, 0x6a09_e667]);
        let cdgh_start = <u32 as Lane>::join([0x5be0_cd19, 0x1f83_d9ab, 0xa54f_f53a, 0x3c6e_f372]);
        let (mut abef, mut cdgh) = (abef_start, cdgh_start);
        for (i, words) in schedule.iter().enumerate() {
            let sums = paddd(*words, <u32 as Lane>::build(|lane| k[4 * i + lane]));
            for wk in [sums, V128::from_low(sums.high())] {
                (abef, cdgh) = (sha256rnds2(cdgh, abef, wk), abef);
            }
        }
        let (abef, cdgh) = (paddd(abef, abef_start), paddd(cdgh, cdgh_start));
        assert_eq!(<u32 as Lane>::split(abef), [0x9617_7a9c, 0xb003_61a3, 0x8f01_cfea, 0xba78_16bf]);
        assert_eq!(<u32 as Lane>::split(cdgh), [0xf200_15ad, 0xb410_ff61, 0x5dae_2223, 0x4141_40de]);
    }
}
