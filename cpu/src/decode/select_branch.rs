//! Near jumps, calls, returns and loops.

use emu_core::cpu_model::Vendor;
use iced_x86::{FlowControl, Mnemonic, OpKind};

use super::operand::{address_bits, by_condition, by_wide, gpr, is_memory, memory, size};
use super::{Context, Ends, Lowered};
use crate::address::{Full64, Legacy};
use crate::dispatch::ender;
use crate::int::branch as b;
use crate::op::Handler;

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    match insn.flow_control() {
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
            if is_near_relative(context) =>
        {
            Some(relative(context))
        }
        FlowControl::IndirectBranch | FlowControl::IndirectCall => indirect(context),
        FlowControl::Return if insn.mnemonic() == Mnemonic::Ret => near_return(context),
        _ => None,
    }
}

fn is_near_relative(context: &Context<'_>) -> bool {
    matches!(context.insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
}

fn relative(context: &Context<'_>) -> Lowered {
    let insn = context.insn;
    let block = context.request.rip;
    let target = insn.near_branch_target();
    let width = match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    };
    let condition = (insn.is_jcc_short_or_near()).then(|| condition_number(context));
    let distance = target.wrapping_sub(block) as i64;
    if width == 8 && i32::try_from(distance).is_ok() {
        let run: Option<Handler> = match (condition, insn.mnemonic()) {
            (Some(n), _) => Some(by_condition!(n, b::jcc::<C> as Handler)),
            (None, Mnemonic::Jmp) => Some(b::jmp as Handler),
            (None, Mnemonic::Call) => Some(b::call as Handler),
            _ => None,
        };
        if let Some(run) = run {
            let mut op = context.op(run);
            op.disp = distance as i32;
            return Lowered { ends: Ends::Linked, condition, ..Lowered::new(op) };
        }
    }
    let run = by_wide!(width, ender::<b::Relative<T>> as Handler).unwrap_or(ender::<b::Relative<u64>>);
    let mut op = context.op(run);
    op.imm.set(target.wrapping_sub(insn.next_ip()));
    let amd = context.request.model.vendor() == Vendor::Amd;
    op.aux = match insn.mnemonic() {
        Mnemonic::Jmp => b::ALWAYS,
        Mnemonic::Call => b::CALL,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => b::COUNT_ZERO,
        Mnemonic::Loop => b::LOOP,
        // AMD processors take a repetition prefix as the condition, as if it were that of a string instruction.
        Mnemonic::Loope if amd && insn.has_repne_prefix() => b::LOOPNE,
        Mnemonic::Loopne if amd && insn.has_rep_prefix() => b::LOOPE,
        Mnemonic::Loope => b::LOOPE,
        Mnemonic::Loopne => b::LOOPNE,
        _ => condition_number(context) as u16,
    };
    op.scale = count_bits(context);
    Lowered::ends(op)
}

/// Width of the count register of LOOP and JrCXZ.
fn count_bits(context: &Context<'_>) -> u8 {
    use iced_x86::Code as K;
    match context.insn.code() {
        K::Jcxz_rel8_16 | K::Jcxz_rel8_32 => 16,
        K::Jecxz_rel8_16 | K::Jecxz_rel8_32 | K::Jecxz_rel8_64 => 32,
        K::Jrcxz_rel8_16 | K::Jrcxz_rel8_64 => 64,
        K::Loop_rel8_16_CX
        | K::Loop_rel8_32_CX
        | K::Loope_rel8_16_CX
        | K::Loope_rel8_32_CX
        | K::Loopne_rel8_16_CX
        | K::Loopne_rel8_32_CX => 16,
        K::Loop_rel8_16_ECX
        | K::Loop_rel8_32_ECX
        | K::Loop_rel8_64_ECX
        | K::Loope_rel8_16_ECX
        | K::Loope_rel8_32_ECX
        | K::Loope_rel8_64_ECX
        | K::Loopne_rel8_16_ECX
        | K::Loopne_rel8_32_ECX
        | K::Loopne_rel8_64_ECX => 32,
        _ => 64,
    }
}

/// The low four bits of the opcode of Jcc, SETcc and CMOVcc.
pub(crate) fn condition_number(context: &Context<'_>) -> u8 {
    context.insn.code().op_code().op_code() as u8 & 15
}

fn indirect(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    if insn.is_jmp_far_indirect() || insn.is_call_far_indirect() {
        return None;
    }
    let call = match insn.mnemonic() {
        Mnemonic::Jmp => false,
        Mnemonic::Call => true,
        _ => return None,
    };
    let width = size(context, 0);
    let mut op = context.op(b::jmp);
    if is_memory(context, 0) {
        let form = memory(context, &mut op);
        let flat = context.is_64() && width == 8 && address_bits(context) == 64;
        let _ = form;
        op.run = match (flat, call) {
            (true, false) => b::jmp_mem::<Full64> as Handler,
            (true, true) => b::call_mem::<Full64>,
            (false, false) => by_wide!(width, ender::<b::JmpIndirect<T, b::InMem<Legacy>>> as Handler)?,
            (false, true) => by_wide!(width, ender::<b::CallIndirect<T, b::InMem<Legacy>>> as Handler)?,
        };
    } else {
        op.dst = gpr(insn.op0_register());
        op.run = match (context.is_64() && width == 8, call) {
            (true, false) => b::jmp_reg as Handler,
            (true, true) => b::call_reg,
            (false, false) => by_wide!(width, ender::<b::JmpIndirect<T, b::InReg>> as Handler)?,
            (false, true) => by_wide!(width, ender::<b::CallIndirect<T, b::InReg>> as Handler)?,
        };
    }
    Some(Lowered::ends(op))
}

fn near_return(context: &Context<'_>) -> Option<Lowered> {
    use iced_x86::Code as K;
    let (width, releases) = match context.insn.code() {
        K::Retnw => (2, false),
        K::Retnd => (4, false),
        K::Retnq => (8, false),
        K::Retnw_imm16 => (2, true),
        K::Retnd_imm16 => (4, true),
        K::Retnq_imm16 => (8, true),
        _ => return None,
    };
    let run = match width {
        8 => b::ret as Handler,
        _ => by_wide!(width, ender::<b::RetNear<T>> as Handler)?,
    };
    let mut op = context.op(run);
    if releases {
        op.aux = context.insn.immediate16();
    }
    Some(Lowered::ends(op))
}
