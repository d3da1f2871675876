//! Operand widths as a type parameter: u8, u16, u32, u64.

use core::ops::{BitAnd, BitOr, BitXor, Not, Shl, Shr};

use emu_core::memory::Scalar;

/// An integer operand.
pub(crate) trait Width:
    Scalar
    + Ord
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Not<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
    + core::fmt::Debug
{
    const BITS: u32;
    /// log2 of the size in bytes.
    const LOG: u32;
    const BYTES: u64 = 1 << Self::LOG;
    const ZERO: Self;
    const ONE: Self;
    /// The type of twice the width, as raw material for multiplication and division.
    fn truncate(value: u64) -> Self;
    fn zero_extend(self) -> u64;
    fn sign_extend(self) -> u64;
    fn wrapping_add(self, other: Self) -> Self;
    fn wrapping_sub(self, other: Self) -> Self;
    fn sign(self) -> bool;
    fn less_signed(self, other: Self) -> bool;
    /// What a register holds after this value is written to its low part: 32-bit writes clear the upper half.
    fn merge(self, old: u64) -> u64;
}

macro_rules! widths {
    ($($T:ty, $S:ty, $log:literal, |$v:ident, $old:ident| $merge:expr;)*) => {$(
        impl Width for $T {
            const BITS: u32 = <$T>::BITS;
            const LOG: u32 = $log;
            const ZERO: $T = 0;
            const ONE: $T = 1;
            #[inline(always)]
            fn truncate(value: u64) -> $T { value as $T }
            #[inline(always)]
            fn zero_extend(self) -> u64 { self as u64 }
            #[inline(always)]
            fn sign_extend(self) -> u64 { self as $S as i64 as u64 }
            #[inline(always)]
            fn wrapping_add(self, other: $T) -> $T { <$T>::wrapping_add(self, other) }
            #[inline(always)]
            fn wrapping_sub(self, other: $T) -> $T { <$T>::wrapping_sub(self, other) }
            #[inline(always)]
            fn sign(self) -> bool { (self as $S) < 0 }
            #[inline(always)]
            fn less_signed(self, other: $T) -> bool { (self as $S) < other as $S }
            #[inline(always)]
            fn merge(self, $old: u64) -> u64 { let $v = self; $merge }
        }
    )*};
}

widths! {
    u8, i8, 0, |v, old| old & !0xff | v as u64;
    u16, i16, 1, |v, old| old & !0xffff | v as u64;
    u32, i32, 2, |v, old| { let _ = old; v as u64 };
    u64, i64, 3, |v, old| { let _ = old; v };
}
