//! Computations on packed integers, shuffles and logic: which mnemonic is which operation.

use emu_core::cpu_model::Vendor;
use iced_x86::{Mnemonic, OpKind};

use super::operand::{AddressForm, is_memory, memory};
use super::select_simd::{Form, by_form, by_form128, first_source, form, set_imm8, unset, vector};
use super::{Context, Lowered};
use crate::address::{Base64, Full64, Legacy};
use crate::dispatch::{cold, hot, pure};
use crate::op::{Handler, Op};
use crate::simd::form::{Form as FormType, Lanewise, Sse, SseAnywhere, Vex128, Vex256};
use crate::simd::ops;
use crate::simd::packed::{
    Count, CountImm, CountMem, CountReg, Crossing, CrossingMem, CrossingReg, PackedMem, PackedReg, Ternary, TernaryMem,
    TernaryReg,
};

pub(super) fn select(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    match context.insn.mnemonic() {
        // The commonest, with instances for the fast path to memory.
        M::Pxor | M::Vpxor | M::Xorps | M::Vxorps | M::Xorpd | M::Vxorpd => quick::<ops::Pxor>(context),
        M::Pand | M::Vpand | M::Andps | M::Vandps | M::Andpd | M::Vandpd => quick::<ops::Pand>(context),
        M::Pandn | M::Vpandn | M::Andnps | M::Vandnps | M::Andnpd | M::Vandnpd => quick::<ops::Pandn>(context),
        M::Por | M::Vpor | M::Orps | M::Vorps | M::Orpd | M::Vorpd => quick::<ops::Por>(context),
        M::Pcmpeqb | M::Vpcmpeqb => quick::<ops::Pcmpeqb>(context),
        M::Pcmpeqd | M::Vpcmpeqd => quick::<ops::Pcmpeqd>(context),
        M::Pminub | M::Vpminub => quick::<ops::Pminub>(context),
        M::Paddb | M::Vpaddb => quick::<ops::Paddb>(context),
        M::Paddw | M::Vpaddw => quick::<ops::Paddw>(context),
        M::Paddd | M::Vpaddd => quick::<ops::Paddd>(context),
        M::Paddq | M::Vpaddq => quick::<ops::Paddq>(context),
        M::Pshufb | M::Vpshufb => quick::<ops::Pshufb>(context),

        M::Psubb | M::Vpsubb => plain::<ops::Psubb>(context),
        M::Psubw | M::Vpsubw => plain::<ops::Psubw>(context),
        M::Psubd | M::Vpsubd => plain::<ops::Psubd>(context),
        M::Psubq | M::Vpsubq => plain::<ops::Psubq>(context),
        M::Paddsb | M::Vpaddsb => plain::<ops::Paddsb>(context),
        M::Paddsw | M::Vpaddsw => plain::<ops::Paddsw>(context),
        M::Paddusb | M::Vpaddusb => plain::<ops::Paddusb>(context),
        M::Paddusw | M::Vpaddusw => plain::<ops::Paddusw>(context),
        M::Psubsb | M::Vpsubsb => plain::<ops::Psubsb>(context),
        M::Psubsw | M::Vpsubsw => plain::<ops::Psubsw>(context),
        M::Psubusb | M::Vpsubusb => plain::<ops::Psubusb>(context),
        M::Psubusw | M::Vpsubusw => plain::<ops::Psubusw>(context),
        M::Pmullw | M::Vpmullw => plain::<ops::Pmullw>(context),
        M::Pmulhw | M::Vpmulhw => plain::<ops::Pmulhw>(context),
        M::Pmulhuw | M::Vpmulhuw => plain::<ops::Pmulhuw>(context),
        M::Pmulhrsw | M::Vpmulhrsw => plain::<ops::Pmulhrsw>(context),
        M::Pmulld | M::Vpmulld => plain::<ops::Pmulld>(context),
        M::Pmuludq | M::Vpmuludq => plain::<ops::Pmuludq>(context),
        M::Pmuldq | M::Vpmuldq => plain::<ops::Pmuldq>(context),
        M::Pmaddwd | M::Vpmaddwd => plain::<ops::Pmaddwd>(context),
        M::Pmaddubsw | M::Vpmaddubsw => plain::<ops::Pmaddubsw>(context),
        M::Pavgb | M::Vpavgb => plain::<ops::Pavgb>(context),
        M::Pavgw | M::Vpavgw => plain::<ops::Pavgw>(context),
        M::Pminsb | M::Vpminsb => plain::<ops::Pminsb>(context),
        M::Pminsw | M::Vpminsw => plain::<ops::Pminsw>(context),
        M::Pminsd | M::Vpminsd => plain::<ops::Pminsd>(context),
        M::Pminuw | M::Vpminuw => plain::<ops::Pminuw>(context),
        M::Pminud | M::Vpminud => plain::<ops::Pminud>(context),
        M::Pmaxsb | M::Vpmaxsb => plain::<ops::Pmaxsb>(context),
        M::Pmaxsw | M::Vpmaxsw => plain::<ops::Pmaxsw>(context),
        M::Pmaxsd | M::Vpmaxsd => plain::<ops::Pmaxsd>(context),
        M::Pmaxub | M::Vpmaxub => plain::<ops::Pmaxub>(context),
        M::Pmaxuw | M::Vpmaxuw => plain::<ops::Pmaxuw>(context),
        M::Pmaxud | M::Vpmaxud => plain::<ops::Pmaxud>(context),
        M::Psignb | M::Vpsignb => plain::<ops::Psignb>(context),
        M::Psignw | M::Vpsignw => plain::<ops::Psignw>(context),
        M::Psignd | M::Vpsignd => plain::<ops::Psignd>(context),
        M::Pcmpeqw | M::Vpcmpeqw => plain::<ops::Pcmpeqw>(context),
        M::Pcmpeqq | M::Vpcmpeqq => plain::<ops::Pcmpeqq>(context),
        M::Pcmpgtb | M::Vpcmpgtb => plain::<ops::Pcmpgtb>(context),
        M::Pcmpgtw | M::Vpcmpgtw => plain::<ops::Pcmpgtw>(context),
        M::Pcmpgtd | M::Vpcmpgtd => plain::<ops::Pcmpgtd>(context),
        M::Pcmpgtq | M::Vpcmpgtq => plain::<ops::Pcmpgtq>(context),
        M::Phaddw | M::Vphaddw => plain::<ops::Phaddw>(context),
        M::Phaddd | M::Vphaddd => plain::<ops::Phaddd>(context),
        M::Phaddsw | M::Vphaddsw => plain::<ops::Phaddsw>(context),
        M::Phsubw | M::Vphsubw => plain::<ops::Phsubw>(context),
        M::Phsubd | M::Vphsubd => plain::<ops::Phsubd>(context),
        M::Phsubsw | M::Vphsubsw => plain::<ops::Phsubsw>(context),
        M::Psadbw | M::Vpsadbw => plain::<ops::Psadbw>(context),
        M::Packsswb | M::Vpacksswb => plain::<ops::Packsswb>(context),
        M::Packssdw | M::Vpackssdw => plain::<ops::Packssdw>(context),
        M::Packuswb | M::Vpackuswb => plain::<ops::Packuswb>(context),
        M::Packusdw | M::Vpackusdw => plain::<ops::Packusdw>(context),
        M::Punpcklbw | M::Vpunpcklbw => plain::<ops::Punpcklbw>(context),
        M::Punpcklwd | M::Vpunpcklwd => plain::<ops::Punpcklwd>(context),
        M::Punpckldq | M::Vpunpckldq | M::Unpcklps | M::Vunpcklps => plain::<ops::Punpckldq>(context),
        M::Punpcklqdq | M::Vpunpcklqdq | M::Unpcklpd | M::Vunpcklpd => plain::<ops::Punpcklqdq>(context),
        M::Punpckhbw | M::Vpunpckhbw => plain::<ops::Punpckhbw>(context),
        M::Punpckhwd | M::Vpunpckhwd => plain::<ops::Punpckhwd>(context),
        M::Punpckhdq | M::Vpunpckhdq | M::Unpckhps | M::Vunpckhps => plain::<ops::Punpckhdq>(context),
        M::Punpckhqdq | M::Vpunpckhqdq | M::Unpckhpd | M::Vunpckhpd => plain::<ops::Punpckhqdq>(context),
        M::Vpsllvd => plain::<ops::Vpsllvd>(context),
        M::Vpsllvq => plain::<ops::Vpsllvq>(context),
        M::Vpsrlvd => plain::<ops::Vpsrlvd>(context),
        M::Vpsrlvq => plain::<ops::Vpsrlvq>(context),
        M::Vpsravd => plain::<ops::Vpsravd>(context),
        M::Vpermilps if context.insn.op2_kind() != OpKind::Immediate8 => plain::<ops::VpermilpsVar>(context),
        M::Vpermilpd if context.insn.op2_kind() != OpKind::Immediate8 => plain::<ops::VpermilpdVar>(context),
        M::Mpsadbw | M::Vmpsadbw => plain::<ops::Mpsadbw>(context),
        M::Palignr | M::Vpalignr => plain::<ops::Palignr>(context),
        M::Shufps | M::Vshufps => plain::<ops::Shufps>(context),
        M::Shufpd | M::Vshufpd => plain::<ops::Shufpd>(context),
        M::Pblendw | M::Vpblendw => plain::<ops::Pblendw>(context),
        M::Blendps | M::Vblendps => plain::<ops::Blendps>(context),
        M::Blendpd | M::Vblendpd => plain::<ops::Blendpd>(context),
        M::Vpblendd => plain::<ops::Vpblendd>(context),

        M::Aesenc | M::Vaesenc => narrow::<ops::Aesenc>(context),
        M::Aesenclast | M::Vaesenclast => narrow::<ops::Aesenclast>(context),
        M::Aesdec | M::Vaesdec => narrow::<ops::Aesdec>(context),
        M::Aesdeclast | M::Vaesdeclast => narrow::<ops::Aesdeclast>(context),
        M::Pclmulqdq | M::Vpclmulqdq => narrow::<ops::Pclmulqdq>(context),
        M::Sha1rnds4 => sha::<ops::Sha1rnds4>(context),
        M::Sha1nexte => sha::<ops::Sha1nexte>(context),
        M::Sha1msg1 => sha::<ops::Sha1msg1>(context),
        M::Sha1msg2 => sha::<ops::Sha1msg2>(context),
        M::Sha256msg1 => sha::<ops::Sha256msg1>(context),
        M::Sha256msg2 => sha::<ops::Sha256msg2>(context),
        M::Aesimc | M::Vaesimc => narrow::<ops::Aesimc>(context),
        M::Aeskeygenassist | M::Vaeskeygenassist => narrow::<ops::Aeskeygenassist>(context),
        M::Phminposuw | M::Vphminposuw => narrow::<ops::Phminposuw>(context),

        M::Pabsb | M::Vpabsb => plain::<ops::Pabsb>(context),
        M::Pabsw | M::Vpabsw => plain::<ops::Pabsw>(context),
        M::Pabsd | M::Vpabsd => plain::<ops::Pabsd>(context),
        M::Movsldup | M::Vmovsldup => plain::<ops::Movsldup>(context),
        M::Movshdup | M::Vmovshdup => plain::<ops::Movshdup>(context),
        M::Movddup | M::Vmovddup => duplicate(context),
        M::Pshufd | M::Vpshufd => plain::<ops::Pshufd>(context),
        M::Pshuflw | M::Vpshuflw => plain::<ops::Pshuflw>(context),
        M::Pshufhw | M::Vpshufhw => plain::<ops::Pshufhw>(context),
        M::Vpermilps => plain::<ops::Vpermilps>(context),
        M::Vpermilpd => plain::<ops::Vpermilpd>(context),
        M::Pslldq | M::Vpslldq => plain::<ops::Pslldq>(context),
        M::Psrldq | M::Vpsrldq => plain::<ops::Psrldq>(context),

        M::Psllw | M::Vpsllw => count::<ops::Psllw>(context),
        M::Pslld | M::Vpslld => count::<ops::Pslld>(context),
        M::Psllq | M::Vpsllq => count::<ops::Psllq>(context),
        M::Psrlw | M::Vpsrlw => count::<ops::Psrlw>(context),
        M::Psrld | M::Vpsrld => count::<ops::Psrld>(context),
        M::Psrlq | M::Vpsrlq => count::<ops::Psrlq>(context),
        M::Psraw | M::Vpsraw => count::<ops::Psraw>(context),
        M::Psrad | M::Vpsrad => count::<ops::Psrad>(context),

        M::Pblendvb | M::Vpblendvb => ternary::<ops::Pblendvb>(context),
        M::Blendvps | M::Vblendvps => ternary::<ops::Blendvps>(context),
        M::Blendvpd | M::Vblendvpd => ternary::<ops::Blendvpd>(context),
        M::Sha256rnds2 => sha_rounds(context),

        M::Vpermd | M::Vpermps => crossing::<ops::Vpermd>(context),
        M::Vpermq | M::Vpermpd => crossing::<ops::Vpermq>(context),
        M::Vperm2i128 | M::Vperm2f128 => crossing::<ops::Vperm2i128>(context),
        _ => None,
    }
}

/// Where an instruction takes its second source from.
enum Second {
    Reg,
    Mem(AddressForm),
}

/// Fills in destination, sources and immediate. The second source is the last operand that is no immediate, which may
/// also be the only one.
fn operands(context: &Context<'_>, op: &mut Op) -> Second {
    let insn = context.insn;
    op.dst = vector(insn.op0_register());
    set_imm8(context, op);
    let count = insn.op_count();
    let by_immediate = count > 1 && insn.op_kind(count - 1) == OpKind::Immediate8;
    let last = if by_immediate { count - 2 } else { count - 1 };
    op.aux = match last {
        2 => vector(insn.op1_register()) as u16,
        _ => op.dst as u16,
    };
    if is_memory(context, last) {
        return Second::Mem(memory(context, op));
    }
    op.src = vector(insn.op_register(last));
    Second::Reg
}

fn finish(context: &Context<'_>, op: Op, second: Second) -> Option<Lowered> {
    Some(match second {
        Second::Reg => Lowered::pure(op, context.insn),
        Second::Mem(_) => Lowered::new(op),
    })
}

/// Every form, with fast access to memory.
fn quick<O: Lanewise>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let second = operands(context, &mut op);
    op.run = match form(context) {
        Form::Sse => quick_handler::<O, Sse>(&second),
        Form::Vex128 => quick_handler::<O, Vex128>(&second),
        Form::Vex256 => quick_handler::<O, Vex256>(&second),
    };
    finish(context, op, second)
}

fn quick_handler<O: Lanewise, F: FormType>(second: &Second) -> Handler {
    match second {
        Second::Reg => pure::<PackedReg<O, F>>,
        Second::Mem(AddressForm::Base64) => hot::<PackedMem<O, F, Base64>>,
        Second::Mem(AddressForm::Full64) => hot::<PackedMem<O, F, Full64>>,
        Second::Mem(AddressForm::Legacy) => cold::<PackedMem<O, F, Legacy>>,
    }
}

/// Every form, with one way to memory.
fn plain<O: Lanewise>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let second = operands(context, &mut op);
    op.run = by_form!(form(context), plain_handler::<O, F>(&second));
    finish(context, op, second)
}

fn plain_handler<O: Lanewise, F: FormType>(second: &Second) -> Handler {
    match second {
        Second::Reg => pure::<PackedReg<O, F>>,
        Second::Mem(_) => cold::<PackedMem<O, F, Legacy>>,
    }
}

/// The 128-bit forms alone.
fn narrow<O: Lanewise>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let second = operands(context, &mut op);
    op.run = by_form128!(form(context), plain_handler::<O, F>(&second));
    finish(context, op, second)
}

/// Whether the model wants the memory operands of the SHA extensions aligned: Zen does not, Intel documents that it does.
fn sha_aligned(context: &Context<'_>) -> bool {
    context.request.model.vendor() == Vendor::Intel
}

fn sha<O: Lanewise>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let second = operands(context, &mut op);
    op.run = match sha_aligned(context) {
        true => plain_handler::<O, Sse>(&second),
        false => plain_handler::<O, SseAnywhere>(&second),
    };
    finish(context, op, second)
}

/// SHA256RNDS2, with XMM0 as its third operand.
fn sha_rounds(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    op.dst = vector(context.insn.op0_register());
    op.aux = op.dst as u16;
    let second = if is_memory(context, 1) {
        Second::Mem(memory(context, &mut op))
    } else {
        op.src = vector(context.insn.op1_register());
        Second::Reg
    };
    op.run = match (&second, sha_aligned(context)) {
        (Second::Reg, _) => pure::<TernaryReg<ops::Sha256rnds2, Sse>>,
        (Second::Mem(_), true) => cold::<TernaryMem<ops::Sha256rnds2, Sse>>,
        (Second::Mem(_), false) => cold::<TernaryMem<ops::Sha256rnds2, SseAnywhere>>,
    };
    finish(context, op, second)
}

/// MOVDDUP reads 64 bits from memory in its 128-bit forms.
fn duplicate(context: &Context<'_>) -> Option<Lowered> {
    if form(context) == Form::Vex256 || !is_memory(context, 1) {
        return plain::<ops::Movddup>(context);
    }
    let mut op = unset(context);
    operands(context, &mut op);
    op.run = by_form128!(form(context), cold::<crate::simd::moves::DuplicateMem<F>> as Handler);
    Some(Lowered::new(op))
}

fn count<O: Count>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(first_source(context)) as u16;
    let last = insn.op_count() - 1;
    if insn.op_kind(last) == OpKind::Immediate8 {
        set_imm8(context, &mut op);
        op.run = by_form!(form, pure::<CountImm<O, F>> as Handler);
    } else if is_memory(context, last) {
        memory(context, &mut op);
        op.run = by_form!(form, cold::<CountMem<O, F>> as Handler);
        return Some(Lowered::new(op));
    } else {
        op.src = vector(insn.op_register(last));
        op.run = by_form!(form, pure::<CountReg<O, F>> as Handler);
    }
    Some(Lowered::pure(op, insn))
}

/// The third operand is XMM0 in the legacy forms, operand 3 in the VEX forms.
fn ternary<O: Ternary>(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    let form = form(context);
    let mut op = unset(context);
    op.dst = vector(insn.op0_register());
    op.aux = vector(first_source(context)) as u16;
    let (second, third) = match form {
        Form::Sse => (1, 0),
        _ => (2, vector(insn.op3_register())),
    };
    op.imm.set(third as u64);
    if is_memory(context, second) {
        memory(context, &mut op);
        op.run = by_form!(form, cold::<TernaryMem<O, F>> as Handler);
        return Some(Lowered::new(op));
    }
    op.src = vector(insn.op_register(second));
    op.run = by_form!(form, pure::<TernaryReg<O, F>> as Handler);
    Some(Lowered::pure(op, insn))
}

fn crossing<O: Crossing>(context: &Context<'_>) -> Option<Lowered> {
    let mut op = unset(context);
    let second = operands(context, &mut op);
    op.run = match second {
        Second::Reg => pure::<CrossingReg<O>>,
        Second::Mem(_) => cold::<CrossingMem<O>>,
    };
    finish(context, op, second)
}
