//! The host's own arithmetic, for the operations on which it cannot differ from the exact path.
//!
//! With rounding to nearest, PE already sticky and masked, operands that are normal or zero, and a result that is
//! normal and not next to the underflow threshold, an operation can neither set a flag that is not set already nor
//! depend on DAZ, FTZ or a NaN rule. Plain Rust arithmetic, which rounds to nearest on every host, is then the answer.
//! In all other cases the helpers answer `None` and the caller takes the exact path.

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

macro_rules! fast_ops {
    ($bits:ty, $float:ty, $fraction:expr, $max:expr, $admit:ident, $normal:ident,
     $add:ident, $sub:ident, $mul:ident, $div:ident, $sqrt:ident) => {
        /// Not denormal: the subtraction wraps zero to the top.
        #[inline(always)]
        fn $admit(bits: $bits) -> bool {
            (bits << 1).wrapping_sub(1) >= (1 << ($fraction + 1)) - 1
        }

        /// Normal and not in the lowest binade, into which a tiny result may have been rounded.
        #[inline(always)]
        fn $normal(bits: $bits) -> bool {
            (bits << 1).wrapping_sub(2 << ($fraction + 1)) < ($max - 2) << ($fraction + 1)
        }

        /// `a + b`, if the fast path applies.
        #[inline(always)]
        pub fn $add(a: $bits, b: $bits, mode: FastMode) -> Option<$bits> {
            let result = (<$float>::from_bits(a) + <$float>::from_bits(b)).to_bits();
            let sound = $normal(result) || result << 1 == 0;
            (mode.0 && sound && $admit(a) && $admit(b)).then_some(result)
        }

        /// `a - b`, if the fast path applies.
        #[inline(always)]
        pub fn $sub(a: $bits, b: $bits, mode: FastMode) -> Option<$bits> {
            let result = (<$float>::from_bits(a) - <$float>::from_bits(b)).to_bits();
            let sound = $normal(result) || result << 1 == 0;
            (mode.0 && sound && $admit(a) && $admit(b)).then_some(result)
        }

        /// `a * b`, if the fast path applies.
        #[inline(always)]
        pub fn $mul(a: $bits, b: $bits, mode: FastMode) -> Option<$bits> {
            let result = (<$float>::from_bits(a) * <$float>::from_bits(b)).to_bits();
            let exact_zero = result << 1 == 0 && (a << 1 == 0 || b << 1 == 0);
            (mode.0 && ($normal(result) || exact_zero) && $admit(a) && $admit(b)).then_some(result)
        }

        /// `a / b`, if the fast path applies.
        #[inline(always)]
        pub fn $div(a: $bits, b: $bits, mode: FastMode) -> Option<$bits> {
            let result = (<$float>::from_bits(a) / <$float>::from_bits(b)).to_bits();
            (mode.0 && $normal(result) && $admit(a) && $admit(b)).then_some(result)
        }

        /// The square root of `a`, if the fast path applies.
        #[inline(always)]
        pub fn $sqrt(a: $bits, mode: FastMode) -> Option<$bits> {
            let result = <$float>::from_bits(a).sqrt().to_bits();
            (mode.0 && $normal(result) && $admit(a)).then_some(result)
        }
    };
}

fast_ops!(u32, f32, 23, 0xff, admit_f32, normal_f32, add_f32, sub_f32, mul_f32, div_f32, sqrt_f32);
fast_ops!(u64, f64, 52, 0x7ff, admit_f64, normal_f64, add_f64, sub_f64, mul_f64, div_f64, sqrt_f64);
