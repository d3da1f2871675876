//! Floating-point arithmetic on vector registers; conversions are in [`super::select_fp_convert`].

use iced_x86::{EncodingKind, Mnemonic, Register};

use super::operand::{AddressForm, immediate, is_memory, memory};
use super::{Context, Lowered, select_fp_convert};
use crate::address::Full64;
use crate::dispatch::{cold, hot};
use crate::fp::arith::{
    Add, AddSub, Arith, Cmp, Div, Horizontal, Low, Max, Min, Mul, Packed, Rcp, Round, Rsqrt, Sqrt, Sub,
};
use crate::fp::compare::{Comis, Dot};
use crate::fp::fma::{LowFma, NEGATE_PRODUCT, ORDER_132, ORDER_213, ORDER_231, PackedFma, SUBTRACT_EVEN, SUBTRACT_ODD};
use crate::fp::operand::{Any, Element, Mem, REGISTER, Reg};
use crate::op::{Handler, Op};
use crate::simd::form::{Sse, Vex128, Vex256};
use crate::softfloat::{F32, F64};

/// Which of the three forms an encoding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Sse,
    Vex128,
    Vex256,
}

pub(super) fn form(context: &Context<'_>) -> Form {
    let insn = context.insn;
    let wide = (0..insn.op_count()).any(|n| insn.op_register(n).is_ymm()) || insn.memory_size().size() == 32;
    match (insn.encoding(), wide) {
        (EncodingKind::VEX, true) => Form::Vex256,
        (EncodingKind::VEX, false) => Form::Vex128,
        _ => Form::Sse,
    }
}

/// Picks by form; the expression names the form `F`.
macro_rules! by_form {
    ($form:expr, $value:expr) => {
        match $form {
            Form::Sse => {
                type F = Sse;
                $value
            }
            Form::Vex128 => {
                type F = Vex128;
                $value
            }
            Form::Vex256 => {
                type F = Vex256;
                $value
            }
        }
    };
}
/// Picks by form where there is no 256-bit one.
macro_rules! by_form128 {
    ($form:expr, $value:expr) => {
        match $form {
            Form::Sse => {
                type F = Sse;
                $value
            }
            _ => {
                type F = Vex128;
                $value
            }
        }
    };
}
pub(super) use {by_form, by_form128};

/// Where the second source is: decides between the handlers of one instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Register,
    Memory,
    /// In memory with an address that the fast path cannot form.
    Legacy,
}

/// Fills in the operands of `op dst, [first,] source[, imm8]`.
fn operands(context: &Context<'_>, op: &mut Op) -> Place {
    let insn = context.insn;
    let mut last = insn.op_count() - 1;
    if let Some(value) = immediate(context, last) {
        op.imm.set(value & 0xff);
        last -= 1;
    }
    op.dst = insn.op0_register().number() as u8;
    let first =
        if insn.encoding() == EncodingKind::VEX && last == 2 { insn.op1_register() } else { insn.op0_register() };
    op.aux = first.number() as u16;
    if is_memory(context, last) {
        return match memory(context, op) {
            AddressForm::Legacy => Place::Legacy,
            AddressForm::Base64 | AddressForm::Full64 => Place::Memory,
        };
    }
    op.src = insn.op_register(last).number() as u8;
    op.aux |= REGISTER;
    Place::Register
}

/// An op whose handler is set later.
fn unset(context: &Context<'_>) -> Op {
    context.op(cold::<Comis<F32, Any, false>>)
}

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    match context.insn.mnemonic() {
        M::Addps | M::Vaddps => quick::<Add, F32>(context),
        M::Addpd | M::Vaddpd => quick::<Add, F64>(context),
        M::Addss | M::Vaddss => quick_low::<Add, F32>(context),
        M::Addsd | M::Vaddsd => quick_low::<Add, F64>(context),
        M::Subps | M::Vsubps => quick::<Sub, F32>(context),
        M::Subpd | M::Vsubpd => quick::<Sub, F64>(context),
        M::Subss | M::Vsubss => quick_low::<Sub, F32>(context),
        M::Subsd | M::Vsubsd => quick_low::<Sub, F64>(context),
        M::Mulps | M::Vmulps => quick::<Mul, F32>(context),
        M::Mulpd | M::Vmulpd => quick::<Mul, F64>(context),
        M::Mulss | M::Vmulss => quick_low::<Mul, F32>(context),
        M::Mulsd | M::Vmulsd => quick_low::<Mul, F64>(context),
        M::Divps | M::Vdivps => quick::<Div, F32>(context),
        M::Divpd | M::Vdivpd => quick::<Div, F64>(context),
        M::Divss | M::Vdivss => quick_low::<Div, F32>(context),
        M::Divsd | M::Vdivsd => quick_low::<Div, F64>(context),
        M::Minps | M::Vminps => quick::<Min, F32>(context),
        M::Minpd | M::Vminpd => quick::<Min, F64>(context),
        M::Minss | M::Vminss => quick_low::<Min, F32>(context),
        M::Minsd | M::Vminsd => quick_low::<Min, F64>(context),
        M::Maxps | M::Vmaxps => quick::<Max, F32>(context),
        M::Maxpd | M::Vmaxpd => quick::<Max, F64>(context),
        M::Maxss | M::Vmaxss => quick_low::<Max, F32>(context),
        M::Maxsd | M::Vmaxsd => quick_low::<Max, F64>(context),
        M::Sqrtps | M::Vsqrtps => quick::<Sqrt, F32>(context),
        M::Sqrtpd | M::Vsqrtpd => quick::<Sqrt, F64>(context),
        M::Sqrtss | M::Vsqrtss => quick_low::<Sqrt, F32>(context),
        M::Sqrtsd | M::Vsqrtsd => quick_low::<Sqrt, F64>(context),

        M::Cmpps | M::Vcmpps => compare_to_mask(context, plain::<Cmp, F32>),
        M::Cmppd | M::Vcmppd => compare_to_mask(context, plain::<Cmp, F64>),
        M::Cmpss | M::Vcmpss => compare_to_mask(context, plain_low::<Cmp, F32>),
        M::Cmpsd | M::Vcmpsd => compare_to_mask(context, plain_low::<Cmp, F64>),
        M::Roundps | M::Vroundps => plain::<Round, F32>(context),
        M::Roundpd | M::Vroundpd => plain::<Round, F64>(context),
        M::Roundss | M::Vroundss => plain_low::<Round, F32>(context),
        M::Roundsd | M::Vroundsd => plain_low::<Round, F64>(context),
        M::Rcpps | M::Vrcpps => plain::<Rcp, F32>(context),
        M::Rcpss | M::Vrcpss => plain_low::<Rcp, F32>(context),
        M::Rsqrtps | M::Vrsqrtps => plain::<Rsqrt, F32>(context),
        M::Rsqrtss | M::Vrsqrtss => plain_low::<Rsqrt, F32>(context),
        M::Haddps | M::Vhaddps => plain::<Horizontal<Add>, F32>(context),
        M::Haddpd | M::Vhaddpd => plain::<Horizontal<Add>, F64>(context),
        M::Hsubps | M::Vhsubps => plain::<Horizontal<Sub>, F32>(context),
        M::Hsubpd | M::Vhsubpd => plain::<Horizontal<Sub>, F64>(context),
        M::Addsubps | M::Vaddsubps => plain::<AddSub, F32>(context),
        M::Addsubpd | M::Vaddsubpd => plain::<AddSub, F64>(context),
        M::Dpps | M::Vdpps => dot::<F32>(context),
        M::Dppd | M::Vdppd => dot::<F64>(context),

        M::Comiss | M::Vcomiss => compare::<F32, true>(context),
        M::Comisd | M::Vcomisd => compare::<F64, true>(context),
        M::Ucomiss | M::Vucomiss => compare::<F32, false>(context),
        M::Ucomisd | M::Vucomisd => compare::<F64, false>(context),
        _ => fma(context).or_else(|| select_fp_convert::select(context)),
    }
}

/// A packed instruction with instances for the fast path to memory.
fn quick<O: Arith, E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let place = operands(context, &mut op);
    op.run = by_form!(
        form(context),
        match place {
            Place::Register => hot::<Packed<O, E, F, Reg>> as Handler,
            Place::Memory => hot::<Packed<O, E, F, Mem<Full64>>>,
            Place::Legacy => cold::<Packed<O, E, F, Any>>,
        }
    );
    Some(Lowered::new(op))
}

/// A scalar one.
fn quick_low<O: Arith, E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let place = operands(context, &mut op);
    op.run = by_form128!(
        form(context),
        match place {
            Place::Register => hot::<Low<O, E, F, Reg>> as Handler,
            Place::Memory => hot::<Low<O, E, F, Mem<Full64>>>,
            Place::Legacy => cold::<Low<O, E, F, Any>>,
        }
    );
    Some(Lowered::new(op))
}

fn plain<O: Arith, E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    operands(context, &mut op);
    op.run = by_form!(form(context), cold::<Packed<O, E, F, Any>> as Handler);
    Some(Lowered::new(op))
}

fn plain_low<O: Arith, E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    operands(context, &mut op);
    op.run = by_form128!(form(context), cold::<Low<O, E, F, Any>> as Handler);
    Some(Lowered::new(op))
}

/// CMPPS and its kin. Legacy forms have eight predicates: the other bits of the immediate do not count.
fn compare_to_mask(context: &Context<'_>, select: fn(&Context<'_>) -> Option<Lowered>) -> Option<Lowered> {
    let mut lowered = select(context)?;
    if form(context) == Form::Sse {
        *lowered.op.imm.get_mut() &= 7;
    }
    Some(lowered)
}

fn dot<E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    operands(context, &mut op);
    op.run = by_form!(form(context), cold::<Dot<E, F>> as Handler);
    Some(Lowered::new(op))
}

fn compare<E: Element, const SIGNALING: bool>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    op.run = match operands(context, &mut op) {
        Place::Register => hot::<Comis<E, Reg, SIGNALING>>,
        Place::Memory => hot::<Comis<E, Mem<Full64>, SIGNALING>>,
        Place::Legacy => cold::<Comis<E, Any, SIGNALING>>,
    };
    Some(Lowered::new(op))
}

fn fma(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    /// The family and the order of a mnemonic, whatever its element.
    macro_rules! family {
        ($($one:ident, $two:ident, $three:ident, $four:ident => $kind:expr;)*) => {
            match context.insn.mnemonic() {
                $(
                    M::$one => ($kind, packed_fma::<F32>(context)),
                    M::$two => ($kind, packed_fma::<F64>(context)),
                    M::$three => ($kind, cold::<LowFma<F32>> as Handler),
                    M::$four => ($kind, cold::<LowFma<F64>> as Handler),
                )*
                _ => return alternating(context),
            }
        };
    }
    const SUBTRACT: u8 = SUBTRACT_EVEN | SUBTRACT_ODD;
    let (kind, run) = family! {
        Vfmadd132ps, Vfmadd132pd, Vfmadd132ss, Vfmadd132sd => ORDER_132;
        Vfmadd213ps, Vfmadd213pd, Vfmadd213ss, Vfmadd213sd => ORDER_213;
        Vfmadd231ps, Vfmadd231pd, Vfmadd231ss, Vfmadd231sd => ORDER_231;
        Vfmsub132ps, Vfmsub132pd, Vfmsub132ss, Vfmsub132sd => ORDER_132 | SUBTRACT;
        Vfmsub213ps, Vfmsub213pd, Vfmsub213ss, Vfmsub213sd => ORDER_213 | SUBTRACT;
        Vfmsub231ps, Vfmsub231pd, Vfmsub231ss, Vfmsub231sd => ORDER_231 | SUBTRACT;
        Vfnmadd132ps, Vfnmadd132pd, Vfnmadd132ss, Vfnmadd132sd => ORDER_132 | NEGATE_PRODUCT;
        Vfnmadd213ps, Vfnmadd213pd, Vfnmadd213ss, Vfnmadd213sd => ORDER_213 | NEGATE_PRODUCT;
        Vfnmadd231ps, Vfnmadd231pd, Vfnmadd231ss, Vfnmadd231sd => ORDER_231 | NEGATE_PRODUCT;
        Vfnmsub132ps, Vfnmsub132pd, Vfnmsub132ss, Vfnmsub132sd => ORDER_132 | NEGATE_PRODUCT | SUBTRACT;
        Vfnmsub213ps, Vfnmsub213pd, Vfnmsub213ss, Vfnmsub213sd => ORDER_213 | NEGATE_PRODUCT | SUBTRACT;
        Vfnmsub231ps, Vfnmsub231pd, Vfnmsub231ss, Vfnmsub231sd => ORDER_231 | NEGATE_PRODUCT | SUBTRACT;
    };
    Some(with_kind(context, kind, run))
}

/// VFMADDSUB and VFMSUBADD.
fn alternating(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let (kind, run) = match context.insn.mnemonic() {
        M::Vfmaddsub132ps => (ORDER_132 | SUBTRACT_EVEN, packed_fma::<F32>(context)),
        M::Vfmaddsub213ps => (ORDER_213 | SUBTRACT_EVEN, packed_fma::<F32>(context)),
        M::Vfmaddsub231ps => (ORDER_231 | SUBTRACT_EVEN, packed_fma::<F32>(context)),
        M::Vfmaddsub132pd => (ORDER_132 | SUBTRACT_EVEN, packed_fma::<F64>(context)),
        M::Vfmaddsub213pd => (ORDER_213 | SUBTRACT_EVEN, packed_fma::<F64>(context)),
        M::Vfmaddsub231pd => (ORDER_231 | SUBTRACT_EVEN, packed_fma::<F64>(context)),
        M::Vfmsubadd132ps => (ORDER_132 | SUBTRACT_ODD, packed_fma::<F32>(context)),
        M::Vfmsubadd213ps => (ORDER_213 | SUBTRACT_ODD, packed_fma::<F32>(context)),
        M::Vfmsubadd231ps => (ORDER_231 | SUBTRACT_ODD, packed_fma::<F32>(context)),
        M::Vfmsubadd132pd => (ORDER_132 | SUBTRACT_ODD, packed_fma::<F64>(context)),
        M::Vfmsubadd213pd => (ORDER_213 | SUBTRACT_ODD, packed_fma::<F64>(context)),
        M::Vfmsubadd231pd => (ORDER_231 | SUBTRACT_ODD, packed_fma::<F64>(context)),
        _ => return None,
    };
    Some(with_kind(context, kind, run))
}

fn packed_fma<E: Element>(context: &Context<'_>) -> Handler {
    by_form!(form(context), cold::<PackedFma<E, F>> as Handler)
}

fn with_kind(context: &Context<'_>, kind: u8, run: Handler) -> Lowered {
    let mut op = unset(context);
    operands(context, &mut op);
    op.imm.set(kind.into());
    op.run = run;
    Lowered::new(op)
}

/// The number of a vector register.
pub(super) fn vector(register: Register) -> u8 {
    register.number() as u8
}
