//! Against Rust's own arithmetic, which is IEEE arithmetic to nearest on every host.

use super::super::*;
use super::Operands;
use crate::softfloat::fast::Guess;

/// MXCSR with everything masked and PE sticky.
const STICKY: u32 = 0x1fa0;

/// The flags with PE, which the fast path leaves set.
fn with_sticky(env: &Env) -> Flags {
    env.flags & Flags::EXCEPTIONS | Flags::PE
}

#[test]
fn square_roots_round_to_nearest() {
    let mut operands = Operands(21);
    for _ in 0..100_000 {
        let (single, double) = (operands.f32(0), operands.f64(0));
        let ours = sqrt::<F32>(single, &mut Env::DEFAULT.clone());
        let host = f32::from_bits(single).sqrt();
        assert!(host.is_nan() && f32::from_bits(ours).is_nan() || host.to_bits() == ours, "{single:x}");
        let ours = sqrt::<F64>(double, &mut Env::DEFAULT.clone());
        let host = f64::from_bits(double).sqrt();
        assert!(host.is_nan() && f64::from_bits(ours).is_nan() || host.to_bits() == ours, "{double:x}");
    }
}

#[test]
fn square_roots_bracket_the_root() {
    let mut operands = Operands(22);
    for _ in 0..20_000 {
        // The square of a directed root must lie on its side of the operand.
        let a = F80::new(0x3fff, operands.next() | 1 << 63);
        let mut down = Env { rounding: Rounding::Down, ..Env::DEFAULT };
        let mut up = Env { rounding: Rounding::Up, ..Env::DEFAULT };
        let (low, high) = (sqrt::<F80>(a, &mut down), sqrt::<F80>(a, &mut up));
        let square = |root: F80| u128::from(root.significand) * u128::from(root.significand);
        let target = u128::from(a.significand) << 63;
        assert!(square(low) <= target && target <= square(high), "{a:x?}");
        assert_eq!(high.significand - low.significand, u64::from(down.flags.contains(Flags::PE)));
    }
}

/// The answer, if there is no doubt.
fn certain<B: Copy + Into<u64>>(guess: Guess<B>) -> Option<B> {
    let sign = 1 << (8 * size_of::<B>() - 1);
    (guess.doubt.into() & sign == 0).then_some(guess.value)
}

#[test]
fn fast_path_agrees_wherever_it_answers() {
    let mut operands = Operands(23);
    let mut answered = 0;
    for _ in 0..100_000 {
        let a = operands.f64(0);
        let b = operands.f64(a);
        for (fast, exact) in [
            (fast::add_f64 as fn(u64, u64) -> Guess<u64>, add::<F64> as fn(u64, u64, &mut Env) -> u64),
            (fast::sub_f64, sub::<F64>),
            (fast::mul_f64, mul::<F64>),
            (fast::div_f64, div::<F64>),
            (|a, _| fast::sqrt_f64(a), |a, _, env| sqrt::<F64>(a, env)),
            (fast::min_f64, min::<F64>),
            (fast::max_f64, max::<F64>),
        ] {
            let mut env = Env::DEFAULT;
            let wanted = exact(a, b, &mut env);
            if let Some(result) = certain(fast(a, b)) {
                assert_eq!((result, Flags::PE), (wanted, with_sticky(&env)), "{a:x} {b:x}");
                answered += 1;
            }
        }
        let (a, b) = (operands.f32(0), operands.f32(a as u32));
        for (fast, exact) in [
            (fast::add_f32 as fn(u32, u32) -> Guess<u32>, add::<F32> as fn(u32, u32, &mut Env) -> u32),
            (fast::sub_f32, sub::<F32>),
            (fast::mul_f32, mul::<F32>),
            (fast::div_f32, div::<F32>),
            (|a, _| fast::sqrt_f32(a), |a, _, env| sqrt::<F32>(a, env)),
            (fast::min_f32, min::<F32>),
            (fast::max_f32, max::<F32>),
        ] {
            let mut env = Env::DEFAULT;
            let wanted = exact(a, b, &mut env);
            if let Some(result) = certain(fast(a, b)) {
                assert_eq!((result, Flags::PE), (wanted, with_sticky(&env)), "{a:x} {b:x}");
                answered += 1;
            }
        }
    }
    assert!(answered > 200_000, "the fast path answers ordinary operands: {answered}");
}

#[test]
fn fast_path_takes_ordinary_numbers_and_refuses_the_rest() {
    let (zero, one, tiny, huge) = (0, 1f64.to_bits(), 1, f64::MAX.to_bits());
    assert_eq!(certain(fast::add_f64(one, one)), Some(2f64.to_bits()));
    assert_eq!(certain(fast::sub_f64(one, one)), Some(zero));
    assert_eq!(certain(fast::mul_f64(one, zero)), Some(zero));
    assert_eq!(certain(fast::add_f64(one, tiny)), None, "DE");
    assert_eq!(certain(fast::mul_f64(huge, huge)), None, "OE");
    assert_eq!(certain(fast::mul_f64(f64::MIN_POSITIVE.to_bits(), f64::MIN_POSITIVE.to_bits())), None, "UE");
    assert_eq!(certain(fast::div_f64(one, zero)), None, "ZE");
    assert_eq!(certain(fast::sqrt_f64((-1f64).to_bits())), None, "IE");
    // Just below the least normal number before rounding, the least normal number after it.
    let below_one = one - 1;
    assert_eq!(certain(fast::mul_f64(f64::MIN_POSITIVE.to_bits(), below_one)), None, "UE hides in the rounding");
    assert!(fast::FastMode::from_mxcsr(STICKY).allowed());
    for mxcsr in [0x1f80, STICKY | 1 << 13, STICKY & !(1 << 12)] {
        assert!(!fast::FastMode::from_mxcsr(mxcsr).allowed(), "{mxcsr:x}");
    }
}

#[test]
fn integers_convert_as_rust_does() {
    let mut operands = Operands(24);
    for _ in 0..50_000 {
        let value = (operands.next() as i64) >> (operands.next() & 63);
        let mut env = Env::DEFAULT;
        assert_eq!(from_i64::<F64>(value, &mut env), (value as f64).to_bits());
        assert_eq!(from_i64::<F32>(value, &mut env), (value as f32).to_bits());
        let exact = from_i64::<F80>(value, &mut Env::DEFAULT.clone());
        assert_eq!(to_signed::<F80>(exact, IntWidth::Bits64, Rounding::Nearest, &mut env), value);
    }
}

#[test]
fn approximations_keep_their_error_bound() {
    for index in 0..8192u32 {
        for low in [0, 0x7ff] {
            // Operands from 1 to 4, both ends of each step of the tables.
            let a = 0x3f80_0000 + (index << 11 | low);
            let x = f64::from(f32::from_bits(a));
            let bound = 1.5 / 4096.0;
            let error = f64::from(f32::from_bits(reciprocal(a))) * x - 1.0;
            assert!(error.abs() <= bound, "rcp {a:x}: {error}");
            let error = f64::from(f32::from_bits(reciprocal_sqrt(a))) * x.sqrt() - 1.0;
            assert!(error.abs() <= bound, "rsqrt {a:x}: {error}");
        }
    }
}
