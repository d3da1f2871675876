//! Sign and zero extension (Intel SDM volume 2, PMOVSX, PMOVZX).
//!
//! The 128-bit forms read only the low 8, 4 or 2 bytes of their operand, so a memory operand of that size may be
//! given zero-extended. The VEX.256 forms read twice as much of one XMM register or memory operand.

use super::shift::psrldq;
use super::{Lane, V128, V256};

/// Defines an extension and its 256-bit form.
macro_rules! extend {
    ($($(#[$doc:meta])* $name:ident, $wide_name:ident: $from:ty => $to:ty;)*) => {$(
        $(#[$doc])*
        #[inline]
        pub fn $name(a: V128) -> V128 {
            let (from, mut result) = (<$from as Lane>::split(a), <$to as Lane>::split(V128::ZERO));
            for (lane, x) in result.iter_mut().zip(from) {
                *lane = x.into();
            }
            <$to as Lane>::join(result)
        }

        #[doc = concat!("The VEX.256 form of [`", stringify!($name), "`].")]
        #[inline]
        pub fn $wide_name(a: V128) -> V256 {
            const USED: u8 = (16 * size_of::<$from>() / size_of::<$to>()) as u8;
            [$name(a), $name(psrldq(a, USED))]
        }
    )*};
}

extend! {
    /// PMOVSXBW: 8 signed bytes to words.
    pmovsxbw, vpmovsxbw: i8 => i16;
    /// PMOVSXBD: 4 signed bytes to doublewords.
    pmovsxbd, vpmovsxbd: i8 => i32;
    /// PMOVSXBQ: 2 signed bytes to quadwords.
    pmovsxbq, vpmovsxbq: i8 => i64;
    /// PMOVSXWD: 4 signed words to doublewords.
    pmovsxwd, vpmovsxwd: i16 => i32;
    /// PMOVSXWQ: 2 signed words to quadwords.
    pmovsxwq, vpmovsxwq: i16 => i64;
    /// PMOVSXDQ: 2 signed doublewords to quadwords.
    pmovsxdq, vpmovsxdq: i32 => i64;
    /// PMOVZXBW: 8 unsigned bytes to words.
    pmovzxbw, vpmovzxbw: u8 => u16;
    /// PMOVZXBD: 4 unsigned bytes to doublewords.
    pmovzxbd, vpmovzxbd: u8 => u32;
    /// PMOVZXBQ: 2 unsigned bytes to quadwords.
    pmovzxbq, vpmovzxbq: u8 => u64;
    /// PMOVZXWD: 4 unsigned words to doublewords.
    pmovzxwd, vpmovzxwd: u16 => u32;
    /// PMOVZXWQ: 2 unsigned words to quadwords.
    pmovzxwq, vpmovzxwq: u16 => u64;
    /// PMOVZXDQ: 2 unsigned doublewords to quadwords.
    pmovzxdq, vpmovzxdq: u32 => u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: V128 = V128::from_u128(0x8f8e_8d8c_8b8a_8988_8786_8584_8382_8180);

    #[test]
    fn sign_extension() {
        assert_eq!(pmovsxbw(A), V128::from_u128(0xff87_ff86_ff85_ff84_ff83_ff82_ff81_ff80));
        assert_eq!(pmovsxbd(A), V128::from_u128(0xffff_ff83_ffff_ff82_ffff_ff81_ffff_ff80));
        assert_eq!(pmovsxbq(A), <i64 as Lane>::join([-128, -127]));
        assert_eq!(pmovsxwd(A), V128::from_u128(0xffff_8786_ffff_8584_ffff_8382_ffff_8180));
        assert_eq!(pmovsxwq(A), <u64 as Lane>::join([0xffff_ffff_ffff_8180, 0xffff_ffff_ffff_8382]));
        assert_eq!(pmovsxdq(A), <u64 as Lane>::join([0xffff_ffff_8382_8180, 0xffff_ffff_8786_8584]));
        assert_eq!(pmovsxbw(0x7f_u8.splat()), 0x7f_u16.splat());
    }

    #[test]
    fn zero_extension() {
        assert_eq!(pmovzxbw(A), V128::from_u128(0x0087_0086_0085_0084_0083_0082_0081_0080));
        assert_eq!(pmovzxbd(A), V128::from_u128(0x0000_0083_0000_0082_0000_0081_0000_0080));
        assert_eq!(pmovzxbq(A), <u64 as Lane>::join([0x80, 0x81]));
        assert_eq!(pmovzxwd(A), V128::from_u128(0x0000_8786_0000_8584_0000_8382_0000_8180));
        assert_eq!(pmovzxwq(A), <u64 as Lane>::join([0x8180, 0x8382]));
        assert_eq!(pmovzxdq(A), <u64 as Lane>::join([0x8382_8180, 0x8786_8584]));
    }

    #[test]
    fn the_wide_form_goes_on_where_the_low_lane_ended() {
        assert_eq!(vpmovzxbw(A)[1], V128::from_u128(0x008f_008e_008d_008c_008b_008a_0089_0088));
        assert_eq!(vpmovsxbd(A)[1], V128::from_u128(0xffff_ff87_ffff_ff86_ffff_ff85_ffff_ff84));
        assert_eq!(vpmovzxbq(A)[1], <u64 as Lane>::join([0x82, 0x83]));
        assert_eq!(vpmovzxwd(A)[1], V128::from_u128(0x0000_8f8e_0000_8d8c_0000_8b8a_0000_8988));
        assert_eq!(vpmovsxwq(A)[1], <u64 as Lane>::join([0xffff_ffff_ffff_8584, 0xffff_ffff_ffff_8786]));
        assert_eq!(vpmovzxdq(A)[1], <u64 as Lane>::join([0x8b8a_8988, 0x8f8e_8d8c]));
    }
}
