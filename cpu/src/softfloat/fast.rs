//! The host's own arithmetic, for the operations on which it cannot differ from the exact path.
//!
//! With rounding to nearest, PE already sticky and masked, operands that are normal or zero, and a result that is
//! normal and not next to the underflow threshold, an operation can neither set a flag that is not set already nor
//! depend on DAZ, FTZ or a NaN rule. Plain Rust arithmetic, which rounds to nearest on every host, is then the answer.
//! In all other cases the helpers express doubt, or [`FastMode`] forbids, and the caller takes the exact path.

/// Permission for the fast path, computed once per change of MXCSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastMode(bool);

impl FastMode {
    /// From MXCSR: round to nearest, PE sticky and masked. The other masks do not matter, because the other exceptions
    /// cannot arise from the values that the fast path admits.
    #[inline(always)]
    pub const fn from_mxcsr(mxcsr: u32) -> Self {
        const RC: u32 = 3 << 13;
        const PM: u32 = 1 << 12;
        const PE: u32 = 1 << 5;
        Self(mxcsr & (RC | PM | PE) == PM | PE)
    }

    /// Whether the fast path may be taken at all.
    #[inline(always)]
    pub const fn allowed(self) -> bool {
        self.0
    }
}

/// What the host's arithmetic says, and whether that may be taken: the sign bit of `doubt` says no. A sign bit, because
/// doubts about several elements are joined by OR, and without a branch among them the compiler can treat the
/// elements together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guess<B> {
    /// The result, unless there is doubt.
    pub value: B,
    /// Its sign bit.
    pub doubt: B,
}

macro_rules! fast_ops {
    ($bits:ty, $float:ty, $fraction:expr, $max:expr, $denormal:ident, $unfit:ident,
     $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident, $min:ident, $max_of:ident) => {
        /// The sign bit if `magnitude`, without its sign, is denormal: below the least normal number, and not zero.
        #[inline(always)]
        fn $denormal(magnitude: $bits) -> $bits {
            const LEAST: $bits = 1 << $fraction;
            magnitude.wrapping_sub(LEAST) & (0 as $bits).wrapping_sub(magnitude)
        }

        /// The sign bit if a result of this magnitude is neither zero nor normal, or in the lowest binade, into which
        /// a tiny result may have been rounded.
        #[inline(always)]
        fn $unfit(magnitude: $bits) -> $bits {
            const LEAST: $bits = 2 << $fraction;
            const INFINITY: $bits = $max << $fraction;
            magnitude.wrapping_sub(LEAST) & (0 as $bits).wrapping_sub(magnitude)
                | (INFINITY - 1).wrapping_sub(magnitude)
        }

        /// `a + b`
        #[inline(always)]
        pub fn $add(a: $bits, b: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            let value = (<$float>::from_bits(a) + <$float>::from_bits(b)).to_bits();
            Guess { value, doubt: $unfit(value & ABS) | $denormal(a & ABS) | $denormal(b & ABS) }
        }

        /// `a - b`
        #[inline(always)]
        pub fn $sub(a: $bits, b: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            let value = (<$float>::from_bits(a) - <$float>::from_bits(b)).to_bits();
            Guess { value, doubt: $unfit(value & ABS) | $denormal(a & ABS) | $denormal(b & ABS) }
        }

        /// `a * b`. Of products that are zero those with a factor of zero are certain.
        #[inline(always)]
        pub fn $mul(a: $bits, b: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            let value = (<$float>::from_bits(a) * <$float>::from_bits(b)).to_bits();
            let (a, b, product) = (a & ABS, b & ABS, value & ABS);
            let vanished = product.wrapping_sub(1) & (0 as $bits).wrapping_sub(a) & (0 as $bits).wrapping_sub(b);
            Guess { value, doubt: $unfit(product) | $denormal(a) | $denormal(b) | vanished }
        }

        /// `a / b`
        #[inline(always)]
        pub fn $div(a: $bits, b: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            let value = (<$float>::from_bits(a) / <$float>::from_bits(b)).to_bits();
            let quotient = value & ABS;
            let doubt = $unfit(quotient) | quotient.wrapping_sub(1) | $denormal(a & ABS) | $denormal(b & ABS);
            Guess { value, doubt }
        }

        /// The square root of `a`
        #[inline(always)]
        pub fn $sqrt(a: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            let value = <$float>::from_bits(a).sqrt().to_bits();
            let root = value & ABS;
            Guess { value, doubt: $unfit(root) | root.wrapping_sub(1) | $denormal(a & ABS) }
        }

        /// `a` if it is less, else `b`; whatever MXCSR says, because nothing is rounded.
        #[inline(always)]
        pub fn $min(a: $bits, b: $bits) -> Guess<$bits> {
            const ABS: $bits = <$bits>::MAX >> 1;
            const INFINITY: $bits = $max << $fraction;
            let value = if <$float>::from_bits(a) < <$float>::from_bits(b) { a } else { b };
            let (a, b) = (a & ABS, b & ABS);
            let special = (INFINITY - 1).wrapping_sub(a) | (INFINITY - 1).wrapping_sub(b);
            Guess { value, doubt: special | $denormal(a) | $denormal(b) }
        }

        /// `a` if it is greater, else `b`.
        #[inline(always)]
        pub fn $max_of(a: $bits, b: $bits) -> Guess<$bits> {
            let value = if <$float>::from_bits(a) > <$float>::from_bits(b) { a } else { b };
            Guess { value, doubt: $min(a, b).doubt }
        }
    };
}

fast_ops!(u32, f32, 23, 0xff, denormal_f32, unfit_f32, add_f32, sub_f32, mul_f32, div_f32, sqrt_f32, min_f32, max_f32);
fast_ops!(u64, f64, 52, 0x7ff, denormal_f64, unfit_f64, add_f64, sub_f64, mul_f64, div_f64, sqrt_f64, min_f64, max_f64);
