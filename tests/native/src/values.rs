//! Operand values: the boundaries of each type, mixed with random ones.
//!
//! Source of the special encodings: IEEE 754; APM vol. 1, "x87 Floating-Point Programming", "Data Types".

use crate::rng::SplitMix;

const F32: [u32; 16] = [
    0x0000_0000, // 0
    0x3f80_0000, // 1
    0x7f7f_ffff, // largest
    0x0080_0000, // smallest normal
    0x007f_ffff, // largest denormal
    0x0000_0001, // smallest denormal
    0x7f80_0000, // infinity
    0x7fc0_0000, // quiet NaN
    0x7fa1_2345, // signalling NaN
    0x7fd5_4321, // quiet NaN with a payload
    0x3f00_0000, // 0.5
    0x3f80_0001, // 1 and a bit
    0x4b00_0000, // 2^23
    0x4eff_ffff, // just below 2^31
    0x4f00_0000, // 2^31
    0x5f00_0000, // 2^63
];

const F64: [u64; 16] = [
    0x0000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x000f_ffff_ffff_ffff,
    0x0000_0000_0000_0001,
    0x7ff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff4_0123_4567_89ab,
    0x7ffa_ba98_7654_3210,
    0x3fe0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x4330_0000_0000_0000, // 2^52
    0x41df_ffff_ffc0_0000, // 2^31 - 1
    0x43e0_0000_0000_0000, // 2^63
    0x36a0_0000_0000_0000, // 2^-149, the smallest single denormal
];

/// Exponent and significand of the kinds of extended-precision numbers.
const F80: [(u16, u64); 18] = [
    (0x0000, 0x0000_0000_0000_0000), // 0
    (0x3fff, 0x8000_0000_0000_0000), // 1
    (0x7ffe, 0xffff_ffff_ffff_ffff), // largest
    (0x0001, 0x8000_0000_0000_0000), // smallest normal
    (0x0000, 0x7fff_ffff_ffff_ffff), // largest denormal
    (0x0000, 0x0000_0000_0000_0001), // smallest denormal
    (0x0000, 0x8000_0000_0000_0000), // pseudo-denormal
    (0x7fff, 0x8000_0000_0000_0000), // infinity
    (0x7fff, 0xc000_0000_0000_0000), // quiet NaN
    (0x7fff, 0xa000_0000_0000_0001), // signalling NaN
    (0x7fff, 0x0000_0000_0000_0000), // pseudo-infinity
    (0x7fff, 0x4000_0000_0000_0001), // pseudo-NaN
    (0x4000, 0x4000_0000_0000_0000), // unnormal
    (0x3ffe, 0x8000_0000_0000_0000), // 0.5
    (0x401e, 0x8000_0000_0000_0000), // 2^31
    (0x403e, 0x8000_0000_0000_0000), // 2^63
    (0x3f80, 0x8000_0080_0000_0000), // rounds to a single denormal or halfway
    (0x3fff, 0xffff_ffff_ffff_fbff), // just below a rounding point of double
];

/// A 64-bit integer whose low 8, 16 and 32 bits are boundary values as well, as often as not.
pub fn integer(rng: &mut SplitMix) -> u64 {
    match rng.below(8) {
        0 => rng.pick(&[0, 1, u64::MAX, 2, 0x7f, 0x80, 0xff]),
        1 => {
            let width = rng.pick(&[8, 16, 32, 64]);
            let top = 1u64 << (width - 1);
            rng.pick(&[top, top - 1, top + 1, top.wrapping_mul(2).wrapping_sub(1)])
        }
        2 => (1u64 << rng.below(64)).wrapping_add(rng.pick(&[0, 1, u64::MAX])),
        3 => !(1u64 << rng.below(64)),
        4 => rng.below(256),
        5 => (rng.next_u64() as i8) as u64,
        6 => rng.next_u64() >> rng.below(64),
        _ => rng.next_u64(),
    }
}

/// A single-precision number.
pub fn f32_bits(rng: &mut SplitMix) -> u32 {
    let sign = (rng.next_u64() as u32) & 0x8000_0000;
    sign ^ match rng.below(4) {
        0 | 1 => rng.pick(&F32),
        // Near 1, where operations round rather than overflow.
        2 => 0x3f80_0000 ^ (rng.next_u64() as u32 & 0x03ff_ffff),
        _ => rng.next_u64() as u32,
    }
}

/// A double-precision number.
pub fn f64_bits(rng: &mut SplitMix) -> u64 {
    let sign = rng.next_u64() & 1 << 63;
    sign ^ match rng.below(4) {
        0 | 1 => rng.pick(&F64),
        2 => 0x3ff0_0000_0000_0000 ^ (rng.next_u64() & 0x007f_ffff_ffff_ffff),
        _ => rng.next_u64(),
    }
}

/// An extended-precision number, also of the kinds that no operation makes.
pub fn f80(rng: &mut SplitMix) -> [u8; 10] {
    let sign = (rng.next_u64() as u16) & 0x8000;
    let (exponent, significand) = match rng.below(4) {
        0 | 1 => rng.pick(&F80),
        2 => (0x3fff ^ rng.below(64) as u16, rng.next_u64() | 1 << 63),
        _ => (rng.next_u64() as u16 & 0x7fff, rng.next_u64() | 1 << 63),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&significand.to_le_bytes());
    bytes[8..].copy_from_slice(&(exponent | sign).to_le_bytes());
    bytes
}

/// What a vector register or a memory operand holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Integers of any width.
    Integer,
    /// Single precision.
    Single,
    /// Double precision.
    Double,
    /// Extended precision.
    Extended,
    /// No structure.
    Random,
}

impl Style {
    /// One of those that fit a vector.
    pub fn vector(rng: &mut SplitMix) -> Style {
        rng.pick(&[Style::Integer, Style::Single, Style::Double, Style::Random])
    }

    /// 32 bytes in this style.
    pub fn bytes(self, rng: &mut SplitMix) -> [u8; 32] {
        let mut bytes = [0; 32];
        match self {
            Style::Single => {
                bytes.chunks_exact_mut(4).for_each(|to| to.copy_from_slice(&f32_bits(rng).to_le_bytes()));
            }
            Style::Double => {
                bytes.chunks_exact_mut(8).for_each(|to| to.copy_from_slice(&f64_bits(rng).to_le_bytes()));
            }
            Style::Extended => bytes.chunks_mut(10).for_each(|to| to.copy_from_slice(&f80(rng)[..to.len()])),
            Style::Random => {
                bytes.chunks_exact_mut(8).for_each(|to| to.copy_from_slice(&rng.next_u64().to_le_bytes()));
            }
            Style::Integer => {
                let width = rng.pick(&[1, 2, 4, 8]);
                bytes.chunks_exact_mut(width).for_each(|to| to.copy_from_slice(&integer(rng).to_le_bytes()[..width]));
            }
        }
        bytes
    }

    /// A vector in this style.
    pub fn vec(self, rng: &mut SplitMix) -> [u64; 4] {
        let bytes = self.bytes(rng);
        let mut lanes = [0; 4];
        for (lane, chunk) in lanes.iter_mut().zip(bytes.chunks_exact(8)) {
            *lane = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        lanes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_drawn() {
        let mut rng = SplitMix::new(1);
        let mut draws: Vec<u64> = (0..4096).map(|_| integer(&mut rng)).collect();
        draws.sort_unstable();
        for wanted in [0, 1, u64::MAX, 0x80, i64::MIN as u64, i64::MAX as u64, 0xffff_ffff] {
            assert!(draws.binary_search(&wanted).is_ok(), "{wanted:#x}");
        }
        assert!((0..256).any(|_| f80(&mut rng)[9] & 0x7f == 0x7f));
    }
}
