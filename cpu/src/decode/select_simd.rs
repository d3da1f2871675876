//! Vector instructions: moves and masks, and the door to the other `select_simd` files.

use iced_x86::{EncodingKind, Mnemonic, OpKind, Register};

use super::operand::{AddressForm, by_address, gpr, immediate, is_memory, memory, operand_segment, size};
use super::{Context, Lowered, select_simd_element, select_simd_mmx, select_simd_packed};
use crate::address::{ADDRESS16, ADDRESS32, Base64, Full64, Legacy};
use crate::dispatch::{cold, hot, pure};
use crate::int::alu::FromReg;
use crate::int::mov::Store;
use crate::op::{Handler, Op};
use crate::simd::form::{Form as FormType, Sse, Vex128, Vex256};
use crate::simd::moves::{self, MoveLoad, MoveReg, MoveStore};

/// Which of the three forms an encoding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Sse,
    Vex128,
    Vex256,
}

/// The form, by the encoding and by whether any operand is a YMM register.
pub(super) fn form(context: &Context<'_>) -> Form {
    let insn = context.insn;
    let wide = (0..insn.op_count()).any(|n| insn.op_register(n).is_ymm());
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
            $crate::decode::select_simd::Form::Sse => {
                type F = $crate::simd::form::Sse;
                $value
            }
            $crate::decode::select_simd::Form::Vex128 => {
                type F = $crate::simd::form::Vex128;
                $value
            }
            $crate::decode::select_simd::Form::Vex256 => {
                type F = $crate::simd::form::Vex256;
                $value
            }
        }
    };
}

/// Picks by form where there is no 256-bit one.
macro_rules! by_form128 {
    ($form:expr, $value:expr) => {
        match $form {
            $crate::decode::select_simd::Form::Sse => {
                type F = $crate::simd::form::Sse;
                $value
            }
            _ => {
                type F = $crate::simd::form::Vex128;
                $value
            }
        }
    };
}
pub(super) use {by_form, by_form128};

/// The number of a vector register, or of an MMX register.
pub(super) fn vector(register: Register) -> u8 {
    register.number() as u8
}

/// Replaced before use.
pub(super) fn unset(context: &Context<'_>) -> Op {
    context.op(pure::<moves::ZeroUpper>)
}

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    if (0..insn.op_count()).any(|n| insn.op_register(n).is_mm()) || insn.mnemonic() == M::Emms {
        return select_simd_mmx::select(context);
    }
    match insn.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => {
            whole::<false>(context)
        }
        M::Movaps
        | M::Movapd
        | M::Movdqa
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Movntdqa
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => whole::<true>(context),
        M::Movd | M::Movq | M::Vmovd | M::Vmovq => low(context),
        // The string instruction of the same name has no vector operand and was taken before.
        M::Movss | M::Vmovss => scalar::<moves::LowDword>(context, 4),
        M::Movsd | M::Vmovsd => scalar::<moves::LowQword>(context, 8),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => half::<moves::LowQword>(context),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => half::<moves::HighQword>(context),
        M::Movlhps | M::Vmovlhps => merge::<moves::HighQword>(context),
        M::Movhlps | M::Vmovhlps => merge::<moves::HighToLow>(context),
        M::Vzeroupper => Some(Lowered::pure(context.op(pure::<moves::ZeroUpper>), insn)),
        M::Vzeroall => Some(Lowered::pure(context.op(pure::<moves::ZeroAll>), insn)),
        M::Movnti => {
            let mut op = unset(context);
            op.src = gpr(insn.op1_register());
            let address = memory(context, &mut op);
            op.run = match size(context, 0) {
                4 => by_address!(address, Store<u32, FromReg, A>),
                _ => by_address!(address, Store<u64, FromReg, A>),
            };
            Some(Lowered::new(op))
        }
        _ => select_simd_packed::select(context).or_else(|| select_simd_element::select(context)),
    }
}

/// The memory operand at rDI, in the segment the instruction names.
pub(super) fn di_operand(context: &Context<'_>, op: &mut Op) {
    op.base = gpr(Register::RDI);
    op.seg = operand_segment(context);
    op.scale = match context.insn.op0_kind() {
        OpKind::MemorySegDI => ADDRESS16,
        OpKind::MemorySegEDI => ADDRESS32,
        _ => 0,
    };
}

/// Moves of whole registers.
fn whole<const ALIGNED: bool>(context: &Context<'_>) -> Option<Lowered> {
    match form(context) {
        Form::Sse => whole_of::<Sse, ALIGNED>(context),
        Form::Vex128 => whole_of::<Vex128, ALIGNED>(context),
        Form::Vex256 => whole_of::<Vex256, ALIGNED>(context),
    }
}

fn whole_of<F: FormType, const ALIGNED: bool>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    if is_memory(context, 0) {
        op.src = vector(insn.op1_register());
        op.run = match memory(context, &mut op) {
            AddressForm::Base64 => hot::<MoveStore<F, Base64, ALIGNED>>,
            AddressForm::Full64 => hot::<MoveStore<F, Full64, ALIGNED>>,
            AddressForm::Legacy => cold::<MoveStore<F, Legacy, ALIGNED>>,
        };
        return Some(Lowered::new(op));
    }
    op.dst = vector(insn.op0_register());
    if is_memory(context, 1) {
        op.run = match memory(context, &mut op) {
            AddressForm::Base64 => hot::<MoveLoad<F, Base64, ALIGNED>>,
            AddressForm::Full64 => hot::<MoveLoad<F, Full64, ALIGNED>>,
            AddressForm::Legacy => cold::<MoveLoad<F, Legacy, ALIGNED>>,
        };
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op1_register());
    op.run = pure::<MoveReg<F>>;
    Some(Lowered::pure(op, insn))
}

/// MOVD and MOVQ.
fn low(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    let form = form(context);
    let (target, source) = (insn.op0_register(), insn.op1_register());
    if is_memory(context, 0) {
        op.src = vector(source);
        let address = memory(context, &mut op);
        op.run = match size(context, 0) {
            4 => by_address!(address, moves::StoreLow<u32, A>),
            _ => by_address!(address, moves::StoreLow<u64, A>),
        };
        return Some(Lowered::new(op));
    }
    if target.is_gpr() {
        (op.dst, op.src) = (gpr(target), vector(source));
        op.run = if target.is_gpr64() { pure::<moves::ToGpr<u64>> } else { pure::<moves::ToGpr<u32>> };
        return Some(Lowered::pure(op, insn));
    }
    op.dst = vector(target);
    if is_memory(context, 1) {
        op.run = load_low(context, &mut op, size(context, 1));
        return Some(Lowered::new(op));
    }
    if source.is_gpr() {
        op.src = gpr(source);
        op.run = match source.is_gpr64() {
            true => by_form128!(form, pure::<moves::FromGpr<u64, F>> as Handler),
            false => by_form128!(form, pure::<moves::FromGpr<u32, F>> as Handler),
        };
    } else {
        op.src = vector(source);
        op.run = by_form128!(form, pure::<moves::MoveLow<F>> as Handler);
    }
    Some(Lowered::pure(op, insn))
}

fn load_low(context: &Context<'_>, op: &mut Op, bytes: usize) -> Handler {
    let address = memory(context, op);
    let form = form(context);
    match bytes {
        4 => by_form128!(form, by_address!(address, moves::LoadLow<u32, F, A>)),
        _ => by_form128!(form, by_address!(address, moves::LoadLow<u64, F, A>)),
    }
}

/// MOVSS and MOVSD.
fn scalar<M: moves::Merge>(context: &Context<'_>, bytes: usize) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    if is_memory(context, 0) {
        op.src = vector(insn.op1_register());
        let address = memory(context, &mut op);
        op.run = match bytes {
            4 => by_address!(address, moves::StoreLow<u32, A>),
            _ => by_address!(address, moves::StoreLow<u64, A>),
        };
        return Some(Lowered::new(op));
    }
    if is_memory(context, 1) {
        op.dst = vector(insn.op0_register());
        op.run = load_low(context, &mut op, bytes);
        return Some(Lowered::new(op));
    }
    merge::<M>(context)
}

/// MOVLPS, MOVLPD, MOVHPS, MOVHPD.
fn half<M: moves::Merge>(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as K;
    let insn = context.insn;
    let mut op = unset(context);
    let address = memory(context, &mut op);
    if is_memory(context, 0) {
        op.src = vector(insn.op1_register());
        op.run = if matches!(insn.mnemonic(), K::Movhps | K::Movhpd | K::Vmovhps | K::Vmovhpd) {
            by_address!(address, moves::StoreHigh<A>)
        } else {
            by_address!(address, moves::StoreLow<u64, A>)
        };
    } else {
        op.dst = vector(insn.op0_register());
        op.aux = vector(first_source(context)) as u16;
        op.run = match (form(context), address) {
            (Form::Sse, AddressForm::Base64) => hot::<moves::MergeMem<M, Sse, Base64>>,
            (Form::Sse, AddressForm::Full64) => hot::<moves::MergeMem<M, Sse, Full64>>,
            (Form::Sse, AddressForm::Legacy) => cold::<moves::MergeMem<M, Sse, Legacy>>,
            _ => cold::<moves::MergeMem<M, Vex128, Legacy>>,
        };
    }
    Some(Lowered::new(op))
}

/// The first source: operand 1 when there are three, the destination otherwise.
pub(super) fn first_source(context: &Context<'_>) -> Register {
    let insn = context.insn;
    if context.insn.encoding() == EncodingKind::VEX { insn.op1_register() } else { insn.op0_register() }
}

fn merge<M: moves::Merge>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(first_source(context)) as u16;
    op.src = vector(insn.op_register(insn.op_count() - 1));
    op.run = match form(context) {
        Form::Sse => pure::<moves::MergeReg<M, Sse>>,
        _ => pure::<moves::MergeReg<M, Vex128>>,
    };
    Some(Lowered::pure(op, insn))
}

/// Fills in the immediate byte, if there is one.
pub(super) fn set_imm8(context: &Context<'_>, op: &mut Op) {
    let last = context.insn.op_count().saturating_sub(1);
    if let Some(value) = immediate(context, last) {
        op.imm.set(value & 0xff);
    }
}
