//! COMISS, UCOMISS and their double forms: comparison to RFLAGS; and the dot products.

use core::marker::PhantomData;

use emu_core::Exception;
use emu_core::regs::Rflags;

use crate::cpu::Cpu;
use crate::dispatch::Sem;
use crate::fp::operand::{Any, Element, START_AGAIN, Source, each_element, first};
use crate::mem::Path;
use crate::op::Op;
use crate::simd::form::{Form, imm8};
use crate::softfloat::{self as soft, NanRule, Relation};

/// Compares the lowest elements: COMISS when `SIGNALING`, else UCOMISS.
pub(crate) struct Comis<E, S, const SIGNALING: bool>(PhantomData<(E, S)>);
impl<E: Element, S: Source, const SIGNALING: bool> Sem for Comis<E, S, SIGNALING> {
    #[inline(always)]
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = S::element::<P, E>(cpu, op)?;
        let a = E::lowest(cpu, first(op));
        if let Some((less, equal)) = E::compare(a, b) {
            cpu.flags.set_order(less, equal);
            return Ok(());
        }
        if P::FAST {
            return Err(START_AGAIN.into());
        }
        Ok(exact::<E, SIGNALING>(cpu, a, b)?)
    }
}

/// ZF, PF and CF of a relation (SDM vol. 1, table 8-7 and the instructions).
pub(crate) fn status(relation: Relation) -> Rflags {
    match relation {
        Relation::Less => Rflags::CF,
        Relation::Equal => Rflags::ZF,
        Relation::Greater => Rflags::empty(),
        Relation::Unordered => Rflags::ZF | Rflags::PF | Rflags::CF,
    }
}

#[inline(never)]
fn exact<E: Element, const SIGNALING: bool>(cpu: &mut Cpu, a: E::Raw, b: E::Raw) -> Result<(), Exception> {
    let mut env = cpu.sse_env();
    let rule = if SIGNALING { NanRule::Signaling } else { NanRule::Quiet };
    let relation = soft::compare::<E>(a, b, rule, &mut env);
    cpu.settle(&env)?;
    cpu.flags.set_status(status(relation));
    Ok(())
}

/// DPPS and DPPD: products chosen by imm8[7:4], summed in pairs, stored where imm8[3:0] says.
pub(crate) struct Dot<E, F>(PhantomData<(E, F)>);
impl<E: Element, F: Form> Sem for Dot<E, F> {
    fn exec<P: Path>(cpu: &mut Cpu, op: &Op) -> Result<(), P::Stop> {
        let b = F::widen(Any::packed::<P, F>(cpu, op)?);
        let a = F::widen(F::get(cpu, first(op)));
        let imm = imm8(op);
        // Each stage reports its exceptions before the next one begins.
        let mut env = cpu.sse_env();
        let products = each_element::<F, E>(|lane, n| {
            if imm >> (4 + n) & 1 == 0 {
                return E::mask(false);
            }
            soft::mul::<E>(E::get(a[lane], n), E::get(b[lane], n), &mut env)
        });
        cpu.settle(&env)?;
        let mut stage = |values, step: usize| -> Result<_, Exception> {
            let mut env = cpu.sse_env();
            let sums = each_element::<F, E>(|lane, n| {
                let values: [crate::vector::V128; 2] = values;
                let other = n ^ step;
                // The lower-numbered element of a pair is the first operand; both elements get the one sum.
                let (x, y) = (E::get(values[lane], n.min(other)), E::get(values[lane], n.max(other)));
                soft::add::<E>(x, y, &mut env)
            });
            cpu.settle(&env)?;
            Ok(sums)
        };
        let mut sums = stage(products, 1)?;
        if E::COUNT == 4 {
            sums = stage(sums, 2)?;
        }
        let result =
            each_element::<F, E>(|lane, n| if imm >> n & 1 != 0 { E::get(sums[lane], n) } else { E::mask(false) });
        F::set(cpu, op.dst, F::narrow(result));
        Ok(())
    }
}
