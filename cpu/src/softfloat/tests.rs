//! Judges of the soft float: an independent implementation, the host's arithmetic, and vectors taken from processors
//! and from multiple-precision arithmetic.

mod apfloat;
mod host;
mod responses;
mod x87;

use super::{F80, Flags, Rounding};

/// All rounding controls.
const ROUNDINGS: [Rounding; 4] = [Rounding::Nearest, Rounding::Down, Rounding::Up, Rounding::Zero];

/// A generator of operands: splitmix64, so that a failure repeats.
struct Operands(u64);

impl Operands {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An encoding with `exponent_bits` and `fraction_bits`, its exponent often near that of `near` or at an extreme,
    /// its fraction often of few or of nearly all ones.
    fn ieee(&mut self, exponent_bits: u32, fraction_bits: u32, near: u64) -> u64 {
        let ones = (1u64 << fraction_bits) - 1;
        let choice = self.next();
        let fraction = match choice & 7 {
            0 => 0,
            1 => ones,
            2 => 1 << (self.next() % u64::from(fraction_bits)),
            3 => ones ^ (1 << (self.next() % u64::from(fraction_bits))),
            4 => self.next() & self.next() & self.next() & ones,
            _ => self.next() & ones,
        };
        let top = (1u64 << exponent_bits) - 1;
        let exponent = match choice >> 3 & 15 {
            0 | 1 => 0,
            2 => top,
            3 => 1,
            4 => top - 1,
            5..=10 => (near >> fraction_bits).wrapping_add(self.next() % 5).wrapping_sub(2) & top,
            11 => (top / 2 + self.next() % 70) & top,
            12 => (top / 2).wrapping_sub(self.next() % 70) & top,
            _ => self.next() & top,
        };
        (choice >> 63) << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction
    }

    fn f16(&mut self, near: u16) -> u16 {
        self.ieee(5, 10, u64::from(near)) as u16
    }

    fn f32(&mut self, near: u32) -> u32 {
        self.ieee(8, 23, u64::from(near)) as u32
    }

    fn f64(&mut self, near: u64) -> u64 {
        self.ieee(11, 52, near)
    }

    /// An 80-bit value in canonical encoding.
    fn f80(&mut self, near: F80) -> F80 {
        let high = self.ieee(15, 30, u64::from(near.sign_exp) << 30);
        let low = match self.next() & 3 {
            0 => 0,
            1 => (1 << 33) - 1,
            _ => self.next() >> 31,
        };
        let sign_exp = (high >> 30) as u16;
        let fraction = (high & ((1 << 30) - 1)) << 33 | low;
        let integer = u64::from(sign_exp & 0x7fff != 0);
        F80::new(sign_exp, integer << 63 | fraction)
    }
}

/// The flags without C1 and DE.
fn arithmetic(flags: Flags) -> Flags {
    flags & (Flags::EXCEPTIONS - Flags::DE)
}
