//! Comparison, minimum and maximum.
//!
//! Models UCOMISS/COMISS, FUCOM/FCOM, CMPPS with the predicates of VCMPPS (Intel SDM vol. 2, CMPPD, table 3-1), and
//! MINSS/MAXSS.

use super::env::{Env, Flags};
use super::format::{Class, Format, Unpacked};

/// How two operands relate; `repr` values are the bits of the relation masks of [`Predicate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The first is less.
    Less = 1,
    /// They are equal; zeros of both signs are.
    Equal = 2,
    /// The first is greater.
    Greater = 4,
    /// One is a NaN or an unsupported encoding.
    Unordered = 8,
}

/// Which NaNs raise IE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NanRule {
    /// Only signaling ones: UCOMISS, FUCOM, the `Q` predicates.
    Quiet,
    /// All: COMISS, FCOM, the `S` predicates.
    Signaling,
}

/// One of the 32 predicates of VCMPPS; the first eight are those of CMPPS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predicate {
    relations: u8,
    rule: NanRule,
}

impl Predicate {
    /// Decodes an immediate; bits 7:5 are ignored.
    pub const fn from_imm(imm: u8) -> Self {
        // EQ LT LE UNORD NEQ NLT NLE ORD, then the same with the outcome for unordered operands inverted.
        const RELATIONS: [u8; 8] = [2, 1, 3, 8, 13, 14, 12, 7];
        let low = RELATIONS[(imm & 7) as usize];
        let relations = match (imm & 8 != 0, imm & 3) {
            (false, _) => low,
            // UNORD and ORD become FALSE and TRUE.
            (true, 3) => (low & 7) | if low & 7 == 7 { 8 } else { 0 },
            (true, _) => low ^ 8,
        };
        let signaling = matches!(imm & 3, 1 | 2) != (imm & 0x10 != 0);
        Self { relations, rule: if signaling { NanRule::Signaling } else { NanRule::Quiet } }
    }

    /// Whether the predicate is true of a relation.
    #[inline]
    pub const fn holds(self, relation: Relation) -> bool {
        self.relations & relation as u8 != 0
    }

    /// Which NaNs raise IE under the predicate.
    #[inline]
    pub const fn nan_rule(self) -> NanRule {
        self.rule
    }
}

/// Compares two values.
#[inline]
pub fn compare<F: Format>(a: F::Bits, b: F::Bits, rule: NanRule, env: &mut Env) -> Relation {
    compare_mixed::<F, F>(a, b, rule, env)
}

/// Compares values of two formats: FCOM with a memory operand.
#[inline]
pub fn compare_mixed<A: Format, B: Format>(a: A::Bits, b: B::Bits, rule: NanRule, env: &mut Env) -> Relation {
    let (a, b) = (A::operand(a, env), B::operand(b, env));
    let worst = a.class.max(b.class);
    if worst >= Class::QuietNan {
        if worst >= Class::SignalingNan || rule == NanRule::Signaling {
            env.raise(Flags::IE);
        }
        return Relation::Unordered;
    }
    if a.class == Class::Denormal || b.class == Class::Denormal {
        env.raise(Flags::DE);
    }
    match order(&a).cmp(&order(&b)) {
        core::cmp::Ordering::Less => Relation::Less,
        core::cmp::Ordering::Equal => Relation::Equal,
        core::cmp::Ordering::Greater => Relation::Greater,
    }
}

/// A key that orders numbers by value.
#[inline(always)]
fn order(value: &Unpacked) -> i128 {
    // The exponents of all formats fit in 17 bits signed; the offset makes them positive, above the key of zero.
    let magnitude = match value.class {
        Class::Zero => 0,
        Class::Infinity => i128::MAX,
        _ => (i128::from(value.exponent + 0x1_0000) << 64) | i128::from(value.significand),
    };
    if value.negative { -magnitude } else { magnitude }
}

/// Which of two values MINSS or MAXSS is after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extreme {
    Min,
    Max,
}

#[inline(always)]
fn extreme<F: Format>(a: F::Bits, b: F::Bits, which: Extreme, env: &mut Env) -> F::Bits {
    let relation = compare::<F>(a, b, NanRule::Signaling, env);
    let first = match which {
        Extreme::Min => relation == Relation::Less,
        Extreme::Max => relation == Relation::Greater,
    };
    let chosen = if first { a } else { b };
    let value = F::unpack(chosen);
    if value.class == Class::Denormal && env.denormals.operands_are_zero && !F::X87 {
        return F::zero(value.negative);
    }
    chosen
}

/// MINSS: `a` if it is less than `b`, else `b`; so `b` for NaNs (not quieted, IE for any NaN) and for two zeros.
#[inline]
pub fn min<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    extreme::<F>(a, b, Extreme::Min, env)
}

/// MAXSS: `a` if it is greater than `b`, else `b`; so `b` for NaNs (not quieted, IE for any NaN) and for two zeros.
#[inline]
pub fn max<F: Format>(a: F::Bits, b: F::Bits, env: &mut Env) -> F::Bits {
    extreme::<F>(a, b, Extreme::Max, env)
}
