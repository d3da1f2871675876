//! Elements and lanes in and out, masks, tests, strings, widening moves, masked accesses and gathers.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{gpr, is_memory, memory, size};
use super::select_simd::{Form, by_form, by_form128, di_operand, first_source, form, set_imm8, unset, vector};
use super::{Context, Lowered};
use crate::dispatch::{cold, pure, slow};
use crate::op::Handler;
use crate::simd::element::{self, Element, MoveMask, Signs, Test, TestMem, TestReg, WidenMem, WidenReg};
use crate::simd::masked::{self, MaskedElement, MaskedLoad, MaskedStore};
use crate::simd::ops::{self, Widen};
use crate::simd::string::{self, StringInsn, StringMem, StringReg};

pub(super) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    match context.insn.mnemonic() {
        M::Pmovmskb | M::Vpmovmskb => signs::<element::OfBytes>(context),
        M::Movmskps | M::Vmovmskps => signs::<element::OfDwords>(context),
        M::Movmskpd | M::Vmovmskpd => signs::<element::OfQwords>(context),
        M::Pinsrb | M::Vpinsrb => insert::<u8>(context),
        M::Pinsrw | M::Vpinsrw => insert::<u16>(context),
        M::Pinsrd | M::Vpinsrd => insert::<u32>(context),
        M::Pinsrq | M::Vpinsrq => insert::<u64>(context),
        M::Pextrb | M::Vpextrb => extract::<u8>(context),
        M::Pextrw | M::Vpextrw => extract::<u16>(context),
        M::Pextrd | M::Vpextrd | M::Extractps | M::Vextractps => extract::<u32>(context),
        M::Pextrq | M::Vpextrq => extract::<u64>(context),
        M::Insertps | M::Vinsertps => insertps(context),
        M::Vinserti128 | M::Vinsertf128 => insert_lane(context),
        M::Vextracti128 | M::Vextractf128 => extract_lane(context),
        M::Ptest | M::Vptest => test::<element::Ptest>(context),
        M::Vtestps => test::<element::Vtestps>(context),
        M::Vtestpd => test::<element::Vtestpd>(context),
        M::Pcmpestri | M::Vpcmpestri | M::Pcmpestri64 | M::Vpcmpestri64 => text::<string::Estri>(context),
        M::Pcmpestrm | M::Vpcmpestrm | M::Pcmpestrm64 | M::Vpcmpestrm64 => text::<string::Estrm>(context),
        M::Pcmpistri | M::Vpcmpistri => text::<string::Istri>(context),
        M::Pcmpistrm | M::Vpcmpistrm => text::<string::Istrm>(context),
        M::Pmovsxbw | M::Vpmovsxbw => widen::<ops::Pmovsxbw>(context),
        M::Pmovsxbd | M::Vpmovsxbd => widen::<ops::Pmovsxbd>(context),
        M::Pmovsxbq | M::Vpmovsxbq => widen::<ops::Pmovsxbq>(context),
        M::Pmovsxwd | M::Vpmovsxwd => widen::<ops::Pmovsxwd>(context),
        M::Pmovsxwq | M::Vpmovsxwq => widen::<ops::Pmovsxwq>(context),
        M::Pmovsxdq | M::Vpmovsxdq => widen::<ops::Pmovsxdq>(context),
        M::Pmovzxbw | M::Vpmovzxbw => widen::<ops::Pmovzxbw>(context),
        M::Pmovzxbd | M::Vpmovzxbd => widen::<ops::Pmovzxbd>(context),
        M::Pmovzxbq | M::Vpmovzxbq => widen::<ops::Pmovzxbq>(context),
        M::Pmovzxwd | M::Vpmovzxwd => widen::<ops::Pmovzxwd>(context),
        M::Pmovzxwq | M::Vpmovzxwq => widen::<ops::Pmovzxwq>(context),
        M::Pmovzxdq | M::Vpmovzxdq => widen::<ops::Pmovzxdq>(context),
        M::Vpbroadcastb => widen::<ops::Vpbroadcastb>(context),
        M::Vpbroadcastw => widen::<ops::Vpbroadcastw>(context),
        M::Vpbroadcastd | M::Vbroadcastss => widen::<ops::Vpbroadcastd>(context),
        M::Vpbroadcastq | M::Vbroadcastsd => widen::<ops::Vpbroadcastq>(context),
        M::Vbroadcasti128 | M::Vbroadcastf128 => widen::<ops::Vbroadcasti128>(context),
        M::Vmaskmovps | M::Vpmaskmovd => masked::<u32>(context),
        M::Vmaskmovpd | M::Vpmaskmovq => masked::<u64>(context),
        M::Maskmovdqu | M::Vmaskmovdqu => {
            let mut op = context.op(slow::<masked::Maskmovdqu>);
            op.src = vector(context.insn.op1_register());
            op.aux = vector(context.insn.op2_register()) as u16;
            di_operand(context, &mut op);
            Some(Lowered::new(op))
        }
        M::Vgatherdps | M::Vpgatherdd => gather(context, 0),
        M::Vgatherdpd | M::Vpgatherdq => gather(context, masked::QWORD_ELEMENT),
        M::Vgatherqps | M::Vpgatherqd => gather(context, masked::QWORD_INDEX),
        M::Vgatherqpd | M::Vpgatherqq => gather(context, masked::QWORD_INDEX | masked::QWORD_ELEMENT),
        _ => None,
    }
}

fn signs<M: Signs>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    op.dst = gpr(context.insn.op0_register());
    op.src = vector(context.insn.op1_register());
    op.run = by_form!(form(context), pure::<MoveMask<M, F>> as Handler);
    Some(Lowered::pure(op, context.insn))
}

fn insert<E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(first_source(context)) as u16;
    set_imm8(context, &mut op);
    let source = insn.op_count() - 2;
    if is_memory(context, source) {
        memory(context, &mut op);
        op.run = by_form128!(form, cold::<element::InsertMem<E, F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = gpr(insn.op_register(source));
    op.run = by_form128!(form, pure::<element::InsertReg<E, F>> as Handler);
    Some(Lowered::pure(op, insn))
}

fn extract<E: Element>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    op.src = vector(insn.op1_register());
    set_imm8(context, &mut op);
    if is_memory(context, 0) {
        memory(context, &mut op);
        op.run = cold::<element::ExtractMem<E>>;
        return Some(Lowered::new(op));
    }
    op.dst = gpr(insn.op0_register());
    op.run = pure::<element::ExtractReg<E>>;
    Some(Lowered::pure(op, insn))
}

fn insertps(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(first_source(context)) as u16;
    set_imm8(context, &mut op);
    let source = insn.op_count() - 2;
    if is_memory(context, source) {
        memory(context, &mut op);
        op.run = by_form128!(form, cold::<element::InsertpsMem<F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op_register(source));
    op.run = by_form128!(form, pure::<crate::simd::packed::PackedReg<ops::Insertps, F>> as Handler);
    Some(Lowered::pure(op, insn))
}

fn insert_lane(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(insn.op1_register()) as u16;
    set_imm8(context, &mut op);
    if is_memory(context, 2) {
        memory(context, &mut op);
        op.run = cold::<element::InsertLaneMem>;
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op2_register());
    op.run = pure::<element::InsertLane>;
    Some(Lowered::pure(op, insn))
}

fn extract_lane(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = unset(context);
    op.src = vector(insn.op1_register());
    set_imm8(context, &mut op);
    if is_memory(context, 0) {
        memory(context, &mut op);
        op.run = cold::<element::ExtractLaneMem>;
        return Some(Lowered::new(op));
    }
    op.dst = vector(insn.op0_register());
    op.run = pure::<element::ExtractLane>;
    Some(Lowered::pure(op, insn))
}

fn test<T: Test>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.aux = vector(insn.op0_register()) as u16;
    if is_memory(context, 1) {
        memory(context, &mut op);
        op.run = by_form!(form, cold::<TestMem<T, F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op1_register());
    op.run = by_form!(form, pure::<TestReg<T, F>> as Handler);
    Some(Lowered { sets: super::ALL_FLAGS, ..Lowered::pure(op, insn) })
}

fn text<S: StringInsn>(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    set_imm8(context, &mut op);
    let wide = matches!(insn.mnemonic(), M::Pcmpestri64 | M::Vpcmpestri64 | M::Pcmpestrm64 | M::Vpcmpestrm64);
    op.aux = if wide { string::WIDE_LENGTHS } else { 0 };
    if is_memory(context, 1) {
        memory(context, &mut op);
        op.run = by_form128!(form, cold::<StringMem<S, F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op1_register());
    op.run = by_form128!(form, pure::<StringReg<S, F>> as Handler);
    Some(Lowered { sets: super::ALL_FLAGS, ..Lowered::pure(op, insn) })
}

fn widen<W: Widen>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    if is_memory(context, 1) {
        memory(context, &mut op);
        op.aux = size(context, 1) as u16;
        op.run = by_form!(form, cold::<WidenMem<W, F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op1_register());
    op.run = by_form!(form, pure::<WidenReg<W, F>> as Handler);
    Some(Lowered::pure(op, insn))
}

fn masked<T: MaskedElement>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    memory(context, &mut op);
    op.aux = vector(insn.op1_register()) as u16;
    if insn.op0_kind() == OpKind::Memory {
        op.src = vector(insn.op2_register());
        op.run = by_form!(form, slow::<MaskedStore<T, F>> as Handler);
    } else {
        op.dst = vector(insn.op0_register());
        op.run = by_form!(form, slow::<MaskedLoad<T, F>> as Handler);
    }
    Some(Lowered::new(op))
}

fn gather(context: &Context<'_>, kinds: u16) -> Option<Lowered> {
    let insn = context.insn;
    let mut op = context.op(slow::<masked::GatherInsn>);
    memory(context, &mut op);
    op.dst = vector(insn.op0_register());
    let (mask, index) = (vector(insn.op2_register()), vector(insn.memory_index()));
    // VEX.L widens the index register, the destination, or both.
    let wide = form(context) == Form::Vex256 || insn.memory_index().is_ymm();
    op.aux = mask as u16 | (index as u16) << 4 | kinds | if wide { masked::YMM } else { 0 };
    Some(Lowered::new(op))
}
