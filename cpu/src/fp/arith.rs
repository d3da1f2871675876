//! Arithmetic, comparison to masks, rounding: what computes each element from the same elements of its sources
//! (APM vol. 4; Intel SDM vol. 1, 11.4.1).
//!
//! Handlers try the host's arithmetic first ([`crate::softfloat::fast`]); everything it cannot answer for is computed
//! out of line, where flags and exceptions are found.

use core::marker::PhantomData;

use emu_core::Exception;

use crate::cpu::Cpu;
use crate::dispatch::Sem;
use crate::fp::operand::{Element, START_AGAIN, Source, each_element, first};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, imm8};
use crate::softfloat::fast::Guess;
use crate::softfloat::{self as soft, Env, PrecisionReport, Predicate, Rounding};
use crate::vector::{V128, V256};

/// An operation on elements. One with a single source takes it as `b`.
pub(crate) trait Arith {
    /// The result, with flags. `n` is the element's number.
    fn exact<E: Element>(a: E::Raw, b: E::Raw, imm: u8, n: usize, env: &mut Env) -> E::Raw;
    /// Whether [`Arith::fast`] has an answer at all.
    const FAST: Fast = Fast::Never;
    /// The result where it is certain to set no flag that is not set already.
    #[inline(always)]
    fn fast<E: Element>(a: E::Raw, _b: E::Raw) -> Guess<E::Raw> {
        Guess { value: a, doubt: E::mask(true) }
    }
    /// Which elements are combined, of one 128-bit lane of both sources.
    #[inline(always)]
    fn arrange<E: Element>(a: V128, b: V128) -> (V128, V128) {
        (a, b)
    }
}

/// When the host's arithmetic may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fast {
    Never,
    /// When MXCSR allows it.
    Rounded,
    /// Always: nothing is rounded.
    Unrounded,
}

impl Fast {
    #[inline(always)]
    fn applies(self, cpu: &Cpu) -> bool {
        match self {
            Fast::Never => false,
            Fast::Rounded => cpu.fast_mode().allowed(),
            Fast::Unrounded => true,
        }
    }
}

macro_rules! arith {
    ($($(#[$doc:meta])* $Name:ident: $exact:ident, $when:ident, |$a:ident, $b:ident, $E:ident| $fast:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $Name;
        impl Arith for $Name {
            #[inline(always)]
            fn exact<E: Element>(a: E::Raw, b: E::Raw, _imm: u8, _n: usize, env: &mut Env) -> E::Raw {
                soft::$exact::<E>(a, b, env)
            }
            #[inline(always)]
            fn fast<$E: Element>($a: $E::Raw, $b: $E::Raw) -> Guess<$E::Raw> {
                $fast
            }
            const FAST: Fast = Fast::$when;
        }
    )*};
}

arith! {
    /// ADDPS and its kin.
    Add: add, Rounded, |a, b, E| E::fast_add(a, b);
    /// SUBPS and its kin.
    Sub: sub, Rounded, |a, b, E| E::fast_sub(a, b);
    /// MULPS and its kin.
    Mul: mul, Rounded, |a, b, E| E::fast_mul(a, b);
    /// DIVPS and its kin.
    Div: div, Rounded, |a, b, E| E::fast_div(a, b);
    /// MINPS and its kin.
    Min: min, Unrounded, |a, b, E| E::fast_min(a, b);
    /// MAXPS and its kin.
    Max: max, Unrounded, |a, b, E| E::fast_max(a, b);
}

/// SQRTPS and its kin.
pub(crate) struct Sqrt;
impl Arith for Sqrt {
    #[inline(always)]
    fn exact<E: Element>(_a: E::Raw, b: E::Raw, _imm: u8, _n: usize, env: &mut Env) -> E::Raw {
        soft::sqrt::<E>(b, env)
    }
    #[inline(always)]
    fn fast<E: Element>(_a: E::Raw, b: E::Raw) -> Guess<E::Raw> {
        E::fast_sqrt(b)
    }
    const FAST: Fast = Fast::Rounded;
}

/// CMPPS and its kin: a mask.
pub(crate) struct Cmp;
impl Arith for Cmp {
    fn exact<E: Element>(a: E::Raw, b: E::Raw, imm: u8, _n: usize, env: &mut Env) -> E::Raw {
        let predicate = Predicate::from_imm(imm);
        E::mask(predicate.holds(soft::compare::<E>(a, b, predicate.nan_rule(), env)))
    }
}

/// ROUNDPS and its kin.
pub(crate) struct Round;
impl Arith for Round {
    fn exact<E: Element>(_a: E::Raw, b: E::Raw, imm: u8, _n: usize, env: &mut Env) -> E::Raw {
        let rounding = if imm & 4 != 0 { env.rounding } else { Rounding::from_rc(imm) };
        let report = if imm & 8 != 0 { PrecisionReport::Suppress } else { PrecisionReport::Raise };
        soft::round_to_integral::<E>(b, rounding, report, env)
    }
}

/// RCPPS and RCPSS.
pub(crate) struct Rcp;
impl Arith for Rcp {
    fn exact<E: Element>(_a: E::Raw, b: E::Raw, _imm: u8, _n: usize, _env: &mut Env) -> E::Raw {
        E::from_u64(soft::reciprocal(E::to_u64(b) as u32).into())
    }
}

/// RSQRTPS and RSQRTSS.
pub(crate) struct Rsqrt;
impl Arith for Rsqrt {
    fn exact<E: Element>(_a: E::Raw, b: E::Raw, _imm: u8, _n: usize, _env: &mut Env) -> E::Raw {
        E::from_u64(soft::reciprocal_sqrt(E::to_u64(b) as u32).into())
    }
}

/// ADDSUBPS and its kin: even elements are subtracted, odd ones added.
pub(crate) struct AddSub;
impl Arith for AddSub {
    fn exact<E: Element>(a: E::Raw, b: E::Raw, _imm: u8, n: usize, env: &mut Env) -> E::Raw {
        if n & 1 == 0 { soft::sub::<E>(a, b, env) } else { soft::add::<E>(a, b, env) }
    }
}

/// HADDPS, HSUBPS and their kin: `O` of neighbours.
pub(crate) struct Horizontal<O>(PhantomData<O>);
impl<O: Arith> Arith for Horizontal<O> {
    fn exact<E: Element>(a: E::Raw, b: E::Raw, imm: u8, n: usize, env: &mut Env) -> E::Raw {
        O::exact::<E>(a, b, imm, n, env)
    }
    fn arrange<E: Element>(a: V128, b: V128) -> (V128, V128) {
        let (mut even, mut odd) = (V128::ZERO, V128::ZERO);
        let half = E::COUNT / 2;
        for n in 0..E::COUNT {
            let from = if n < half { a } else { b };
            even = E::put(even, n, E::get(from, n % half * 2));
            odd = E::put(odd, n, E::get(from, n % half * 2 + 1));
        }
        (even, odd)
    }
}

/// `op dst, first, source` on all elements.
pub(crate) struct Packed<O, E, F, S>(PhantomData<(O, E, F, S)>);
impl<O: Arith, E: Element, F: Form, S: Source> Sem for Packed<O, E, F, S> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::packed::<P, F>(cpu, op)?;
        let b = F::widen(b);
        if O::FAST.applies(cpu) {
            let a = F::widen(F::get(cpu, first(op)));
            let mut doubts = [E::mask(false); 8];
            let result = each_element::<F, E>(|lane, n| {
                let guess = O::fast::<E>(E::get(a[lane], n), E::get(b[lane], n));
                doubts[lane * E::COUNT + n] = guess.doubt;
                guess.value
            });
            if !E::doubtful(doubts) {
                F::set(cpu, op.dst, F::narrow(result));
                return Ok(());
            }
        }
        if P::FAST {
            return Err(START_AGAIN.into());
        }
        Ok(exact_packed::<O, E, F>(cpu, op, b)?)
    }
}

#[inline(never)]
fn exact_packed<O: Arith, E: Element, F: Form>(cpu: &mut Cpu, op: &Op, b: V256) -> Result<(), Exception> {
    let a = F::widen(F::get(cpu, first(op)));
    let (low, high) = (O::arrange::<E>(a[0], b[0]), O::arrange::<E>(a[1], b[1]));
    let (a, b) = ([low.0, high.0], [low.1, high.1]);
    let mut env = cpu.sse_env();
    let imm = imm8(op);
    let result =
        each_element::<F, E>(|lane, n| O::exact::<E>(E::get(a[lane], n), E::get(b[lane], n), imm, n, &mut env));
    cpu.settle(&env)?;
    F::set(cpu, op.dst, F::narrow(result));
    Ok(())
}

/// `op dst, first, source` on the lowest element; the others are the first source's.
pub(crate) struct Low<O, E, F, S>(PhantomData<(O, E, F, S)>);
impl<O: Arith, E: Element, F: Form, S: Source> Sem for Low<O, E, F, S> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::element::<P, E>(cpu, op)?;
        if O::FAST.applies(cpu) {
            let guess = O::fast::<E>(E::lowest(cpu, first(op)), b);
            if !E::doubtful([guess.doubt]) {
                F::set_lowest::<E>(cpu, op.dst, first(op), guess.value);
                return Ok(());
            }
        }
        if P::FAST {
            return Err(START_AGAIN.into());
        }
        Ok(exact_low::<O, E, F>(cpu, op, b)?)
    }
}

#[inline(never)]
fn exact_low<O: Arith, E: Element, F: Form>(cpu: &mut Cpu, op: &Op, b: E::Raw) -> Result<(), Exception> {
    let a = cpu.vector.xmm(first(op));
    let mut env = cpu.sse_env();
    let result = O::exact::<E>(E::get(a, 0), b, imm8(op), 0, &mut env);
    cpu.settle(&env)?;
    F::set_low(cpu, op.dst, E::put(a, 0, result));
    Ok(())
}
