//! What x86 does where IEEE 754 leaves a choice: NaNs, denormals, unmasked exceptions. The vectors are what AMD
//! processors answered.

use super::super::*;

const QNAN_1: u64 = 0x7ff8_0000_0000_0001;
const QNAN_2: u64 = 0xfff8_0000_0000_0002;
const SNAN_3: u64 = 0x7ff0_0000_0000_0003;
const INDEFINITE: u64 = 0xfff8_0000_0000_0000;
const INFINITY: u64 = 0x7ff0_0000_0000_0000;
const ONE: u64 = 0x3ff0_0000_0000_0000;
const DENORMAL: u64 = 1;
const LEAST: u64 = 0x0010_0000_0000_0000;

/// Runs under an MXCSR value and returns the result with the flags of the outcome and whether it is written.
fn sse(mxcsr: u32, operation: impl FnOnce(&mut Env) -> u64) -> (u64, Flags, bool) {
    let mut env = Env::from_mxcsr(mxcsr);
    let result = operation(&mut env);
    let outcome = env.sse_outcome();
    (result, outcome.flags, outcome.write)
}

const MASKED: u32 = 0x1f80;

#[test]
fn sse_takes_the_first_nan() {
    assert_eq!(sse(MASKED, |e| add::<F64>(QNAN_1, QNAN_2, e)), (QNAN_1, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| add::<F64>(QNAN_1, SNAN_3, e)), (QNAN_1, Flags::IE, true));
    assert_eq!(sse(MASKED, |e| mul::<F64>(SNAN_3, QNAN_1, e)), (SNAN_3 | 1 << 51, Flags::IE, true));
    assert_eq!(sse(MASKED, |e| sub::<F64>(ONE, QNAN_2, e)), (QNAN_2, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| fma::<F64>(ONE, ONE, QNAN_2, e)), (QNAN_2, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| fma::<F64>(INFINITY, 0, QNAN_2, e)), (QNAN_2, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| fma::<F64>(INFINITY, 0, ONE, e)), (INDEFINITE, Flags::IE, true));
    assert_eq!(sse(MASKED, |e| sub::<F64>(INFINITY, INFINITY, e)), (INDEFINITE, Flags::IE, true));
    assert_eq!(sse(MASKED, |e| sqrt::<F64>(ONE | 1 << 63, e)), (INDEFINITE, Flags::IE, true));
}

#[test]
fn minimum_and_maximum_prefer_the_second() {
    let minus_zero = 1 << 63;
    assert_eq!(sse(MASKED, |e| min::<F64>(0, minus_zero, e)), (minus_zero, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| max::<F64>(0, minus_zero, e)), (minus_zero, Flags::empty(), true));
    assert_eq!(sse(MASKED, |e| min::<F64>(QNAN_1, ONE, e)), (ONE, Flags::IE, true));
    assert_eq!(sse(MASKED, |e| max::<F64>(ONE, SNAN_3, e)), (SNAN_3, Flags::IE, true));
    assert_eq!(sse(MASKED | 1 << 6, |e| max::<F64>(0, DENORMAL, e)), (0, Flags::empty(), true));
}

#[test]
fn priorities_hide_denormal_operands() {
    assert_eq!(sse(MASKED, |e| add::<F64>(DENORMAL, QNAN_1, e)).1, Flags::empty());
    assert_eq!(sse(MASKED, |e| div::<F64>(DENORMAL, 0, e)).1, Flags::ZE);
    assert_eq!(sse(MASKED, |e| sqrt::<F64>(DENORMAL | 1 << 63, e)).1, Flags::IE);
    assert_eq!(sse(MASKED, |e| add::<F64>(DENORMAL, INFINITY, e)).1, Flags::DE);
    assert_eq!(sse(MASKED | 1 << 6, |e| add::<F64>(DENORMAL, ONE, e)), (ONE, Flags::empty(), true));
}

#[test]
fn tiny_results() {
    let half = 0x3fe0_0000_0000_0000;
    // Exact: underflow is not reported while masked, reported when unmasked, and still flushed.
    assert_eq!(sse(MASKED, |e| mul::<F64>(LEAST, half, e)), (LEAST >> 1, Flags::empty(), true));
    let (_, flags, write) = sse(MASKED & !(1 << 11), |e| mul::<F64>(LEAST, half, e));
    assert_eq!((flags, write), (Flags::UE, false));
    assert_eq!(sse(MASKED | 1 << 15, |e| mul::<F64>(LEAST, half, e)), (0, Flags::UE | Flags::PE, true));
    // Flushing needs underflow masked.
    let (_, flags, write) = sse(MASKED & !(1 << 11) | 1 << 15, |e| mul::<F64>(LEAST, half, e));
    assert_eq!((flags, write), (Flags::UE, false));
    // Rounded to the least normal number, but tiny with an unbounded exponent.
    assert_eq!(sse(MASKED, |e| mul::<F64>(LEAST, ONE - 1, e)), (LEAST, Flags::UE | Flags::PE, true));
    // Unmasked underflow reports precision by the unbounded result, which is exact here.
    let (_, flags, _) = sse(MASKED & !(1 << 11), |e| mul::<F64>(LEAST, ONE - 1, e));
    assert_eq!(flags, Flags::UE);
}

#[test]
fn unmasked_operand_exceptions_hide_the_results() {
    let mut env = Env::from_mxcsr(MASKED & !(1 << 8));
    add::<F64>(ONE, DENORMAL, &mut env);
    assert_eq!(env.flags & Flags::EXCEPTIONS, Flags::DE | Flags::PE);
    let outcome = env.sse_outcome();
    assert_eq!(outcome, Outcome { flags: Flags::DE, unmasked: Flags::DE, write: false });
}

#[test]
fn half_precision_conversions_have_their_own_rules() {
    // VCVTPH2PS knows neither DAZ nor DE.
    let mut env = Env::from_mxcsr(MASKED | 1 << 6);
    assert_eq!((convert::half_to_single(1, &mut env), env.flags), (0x3380_0000, Flags::empty()));
    // VCVTPS2PH does not flush.
    let mut env = Env::from_mxcsr(MASKED | 1 << 15);
    assert_eq!((convert::single_to_half(0x3380_0000, &mut env), env.flags), (1, Flags::empty()));
    assert!(env.denormals.flush_results, "the control is restored");
}

#[test]
fn predicates() {
    // Less, equal, greater, unordered for the 32 immediates, by name in the manual's order.
    let truth = |imm: u8| {
        [Relation::Less, Relation::Equal, Relation::Greater, Relation::Unordered]
            .map(|relation| Predicate::from_imm(imm).holds(relation))
    };
    let (t, f) = (true, false);
    let table = [
        [f, t, f, f], // EQ_OQ
        [t, f, f, f], // LT_OS
        [t, t, f, f], // LE_OS
        [f, f, f, t], // UNORD_Q
        [t, f, t, t], // NEQ_UQ
        [f, t, t, t], // NLT_US
        [f, f, t, t], // NLE_US
        [t, t, t, f], // ORD_Q
        [f, t, f, t], // EQ_UQ
        [t, f, f, t], // NGE_US
        [t, t, f, t], // NGT_US
        [f, f, f, f], // FALSE_OQ
        [t, f, t, f], // NEQ_OQ
        [f, t, t, f], // GE_OS
        [f, f, t, f], // GT_OS
        [t, t, t, t], // TRUE_UQ
    ];
    let signaling = [f, t, t, f, f, t, t, f, f, t, t, f, f, t, t, f];
    for imm in 0..32u8 {
        assert_eq!(truth(imm), table[usize::from(imm & 15)], "{imm}");
        let rule = signaling[usize::from(imm & 15)] != (imm >= 16);
        assert_eq!(Predicate::from_imm(imm).nan_rule() == NanRule::Signaling, rule, "{imm}");
    }
}
