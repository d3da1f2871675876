//! x87 instructions on the stack: loads, stores, arithmetic, comparisons, functions.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{is_memory, memory};
use super::{Context, Lowered};
use crate::dispatch::slow;
use crate::op::{Handler, Op};
use crate::x87::arith::{Arithmetic, Fadd, Fcom, Fcomi, Fdiv, Fdivr, Fmul, Fsub, Fsubr, Fucom, Fucomi, Operation};
use crate::x87::control::Fnop;
use crate::x87::function::{
    Combine, F2xm1, Fabs, Fchs, Fcos, Fpatan, Fprem, Fptan, Frndint, Fscale, Fsin, Fsincos, Fsqrt, Fxam, Fxtract,
    Fyl2x, Fyl2xp1, Replace, ReplaceAndPush,
};
use crate::x87::stack::{I16, I32, M32, M64, St, Zero};
use crate::x87::transfer::{
    Bcd, Fcmov, Fstpnce, Fxch, I64, Irrational, M80, One, Push, StoreMem, StoreReg, ToBcd, ToI16, ToI16Truncated,
    ToI32, ToI32Truncated, ToI64, ToI64Truncated, ToM32, ToM64, ToM80,
};

/// Number of ST(i) in operand `n`.
fn st(context: &Context<'_>, n: u32) -> u8 {
    context.insn.op_register(n).number() as u8
}

/// The eleven bits that the x87 keeps of an opcode: three of the escape byte, and ModRM.
fn opcode(context: &Context<'_>) -> u16 {
    let bytes = &context.bytes[..context.insn.len()];
    let escape = bytes.iter().position(|b| matches!(b, 0xd8..=0xdf)).unwrap_or(0);
    let byte = |n: usize| bytes.get(n).copied().unwrap_or(0) as u16;
    (byte(escape) & 7) << 8 | byte(escape + 1)
}

/// Bytes of the memory operand.
fn width(context: &Context<'_>) -> usize {
    context.insn.memory_size().size()
}

pub(super) fn select(context: &Context<'_>) -> Option<Lowered> {
    let run = handler(context)?;
    let insn = context.insn;
    let mut op = context.op(run);
    op.aux = opcode(context);
    (op.dst, op.src) = (0, 0);
    if is_memory(context, 0) {
        memory(context, &mut op);
    } else {
        registers(context, &mut op);
    }
    match insn.mnemonic() {
        // The order of softfloat's constants.
        Mnemonic::Fldpi => op.src = 0,
        Mnemonic::Fldl2t => op.src = 1,
        Mnemonic::Fldl2e => op.src = 2,
        Mnemonic::Fldlg2 => op.src = 3,
        Mnemonic::Fldln2 => op.src = 4,
        Mnemonic::Fcompp | Mnemonic::Fucompp => op.src = 1,
        other => op.imm.set(condition(other)),
    }
    Some(Lowered::new(op))
}

/// Register operands: the first is the destination, of two the second is the source.
fn registers(context: &Context<'_>, op: &mut Op) {
    let insn = context.insn;
    let count = (0..insn.op_count()).filter(|&n| insn.op_kind(n) == OpKind::Register).count();
    match count {
        0 => {}
        1 => (op.dst, op.src) = (st(context, 0), st(context, 0)),
        _ => (op.dst, op.src) = (st(context, 0), st(context, 1)),
    }
}

/// The number of FCMOVcc's condition.
fn condition(mnemonic: Mnemonic) -> u64 {
    match mnemonic {
        Mnemonic::Fcmove => 1,
        Mnemonic::Fcmovbe => 2,
        Mnemonic::Fcmovu => 3,
        Mnemonic::Fcmovnb => 4,
        Mnemonic::Fcmovne => 5,
        Mnemonic::Fcmovnbe => 6,
        Mnemonic::Fcmovnu => 7,
        _ => 0,
    }
}

fn handler(context: &Context<'_>) -> Option<Handler> {
    use Mnemonic as M;
    Some(match context.insn.mnemonic() {
        M::Fld => match (is_memory(context, 0), width(context)) {
            (false, _) => slow::<Push<St>>,
            (true, 4) => slow::<Push<M32>>,
            (true, 8) => slow::<Push<M64>>,
            (true, _) => slow::<Push<M80>>,
        },
        M::Fild => match width(context) {
            2 => slow::<Push<I16>>,
            4 => slow::<Push<I32>>,
            _ => slow::<Push<I64>>,
        },
        M::Fbld => slow::<Push<Bcd>>,
        M::Fld1 => slow::<Push<One>>,
        M::Fldz => slow::<Push<Zero>>,
        M::Fldpi | M::Fldl2t | M::Fldl2e | M::Fldlg2 | M::Fldln2 => slow::<Push<Irrational>>,

        M::Fstpnce => slow::<Fstpnce>,
        M::Fst | M::Fstp => store(context),
        M::Fist => match width(context) {
            2 => slow::<StoreMem<ToI16, false>>,
            _ => slow::<StoreMem<ToI32, false>>,
        },
        M::Fistp => match width(context) {
            2 => slow::<StoreMem<ToI16, true>>,
            4 => slow::<StoreMem<ToI32, true>>,
            _ => slow::<StoreMem<ToI64, true>>,
        },
        M::Fisttp => match width(context) {
            2 => slow::<StoreMem<ToI16Truncated, true>>,
            4 => slow::<StoreMem<ToI32Truncated, true>>,
            _ => slow::<StoreMem<ToI64Truncated, true>>,
        },
        M::Fbstp => slow::<StoreMem<ToBcd, true>>,
        M::Fxch => slow::<Fxch>,
        M::Fcmovb | M::Fcmove | M::Fcmovbe | M::Fcmovu | M::Fcmovnb | M::Fcmovne | M::Fcmovnbe | M::Fcmovnu => {
            slow::<Fcmov>
        }

        M::Fadd => arithmetic::<Fadd>(context),
        M::Fsub => arithmetic::<Fsub>(context),
        M::Fsubr => arithmetic::<Fsubr>(context),
        M::Fmul => arithmetic::<Fmul>(context),
        M::Fdiv => arithmetic::<Fdiv>(context),
        M::Fdivr => arithmetic::<Fdivr>(context),
        M::Faddp => slow::<Arithmetic<Fadd, St, true>>,
        M::Fsubp => slow::<Arithmetic<Fsub, St, true>>,
        M::Fsubrp => slow::<Arithmetic<Fsubr, St, true>>,
        M::Fmulp => slow::<Arithmetic<Fmul, St, true>>,
        M::Fdivp => slow::<Arithmetic<Fdiv, St, true>>,
        M::Fdivrp => slow::<Arithmetic<Fdivr, St, true>>,
        M::Fiadd => integer_arithmetic::<Fadd>(context),
        M::Fisub => integer_arithmetic::<Fsub>(context),
        M::Fisubr => integer_arithmetic::<Fsubr>(context),
        M::Fimul => integer_arithmetic::<Fmul>(context),
        M::Fidiv => integer_arithmetic::<Fdiv>(context),
        M::Fidivr => integer_arithmetic::<Fdivr>(context),

        M::Fcom => compare::<0>(context),
        M::Fcomp => compare::<1>(context),
        M::Fcompp => slow::<Fcom<St, 2>>,
        M::Ficom => match width(context) {
            2 => slow::<Fcom<I16, 0>>,
            _ => slow::<Fcom<I32, 0>>,
        },
        M::Ficomp => match width(context) {
            2 => slow::<Fcom<I16, 1>>,
            _ => slow::<Fcom<I32, 1>>,
        },
        M::Ftst => slow::<Fcom<Zero, 0>>,
        M::Fucom => slow::<Fucom<St, 0>>,
        M::Fucomp => slow::<Fucom<St, 1>>,
        M::Fucompp => slow::<Fucom<St, 2>>,
        M::Fcomi => slow::<Fcomi<St, 0>>,
        M::Fcomip => slow::<Fcomi<St, 1>>,
        M::Fucomi => slow::<Fucomi<St, 0>>,
        M::Fucomip => slow::<Fucomi<St, 1>>,

        M::Fchs => slow::<Replace<Fchs>>,
        M::Fabs => slow::<Replace<Fabs>>,
        M::Fsqrt => slow::<Replace<Fsqrt>>,
        M::Frndint => slow::<Replace<Frndint>>,
        M::F2xm1 => slow::<Replace<F2xm1>>,
        M::Fsin => slow::<Replace<Fsin>>,
        M::Fcos => slow::<Replace<Fcos>>,
        M::Fptan => slow::<ReplaceAndPush<Fptan>>,
        M::Fsincos => slow::<ReplaceAndPush<Fsincos>>,
        M::Fxtract => slow::<ReplaceAndPush<Fxtract>>,
        M::Fpatan => slow::<Combine<Fpatan, true>>,
        M::Fyl2x => slow::<Combine<Fyl2x, true>>,
        M::Fyl2xp1 => slow::<Combine<Fyl2xp1, true>>,
        M::Fscale => slow::<Combine<Fscale, false>>,
        M::Fprem => slow::<Fprem<false>>,
        M::Fprem1 => slow::<Fprem<true>>,
        M::Fxam => slow::<Fxam>,
        M::Frstpm => slow::<Fnop>,
        _ => return None,
    })
}

fn store(context: &Context<'_>) -> Handler {
    let pop = context.insn.mnemonic() != Mnemonic::Fst;
    match (is_memory(context, 0), width(context), pop) {
        (false, _, false) => slow::<StoreReg<false>>,
        (false, _, true) => slow::<StoreReg<true>>,
        (true, 4, false) => slow::<StoreMem<ToM32, false>>,
        (true, 4, true) => slow::<StoreMem<ToM32, true>>,
        (true, 8, false) => slow::<StoreMem<ToM64, false>>,
        (true, 8, true) => slow::<StoreMem<ToM64, true>>,
        (true, ..) => slow::<StoreMem<ToM80, true>>,
    }
}

fn arithmetic<O: Operation>(context: &Context<'_>) -> Handler {
    match (is_memory(context, 0), width(context)) {
        (false, _) => slow::<Arithmetic<O, St, false>>,
        (true, 4) => slow::<Arithmetic<O, M32, false>>,
        (true, _) => slow::<Arithmetic<O, M64, false>>,
    }
}

fn integer_arithmetic<O: Operation>(context: &Context<'_>) -> Handler {
    match width(context) {
        2 => slow::<Arithmetic<O, I16, false>>,
        _ => slow::<Arithmetic<O, I32, false>>,
    }
}

fn compare<const POPS: u8>(context: &Context<'_>) -> Handler {
    match (is_memory(context, 0), width(context)) {
        (false, _) => slow::<Fcom<St, POPS>>,
        (true, 4) => slow::<Fcom<M32, POPS>>,
        (true, _) => slow::<Fcom<M64, POPS>>,
    }
}
