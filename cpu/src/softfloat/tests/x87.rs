//! x87: special encodings, condition codes, precision control, unmasked responses, and the functions against
//! multiple-precision values (rounded to nearest, arguments reduced by the 66-bit pi).

use super::super::x87::*;
use super::super::*;
use super::Operands;

const FSIN: [(F80, F80); 6] = [
    (F80::new(0x4019, 0xa522_d538_57c4_9391), F80::new(0x3ffe, 0xe78b_883b_74ca_07ed)),
    (F80::new(0xc000, 0x9404_dfd1_5d7d_71b7), F80::new(0xbffe, 0xbcb3_bf12_9c40_6fca)),
    (F80::new(0x4008, 0xfb5f_089e_6249_59f3), F80::new(0x3ffc, 0xb28a_6d19_f1b4_65ef)),
    (F80::new(0x3fd7, 0xaa61_f0fc_1b46_0f90), F80::new(0x3fd7, 0xaa61_f0fc_1b46_0f90)),
    (F80::new(0x4015, 0x8000_0000_1080_0000), F80::new(0x3ffe, 0xf9a3_e874_0415_512f)),
    (F80::new(0x4039, 0x8000_0000_0000_00fa), F80::new(0x3ffe, 0x8c9a_3a89_6a27_3655)),
];

const FCOS: [(F80, F80); 6] = [
    (F80::new(0x4019, 0xa522_d538_57c4_9391), F80::new(0x3ffd, 0xda62_4cb1_f774_1fc1)),
    (F80::new(0xc000, 0x9404_dfd1_5d7d_71b7), F80::new(0xbffe, 0xacfe_e4bc_6f4e_2610)),
    (F80::new(0x4008, 0xfb5f_089e_6249_59f3), F80::new(0x3ffe, 0xfc14_2986_4830_440e)),
    (F80::new(0x3fd7, 0xaa61_f0fc_1b46_0f90), F80::new(0x3fff, 0x8000_0000_0000_0000)),
    (F80::new(0x4015, 0x8000_0000_1080_0000), F80::new(0x3ffc, 0xe2d4_745e_60b0_9127)),
    (F80::new(0x4039, 0x8000_0000_0000_00fa), F80::new(0xbffe, 0xd5ee_9f07_e562_444a)),
];

const FPTAN: [(F80, F80); 6] = [
    (F80::new(0x4019, 0xa522_d538_57c4_9391), F80::new(0x4000, 0x87b6_c960_5394_476f)),
    (F80::new(0xc000, 0x9404_dfd1_5d7d_71b7), F80::new(0x3fff, 0x8b9f_0a66_0f09_3520)),
    (F80::new(0x4008, 0xfb5f_089e_6249_59f3), F80::new(0x3ffc, 0xb551_6b00_718f_9b28)),
    (F80::new(0x3fd7, 0xaa61_f0fc_1b46_0f90), F80::new(0x3fd7, 0xaa61_f0fc_1b46_0f90)),
    (F80::new(0x4015, 0x8000_0000_1080_0000), F80::new(0x4001, 0x8cdf_335f_9847_f082)),
    (F80::new(0x4039, 0x8000_0000_0000_00fa), F80::new(0xbffe, 0xa840_2e17_73a2_1e9d)),
];

const F2XM1: [(F80, F80); 6] = [
    (F80::new(0xbfd2, 0x8000_a200_0000_0000), F80::new(0xbfd1, 0xb172_f88c_3823_3336)),
    (F80::new(0xbffa, 0xd3f2_f6de_5d46_c275), F80::new(0xbffa, 0x904e_f7d0_228f_7932)),
    (F80::new(0xbfcf, 0xe61b_ff8a_3e07_dc2b), F80::new(0xbfcf, 0x9f7f_e9b1_a602_feef)),
    (F80::new(0x3fd5, 0xc46b_6315_81e1_7294), F80::new(0x3fd5, 0x8825_c9b7_c8f1_3528)),
    (F80::new(0xbfc3, 0x8000_0000_0000_3540), F80::new(0xbfc2, 0xb172_17f7_d1cf_c37a)),
    (F80::new(0xbfdc, 0x8058_d32d_0ed5_faa6), F80::new(0xbfdb, 0xb1ed_3b28_cea5_28c5)),
];

const FPATAN: [([F80; 2], F80); 6] = [
    (
        [F80::new(0xc00f, 0x96b9_8b5f_bf37_a2be), F80::new(0x4000, 0x99d9_c9cc_52d3_2377)],
        F80::new(0xbfff, 0xc90e_d552_f2cd_500e),
    ),
    (
        [F80::new(0x3fe0, 0xa754_34bb_4298_717a), F80::new(0x3fd7, 0xe6f7_a84f_7048_281f)],
        F80::new(0x3fff, 0xc8b7_8387_de04_36b2),
    ),
    (
        [F80::new(0xc01b, 0xf55a_c329_ab81_0d7a), F80::new(0xbffd, 0xb216_6ba0_3500_2819)],
        F80::new(0xbfff, 0xc90f_daa3_9509_c28f),
    ),
    (
        [F80::new(0xbffc, 0x8856_1c1c_4d29_b534), F80::new(0xbffe, 0xf71e_d2fb_bb56_bff1)],
        F80::new(0xc000, 0xc04a_421c_2672_2a60),
    ),
    (
        [F80::new(0x3fe9, 0x8000_02b0_0000_0000), F80::new(0xc008, 0x8196_7298_125f_c964)],
        F80::new(0x4000, 0xc90f_daa1_a2fa_3756),
    ),
    (
        [F80::new(0x3ff7, 0x8000_0000_0033_4000), F80::new(0xbff0, 0xfa35_4620_d807_e57e)],
        F80::new(0x3fff, 0xcb04_3b39_4198_6a9e),
    ),
];

const FYL2X: [([F80; 2], F80); 6] = [
    (
        [F80::new(0x4021, 0xef40_af2e_54c0_ce68), F80::new(0x3ffe, 0xc3e1_ac3b_4708_d989)],
        F80::new(0xc020, 0xb8c7_e100_ff01_3bad),
    ),
    (
        [F80::new(0x4015, 0xdff0_8cbc_44cc_58e7), F80::new(0x7c03, 0x8001_0000_0000_0000)],
        F80::new(0x4023, 0xd1ff_8303_64d6_b1e5),
    ),
    (
        [F80::new(0xc01d, 0x8000_0010_0000_0000), F80::new(0x3ffe, 0x8e14_0617_928e_55d7)],
        F80::new(0x401c, 0xd976_1b7a_4b3f_2fbf),
    ),
    (
        [F80::new(0x4019, 0x8000_0000_5600_0000), F80::new(0x0a50, 0x99b8_5eca_332b_6dcf)],
        F80::new(0xc026, 0xd6ba_f17f_d72e_00cf),
    ),
    (
        [F80::new(0x4008, 0x8000_0000_0000_0270), F80::new(0x3ffe, 0xa2d5_6780_2541_5457)],
        F80::new(0xc007, 0xa71a_50c4_b6d5_d80d),
    ),
    (
        [F80::new(0x3fdf, 0x8f34_fc78_dbaa_8fef), F80::new(0x555f, 0xb298_9590_2405_8b14)],
        F80::new(0x3feb, 0xbf55_1664_18e3_e4b1),
    ),
];

const FYL2XP1: [([F80; 2], F80); 6] = [
    (
        [F80::new(0x4021, 0xef40_af2e_54c0_ce68), F80::new(0x3ffa, 0x8af5_ac87_0692_b534)],
        F80::new(0x401d, 0xb840_d987_0d40_94c9),
    ),
    (
        [F80::new(0x4015, 0xdff0_8cbc_44cc_58e7), F80::new(0xbfea, 0xa88a_8775_0256_2a4a)],
        F80::new(0xc001, 0xd4b3_b71f_2a0e_ca78),
    ),
    (
        [F80::new(0xc01d, 0x8000_0010_0000_0000), F80::new(0x4004, 0xc6a8_54e9_c281_1ba1)],
        F80::new(0xc01f, 0xb536_7a52_b916_064f),
    ),
    (
        [F80::new(0x4019, 0x8000_0000_5600_0000), F80::new(0x3fd6, 0xd64f_a7d2_74df_6ee2)],
        F80::new(0x3ff1, 0x9a97_c30c_18e7_8246),
    ),
    (
        [F80::new(0x4008, 0x8000_0000_0000_0270), F80::new(0x4009, 0xa6a6_1922_e9a1_0df3)],
        F80::new(0x400b, 0xa61b_a4df_9cfe_416e),
    ),
    (
        [F80::new(0x3fdf, 0x8f34_fc78_dbaa_8fef), F80::new(0x3fcd, 0xfee8_cfe4_1f4b_a79a)],
        F80::new(0x3fae, 0xcdb9_4e26_6f10_2332),
    ),
];

const INFINITY: F80 = F80::new(0x7fff, 1 << 63);
const SNAN: F80 = F80::new(0x7fff, 0x8000_0000_0000_0001);
const UNNORMAL: F80 = F80::new(0x3fff, 1);
const PSEUDO_DENORMAL: F80 = F80::new(0, 1 << 63);

/// Runs with everything masked and returns the result with the flags.
fn masked<T>(operation: impl FnOnce(&mut Env) -> T) -> (T, Flags) {
    let mut env = Env::DEFAULT;
    let result = operation(&mut env);
    (result, env.flags & Flags::EXCEPTIONS)
}

#[test]
fn functions_round_correctly() {
    for (a, wanted) in FSIN {
        assert_eq!(masked(|e| fsin(a, e)), (Some(wanted), Flags::PE), "fsin {a:x?}");
    }
    for (a, wanted) in FCOS {
        assert_eq!(masked(|e| fcos(a, e)), (Some(wanted), Flags::PE), "fcos {a:x?}");
    }
    for ((a, sine), (_, cosine)) in FSIN.into_iter().zip(FCOS) {
        assert_eq!(masked(|e| fsincos(a, e)), (Some((sine, cosine)), Flags::PE), "fsincos {a:x?}");
    }
    for (a, wanted) in FPTAN {
        assert_eq!(masked(|e| fptan(a, e)), (Some((wanted, F80::ONE)), Flags::PE), "fptan {a:x?}");
    }
    for (a, wanted) in F2XM1 {
        assert_eq!(masked(|e| f2xm1(a, e)), (wanted, Flags::PE), "f2xm1 {a:x?}");
    }
    for ([y, x], wanted) in FPATAN {
        assert_eq!(masked(|e| fpatan(y, x, e)), (wanted, Flags::PE), "fpatan {y:x?} {x:x?}");
    }
    for ([y, x], wanted) in FYL2X {
        assert_eq!(masked(|e| fyl2x(y, x, e)), (wanted, Flags::PE), "fyl2x {y:x?} {x:x?}");
    }
    for ([y, x], wanted) in FYL2XP1 {
        assert_eq!(masked(|e| fyl2xp1(y, x, e)), (wanted, Flags::PE), "fyl2xp1 {y:x?} {x:x?}");
    }
}

#[test]
fn functions_of_special_operands() {
    let minus_infinity = INFINITY.negate();
    assert_eq!(masked(|e| fsin(F80::new(0xc03e, 1 << 63), e)), (None, Flags::empty()), "2^63 is out of range");
    assert_eq!(masked(|e| fcos(INFINITY, e)), (Some(F80::INDEFINITE), Flags::IE));
    assert_eq!(masked(|e| fptan(F80::ZERO.negate(), e)), (Some((F80::ZERO.negate(), F80::ONE)), Flags::empty()));
    assert_eq!(masked(|e| f2xm1(minus_infinity, e)), (F80::ONE.negate(), Flags::empty()));
    assert_eq!(masked(|e| fyl2x(F80::ONE, F80::ZERO, e)), (minus_infinity, Flags::ZE));
    assert_eq!(masked(|e| fyl2x(F80::ZERO, F80::ZERO, e)), (F80::INDEFINITE, Flags::IE));
    assert_eq!(masked(|e| fyl2x(F80::ONE, F80::ONE.negate(), e)), (F80::INDEFINITE, Flags::IE));
    assert_eq!(masked(|e| fyl2x(INFINITY, F80::ONE, e)), (F80::INDEFINITE, Flags::IE));
    assert_eq!(masked(|e| fyl2x(F80::ONE.negate(), F80::ONE, e)), (F80::ZERO.negate(), Flags::empty()));
    assert_eq!(masked(|e| fyl2xp1(INFINITY, F80::ZERO, e)), (F80::INDEFINITE, Flags::IE));
    let pi = constant(Constant::Pi, Rounding::Nearest);
    assert_eq!(masked(|e| fpatan(F80::ZERO, F80::ONE.negate(), e)), (pi, Flags::PE));
    assert_eq!(masked(|e| fpatan(F80::ZERO.negate(), F80::ONE, e)), (F80::ZERO.negate(), Flags::empty()));
    // A quarter of pi is pi with a lesser exponent; three quarters are not.
    assert_eq!(masked(|e| fpatan(INFINITY, INFINITY, e)), (F80::new(0x3ffe, pi.significand), Flags::PE));
    let three_quarters = F80::new(0x4000, 0x96cb_e3f9_990e_91a8);
    assert_eq!(masked(|e| fpatan(INFINITY, minus_infinity, e)), (three_quarters, Flags::PE));
}

#[test]
fn functions_never_panic_and_stay_in_range() {
    let mut operands = Operands(31);
    for _ in 0..50_000 {
        let a = operands.f80(F80::ONE);
        let b = operands.f80(a);
        let mut env = Env { rounding: Rounding::from_rc(a.significand as u8), ..Env::DEFAULT };
        if let Some((sine, cosine)) = fsincos(a, &mut env)
            && !env.flags.contains(Flags::IE)
            && fxam(a) & 0x100 == 0
        {
            assert!(sine.sign_exp & 0x7fff <= 0x3fff && cosine.sign_exp & 0x7fff <= 0x3fff, "{a:x?}");
        }
        fptan(a, &mut env);
        f2xm1(a, &mut env);
        fyl2x(a, b, &mut env);
        fyl2xp1(a, b, &mut env);
        let angle = fpatan(a, b, &mut env);
        assert!(fxam(angle) == 0x100 || angle.sign_exp & 0x7fff <= 0x4000, "{a:x?} {b:x?}");
    }
}

#[test]
fn special_encodings() {
    let pseudo_infinity = F80::new(0x7fff, 0);
    for unsupported in [UNNORMAL, pseudo_infinity, F80::new(0x7fff, 1 << 62)] {
        assert_eq!(fxam(unsupported), 0);
        assert_eq!(masked(|e| add::<F80>(unsupported, F80::ONE, e)), (F80::INDEFINITE, Flags::IE));
        assert_eq!(masked(|e| mul::<F80>(F80::INDEFINITE, unsupported, e)), (F80::INDEFINITE, Flags::IE));
        assert_eq!(masked(|e| convert::store::<F64>(unsupported, e)), (0xfff8_0000_0000_0000, Flags::IE));
        assert_eq!(masked(|e| compare::<F80>(unsupported, F80::ONE, NanRule::Quiet, e)).1, Flags::IE);
    }
    assert_eq!(fxam(PSEUDO_DENORMAL), 0x4400);
    let sum = masked(|e| add::<F80>(PSEUDO_DENORMAL, F80::ZERO, e));
    assert_eq!(sum, (F80::new(1, 1 << 63), Flags::DE));
    assert_eq!(fxam(INFINITY), 0x500);
    assert_eq!(fxam(SNAN), 0x100);
    assert_eq!(fxam(F80::ZERO), 0x4000);
    assert_eq!(fxam(F80::ONE), 0x400);
}

#[test]
fn nan_with_the_greater_significand() {
    let small = F80::new(0x7fff, 0xc000_0000_0000_0001);
    let great = F80::new(0xffff, 0xc000_0000_0000_0002);
    assert_eq!(masked(|e| add::<F80>(small, great, e)), (great, Flags::empty()));
    assert_eq!(masked(|e| add::<F80>(great, small, e)), (great, Flags::empty()));
    assert_eq!(masked(|e| add::<F80>(SNAN, small, e)), (small, Flags::IE), "the quiet one");
    assert_eq!(masked(|e| add::<F80>(small.negate(), small, e)), (small, Flags::empty()), "the positive one");
    let quieted = F80::new(0x7fff, SNAN.significand | 1 << 62);
    assert_eq!(masked(|e| add::<F80>(SNAN, F80::ONE, e)), (quieted, Flags::IE));
    // A memory operand is seen as it was: neither quieted nor normalized first.
    assert_eq!(masked(|e| add_mixed::<F80, F32, F80>(F80::ONE, 1, e)).1, Flags::DE | Flags::PE);
    assert_eq!(masked(|e| add_mixed::<F80, F32, F80>(small, 0x7f80_0001, e)), (small, Flags::IE));
}

#[test]
fn precision_control_rounds_the_significand_only() {
    let third = |pc: u16| masked_with(0x03f | pc << 8, |e| div::<F80>(F80::ONE, F80::new(0x4000, 3 << 62), e)).0;
    assert_eq!(third(3), F80::new(0x3ffd, 0xaaaa_aaaa_aaaa_aaab));
    assert_eq!(third(2), F80::new(0x3ffd, 0xaaaa_aaaa_aaaa_a800));
    assert_eq!(third(0), F80::new(0x3ffd, 0xaaaa_ab00_0000_0000));
    // The exponent range stays that of the 80-bit format.
    let greatest = F80::new(0x7ffe, !0);
    let product = masked_with(0xc3f, |e| mul::<F80>(greatest, greatest, e)).0;
    assert_eq!(product, F80::new(0x7ffe, 0xffff_ff00_0000_0000));
}

fn masked_with<T>(fcw: u16, operation: impl FnOnce(&mut Env) -> T) -> (T, Flags) {
    let mut env = Env::from_fcw(fcw);
    let result = operation(&mut env);
    (result, env.flags)
}

#[test]
fn unmasked_overflow_and_underflow_bias_the_exponent() {
    let (overflow, underflow) = (0x337, 0x32f);
    let great = F80::new(0x7ffe, 1 << 63);
    let (result, flags) = masked_with(overflow, |e| mul::<F80>(great, great, e));
    assert_eq!((result, flags), (F80::new((0x7ffe * 2 - 0x3fff - 24576) as u16, 1 << 63), Flags::OE));
    let small = F80::new(1, 1 << 63);
    let (result, flags) = masked_with(underflow, |e| mul::<F80>(small, small, e));
    assert_eq!((result, flags), (F80::new((2 - 0x3fff + 24576) as u16, 1 << 63), Flags::UE));
    // To memory nothing is written, and precision does not show.
    let mut env = Env::from_fcw(overflow);
    convert::store::<F32>(F80::new(0x7ffe, !0), &mut env);
    let outcome = env.x87_outcome(Destination::Memory);
    assert_eq!(outcome, Outcome { flags: Flags::OE, unmasked: Flags::OE, write: false });
    assert!(env.x87_outcome(Destination::Register).write);
    // FSCALE reaches beyond what the bias can bring back.
    let far = F80::new(0x400f, 1 << 63);
    let (result, flags) = masked_with(overflow, |e| fscale(F80::ONE, far, e));
    assert_eq!((result, flags), (INFINITY, Flags::OE | Flags::PE | Flags::C1));
    let (result, flags) = masked_with(underflow, |e| fscale(F80::ONE, far.negate(), e));
    assert_eq!((result, flags), (F80::ZERO, Flags::UE | Flags::PE));
}

#[test]
fn loads_push_despite_an_unmasked_denormal() {
    let mut env = Env::from_fcw(0x37d);
    let value = convert::convert::<F32, F80>(1, &mut env);
    assert_eq!(value, F80::new(0x3fff - 149, 1 << 63));
    let pushed = Outcome { flags: Flags::DE, unmasked: Flags::DE, write: true };
    assert_eq!(env.x87_outcome(Destination::Push), pushed);
    assert_eq!(env.x87_outcome(Destination::Register), Outcome { write: false, ..pushed });
    let mut env = Env::from_fcw(0x37e);
    convert::convert::<F32, F80>(0x7f80_0001, &mut env);
    assert!(!env.x87_outcome(Destination::Push).write, "an unmasked invalid operation pushes nothing");
}

#[test]
fn scaling_and_extraction() {
    let minus_two_and_a_half = F80::new(0xc000, 0xa000_0000_0000_0000);
    assert_eq!(masked(|e| fscale(F80::ONE, minus_two_and_a_half, e)), (F80::new(0x3ffd, 1 << 63), Flags::empty()));
    assert_eq!(masked(|e| fscale(F80::ZERO, INFINITY, e)), (F80::INDEFINITE, Flags::IE));
    assert_eq!(masked(|e| fscale(INFINITY, INFINITY.negate(), e)), (F80::INDEFINITE, Flags::IE));
    assert_eq!(masked(|e| fscale(F80::ONE, INFINITY.negate(), e)), (F80::ZERO, Flags::empty()));
    let (parts, flags) = masked(|e| fxtract(F80::new(0x8000, 1), e));
    assert_eq!(flags, Flags::DE);
    assert_eq!(parts.significand, F80::new(0xbfff, 1 << 63));
    assert_eq!(parts.exponent, masked(|e| from_i64::<F80>(-16382 - 63, e)).0);
    let (parts, flags) = masked(|e| fxtract(F80::ZERO, e));
    assert_eq!((parts.exponent, parts.significand, flags), (INFINITY.negate(), F80::ZERO, Flags::ZE));
}

#[test]
fn remainder_condition_codes() {
    let seven = masked(|e| from_i64::<F80>(7, e)).0;
    let two = masked(|e| from_i64::<F80>(2, e)).0;
    let result = masked(|e| fprem(seven, two, e)).0;
    assert_eq!(result, Remainder { value: F80::ONE, incomplete: false, quotient: 3 });
    let result = masked(|e| fprem1(seven, two, e)).0;
    assert_eq!(result, Remainder { value: F80::ONE.negate(), incomplete: false, quotient: 4 });
    // 70 binades apart: reduced by 32 + 70 mod 32, so the rest has an exponent below 70 - 38.
    let far = F80::new(0x3fff + 70, 0xffff_ffff_ffff_ffff);
    let result = masked(|e| fprem(far, seven, e)).0;
    assert!(result.incomplete && result.value.sign_exp - 0x3fff <= 70 - 36, "{result:x?}");
    assert_eq!(masked(|e| fprem(INFINITY, two, e)).1, Flags::IE);
    assert_eq!(masked(|e| fprem(two, F80::ZERO, e)).1, Flags::IE);
    assert_eq!(masked(|e| fprem(two, INFINITY, e)).0.value, two);
}

#[test]
fn packed_decimal() {
    let digits = [0x90, 0x78, 0x56, 0x34, 0x12, 0x90, 0x78, 0x56, 0x34, 0x80];
    let value = fbld(digits);
    let integer = -345_678_901_234_567_890;
    assert_eq!(masked(|e| to_signed::<F80>(value, IntWidth::Bits64, Rounding::Nearest, e)).0, integer);
    assert_eq!(masked(|e| fbstp(value, e)), (digits, Flags::empty()));
    assert_eq!(fbld([0, 0, 0, 0, 0, 0, 0, 0, 0, 0x80]), F80::ZERO.negate());
    let limit = masked(|e| from_i64::<F80>(1_000_000_000_000_000_000, e)).0;
    let indefinite = [0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff];
    assert_eq!(masked(|e| fbstp(limit, e)), (indefinite, Flags::IE));
    assert_eq!(masked(|e| fbstp(SNAN, e)), (indefinite, Flags::IE));
}

#[test]
fn constants_follow_the_rounding_control() {
    let pi = |rounding| constant(Constant::Pi, rounding).significand;
    assert_eq!(pi(Rounding::Nearest), 0xc90f_daa2_2168_c235);
    assert_eq!(pi(Rounding::Up), 0xc90f_daa2_2168_c235);
    assert_eq!(pi(Rounding::Down), 0xc90f_daa2_2168_c234);
    let log2_of_10 = |rounding| constant(Constant::Log2Of10, rounding).significand;
    assert_eq!(log2_of_10(Rounding::Nearest), 0xd49a_784b_cd1b_8afe);
    assert_eq!(log2_of_10(Rounding::Up), 0xd49a_784b_cd1b_8aff);
}
