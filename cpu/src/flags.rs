//! RFLAGS, with the six status flags kept as what they follow from.
//!
//! ZF, SF and PF follow from the last result, sign-extended to 64 bits; CF, OF and AF from it, the second operand and
//! the kind of operation. Nothing is computed until something asks. A state that no result can express (POPF may set
//! ZF and SF together) is expressed by correction bits beside the kind, so that reading a flag never branches on how
//! it was set, except for CF, OF and AF on the kind.
//!
//! Always true: the low 12 bits' status flags in [`Flags::other`] are zero; they live in the lazy part alone.

use emu_core::regs::Rflags;

use crate::width::Width;

/// How CF, OF and AF follow: the low byte of [`Flags::kind`]. Additions and subtractions have one value a width, the
/// first plus log2 of the width in bytes, so that a match is one table.
mod kind {
    /// `src` holds CF, AF and OF at their RFLAGS positions.
    pub const EXPLICIT: u32 = 0;
    /// Addition of bytes; 2, 3 and 4 are the wider ones.
    pub const ADD: u32 = 1;
    /// Subtraction of bytes; 6, 7 and 8 are the wider ones.
    pub const SUB: u32 = 5;
}

/// SF is inverted relative to the result's sign.
const INVERT_SF: u32 = 1 << 8;
/// PF is inverted relative to the result's parity.
const INVERT_PF: u32 = 1 << 9;

/// The flags register.
#[derive(Clone, Debug)]
pub(crate) struct Flags {
    res: u64,
    src: u64,
    kind: u32,
    /// Everything but the status flags.
    pub other: Rflags,
}

const CF: u64 = Rflags::CF.bits();
const AF: u64 = Rflags::AF.bits();
const OF: u64 = Rflags::OF.bits();

impl Flags {
    pub fn new() -> Flags {
        // A result of 1: ZF, SF and PF clear.
        Flags { res: 1, src: 0, kind: kind::EXPLICIT, other: Rflags::FIXED }
    }

    /// After `res = a + src` without carry in.
    #[inline(always)]
    pub fn set_add<T: Width>(&mut self, res: T, src: T) {
        self.res = res.sign_extend();
        self.src = src.zero_extend();
        self.kind = kind::ADD + T::LOG;
    }

    /// After `res = a - src` without borrow in.
    #[inline(always)]
    pub fn set_sub<T: Width>(&mut self, res: T, src: T) {
        self.res = res.sign_extend();
        self.src = src.zero_extend();
        self.kind = kind::SUB + T::LOG;
    }

    /// After a logical operation: CF, OF and AF clear.
    #[inline(always)]
    pub fn set_logic<T: Width>(&mut self, res: T) {
        self.res = res.sign_extend();
        self.src = 0;
        self.kind = kind::EXPLICIT;
    }

    /// ZF, SF and PF from `res`; CF, OF and AF as given.
    #[inline(always)]
    pub fn set_explicit<T: Width>(&mut self, res: T, cf: bool, of: bool, af: bool) {
        self.res = res.sign_extend();
        self.src = cf as u64 * CF | of as u64 * OF | af as u64 * AF;
        self.kind = kind::EXPLICIT;
    }

    /// Replaces CF alone.
    #[inline]
    pub fn set_cf(&mut self, cf: bool) {
        let keep = self.carry_bits() & !CF;
        self.src = keep | cf as u64 * CF;
        self.kind = self.kind & !0xff | kind::EXPLICIT;
    }

    /// Replaces CF and OF.
    #[inline]
    pub fn set_cf_of(&mut self, cf: bool, of: bool) {
        let keep = self.carry_bits() & AF;
        self.src = keep | cf as u64 * CF | of as u64 * OF;
        self.kind = self.kind & !0xff | kind::EXPLICIT;
    }

    /// Replaces ZF alone.
    pub fn set_zf(&mut self, zf: bool) {
        let status = self.status();
        let zero = if zf { Rflags::ZF } else { Rflags::empty() };
        self.set_status(status - Rflags::ZF | zero);
    }

    /// CF and ZF as given, the others clear.
    #[inline]
    pub fn set_order(&mut self, cf: bool, zf: bool) {
        // A result of zero has even parity, one of 1 odd parity.
        self.res = !zf as u64;
        self.src = cf as u64 * CF;
        self.kind = kind::EXPLICIT | zf as u32 * INVERT_PF;
    }

    /// Sets all six status flags.
    pub fn set_status(&mut self, status: Rflags) {
        let has = |f: Rflags| status.contains(f);
        // ZF decides whether the result is zero; SF and PF are then corrected against it.
        let res: u64 = if has(Rflags::ZF) { 0 } else { 1 };
        let parity_of_res = res == 0;
        self.res = res;
        self.kind = kind::EXPLICIT
            | if has(Rflags::SF) { INVERT_SF } else { 0 }
            | if has(Rflags::PF) != parity_of_res { INVERT_PF } else { 0 };
        self.src = status.bits() & (CF | AF | OF);
    }

    #[inline(always)]
    pub fn zf(&self) -> bool {
        self.res == 0
    }

    #[inline(always)]
    pub fn sf(&self) -> bool {
        ((self.res >> 63) as u32 ^ self.kind >> 8) & 1 != 0
    }

    #[inline(always)]
    pub fn pf(&self) -> bool {
        ((self.res as u8).count_ones() + 1 ^ self.kind >> 9) & 1 != 0
    }

    #[inline(always)]
    pub fn cf(&self) -> bool {
        let (res, src) = (self.res, self.src);
        match self.kind as u8 {
            1 => (res as u8) < src as u8,
            2 => (res as u16) < src as u16,
            3 => (res as u32) < src as u32,
            4 => res < src,
            5 => (res as u8).wrapping_add(src as u8) < src as u8,
            6 => (res as u16).wrapping_add(src as u16) < src as u16,
            7 => (res as u32).wrapping_add(src as u32) < src as u32,
            8 => res.wrapping_add(src) < src,
            _ => src & CF != 0,
        }
    }

    #[inline]
    pub fn of(&self) -> bool {
        self.carry_bits() & OF != 0
    }

    /// CF, AF and OF at their RFLAGS positions.
    fn carry_bits(&self) -> u64 {
        let (res, src) = (self.res, self.src);
        let kind = self.kind as u8;
        if kind as u32 == kind::EXPLICIT {
            return src;
        }
        let adds = (kind as u32) < kind::SUB;
        let sign = 8_u32 << ((kind - 1) & 3);
        let dest = if adds { res.wrapping_sub(src) } else { res.wrapping_add(src) };
        // Signed overflow: both inputs of the addition (dest + src, or res + src = dest) differ in sign from its sum.
        let overflow = if adds { (dest ^ res) & (src ^ res) } else { (dest ^ src) & (dest ^ res) };
        let of = overflow >> (sign - 1) & 1;
        self.cf() as u64 | (dest ^ src ^ res) & AF | of << 11
    }

    /// The six status flags.
    pub fn status(&self) -> Rflags {
        let mut bits = self.carry_bits();
        bits |= self.zf() as u64 * Rflags::ZF.bits();
        bits |= self.sf() as u64 * Rflags::SF.bits();
        bits |= self.pf() as u64 * Rflags::PF.bits();
        Rflags::from_bits_retain(bits)
    }

    /// The whole register.
    pub fn rflags(&self) -> Rflags {
        self.other | self.status()
    }

    /// Replaces the whole register; bit 1 stays set.
    pub fn set_rflags(&mut self, value: Rflags) {
        self.other = value - Rflags::STATUS | Rflags::FIXED;
        self.set_status(value & Rflags::STATUS);
    }
}

/// A condition of Jcc, SETcc and CMOVcc.
pub(crate) trait Condition {
    fn holds(flags: &Flags) -> bool;
    /// After `res = a - b` (CMP), without going through the flags.
    fn after_sub<T: Width>(a: T, b: T) -> bool;
    /// After `res = a & b` (TEST).
    fn after_logic<T: Width>(res: T) -> bool;
}

macro_rules! conditions {
    ($($(#[$doc:meta])* $Name:ident: |$f:ident| $flags:expr, |$a:ident, $b:ident| $sub:expr, |$r:ident| $logic:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $Name;
        impl Condition for $Name {
            #[inline(always)]
            fn holds($f: &Flags) -> bool { $flags }
            #[inline(always)]
            fn after_sub<T: Width>($a: T, $b: T) -> bool { $sub }
            #[inline(always)]
            fn after_logic<T: Width>($r: T) -> bool { let _ = $r; $logic }
        }
    )*};
}

#[inline(always)]
fn sub_overflows<T: Width>(a: T, b: T) -> bool {
    let res = a.wrapping_sub(b);
    ((a ^ b) & (a ^ res)).sign()
}
#[inline(always)]
fn parity<T: Width>(res: T) -> bool {
    (res.zero_extend() as u8).count_ones() & 1 == 0
}

conditions! {
    /// O
    O: |f| f.of(), |a, b| sub_overflows(a, b), |r| false;
    /// NO
    No: |f| !f.of(), |a, b| !sub_overflows(a, b), |r| true;
    /// B, C, NAE
    B: |f| f.cf(), |a, b| a < b, |r| false;
    /// NB, NC, AE
    Nb: |f| !f.cf(), |a, b| a >= b, |r| true;
    /// Z, E
    Z: |f| f.zf(), |a, b| a == b, |r| r == T::ZERO;
    /// NZ, NE
    Nz: |f| !f.zf(), |a, b| a != b, |r| r != T::ZERO;
    /// BE, NA
    Be: |f| f.cf() || f.zf(), |a, b| a <= b, |r| r == T::ZERO;
    /// NBE, A
    Nbe: |f| !(f.cf() || f.zf()), |a, b| a > b, |r| r != T::ZERO;
    /// S
    S: |f| f.sf(), |a, b| a.wrapping_sub(b).sign(), |r| r.sign();
    /// NS
    Ns: |f| !f.sf(), |a, b| !a.wrapping_sub(b).sign(), |r| !r.sign();
    /// P, PE
    P: |f| f.pf(), |a, b| parity(a.wrapping_sub(b)), |r| parity(r);
    /// NP, PO
    Np: |f| !f.pf(), |a, b| !parity(a.wrapping_sub(b)), |r| !parity(r);
    /// L, NGE
    L: |f| f.sf() != f.of(), |a, b| a.less_signed(b), |r| r.sign();
    /// NL, GE
    Nl: |f| f.sf() == f.of(), |a, b| !a.less_signed(b), |r| !r.sign();
    /// LE, NG
    Le: |f| f.zf() || f.sf() != f.of(), |a, b| !b.less_signed(a), |r| r.sign() || r == T::ZERO;
    /// NLE, G
    Nle: |f| !f.zf() && f.sf() == f.of(), |a, b| b.less_signed(a), |r| !(r.sign() || r == T::ZERO);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(res: u64, bits: u32, cf: bool, of: bool, af: bool) -> Rflags {
        let mask = u64::MAX >> (64 - bits);
        let mut f = Rflags::empty();
        f.set(Rflags::CF, cf);
        f.set(Rflags::OF, of);
        f.set(Rflags::AF, af);
        f.set(Rflags::ZF, res & mask == 0);
        f.set(Rflags::SF, res >> (bits - 1) & 1 == 1);
        f.set(Rflags::PF, (res as u8).count_ones().is_multiple_of(2));
        f
    }

    #[test]
    fn every_8_bit_addition_and_subtraction() {
        for a in 0..=255_u8 {
            for b in 0..=255_u8 {
                let mut f = Flags::new();
                let (sum, carry) = a.overflowing_add(b);
                let over = (a as i8).overflowing_add(b as i8).1;
                f.set_add(sum, b);
                assert_eq!(f.status(), naive(sum as u64, 8, carry, over, (a & 15) + (b & 15) > 15), "{a}+{b}");
                assert_eq!((f.cf(), f.of()), (carry, over));
                let (diff, borrow) = a.overflowing_sub(b);
                let over = (a as i8).overflowing_sub(b as i8).1;
                f.set_sub(diff, b);
                assert_eq!(f.status(), naive(diff as u64, 8, borrow, over, (a & 15) < (b & 15)), "{a}-{b}");
                macro_rules! same {
                    ($($C:ident)*) => {$( assert_eq!($C::holds(&f), $C::after_sub(a, b), "{} {a} {b}", stringify!($C)); )*};
                }
                same!(O No B Nb Z Nz Be Nbe S Ns P Np L Nl Le Nle);
                f.set_logic(a & b);
                macro_rules! same {
                    ($($C:ident)*) => {$( assert_eq!($C::holds(&f), $C::after_logic(a & b), "{} {a} {b}", stringify!($C)); )*};
                }
                same!(O No B Nb Z Nz Be Nbe S Ns P Np L Nl Le Nle);
            }
        }
    }

    #[test]
    fn wider_additions_at_the_edges() {
        let edges = [
            0,
            1,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            i64::MAX as u64,
            1 << 63,
            u64::MAX,
        ];
        for &a in &edges {
            for &b in &edges {
                macro_rules! check {
                    ($($T:ty, $S:ty;)*) => {$({
                        let (a, b) = (a as $T, b as $T);
                        let mut f = Flags::new();
                        let (r, c) = a.overflowing_add(b);
                        f.set_add(r, b);
                        let o = (a as $S).overflowing_add(b as $S).1;
                        assert_eq!(f.status(), naive(r as u64, <$T>::BITS, c, o, (a & 15) + (b & 15) > 15), "{a:#x}+{b:#x}");
                        let (r, c) = a.overflowing_sub(b);
                        f.set_sub(r, b);
                        let o = (a as $S).overflowing_sub(b as $S).1;
                        assert_eq!(f.status(), naive(r as u64, <$T>::BITS, c, o, (a & 15) < (b & 15)), "{a:#x}-{b:#x}");
                    })*};
                }
                check!(u16, i16; u32, i32; u64, i64;);
            }
        }
    }

    #[test]
    fn all_64_status_combinations_survive() {
        for n in 0..64_u64 {
            let bits = n & 1
                | (n >> 1 & 1) << 2
                | (n >> 2 & 1) << 4
                | (n >> 3 & 1) << 6
                | (n >> 4 & 1) << 7
                | (n >> 5 & 1) << 11;
            let want = Rflags::from_bits_retain(bits);
            let mut f = Flags::new();
            f.set_rflags(want | Rflags::IF);
            assert_eq!(f.rflags(), want | Rflags::IF | Rflags::FIXED);
            for cf in [false, true] {
                let mut g = f.clone();
                g.set_cf(cf);
                let mut expect = want;
                expect.set(Rflags::CF, cf);
                assert_eq!(g.status(), expect);
                g.set_zf(cf);
                expect.set(Rflags::ZF, cf);
                assert_eq!(g.status(), expect);
            }
        }
    }
}
