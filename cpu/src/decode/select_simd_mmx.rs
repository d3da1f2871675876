//! MMX.

use iced_x86::{Mnemonic, OpKind};

use super::operand::{gpr, is_memory, memory, size};
use super::select_simd::{di_operand, set_imm8, unset, vector};
use super::{Context, Lowered};
use crate::dispatch::slow;
use crate::op::Handler;
use crate::simd::mmx::{self, ByCount, ByImm, Compute, Low, REGISTER};
use crate::simd::ops;

pub(super) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    let run: Handler = match insn.mnemonic() {
        M::Emms => return Some(Lowered::new(context.op(slow::<mmx::Emms>))),
        M::Movd | M::Movq | M::Movntq => return moves(context),
        M::Movq2dq => return between(context, slow::<mmx::Movq2dq>),
        M::Movdq2q => return between(context, slow::<mmx::Movdq2q>),
        M::Pmovmskb => return to_gpr(context, slow::<mmx::ToGpr<mmx::SignMask>>),
        M::Pextrw => return to_gpr(context, slow::<mmx::ToGpr<mmx::Word>>),
        M::Pinsrw if !is_memory(context, 1) => {
            let mut op = context.op(slow::<mmx::InsertWord>);
            (op.dst, op.src) = (vector(insn.op0_register()), gpr(insn.op1_register()));
            set_imm8(context, &mut op);
            return Some(Lowered::new(op));
        }
        M::Maskmovq => {
            let mut op = context.op(slow::<mmx::Maskmovq>);
            op.src = vector(insn.op1_register());
            op.aux = vector(insn.op2_register()) as u16;
            di_operand(context, &mut op);
            return Some(Lowered::new(op));
        }
        M::Psllw => shift::<ops::Psllw>(context),
        M::Pslld => shift::<ops::Pslld>(context),
        M::Psllq => shift::<ops::Psllq>(context),
        M::Psrlw => shift::<ops::Psrlw>(context),
        M::Psrld => shift::<ops::Psrld>(context),
        M::Psrlq => shift::<ops::Psrlq>(context),
        M::Psraw => shift::<ops::Psraw>(context),
        M::Psrad => shift::<ops::Psrad>(context),
        other => packed(other)?,
    };
    let mut op = unset(context);
    op.run = run;
    op.dst = vector(insn.op0_register());
    set_imm8(context, &mut op);
    op.aux = REGISTER;
    if is_memory(context, 1) {
        memory(context, &mut op);
        op.aux = size(context, 1) as u16;
    } else if insn.op1_kind() == OpKind::Register {
        op.src = vector(insn.op1_register());
    }
    Some(Lowered::new(op))
}

fn shift<O: crate::simd::packed::Count>(context: &Context<'_>) -> Handler {
    match context.insn.op1_kind() {
        OpKind::Immediate8 => slow::<Compute<ByImm<O>>>,
        _ => slow::<Compute<ByCount<O>>>,
    }
}

/// The operations `mm, mm/m64` (or `m32`).
fn packed(mnemonic: Mnemonic) -> Option<Handler> {
    use Mnemonic as M;
    macro_rules! table {
        ($($Name:ident)*; $($Own:ident)*) => {
            Some(match mnemonic {
                $(M::$Name => slow::<Compute<Low<ops::$Name>>>,)*
                $(M::$Own => slow::<Compute<mmx::$Own>>,)*
                _ => return None,
            })
        };
    }
    table! {
        Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq
        Paddsb Paddsw Paddusb Paddusw Psubsb Psubsw Psubusb Psubusw
        Pmullw Pmulhw Pmulhuw Pmulhrsw Pmuludq Pmaddwd Pmaddubsw Pavgb Pavgw
        Pminsw Pminub Pmaxsw Pmaxub Psignb Psignw Psignd Pabsb Pabsw Pabsd
        Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd Pand Pandn Por Pxor Psadbw
        Punpcklbw Punpcklwd Punpckldq;
        Phaddw Phaddd Phaddsw Phsubw Phsubd Phsubsw Packsswb Packssdw Packuswb
        Punpckhbw Punpckhwd Punpckhdq Pshufb Pshufw Palignr Pinsrw
    }
}

/// MOVD, MOVQ, MOVNTQ.
fn moves(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let (target, source) = (insn.op0_register(), insn.op1_register());
    let mut op = unset(context);
    if is_memory(context, 0) {
        op.src = vector(source);
        memory(context, &mut op);
        op.aux = size(context, 0) as u16;
        op.run = slow::<mmx::Store>;
        return Some(Lowered::new(op));
    }
    if target.is_gpr() {
        let wide = target.is_gpr64();
        return to_gpr(context, if wide { slow::<mmx::ToGpr<mmx::Qword>> } else { slow::<mmx::ToGpr<mmx::Dword>> });
    }
    op.dst = vector(target);
    if is_memory(context, 1) {
        memory(context, &mut op);
        op.aux = size(context, 1) as u16;
        op.run = slow::<Compute<mmx::Copy>>;
    } else if source.is_gpr() {
        op.src = gpr(source);
        op.run = if source.is_gpr64() { slow::<mmx::FromGpr<64>> } else { slow::<mmx::FromGpr<32>> };
    } else {
        op.src = vector(source);
        op.aux = REGISTER;
        op.run = slow::<Compute<mmx::Copy>>;
    }
    Some(Lowered::new(op))
}

fn to_gpr(context: &Context<'_>, run: Handler) -> Option<Lowered> {
    let mut op = context.op(run);
    op.dst = gpr(context.insn.op0_register());
    op.src = vector(context.insn.op1_register());
    set_imm8(context, &mut op);
    Some(Lowered::new(op))
}

fn between(context: &Context<'_>, run: Handler) -> Option<Lowered> {
    let mut op = context.op(run);
    (op.dst, op.src) = (vector(context.insn.op0_register()), vector(context.insn.op1_register()));
    Some(Lowered::new(op))
}
