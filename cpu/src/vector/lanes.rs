//! The value that vector instructions work on, and its view as lanes (Intel SDM volume 1, "Packed Data Types").
//!
//! [`V128`] keeps its bytes in memory order, lane 0 first, each lane little-endian. [`Lane`] is the view as lanes
//! of one integer type; [`Lane::zip`] and [`Lane::map`] are the loops that nearly every instruction consists of.

use core::array;
use core::fmt;
use core::ops::{BitAnd, BitOr, BitXor, Not};

/// An XMM register, one 128-bit lane of a YMM register, or an MMX register zero-extended.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(16))]
pub struct V128([u8; 16]);

/// A YMM register: the low 128-bit lane, then the high one.
pub type V256 = [V128; 2];

impl V128 {
    /// All bits clear.
    pub const ZERO: V128 = V128([0; 16]);
    /// All bits set.
    pub const ONES: V128 = V128([0xff; 16]);

    /// The value whose bytes in memory are `bytes`.
    #[inline]
    pub const fn from_bytes(bytes: [u8; 16]) -> V128 {
        V128(bytes)
    }

    /// The bytes in memory order.
    #[inline]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// The bytes in memory order, borrowed.
    #[inline]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The bytes in memory order, to be written in place.
    #[inline]
    pub const fn as_bytes_mut(&mut self) -> &mut [u8; 16] {
        &mut self.0
    }

    /// `low` in the low 64 bits, the rest clear: an MMX register, or a MOVQ.
    #[inline]
    pub fn from_low(low: u64) -> V128 {
        <u64 as Lane>::join([low, 0])
    }

    /// The low 64 bits: also the count operand of a shift, and an MMX result.
    #[inline]
    pub fn low(self) -> u64 {
        <u64 as Lane>::split(self)[0]
    }

    /// The high 64 bits.
    #[inline]
    pub fn high(self) -> u64 {
        <u64 as Lane>::split(self)[1]
    }

    /// The value of a 128-bit integer.
    #[inline]
    pub const fn from_u128(value: u128) -> V128 {
        V128(value.to_le_bytes())
    }

    /// The bits as one 128-bit integer.
    #[inline]
    pub const fn to_u128(self) -> u128 {
        u128::from_le_bytes(self.0)
    }
}

impl fmt::Debug for V128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "V128({:#034x})", self.to_u128())
    }
}

impl From<u128> for V128 {
    #[inline]
    fn from(value: u128) -> V128 {
        V128::from_u128(value)
    }
}

impl From<V128> for u128 {
    #[inline]
    fn from(value: V128) -> u128 {
        value.to_u128()
    }
}

impl BitAnd for V128 {
    type Output = V128;
    #[inline]
    fn bitand(self, other: V128) -> V128 {
        <u8 as Lane>::zip(self, other, |x, y| x & y)
    }
}

impl BitOr for V128 {
    type Output = V128;
    #[inline]
    fn bitor(self, other: V128) -> V128 {
        <u8 as Lane>::zip(self, other, |x, y| x | y)
    }
}

impl BitXor for V128 {
    type Output = V128;
    #[inline]
    fn bitxor(self, other: V128) -> V128 {
        <u8 as Lane>::zip(self, other, |x, y| x ^ y)
    }
}

impl Not for V128 {
    type Output = V128;
    #[inline]
    fn not(self) -> V128 {
        <u8 as Lane>::map(self, |x| !x)
    }
}

/// An integer type as the element of a [`V128`]. Implemented for the eight integer types of 8 to 64 bits.
pub trait Lane: Copy {
    /// The lanes, lane 0 first.
    type Lanes: Copy + AsRef<[Self]>;

    /// The lanes of `v`.
    fn split(v: V128) -> Self::Lanes;

    /// The value that has these lanes.
    fn join(lanes: Self::Lanes) -> V128;

    /// The value that has lane `i` equal to `f(i)`.
    fn build(f: impl FnMut(usize) -> Self) -> V128;

    /// `f` of each lane.
    fn map(a: V128, f: impl Fn(Self) -> Self) -> V128;

    /// `f` of each pair of lanes.
    fn zip(a: V128, b: V128, f: impl Fn(Self, Self) -> Self) -> V128;

    /// This value in every lane.
    fn splat(self) -> V128;
}

macro_rules! lane {
    ($($t:ty),*) => {$(
        impl Lane for $t {
            type Lanes = [$t; 16 / size_of::<$t>()];

            #[inline]
            fn split(v: V128) -> Self::Lanes {
                const SIZE: usize = size_of::<$t>();
                let mut lanes = [0; 16 / SIZE];
                for (lane, bytes) in lanes.iter_mut().zip(v.0.as_chunks::<SIZE>().0) {
                    *lane = <$t>::from_le_bytes(*bytes);
                }
                lanes
            }

            #[inline]
            fn join(lanes: Self::Lanes) -> V128 {
                const SIZE: usize = size_of::<$t>();
                let mut v = [0; 16];
                for (bytes, lane) in v.as_chunks_mut::<SIZE>().0.iter_mut().zip(lanes) {
                    *bytes = lane.to_le_bytes();
                }
                V128(v)
            }

            #[inline]
            fn build(f: impl FnMut(usize) -> Self) -> V128 {
                Self::join(array::from_fn(f))
            }

            #[inline]
            fn map(a: V128, f: impl Fn(Self) -> Self) -> V128 {
                let mut lanes = Self::split(a);
                for lane in &mut lanes {
                    *lane = f(*lane);
                }
                Self::join(lanes)
            }

            #[inline]
            fn zip(a: V128, b: V128, f: impl Fn(Self, Self) -> Self) -> V128 {
                let mut lanes = Self::split(a);
                for (x, y) in lanes.iter_mut().zip(Self::split(b)) {
                    *x = f(*x, y);
                }
                Self::join(lanes)
            }

            #[inline]
            fn splat(self) -> V128 {
                Self::join([self; 16 / size_of::<$t>()])
            }
        }
    )*};
}

lane!(u8, i8, u16, i16, u32, i32, u64, i64);

/// The AVX2 form of a function that does not cross lanes.
#[inline]
#[cfg(test)]
pub fn per_lane(a: V256, b: V256, f: impl Fn(V128, V128) -> V128) -> V256 {
    [f(a[0], b[0]), f(a[1], b[1])]
}

/// The MMX form of a function whose low 64 result bits depend only on the low 64 bits of its operands.
#[inline]
#[cfg(test)]
pub fn per_mmx(a: u64, b: u64, f: impl Fn(V128, V128) -> V128) -> u64 {
    f(V128::from_low(a), V128::from_low(b)).low()
}

/// Defines lane-wise instructions: the name, the lane type, and the function of one lane or of a pair of lanes.
macro_rules! lanewise {
    ($($(#[$doc:meta])* $name:ident: $t:ty = |$x:ident, $y:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128, b: V128) -> V128 {
            <$t as Lane>::zip(a, b, |$x: $t, $y: $t| -> $t { $body })
        }
    )*};
    ($($(#[$doc:meta])* $name:ident: $t:ty = |$x:ident| $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128) -> V128 {
            <$t as Lane>::map(a, |$x: $t| -> $t { $body })
        }
    )*};
}
pub(super) use lanewise;

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: V128 = V128::from_u128(0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100);

    #[test]
    fn lanes_are_little_endian_and_lane_0_is_lowest() {
        assert_eq!(<u8 as Lane>::split(SAMPLE)[3], 3);
        assert_eq!(<u16 as Lane>::split(SAMPLE)[1], 0x0302);
        assert_eq!(<u32 as Lane>::split(SAMPLE)[3], 0x0f0e_0d0c);
        assert_eq!(<u64 as Lane>::split(SAMPLE), [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]);
        assert_eq!((SAMPLE.low(), SAMPLE.high()), (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908));
    }

    #[test]
    fn join_undoes_split() {
        assert_eq!(<u16 as Lane>::join(<u16 as Lane>::split(SAMPLE)), SAMPLE);
        assert_eq!(<i32 as Lane>::join(<i32 as Lane>::split(SAMPLE)), SAMPLE);
        assert_eq!(<i64 as Lane>::join(<i64 as Lane>::split(SAMPLE)), SAMPLE);
        assert_eq!(V128::from(u128::from(SAMPLE)), SAMPLE);
    }

    #[test]
    fn build_and_splat() {
        assert_eq!(<u8 as Lane>::build(|i| i as u8), SAMPLE);
        assert_eq!(0x0102_u16.splat(), V128::from_u128(0x0102_0102_0102_0102_0102_0102_0102_0102));
    }

    #[test]
    fn debug_shows_the_register() {
        assert_eq!(format!("{:?}", V128::from_low(0xab)), "V128(0x000000000000000000000000000000ab)");
    }
}
