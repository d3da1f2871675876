//! Fused multiply-add, 96 encodings (Intel SDM vol. 1, 14.5 "Fused-Multiply-ADD (FMA) Extensions").

use core::marker::PhantomData;

use crate::cpu::Cpu;
use crate::dispatch::Sem;
use crate::fp::operand::{Any, Element, Source, each_element, first};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, imm8};
use crate::softfloat::{self as soft, Env};

/// Bits of [`Op::imm`]: which operands are multiplied, in the manual's numbering.
pub(crate) const ORDER_132: u8 = 0;
pub(crate) const ORDER_213: u8 = 1;
pub(crate) const ORDER_231: u8 = 2;
const ORDER: u8 = 3;
/// The product is negated.
pub(crate) const NEGATE_PRODUCT: u8 = 1 << 2;
/// The addend of even elements is subtracted.
pub(crate) const SUBTRACT_EVEN: u8 = 1 << 3;
/// The addend of odd elements is subtracted.
pub(crate) const SUBTRACT_ODD: u8 = 1 << 4;

fn element<E: Element>(one: E::Raw, two: E::Raw, three: E::Raw, kind: u8, n: usize, env: &mut Env) -> E::Raw {
    let (mut a, b, mut c) = match kind & ORDER {
        ORDER_132 => (one, three, two),
        ORDER_213 => (two, one, three),
        _ => (two, three, one),
    };
    if kind & NEGATE_PRODUCT != 0 {
        a = soft::negate_number::<E>(a);
    }
    if kind & if n & 1 == 0 { SUBTRACT_EVEN } else { SUBTRACT_ODD } != 0 {
        c = soft::negate_number::<E>(c);
    }
    soft::fma::<E>(a, b, c, env)
}

/// On all elements.
pub(crate) struct PackedFma<E, F>(PhantomData<(E, F)>);
impl<E: Element, F: Form> Sem for PackedFma<E, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let three = F::widen(Any::packed::<P, F>(cpu, op)?);
        let (one, two) = (F::widen(F::get(cpu, op.dst)), F::widen(F::get(cpu, first(op))));
        let mut env = cpu.sse_env();
        let result = each_element::<F, E>(|lane, n| {
            let (one, two, three) = (E::get(one[lane], n), E::get(two[lane], n), E::get(three[lane], n));
            element::<E>(one, two, three, imm8(op), n, &mut env)
        });
        cpu.settle(&env)?;
        F::set(cpu, op.dst, F::narrow(result));
        Ok(())
    }
}

/// On the lowest element; the others of the destination stay.
pub(crate) struct LowFma<E>(PhantomData<E>);
impl<E: Element> Sem for LowFma<E> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let three = Any::element::<P, E>(cpu, op)?;
        let destination = cpu.vector.xmm(op.dst);
        let (one, two) = (E::get(destination, 0), E::get(cpu.vector.xmm(first(op)), 0));
        let mut env = cpu.sse_env();
        let result = element::<E>(one, two, three, imm8(op), 0, &mut env);
        cpu.settle(&env)?;
        cpu.vector.set_xmm_zero_upper(op.dst, E::put(destination, 0, result));
        Ok(())
    }
}
