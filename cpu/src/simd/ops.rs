//! The instructions as types: which function of [`crate::vector`] each one is.

use crate::simd::form::Lanewise;
use crate::simd::packed::{Count, Crossing, Ternary};
use crate::vector::{
    V128, V256, aes, arith, blend, clmul, compare, extend, horizontal, logic, pack, permute, sha, shift, shuffle,
};

/// Instructions with two sources.
macro_rules! binary {
    ($($Name:ident = $function:path;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Lanewise for $Name {
            #[inline(always)]
            fn eval(a: V128, b: V128, _imm: u8) -> V128 {
                $function(a, b)
            }
        }
    )*};
}

binary! {
    Paddb = arith::paddb;
    Paddw = arith::paddw;
    Paddd = arith::paddd;
    Paddq = arith::paddq;
    Psubb = arith::psubb;
    Psubw = arith::psubw;
    Psubd = arith::psubd;
    Psubq = arith::psubq;
    Paddsb = arith::paddsb;
    Paddsw = arith::paddsw;
    Paddusb = arith::paddusb;
    Paddusw = arith::paddusw;
    Psubsb = arith::psubsb;
    Psubsw = arith::psubsw;
    Psubusb = arith::psubusb;
    Psubusw = arith::psubusw;
    Pmullw = arith::pmullw;
    Pmulhw = arith::pmulhw;
    Pmulhuw = arith::pmulhuw;
    Pmulhrsw = arith::pmulhrsw;
    Pmulld = arith::pmulld;
    Pmuludq = arith::pmuludq;
    Pmuldq = arith::pmuldq;
    Pmaddwd = arith::pmaddwd;
    Pmaddubsw = arith::pmaddubsw;
    Pavgb = arith::pavgb;
    Pavgw = arith::pavgw;
    Pminsb = arith::pminsb;
    Pminsw = arith::pminsw;
    Pminsd = arith::pminsd;
    Pminub = arith::pminub;
    Pminuw = arith::pminuw;
    Pminud = arith::pminud;
    Pmaxsb = arith::pmaxsb;
    Pmaxsw = arith::pmaxsw;
    Pmaxsd = arith::pmaxsd;
    Pmaxub = arith::pmaxub;
    Pmaxuw = arith::pmaxuw;
    Pmaxud = arith::pmaxud;
    Psignb = arith::psignb;
    Psignw = arith::psignw;
    Psignd = arith::psignd;
    Pcmpeqb = compare::pcmpeqb;
    Pcmpeqw = compare::pcmpeqw;
    Pcmpeqd = compare::pcmpeqd;
    Pcmpeqq = compare::pcmpeqq;
    Pcmpgtb = compare::pcmpgtb;
    Pcmpgtw = compare::pcmpgtw;
    Pcmpgtd = compare::pcmpgtd;
    Pcmpgtq = compare::pcmpgtq;
    Pand = logic::pand;
    Pandn = logic::pandn;
    Por = logic::por;
    Pxor = logic::pxor;
    Phaddw = horizontal::phaddw;
    Phaddd = horizontal::phaddd;
    Phaddsw = horizontal::phaddsw;
    Phsubw = horizontal::phsubw;
    Phsubd = horizontal::phsubd;
    Phsubsw = horizontal::phsubsw;
    Psadbw = horizontal::psadbw;
    Packsswb = pack::packsswb;
    Packssdw = pack::packssdw;
    Packuswb = pack::packuswb;
    Packusdw = pack::packusdw;
    Punpcklbw = pack::punpcklbw;
    Punpcklwd = pack::punpcklwd;
    Punpckldq = pack::punpckldq;
    Punpcklqdq = pack::punpcklqdq;
    Punpckhbw = pack::punpckhbw;
    Punpckhwd = pack::punpckhwd;
    Punpckhdq = pack::punpckhdq;
    Punpckhqdq = pack::punpckhqdq;
    Pshufb = shuffle::pshufb;
    VpermilpsVar = shuffle::vpermilps_var;
    VpermilpdVar = shuffle::vpermilpd_var;
    Vpsllvd = shift::vpsllvd;
    Vpsllvq = shift::vpsllvq;
    Vpsrlvd = shift::vpsrlvd;
    Vpsrlvq = shift::vpsrlvq;
    Vpsravd = shift::vpsravd;
    Aesenc = aes::aesenc;
    Aesenclast = aes::aesenclast;
    Aesdec = aes::aesdec;
    Aesdeclast = aes::aesdeclast;
    Sha1nexte = sha::sha1nexte;
    Sha1msg1 = sha::sha1msg1;
    Sha1msg2 = sha::sha1msg2;
    Sha256msg1 = sha::sha256msg1;
    Sha256msg2 = sha::sha256msg2;
}

/// Instructions with two sources and an immediate, shifted right by so much for the upper lane.
macro_rules! binary_imm {
    ($($Name:ident = $function:path, $upper:literal;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Lanewise for $Name {
            const UPPER: u32 = $upper;
            #[inline(always)]
            fn eval(a: V128, b: V128, imm: u8) -> V128 {
                $function(a, b, imm)
            }
        }
    )*};
}

binary_imm! {
    Mpsadbw = horizontal::mpsadbw, 3;
    Palignr = shuffle::palignr, 0;
    Shufps = shuffle::shufps, 0;
    Shufpd = shuffle::shufpd, 2;
    Pblendw = blend::pblendw, 0;
    Blendps = blend::blendps, 4;
    Blendpd = blend::blendpd, 2;
    Vpblendd = blend::vpblendd, 4;
    Pclmulqdq = clmul::pclmulqdq, 0;
    Sha1rnds4 = sha::sha1rnds4, 0;
    Insertps = shuffle::insertps, 0;
}

/// Instructions with one source.
macro_rules! unary {
    ($($Name:ident = $function:path;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Lanewise for $Name {
            #[inline(always)]
            fn eval(_a: V128, b: V128, _imm: u8) -> V128 {
                $function(b)
            }
        }
    )*};
}

unary! {
    Pabsb = arith::pabsb;
    Pabsw = arith::pabsw;
    Pabsd = arith::pabsd;
    Movsldup = shuffle::movsldup;
    Movshdup = shuffle::movshdup;
    Movddup = shuffle::movddup;
    Phminposuw = horizontal::phminposuw;
    Aesimc = aes::aesimc;
}

/// Instructions with one source and an immediate.
macro_rules! unary_imm {
    ($($Name:ident = $function:path, $upper:literal;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Lanewise for $Name {
            const UPPER: u32 = $upper;
            #[inline(always)]
            fn eval(_a: V128, b: V128, imm: u8) -> V128 {
                $function(b, imm)
            }
        }
    )*};
}

unary_imm! {
    Pshufd = shuffle::pshufd, 0;
    Pshuflw = shuffle::pshuflw, 0;
    Pshufhw = shuffle::pshufhw, 0;
    Vpermilps = shuffle::vpermilps, 0;
    Vpermilpd = shuffle::vpermilpd, 2;
    Pslldq = shift::pslldq, 0;
    Psrldq = shift::psrldq, 0;
    Aeskeygenassist = aes::aeskeygenassist, 0;
}

/// Shifts by one count.
macro_rules! count {
    ($($Name:ident = $function:path;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Count for $Name {
            #[inline(always)]
            fn eval(a: V128, count: u64) -> V128 {
                $function(a, count)
            }
        }
    )*};
}

count! {
    Psllw = shift::psllw;
    Pslld = shift::pslld;
    Psllq = shift::psllq;
    Psrlw = shift::psrlw;
    Psrld = shift::psrld;
    Psrlq = shift::psrlq;
    Psraw = shift::psraw;
    Psrad = shift::psrad;
}

/// Instructions with three sources.
macro_rules! ternary {
    ($($Name:ident = $function:path;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Ternary for $Name {
            #[inline]
            fn eval(a: V128, b: V128, c: V128) -> V128 {
                $function(a, b, c)
            }
        }
    )*};
}

ternary! {
    Pblendvb = blend::pblendvb;
    Blendvps = blend::blendvps;
    Blendvpd = blend::blendvpd;
    Sha256rnds2 = sha::sha256rnds2;
}

/// VPERMD, VPERMPS
pub(crate) struct Vpermd;
impl Crossing for Vpermd {
    #[inline]
    fn eval(a: V256, b: V256, _imm: u8) -> V256 {
        permute::vpermd(a, b)
    }
}

/// VPERMQ, VPERMPD
pub(crate) struct Vpermq;
impl Crossing for Vpermq {
    #[inline]
    fn eval(_a: V256, b: V256, imm: u8) -> V256 {
        permute::vpermq(b, imm)
    }
}

/// VPERM2F128, VPERM2I128
pub(crate) struct Vperm2i128;
impl Crossing for Vperm2i128 {
    #[inline]
    fn eval(a: V256, b: V256, imm: u8) -> V256 {
        permute::vperm2i128(a, b, imm)
    }
}

/// A widening of the low elements of one source to all of the destination.
pub(crate) trait Widen {
    /// Into 128 bits.
    fn narrow(a: V128) -> V128;
    /// Into 256 bits.
    fn wide(a: V128) -> V256;
}

macro_rules! widen {
    ($($Name:ident = $narrow:path, $wide:path;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Widen for $Name {
            #[inline]
            fn narrow(a: V128) -> V128 {
                $narrow(a)
            }
            #[inline]
            fn wide(a: V128) -> V256 {
                $wide(a)
            }
        }
    )*};
}

widen! {
    Pmovsxbw = extend::pmovsxbw, extend::vpmovsxbw;
    Pmovsxbd = extend::pmovsxbd, extend::vpmovsxbd;
    Pmovsxbq = extend::pmovsxbq, extend::vpmovsxbq;
    Pmovsxwd = extend::pmovsxwd, extend::vpmovsxwd;
    Pmovsxwq = extend::pmovsxwq, extend::vpmovsxwq;
    Pmovsxdq = extend::pmovsxdq, extend::vpmovsxdq;
    Pmovzxbw = extend::pmovzxbw, extend::vpmovzxbw;
    Pmovzxbd = extend::pmovzxbd, extend::vpmovzxbd;
    Pmovzxbq = extend::pmovzxbq, extend::vpmovzxbq;
    Pmovzxwd = extend::pmovzxwd, extend::vpmovzxwd;
    Pmovzxwq = extend::pmovzxwq, extend::vpmovzxwq;
    Pmovzxdq = extend::pmovzxdq, extend::vpmovzxdq;
}

/// Broadcasts fill every lane with the same value.
macro_rules! broadcast {
    ($($Name:ident = $function:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Widen for $Name {
            #[inline]
            fn narrow(a: V128) -> V128 {
                $function(a)
            }
            #[inline]
            fn wide(a: V128) -> V256 {
                [$function(a); 2]
            }
        }
    )*};
}

broadcast! {
    Vpbroadcastb = permute::vpbroadcastb;
    Vpbroadcastw = permute::vpbroadcastw;
    Vpbroadcastd = permute::vpbroadcastd;
    Vpbroadcastq = permute::vpbroadcastq;
    Vbroadcasti128 = core::convert::identity;
}
