//! FADD, FSUB, FMUL, FDIV in all their forms, and comparisons (SDM vol. 1, 8.3.5 and 8.3.6).

use core::marker::PhantomData;

use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::fp::compare::status;
use crate::op::Op;
use crate::softfloat::{self as soft, Destination, Env, F80, Format, NanRule, Relation};
use crate::x87::stack::{Second, note};
use crate::x87::{C0, C1, C2, C3, X87State};

/// An operation on the destination and a second operand.
pub(crate) trait Operation {
    fn eval<B: Format>(a: F80, b: B::Bits, env: &mut Env) -> F80;
}

macro_rules! operations {
    ($($Name:ident = |$a:ident, $b:ident, $env:ident, $B:ident| $body:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Operation for $Name {
            fn eval<$B: Format>($a: F80, $b: $B::Bits, $env: &mut Env) -> F80 {
                $body
            }
        }
    )*};
}

operations! {
    Fadd = |a, b, env, B| soft::add_mixed::<F80, B, F80>(a, b, env);
    Fsub = |a, b, env, B| soft::sub_mixed::<F80, B, F80>(a, b, env);
    Fsubr = |a, b, env, B| soft::sub_mixed::<B, F80, F80>(b, a, env);
    Fmul = |a, b, env, B| soft::mul_mixed::<F80, B, F80>(a, b, env);
    Fdiv = |a, b, env, B| soft::div_mixed::<F80, B, F80>(a, b, env);
    Fdivr = |a, b, env, B| soft::div_mixed::<B, F80, F80>(b, a, env);
}

/// `op ST(dst), second`, then pops if `POP`.
pub(crate) struct Arithmetic<O, S, const POP: bool>(PhantomData<(O, S)>);
impl<O: Operation, S: Second, const POP: bool> Act for Arithmetic<O, S, POP> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        let second = S::fetch(cpu, op)?;
        note(cpu, op, S::REACH);
        let x87 = &mut cpu.x87;
        let result = match second {
            Some(b) if !x87.is_empty(op.dst) => {
                let mut env = x87.env();
                let result = O::eval::<S::In>(x87.st(op.dst), b, &mut env);
                x87.settle(&env, Destination::Register).then_some(result)
            }
            _ => x87.underflow().then_some(F80::INDEFINITE),
        };
        if let Some(result) = result {
            x87.set_st(op.dst, result);
            if POP {
                x87.pop();
            }
        }
        Ok(())
    }
}

/// What a comparison sets, and which NaNs it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    ConditionCodes,
    Flags,
}

/// Compares ST(0) with `second`; the second result is false when an exception is unmasked. C1 is kept.
fn relation<S: Second>(x87: &mut X87State, second: Option<<S::In as Format>::Bits>, rule: NanRule) -> (Relation, bool) {
    match second {
        Some(b) if !x87.is_empty(0) => {
            let mut env = x87.env();
            let relation = soft::compare_mixed::<F80, S::In>(x87.st(0), b, rule, &mut env);
            let kept = x87.fsw & C1;
            let completes = x87.settle(&env, Destination::Register);
            x87.fsw |= kept;
            (relation, completes)
        }
        _ => (Relation::Unordered, x87.underflow()),
    }
}

fn compare<S: Second>(cpu: &mut Cpu, op: &Op, rule: NanRule, report: Report, pops: u8) -> Result<(), Trap> {
    cpu.check_x87_pending()?;
    let second = S::fetch(cpu, op)?;
    note(cpu, op, S::REACH);
    let (relation, completes) = relation::<S>(&mut cpu.x87, second, rule);
    match report {
        // Codes, as flags do, show the result even when an unmasked exception keeps the instruction from popping.
        Report::ConditionCodes => {
            let codes = match relation {
                Relation::Less => C0,
                Relation::Equal => C3,
                Relation::Greater => 0,
                Relation::Unordered => C0 | C2 | C3,
            };
            cpu.x87.fsw = cpu.x87.fsw & !(C0 | C1 | C2 | C3) | codes;
        }
        Report::Flags => cpu.flags.set_status(status(relation)),
    }
    for _ in 0..if completes { pops } else { 0 } {
        cpu.x87.pop();
    }
    Ok(())
}

/// FCOM, FICOM, FTST and, with `POPS`, FCOMP and FCOMPP.
pub(crate) struct Fcom<S, const POPS: u8>(PhantomData<S>);
impl<S: Second, const POPS: u8> Act for Fcom<S, POPS> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        compare::<S>(cpu, op, NanRule::Signaling, Report::ConditionCodes, POPS)
    }
}

/// FUCOM, FUCOMP, FUCOMPP
pub(crate) struct Fucom<S, const POPS: u8>(PhantomData<S>);
impl<S: Second, const POPS: u8> Act for Fucom<S, POPS> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        compare::<S>(cpu, op, NanRule::Quiet, Report::ConditionCodes, POPS)
    }
}

/// FCOMI, FCOMIP
pub(crate) struct Fcomi<S, const POPS: u8>(PhantomData<S>);
impl<S: Second, const POPS: u8> Act for Fcomi<S, POPS> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        compare::<S>(cpu, op, NanRule::Signaling, Report::Flags, POPS)
    }
}

/// FUCOMI, FUCOMIP
pub(crate) struct Fucomi<S, const POPS: u8>(PhantomData<S>);
impl<S: Second, const POPS: u8> Act for Fucomi<S, POPS> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        compare::<S>(cpu, op, NanRule::Quiet, Report::Flags, POPS)
    }
}
