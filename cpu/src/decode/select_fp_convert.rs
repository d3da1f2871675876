//! Conversions of vector elements.

use iced_x86::{EncodingKind, Mnemonic};

use super::operand::{gpr, immediate, is_memory, memory, size};
use super::select_fp::{Form, by_form, by_form128, form, vector};
use super::{Context, Lowered};
use crate::dispatch::{cold, hot, slow};
use crate::fp::convert::{
    Conversion, DoubleToInt, DoubleToIntTruncated, DoubleToSingle, FastConvert, FromInteger, HalfToSingle, IntToDouble,
    IntToSingle, PackedConvert, Reformat, SingleToDouble, SingleToHalf, SingleToInt, SingleToIntTruncated, StoreHalf,
    ToInteger,
};
use crate::fp::mmx::{FromMmx, ToMmx};
use crate::fp::operand::{Element, REGISTER};
use crate::op::{Handler, Op};
use crate::simd::form::{Sse, Vex128, Vex256};
use crate::softfloat::{F32, F64};

pub(super) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    match context.insn.mnemonic() {
        M::Cvtps2pd | M::Vcvtps2pd => packed::<SingleToDouble>(context),
        M::Cvtpd2ps | M::Vcvtpd2ps => packed::<DoubleToSingle>(context),
        M::Cvtdq2ps | M::Vcvtdq2ps => packed::<IntToSingle>(context),
        M::Cvtdq2pd | M::Vcvtdq2pd => packed::<IntToDouble>(context),
        M::Cvtps2dq | M::Vcvtps2dq => packed::<SingleToInt>(context),
        M::Cvttps2dq | M::Vcvttps2dq => packed::<SingleToIntTruncated>(context),
        M::Cvtpd2dq | M::Vcvtpd2dq => packed::<DoubleToInt>(context),
        M::Cvttpd2dq | M::Vcvttpd2dq => packed::<DoubleToIntTruncated>(context),
        M::Vcvtph2ps => packed::<HalfToSingle>(context),
        M::Vcvtps2ph => to_half(context),

        M::Cvtsi2ss | M::Vcvtsi2ss => from_integer::<F32>(context),
        M::Cvtsi2sd | M::Vcvtsi2sd => from_integer::<F64>(context),
        M::Cvtss2si | M::Vcvtss2si => to_integer::<F32, false>(context),
        M::Cvtsd2si | M::Vcvtsd2si => to_integer::<F64, false>(context),
        M::Cvttss2si | M::Vcvttss2si => to_integer::<F32, true>(context),
        M::Cvttsd2si | M::Vcvttsd2si => to_integer::<F64, true>(context),
        M::Cvtss2sd | M::Vcvtss2sd => reformat::<F32, F64>(context),
        M::Cvtsd2ss | M::Vcvtsd2ss => reformat::<F64, F32>(context),

        M::Cvtpi2ps => mmx(context, slow::<FromMmx<IntToSingle>>),
        M::Cvtpi2pd => mmx(context, slow::<FromMmx<IntToDouble>>),
        M::Cvtps2pi => mmx(context, slow::<ToMmx<SingleToInt>>),
        M::Cvttps2pi => mmx(context, slow::<ToMmx<SingleToIntTruncated>>),
        M::Cvtpd2pi => mmx(context, slow::<ToMmx<DoubleToInt>>),
        M::Cvttpd2pi => mmx(context, slow::<ToMmx<DoubleToIntTruncated>>),
        _ => None,
    }
}

/// Fills in operand `n`, a vector or MMX register or memory.
fn source(context: &Context<'_>, op: &mut Op, n: u32) {
    if is_memory(context, n) {
        memory(context, op);
    } else {
        op.src = vector(context.insn.op_register(n));
        op.aux |= REGISTER;
    }
}

fn packed<C: Conversion>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = context.op(by_form!(form(context), cold::<PackedConvert<C, F>> as Handler));
    op.dst = vector(context.insn.op0_register());
    op.aux = 0;
    source(context, &mut op, 1);
    Some(Lowered::new(op))
}

fn to_half(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = context.op(by_form!(form(context), cold::<PackedConvert<SingleToHalf, F>> as Handler));
    op.imm.set(immediate(context, 2)? & 0xff);
    if is_memory(context, 0) {
        op.run = by_form!(form(context), cold::<StoreHalf<F>> as Handler);
        op.dst = vector(insn.op1_register());
        memory(context, &mut op);
    } else {
        op.dst = vector(insn.op0_register());
        op.src = vector(insn.op1_register());
        op.aux = REGISTER;
    }
    Some(Lowered::new(op))
}

/// The register whose upper elements a scalar result gets, and the number of the source operand.
fn merging(context: &Context<'_>, op: &mut Op) -> u32 {
    let insn = context.insn;
    op.dst = vector(insn.op0_register());
    let (first, last) =
        if insn.encoding() == EncodingKind::VEX { (insn.op1_register(), 2) } else { (insn.op0_register(), 1) };
    op.aux = vector(first).into();
    last
}

fn from_integer<E: FastConvert>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = context.op(cold::<FromInteger<E, u32, Sse>>);
    let last = merging(context, &mut op);
    let wide = size(context, last) == 8;
    let register = !is_memory(context, last);
    if register {
        op.src = gpr(context.insn.op_register(last));
        op.aux |= REGISTER;
    } else {
        memory(context, &mut op);
    }
    op.run = by_form128!(
        form(context),
        match (wide, register) {
            (true, true) => hot::<FromInteger<E, u64, F>> as Handler,
            (true, false) => cold::<FromInteger<E, u64, F>>,
            (false, true) => hot::<FromInteger<E, u32, F>>,
            (false, false) => cold::<FromInteger<E, u32, F>>,
        }
    );
    Some(Lowered::new(op))
}

fn to_integer<E: FastConvert, const TRUNCATE: bool>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = context.op(cold::<ToInteger<E, u32, TRUNCATE>>);
    op.dst = gpr(context.insn.op0_register());
    op.aux = 0;
    source(context, &mut op, 1);
    let wide = context.insn.op0_register().is_gpr64();
    op.run = match (wide, is_memory(context, 1)) {
        (true, false) => hot::<ToInteger<E, u64, TRUNCATE>>,
        (true, true) => cold::<ToInteger<E, u64, TRUNCATE>>,
        (false, false) => hot::<ToInteger<E, u32, TRUNCATE>>,
        (false, true) => cold::<ToInteger<E, u32, TRUNCATE>>,
    };
    Some(Lowered::new(op))
}

fn reformat<E: Element, R: Element>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = context.op(by_form128!(form(context), cold::<Reformat<E, R, F>> as Handler));
    let last = merging(context, &mut op);
    source(context, &mut op, last);
    Some(Lowered::new(op))
}

fn mmx(context: &Context<'_>, run: Handler) -> Option<Lowered> {
    let mut op = context.op(run);
    op.dst = vector(context.insn.op0_register());
    op.aux = 0;
    source(context, &mut op, 1);
    Some(Lowered::new(op))
}
