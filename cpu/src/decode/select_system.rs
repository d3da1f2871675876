//! Instructions of the operating system.

use iced_x86::{Code, Mnemonic, OpKind, Register};

use super::operand::{gpr, is_memory, memory, segment, size};
use super::{Context, Lowered};
use crate::dispatch::{ender, pure, slow};
use crate::op::{Handler, Op};
use crate::segment::SegReg;
use crate::sev::rmp;
use crate::system::{
    REGISTER, cache, control, debug, far, flags, identity, interrupt, io, iret, load, msr, syscall, tables, verify,
};

/// How an instruction's handler takes part in its block.
#[derive(Clone, Copy)]
enum Shape {
    Ends(Handler),
    Inside(Handler),
}
use Shape::{Ends, Inside};

pub(crate) fn select(context: &Context<'_>) -> Option<Lowered> {
    moves(context)
        .or_else(|| stack(context))
        .or_else(|| far_control(context))
        .or_else(|| without_operands(context))
        .or_else(|| with_operand(context))
        .or_else(|| with_registers(context))
}

fn finish(shape: Shape, mut op: Op) -> Option<Lowered> {
    Some(match shape {
        Ends(run) => {
            op.run = run;
            Lowered::ends(op)
        }
        Inside(run) => {
            op.run = run;
            Lowered::new(op)
        }
    })
}

fn empty(context: &Context<'_>) -> Op {
    context.op(slow::<super::Undefined>)
}

/// Fills in operand `n`: a register or memory.
fn put_operand(context: &Context<'_>, op: &mut Op, n: u32) {
    if is_memory(context, n) {
        memory(context, op);
    } else {
        op.base = REGISTER;
        op.src = gpr(context.insn.op_register(n));
    }
}

/// Operand size in bytes of instructions that name none: from the mode and the prefixes, as iced has resolved them.
fn by_suffix(bytes: u16, mut op: Op, shape: Shape) -> Option<Lowered> {
    op.aux = bytes;
    finish(shape, op)
}

/// MOV from and to segment, control and debug registers.
fn moves(context: &Context<'_>) -> Option<Lowered> {
    let insn = context.insn;
    if insn.mnemonic() != Mnemonic::Mov {
        return None;
    }
    let register = |n: u32| (insn.op_kind(n) == OpKind::Register).then(|| insn.op_register(n));
    let mut op = empty(context);
    if let Some(to) = register(0) {
        if to.is_segment_register() {
            op.dst = segment(to);
            put_operand(context, &mut op, 1);
            return match to {
                Register::CS => None,
                Register::SS => finish(Ends(ender::<load::MovToSs>), op),
                _ => finish(Inside(slow::<load::MovToSeg>), op),
            };
        }
        if to.is_cr() || to.is_dr() {
            op.aux = to.number() as u16;
            op.src = gpr(insn.op1_register());
            return finish(
                if to.is_cr() { Ends(ender::<control::MovToCr>) } else { Ends(ender::<debug::MovToDr>) },
                op,
            );
        }
    }
    let from = register(1)?;
    if from.is_segment_register() {
        op.dst = segment(from);
        op.aux = size(context, 0) as u16;
        put_operand(context, &mut op, 0);
        return finish(Inside(slow::<load::MovFromSeg>), op);
    }
    if from.is_cr() || from.is_dr() {
        op.aux = from.number() as u16;
        op.src = gpr(insn.op0_register());
        let run: Handler = if from.is_cr() { slow::<control::MovFromCr> } else { slow::<debug::MovFromDr> };
        return finish(Inside(run), op);
    }
    None
}

/// PUSH and POP of segment registers and flags.
fn stack(context: &Context<'_>) -> Option<Lowered> {
    use Code as C;
    let insn = context.insn;
    let mut op = empty(context);
    let pushf = Inside(slow::<flags::PushF>);
    let popf = Ends(ender::<flags::PopF>);
    match insn.code() {
        C::Pushfw => return by_suffix(2, op, pushf),
        C::Pushfd => return by_suffix(4, op, pushf),
        C::Pushfq => return by_suffix(8, op, pushf),
        C::Popfw => return by_suffix(2, op, popf),
        C::Popfd => return by_suffix(4, op, popf),
        C::Popfq => return by_suffix(8, op, popf),
        _ => {}
    }
    if !matches!(insn.mnemonic(), Mnemonic::Push | Mnemonic::Pop) || insn.op0_kind() != OpKind::Register {
        return None;
    }
    let register = insn.op0_register();
    if !register.is_segment_register() {
        return None;
    }
    op.dst = segment(register);
    op.aux = match insn.code() {
        C::Pushw_ES | C::Pushw_CS | C::Pushw_SS | C::Pushw_DS | C::Pushw_FS | C::Pushw_GS => 2,
        C::Popw_ES | C::Popw_CS | C::Popw_SS | C::Popw_DS | C::Popw_FS | C::Popw_GS => 2,
        C::Pushq_FS | C::Pushq_GS | C::Popq_FS | C::Popq_GS => 8,
        _ => 4,
    };
    match (insn.mnemonic(), register) {
        (Mnemonic::Push, _) => finish(Inside(slow::<load::PushSeg>), op),
        (_, Register::CS) => None,
        (_, Register::SS) => finish(Ends(ender::<load::PopSs>), op),
        _ => finish(Inside(slow::<load::PopSeg>), op),
    }
}

/// Far jumps, calls and returns, software interrupts and fast system calls.
fn far_control(context: &Context<'_>) -> Option<Lowered> {
    use Code as C;
    let insn = context.insn;
    let mut op = empty(context);
    match insn.code() {
        C::Jmp_ptr1616 | C::Jmp_ptr1632 | C::Call_ptr1616 | C::Call_ptr1632 => {
            let wide = matches!(insn.code(), C::Jmp_ptr1632 | C::Call_ptr1632);
            op.aux = insn.far_branch_selector();
            op.imm.set(if wide { insn.far_branch32() as u64 } else { insn.far_branch16() as u64 });
            op.dst = if wide { 4 } else { 2 };
            let calls = matches!(insn.code(), C::Call_ptr1616 | C::Call_ptr1632);
            return finish(if calls { Ends(ender::<far::CallFar>) } else { Ends(ender::<far::JmpFar>) }, op);
        }
        C::Jmp_m1616 | C::Jmp_m1632 | C::Jmp_m1664 | C::Call_m1616 | C::Call_m1632 | C::Call_m1664 => {
            op.aux = match insn.code() {
                C::Jmp_m1616 | C::Call_m1616 => 2,
                C::Jmp_m1632 | C::Call_m1632 => 4,
                _ => 8,
            };
            memory(context, &mut op);
            let calls = matches!(insn.code(), C::Call_m1616 | C::Call_m1632 | C::Call_m1664);
            return finish(if calls { Ends(ender::<far::CallFarMem>) } else { Ends(ender::<far::JmpFarMem>) }, op);
        }
        C::Retfw_imm16 | C::Retfd_imm16 | C::Retfq_imm16 => op.imm.set(insn.immediate16() as u64),
        C::Int_imm8 => op.aux = insn.immediate8() as u16,
        _ => {}
    }
    let ret = Ends(ender::<iret::RetFar>);
    let iret = Ends(ender::<iret::Iret>);
    match insn.code() {
        C::Retfw | C::Retfw_imm16 => by_suffix(2, op, ret),
        C::Retfd | C::Retfd_imm16 => by_suffix(4, op, ret),
        C::Retfq | C::Retfq_imm16 => by_suffix(8, op, ret),
        C::Iretw => by_suffix(2, op, iret),
        C::Iretd => by_suffix(4, op, iret),
        C::Iretq => by_suffix(8, op, iret),
        C::Int_imm8 => finish(Ends(ender::<interrupt::Int>), op),
        C::Int3 => finish(Ends(ender::<interrupt::Int3>), op),
        C::Int1 => finish(Ends(ender::<interrupt::Int1>), op),
        C::Into => finish(Ends(ender::<interrupt::Into>), op),
        C::Bound_r16_m1616 | C::Bound_r32_m3232 => {
            op.aux = if insn.code() == C::Bound_r16_m1616 { 2 } else { 4 };
            op.dst = gpr(insn.op0_register());
            memory(context, &mut op);
            finish(Inside(slow::<interrupt::Bound>), op)
        }
        C::Syscall => finish(Ends(ender::<syscall::Syscall>), op),
        C::Sysretd => by_suffix(4, op, Ends(ender::<syscall::Sysret>)),
        C::Sysretq => by_suffix(8, op, Ends(ender::<syscall::Sysret>)),
        C::Sysenter => finish(Ends(ender::<syscall::Sysenter>), op),
        C::Sysexitd => by_suffix(4, op, Ends(ender::<syscall::Sysexit>)),
        C::Sysexitq => by_suffix(8, op, Ends(ender::<syscall::Sysexit>)),
        _ => None,
    }
}

fn without_operands(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let mut op = empty(context);
    let shape = match context.insn.mnemonic() {
        M::Cli => Inside(slow::<flags::Cli>),
        M::Sti => Ends(ender::<flags::Sti>),
        M::Clac => Ends(ender::<flags::SetAc>),
        M::Stac => {
            op.aux = 1;
            Ends(ender::<flags::SetAc>)
        }
        M::Lahf => Inside(pure::<flags::Lahf>),
        M::Sahf => Inside(pure::<flags::Sahf>),
        M::Swapgs => Inside(slow::<syscall::Swapgs>),
        M::Clts => Ends(ender::<control::Clts>),
        M::Xgetbv => Inside(slow::<control::Xgetbv>),
        M::Xsetbv => Ends(ender::<control::Xsetbv>),
        M::Rdmsr => Inside(slow::<msr::Rdmsr>),
        M::Wrmsr => Ends(ender::<msr::Wrmsr>),
        M::Rdtsc => Inside(slow::<msr::Rdtsc>),
        M::Rdtscp => Inside(slow::<msr::Rdtscp>),
        M::Rdpmc => Ends(slow::<msr::Rdpmc>),
        M::Cpuid => Inside(slow::<identity::Cpuid>),
        M::Rdpkru => Inside(slow::<identity::Rdpkru>),
        M::Wrpkru => Ends(ender::<identity::Wrpkru>),
        M::Wbinvd | M::Wbnoinvd => Inside(slow::<cache::WriteBack>),
        M::Invd => Inside(slow::<cache::Invd>),
        M::Monitor | M::Mwait => {
            op.aux = if context.insn.mnemonic() == M::Monitor { cache::MONITOR } else { cache::MWAIT };
            Ends(slow::<cache::MonitorWait>)
        }
        M::Pvalidate => {
            op.aux = match context.insn.code() {
                Code::Pvalidatew => 2,
                Code::Pvalidated => 4,
                _ => 8,
            };
            Ends(ender::<rmp::Pvalidate>)
        }
        M::Rmpadjust => Ends(ender::<rmp::Rmpadjust>),
        M::Rmpquery => Ends(ender::<rmp::Rmpquery>),
        M::Rmpupdate => Ends(ender::<rmp::Rmpupdate>),
        M::Psmash => Ends(ender::<rmp::Psmash>),
        M::Mfence | M::Lfence | M::Sfence => Inside(pure::<cache::Fence>),
        M::Hlt => Ends(ender::<cache::Hlt>),
        M::Vmgexit => Ends(ender::<cache::Vmgexit>),
        M::Vmcall | M::Vmmcall => {
            op.aux = if context.insn.mnemonic() == M::Vmcall { cache::VMCALL } else { cache::VMMCALL };
            Ends(ender::<cache::Hypercall>)
        }
        _ => return None,
    };
    finish(shape, op)
}

/// Instructions with one operand in a register or in memory.
fn with_operand(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    let mut op = empty(context);
    let mut operand = 0;
    let shape = match insn.mnemonic() {
        M::Sgdt => Inside(slow::<tables::Sgdt>),
        M::Sidt => Inside(slow::<tables::Sidt>),
        M::Lgdt | M::Lidt => {
            op.aux = if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) { 2 } else { 4 };
            if insn.mnemonic() == M::Lgdt { Inside(slow::<tables::Lgdt>) } else { Inside(slow::<tables::Lidt>) }
        }
        M::Sldt | M::Str | M::Smsw => {
            op.aux = size(context, 0) as u16;
            match insn.mnemonic() {
                M::Sldt => Inside(slow::<tables::Sldt>),
                M::Str => Inside(slow::<tables::Str>),
                _ => Inside(slow::<control::Smsw>),
            }
        }
        M::Lldt => Inside(slow::<tables::Lldt>),
        M::Ltr => Ends(ender::<tables::Ltr>),
        M::Lmsw => Ends(ender::<control::Lmsw>),
        M::Verr => Inside(slow::<verify::Verify>),
        M::Verw => {
            op.aux = 1;
            Inside(slow::<verify::Verify>)
        }
        M::Arpl => {
            op.aux = 2;
            op.dst = gpr(insn.op1_register());
            Inside(slow::<verify::Arpl>)
        }
        M::Lar | M::Lsl => {
            operand = 1;
            op.dst = gpr(insn.op0_register());
            op.aux = size(context, 0) as u16;
            if insn.mnemonic() == M::Lar { Inside(slow::<verify::Lar>) } else { Inside(slow::<verify::Lsl>) }
        }
        M::Invlpg => Ends(ender::<cache::Invlpg>),
        M::Invpcid => {
            operand = 1;
            op.dst = gpr(insn.op0_register());
            Ends(ender::<cache::Invpcid>)
        }
        M::Clflush | M::Clflushopt | M::Clwb => Inside(slow::<cache::FlushLine>),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            op.dst = match insn.mnemonic() {
                M::Lds => SegReg::Ds,
                M::Les => SegReg::Es,
                M::Lfs => SegReg::Fs,
                M::Lgs => SegReg::Gs,
                _ => SegReg::Ss,
            } as u8;
            op.aux = size(context, 0) as u16;
            memory(context, &mut op);
            op.src = gpr(insn.op0_register());
            return finish(Ends(ender::<load::LoadFar>), op);
        }
        _ => return None,
    };
    put_operand(context, &mut op, operand);
    finish(shape, op)
}

/// Instructions on registers and ports.
fn with_registers(context: &Context<'_>) -> Option<Lowered> {
    use Mnemonic as M;
    let insn = context.insn;
    let mut op = empty(context);
    let shape = match insn.mnemonic() {
        M::In | M::Out => {
            let (port, data) = if insn.mnemonic() == M::In { (1, 0) } else { (0, 1) };
            op.aux = insn.op_register(data).size() as u16;
            if insn.op_kind(port) == OpKind::Register {
                op.dst = io::PORT_IN_DX;
            } else {
                op.dst = 0;
                op.imm.set(insn.immediate8() as u64);
            }
            if insn.mnemonic() == M::In { Inside(slow::<io::In>) } else { Inside(slow::<io::Out>) }
        }
        M::Rdpid | M::Rdrand | M::Rdseed | M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => {
            op.dst = gpr(insn.op0_register());
            op.aux = size(context, 0) as u16;
            let is_fs = matches!(insn.mnemonic(), M::Rdfsbase | M::Wrfsbase);
            op.src = if is_fs { SegReg::Fs as u8 } else { SegReg::Gs as u8 };
            match insn.mnemonic() {
                M::Rdpid => Inside(slow::<msr::Rdpid>),
                M::Rdrand | M::Rdseed => Inside(slow::<identity::RandomNumber>),
                M::Rdfsbase | M::Rdgsbase => Inside(slow::<identity::ReadBase>),
                _ => Inside(slow::<identity::WriteBase>),
            }
        }
        _ => return None,
    };
    finish(shape, op)
}
