//! Operations on the stack alone: signs, roots, rounding, scaling, remainders, transcendentals, FXAM (SDM vol. 1, 8.3.5
//! and 8.3.7).

use core::marker::PhantomData;

use crate::cpu::Cpu;
use crate::dispatch::Act;
use crate::exit::Trap;
use crate::op::Op;
use crate::softfloat::x87 as soft87;
use crate::softfloat::{self as soft, Destination, Env, F80};
use crate::x87::stack::{Reach, note};
use crate::x87::{C0, C1, C2, C3};

/// A function of ST(0) that replaces it. `None` when the operand is out of range: C2 tells.
pub(crate) trait Unary {
    /// Whether C2 reports the range.
    const RANGE: bool = false;
    fn eval(a: F80, env: &mut Env) -> Option<F80>;
}

macro_rules! unary {
    ($($Name:ident, $range:literal = |$a:ident, $env:ident| $body:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Unary for $Name {
            const RANGE: bool = $range;
            fn eval($a: F80, $env: &mut Env) -> Option<F80> {
                $body
            }
        }
    )*};
}

unary! {
    Fchs, false = |a, _env| Some(a.negate());
    Fabs, false = |a, _env| Some(a.abs());
    Fsqrt, false = |a, env| Some(soft::sqrt::<F80>(a, env));
    Frndint, false = |a, env| Some(soft::convert::frndint(a, env));
    F2xm1, false = |a, env| Some(soft87::f2xm1(a, env));
    Fsin, true = |a, env| soft87::fsin(a, env);
    Fcos, true = |a, env| soft87::fcos(a, env);
}

/// `op ST(0)`
pub(crate) struct Replace<U>(PhantomData<U>);
impl<U: Unary> Act for Replace<U> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        if U::RANGE {
            x87.fsw &= !C2;
        }
        if x87.is_empty(0) {
            if x87.underflow() {
                x87.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = x87.env();
        match U::eval(x87.st(0), &mut env) {
            Some(result) => {
                if x87.settle(&env, Destination::Register) {
                    x87.set_st(0, result);
                }
            }
            None => x87.fsw = x87.fsw & !C1 | C2,
        }
        Ok(())
    }
}

/// A function of ST(1) and ST(0).
pub(crate) trait Binary {
    fn eval(one: F80, zero: F80, env: &mut Env) -> F80;
}

macro_rules! binary {
    ($($Name:ident = |$one:ident, $zero:ident, $env:ident| $body:expr;)*) => {$(
        #[doc = stringify!($Name)]
        pub(crate) struct $Name;
        impl Binary for $Name {
            fn eval($one: F80, $zero: F80, $env: &mut Env) -> F80 {
                $body
            }
        }
    )*};
}

binary! {
    Fpatan = |one, zero, env| soft87::fpatan(one, zero, env);
    Fyl2x = |one, zero, env| soft87::fyl2x(one, zero, env);
    Fyl2xp1 = |one, zero, env| soft87::fyl2xp1(one, zero, env);
    Fscale = |one, zero, env| soft87::fscale(zero, one, env);
}

/// The result replaces ST(1), and ST(0) is popped; or, without `POP`, ST(0) is replaced.
pub(crate) struct Combine<B, const POP: bool>(PhantomData<B>);
impl<B: Binary, const POP: bool> Act for Combine<B, POP> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        let result = if x87.is_empty(0) || x87.is_empty(1) {
            x87.underflow().then_some(F80::INDEFINITE)
        } else {
            let mut env = x87.env();
            let result = B::eval(x87.st(1), x87.st(0), &mut env);
            x87.settle(&env, Destination::Register).then_some(result)
        };
        if let Some(result) = result {
            x87.set_st(u8::from(POP), result);
            if POP {
                x87.pop();
            }
        }
        Ok(())
    }
}

/// A function of ST(0) with two results: one replaces it, one is pushed.
pub(crate) trait Split {
    /// Whether C2 reports the range.
    const RANGE: bool;
    fn eval(a: F80, env: &mut Env) -> Option<(F80, F80)>;
}
/// FPTAN
pub(crate) struct Fptan;
/// FSINCOS
pub(crate) struct Fsincos;
/// FXTRACT
pub(crate) struct Fxtract;

impl Split for Fptan {
    const RANGE: bool = true;
    fn eval(a: F80, env: &mut Env) -> Option<(F80, F80)> {
        soft87::fptan(a, env)
    }
}
impl Split for Fsincos {
    const RANGE: bool = true;
    fn eval(a: F80, env: &mut Env) -> Option<(F80, F80)> {
        soft87::fsincos(a, env)
    }
}
impl Split for Fxtract {
    const RANGE: bool = false;
    fn eval(a: F80, env: &mut Env) -> Option<(F80, F80)> {
        let soft87::Extracted { exponent, significand } = soft87::fxtract(a, env);
        Some((exponent, significand))
    }
}

/// `op`, which replaces ST(0) and pushes.
pub(crate) struct ReplaceAndPush<S>(PhantomData<S>);
impl<S: Split> Act for ReplaceAndPush<S> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        if S::RANGE {
            x87.fsw &= !C2;
        }
        let results = if x87.is_empty(0) {
            x87.underflow().then_some((F80::INDEFINITE, F80::INDEFINITE))
        } else if !x87.is_empty(7) {
            x87.overflow().then_some((F80::INDEFINITE, F80::INDEFINITE))
        } else {
            let mut env = x87.env();
            match S::eval(x87.st(0), &mut env) {
                Some(results) => x87.settle(&env, Destination::Register).then_some(results),
                None => {
                    x87.fsw = x87.fsw & !C1 | C2;
                    None
                }
            }
        };
        if let Some((replaced, pushed)) = results {
            x87.set_st(0, replaced);
            x87.push(pushed);
        }
        Ok(())
    }
}

/// FPREM and, with `NEAREST`, FPREM1.
pub(crate) struct Fprem<const NEAREST: bool>;
impl<const NEAREST: bool> Act for Fprem<NEAREST> {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        x87.fsw &= !C2;
        if x87.is_empty(0) || x87.is_empty(1) {
            if x87.underflow() {
                x87.set_st(0, F80::INDEFINITE);
            }
            return Ok(());
        }
        let mut env = x87.env();
        let (a, b) = (x87.st(0), x87.st(1));
        let result = if NEAREST { soft87::fprem1(a, b, &mut env) } else { soft87::fprem(a, b, &mut env) };
        if x87.settle(&env, Destination::Register) {
            x87.set_st(0, result.value);
            let code = |bit: u8, code: u16| if result.quotient >> bit & 1 != 0 { code } else { 0 };
            let incomplete = if result.incomplete { C2 } else { 0 };
            let codes = code(2, C0) | code(1, C3) | code(0, C1) | incomplete;
            // A NaN has no quotient: C0 and C3 stay.
            let kept = if soft87::fxam(result.value) == C0 { x87.fsw & (C0 | C3) } else { 0 };
            x87.fsw = x87.fsw & !(C0 | C1 | C2 | C3) | codes | kept;
        }
        Ok(())
    }
}

/// FXAM
pub(crate) struct Fxam;
impl Act for Fxam {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<(), Trap> {
        cpu.check_x87_pending()?;
        note(cpu, op, Reach::Stack);
        let x87 = &mut cpu.x87;
        let class = if x87.is_empty(0) { C3 | C0 } else { soft87::fxam(x87.st(0)) };
        let sign = if x87.st(0).is_negative() { C1 } else { 0 };
        x87.fsw = x87.fsw & !(C0 | C1 | C2 | C3) | class | sign;
        Ok(())
    }
}
