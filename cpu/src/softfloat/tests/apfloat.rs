//! The operations against `rustc_apfloat`, in all formats and rounding modes.

use rustc_apfloat::ieee::{Double, Half, Single, X87DoubleExtended};
use rustc_apfloat::{Float, FloatConvert, Round, Status, StatusAnd};

use super::super::*;
use super::{Operands, ROUNDINGS, arithmetic};

/// A format with its twin in the other implementation.
trait Twin: Format {
    type Other: Float;
    fn other(bits: Self::Bits) -> Self::Other;
    fn ours(other: Self::Other) -> Self::Bits;
    fn random(operands: &mut Operands, near: Option<Self::Bits>) -> Self::Bits;
}

macro_rules! twin {
    ($format:ty, $other:ty, $bits:ty, $random:ident) => {
        impl Twin for $format {
            type Other = $other;
            fn other(bits: $bits) -> $other {
                <$other>::from_bits(u128::from(bits))
            }
            fn ours(other: $other) -> $bits {
                other.to_bits() as $bits
            }
            fn random(operands: &mut Operands, near: Option<$bits>) -> $bits {
                operands.$random(near.unwrap_or(0))
            }
        }
    };
}

twin!(F16, Half, u16, f16);
twin!(F32, Single, u32, f32);
twin!(F64, Double, u64, f64);

impl Twin for F80 {
    type Other = X87DoubleExtended;
    fn other(bits: F80) -> X87DoubleExtended {
        X87DoubleExtended::from_bits(u128::from(bits.sign_exp) << 64 | u128::from(bits.significand))
    }
    fn ours(other: X87DoubleExtended) -> F80 {
        let bits = other.to_bits();
        F80::new((bits >> 64) as u16, bits as u64)
    }
    fn random(operands: &mut Operands, near: Option<F80>) -> F80 {
        operands.f80(near.unwrap_or(F80::ONE))
    }
}

fn round(rounding: Rounding) -> Round {
    match rounding {
        Rounding::Nearest => Round::NearestTiesToEven,
        Rounding::Down => Round::TowardNegative,
        Rounding::Up => Round::TowardPositive,
        Rounding::Zero => Round::TowardZero,
    }
}

fn flags(status: Status) -> Flags {
    let mut flags = Flags::empty();
    flags.set(Flags::IE, status.contains(Status::INVALID_OP));
    flags.set(Flags::ZE, status.contains(Status::DIV_BY_ZERO));
    flags.set(Flags::OE, status.contains(Status::OVERFLOW));
    flags.set(Flags::UE, status.contains(Status::UNDERFLOW));
    flags.set(Flags::PE, status.contains(Status::INEXACT));
    flags
}

/// The flag that is not compared for a result, where the two differ on purpose. At the least normal magnitude the other
/// detects tininess on the denormalized result, x86 on one rounded with an unbounded exponent; and the other does not
/// report an overflow that is rounded to the greatest number.
fn blind<F: Twin>(bits: F::Bits) -> Flags {
    let value = F::unpack(bits);
    if value.class == Class::Normal && value.exponent == 1 - F::BIAS && value.significand == 1 << 63 {
        Flags::UE
    } else if bits == F::greatest(value.negative, F::PRECISION) {
        Flags::OE
    } else {
        Flags::empty()
    }
}

fn compare_one<F: Twin>(what: &str, operands: &[F::Bits], ours: F::Bits, env: &Env, other: StatusAnd<F::Other>) {
    // Which NaN results is a rule of x86 and has its own tests.
    if other.value.is_nan() {
        assert!(F::unpack(ours).is_nan(), "{what} {operands:x?} {:?}", env.rounding);
        return;
    }
    assert_eq!(ours, F::ours(other.value), "{what} {operands:x?} {:?}", env.rounding);
    let blind = blind::<F>(ours);
    let (got, wanted) = (arithmetic(env.flags) - blind, flags(other.status) - blind);
    assert_eq!(got, wanted, "{what} {operands:x?} {:?}", env.rounding);
}

fn differential<F: Twin>(seed: u64) {
    let mut operands = Operands(seed);
    for turn in 0..40_000 {
        let rounding = ROUNDINGS[turn % 4];
        let mode = round(rounding);
        let a = F::random(&mut operands, None);
        let b = F::random(&mut operands, Some(a));
        let (x, y) = (F::other(a), F::other(b));
        let run = |what: &str, ours: fn(F::Bits, F::Bits, &mut Env) -> F::Bits, other: StatusAnd<F::Other>| {
            let mut env = Env { rounding, ..Env::DEFAULT };
            let result = ours(a, b, &mut env);
            compare_one::<F>(what, &[a, b], result, &env, other);
        };
        run("add", add::<F>, x.add_r(y, mode));
        run("sub", sub::<F>, x.sub_r(y, mode));
        run("mul", mul::<F>, x.mul_r(y, mode));
        run("div", div::<F>, x.div_r(y, mode));
        let mut env = Env { rounding, ..Env::DEFAULT };
        let integral = round_to_integral::<F>(a, rounding, PrecisionReport::Raise, &mut env);
        compare_one::<F>("integral", &[a], integral, &env, x.round_to_integral(mode));
        let relation = compare::<F>(a, b, NanRule::Quiet, &mut env);
        let wanted = match x.partial_cmp(&y) {
            Some(core::cmp::Ordering::Less) => Relation::Less,
            Some(core::cmp::Ordering::Equal) => Relation::Equal,
            Some(core::cmp::Ordering::Greater) => Relation::Greater,
            None => Relation::Unordered,
        };
        assert_eq!(relation, wanted, "{a:x?} {b:x?}");
    }
}

#[test]
fn operations_of_half() {
    differential::<F16>(1);
}

#[test]
fn operations_of_single() {
    differential::<F32>(2);
}

#[test]
fn operations_of_double() {
    differential::<F64>(3);
}

#[test]
fn operations_of_extended() {
    differential::<F80>(4);
}

fn fused<F: Twin>(seed: u64) {
    let mut operands = Operands(seed);
    for turn in 0..60_000 {
        let rounding = ROUNDINGS[turn % 4];
        let a = F::random(&mut operands, None);
        let b = F::random(&mut operands, Some(a));
        // Every other addend nearly cancels the product.
        let c = if turn & 4 == 0 {
            F::random(&mut operands, Some(a))
        } else {
            negate_number::<F>(mul::<F>(a, b, &mut Env::DEFAULT.clone()))
        };
        let mut env = Env { rounding, ..Env::DEFAULT };
        let ours = fma::<F>(a, b, c, &mut env);
        let other = F::other(a).mul_add_r(F::other(b), F::other(c), round(rounding));
        compare_one::<F>("fma", &[a, b, c], ours, &env, other);
    }
}

#[test]
fn fused_multiply_add() {
    fused::<F16>(5);
    fused::<F32>(6);
    fused::<F64>(7);
}

fn conversion<A: Twin, R: Twin>(seed: u64)
where
    A::Other: FloatConvert<R::Other>,
{
    let mut operands = Operands(seed);
    for turn in 0..20_000 {
        let rounding = ROUNDINGS[turn % 4];
        let a = A::random(&mut operands, None);
        let mut env = Env { rounding, ..Env::DEFAULT };
        let ours = convert::convert::<A, R>(a, &mut env);
        let other = A::other(a).convert_r(round(rounding), &mut false);
        compare_one::<R>("convert", &[ours], ours, &env, other);
    }
}

#[test]
fn conversions_between_formats() {
    conversion::<F16, F32>(8);
    conversion::<F32, F16>(9);
    conversion::<F32, F64>(10);
    conversion::<F64, F32>(11);
    conversion::<F80, F64>(12);
    conversion::<F80, F32>(13);
    conversion::<F64, F80>(14);
}

#[test]
fn conversions_to_integers() {
    let mut operands = Operands(15);
    for turn in 0..40_000 {
        let rounding = ROUNDINGS[turn % 4];
        let a = operands.f64(0x43e0_0000_0000_0000);
        for width in [IntWidth::Bits16, IntWidth::Bits32, IntWidth::Bits64] {
            let bits = width as usize;
            let mut env = Env { rounding, ..Env::DEFAULT };
            let ours = to_signed::<F64>(a, width, rounding, &mut env);
            let other = Double::from_bits(u128::from(a)).to_i128_r(bits, round(rounding), &mut false);
            if other.status.contains(Status::INVALID_OP) {
                assert_eq!((ours, arithmetic(env.flags)), (i64::MIN >> (64 - bits), Flags::IE), "{a:x}");
            } else {
                let wanted = (other.value as i64, flags(other.status));
                assert_eq!((ours, arithmetic(env.flags)), wanted, "{a:x} {bits} {rounding:?}");
            }
        }
    }
}

#[test]
fn remainders_of_extended() {
    let mut operands = Operands(16);
    for _ in 0..10_000 {
        let a = operands.f80(F80::ONE);
        let b = operands.f80(a);
        let (x, y) = (F80::other(a), F80::other(b));
        // Incomplete reductions are repeated, as programs do; each takes off at least 32 of 32 768 exponents.
        for (step, other) in [
            (super::super::x87::fprem as fn(F80, F80, &mut Env) -> super::super::x87::Remainder, x.c_fmod(y)),
            (super::super::x87::fprem1, x.ieee_rem(y)),
        ] {
            let mut env = Env::DEFAULT;
            let mut rest = a;
            for _ in 0..1100 {
                let result = step(rest, b, &mut env);
                rest = result.value;
                if !result.incomplete {
                    break;
                }
            }
            if other.value.is_nan() {
                assert!(F80::unpack(rest).is_nan());
            } else {
                assert_eq!(rest, F80::ours(other.value), "{a:x?} {b:x?}");
            }
        }
    }
}
