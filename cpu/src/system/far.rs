//! Far jumps and calls: direct, indirect, through call gates and task gates.
//!
//! APM vol. 2, "Control-Transfer Privilege Checks"; APM vol. 3, "JMP (Far)", "CALL (Far)".

use crate::cpu::Cpu;
use crate::dispatch::{Ender, Flow};
use crate::event::Event;
use crate::exit::Trap;
use crate::op::Op;
use crate::segment::{SegReg, Segment};
use crate::system::descriptor::{Descriptor, Selector, SystemKind, gp, gp0, np};
use crate::system::load::{far_pointer, null_stack};
use crate::system::stack::Stack;
use crate::system::task::TaskCause;

/// JMP or CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transfer {
    Jump,
    /// With the operand size in bytes and the address to return to.
    Call {
        bytes: u8,
        back: u64,
    },
}

/// Switches to the task of `selector` on behalf of the instruction of `op`.
pub(crate) fn switch_task(cpu: &mut Cpu, op: &Op, selector: Selector, cause: TaskCause) -> Result<Flow, Trap> {
    let here = cpu.rip();
    let back = cpu.rip_after(op);
    cpu.set_rip(back);
    match cpu.switch_to_task(selector, cause) {
        Ok(fault) => {
            // The new task is current: whatever it faults with is its own.
            if let Some(fault) = fault {
                cpu.event = Some(Event::Exception(fault));
            }
            Ok(Flow::Leave)
        }
        Err(trap) => {
            cpu.set_rip(here);
            Err(trap)
        }
    }
}

fn transfer(cpu: &mut Cpu, op: &Op, selector: Selector, offset: u64, transfer: Transfer) -> Result<Flow, Trap> {
    if cpu.mode.is_real_addressing() {
        return real(cpu, selector, offset, transfer);
    }
    if selector.is_null() {
        return Err(gp0());
    }
    let target = cpu.descriptor(selector, gp)?;
    match target.system() {
        None => to_code(cpu, selector, target, offset, transfer),
        Some(kind) => to_system(cpu, op, selector, target, kind, transfer),
    }
}

fn real(cpu: &mut Cpu, selector: Selector, offset: u64, transfer: Transfer) -> Result<Flow, Trap> {
    let old = *cpu.segments.get(SegReg::Cs);
    if !old.contains(offset, 1) {
        return Err(gp0());
    }
    if let Transfer::Call { bytes, back } = transfer {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, old.selector as u64, bytes)?;
        stack.push(cpu, back, bytes)?;
        stack.commit(cpu);
    }
    cpu.set_segment(SegReg::Cs, Segment { selector: selector.0, base: (selector.0 as u64) << 4, ..old });
    Ok(cpu.go(offset))
}

fn to_code(cpu: &mut Cpu, selector: Selector, code: Descriptor, offset: u64, transfer: Transfer) -> Result<Flow, Trap> {
    let a = code.attributes();
    let allowed = if a.is_conforming() { a.dpl() <= cpu.cpl } else { selector.rpl() <= cpu.cpl && a.dpl() == cpu.cpl };
    if !a.is_code() || !allowed {
        return Err(gp(selector));
    }
    cpu.check_code_size(selector, code)?;
    if !a.p() {
        return Err(np(selector));
    }
    cpu.check_target(code, offset)?;
    let stack = match transfer {
        Transfer::Call { bytes, back } => Some(pushed(cpu, Stack::current(cpu), bytes, back)?),
        Transfer::Jump => None,
    };
    let code = cpu.mark_accessed(selector, code)?;
    if let Some(stack) = stack {
        stack.commit(cpu);
    }
    cpu.set_segment(SegReg::Cs, code.segment(selector.with_rpl(cpu.cpl)));
    Ok(cpu.go(offset))
}

/// `stack` with the return address on it.
fn pushed(cpu: &mut Cpu, mut stack: Stack, bytes: u8, back: u64) -> Result<Stack, Trap> {
    stack.push(cpu, cpu.segments.get(SegReg::Cs).selector as u64, bytes)?;
    stack.push(cpu, back, bytes)?;
    Ok(stack)
}

fn to_system(
    cpu: &mut Cpu,
    op: &Op,
    selector: Selector,
    target: Descriptor,
    kind: SystemKind,
    transfer: Transfer,
) -> Result<Flow, Trap> {
    let cause = match transfer {
        Transfer::Jump => TaskCause::Jump,
        Transfer::Call { .. } => TaskCause::Call,
    };
    let a = target.attributes();
    let reachable = a.dpl() >= cpu.cpl && a.dpl() >= selector.rpl();
    let legacy = !cpu.is_long();
    match kind {
        SystemKind::CallGate | SystemKind::CallGate16 | SystemKind::TaskGate if !reachable => Err(gp(selector)),
        SystemKind::CallGate16 | SystemKind::TaskGate if !legacy => Err(gp(selector)),
        SystemKind::CallGate | SystemKind::CallGate16 | SystemKind::TaskGate if !a.p() => Err(np(selector)),
        SystemKind::CallGate => through_gate(cpu, selector, target, if legacy { 4 } else { 8 }, transfer),
        SystemKind::CallGate16 => through_gate(cpu, selector, target, 2, transfer),
        SystemKind::TaskGate => switch_task(cpu, op, target.gate_selector(), cause),
        SystemKind::Tss { .. } | SystemKind::Tss16 { .. } if legacy && reachable => {
            switch_task(cpu, op, selector, cause)
        }
        _ => Err(gp(selector)),
    }
}

/// A transfer through a call gate whose pushes are `bytes` wide.
fn through_gate(
    cpu: &mut Cpu,
    gate_selector: Selector,
    gate: Descriptor,
    bytes: u8,
    transfer: Transfer,
) -> Result<Flow, Trap> {
    let mut offset = gate.gate_offset();
    if bytes == 2 {
        offset &= 0xffff;
    }
    if bytes == 8 {
        let (_, upper) = cpu.wide_descriptor(gate_selector, gp)?;
        // The type field of the upper half must look like no descriptor.
        if upper >> 40 & 0x1f != 0 {
            return Err(gp(gate_selector));
        }
        offset |= upper << 32;
    }
    let selector = gate.gate_selector();
    if selector.is_null() {
        return Err(gp0());
    }
    let code = cpu.descriptor(selector, gp)?;
    let a = code.attributes();
    let calls = transfer != Transfer::Jump;
    let allowed = if a.is_conforming() || calls { a.dpl() <= cpu.cpl } else { a.dpl() == cpu.cpl };
    if !a.is_code() || !allowed || bytes == 8 && (!a.l() || a.db()) {
        return Err(gp(selector));
    }
    if !a.p() {
        return Err(np(selector));
    }
    cpu.check_target(code, offset)?;
    let cpl = if a.is_conforming() { cpu.cpl } else { a.dpl() };
    let stack = match transfer {
        Transfer::Jump => None,
        Transfer::Call { back, .. } if cpl == cpu.cpl => Some(pushed(cpu, gate_stack(cpu, bytes), bytes, back)?),
        Transfer::Call { back, .. } => {
            let count = (gate.0 >> 32 & 0x1f) as u8;
            Some(inner_stack(cpu, cpl, bytes, count, back)?)
        }
    };
    let code = cpu.mark_accessed(selector, code)?;
    if let Some(stack) = stack {
        cpu.segments.regs[SegReg::Ss as usize] = stack.segment;
        stack.commit(cpu);
    }
    cpu.cpl = cpl;
    cpu.set_segment(SegReg::Cs, code.segment(selector.with_rpl(cpl)));
    Ok(cpu.go(offset))
}

/// The stack of a call that stays in its ring: 64-bit gates use all of RSP even from compatibility mode.
fn gate_stack(cpu: &Cpu, bytes: u8) -> Stack {
    let current = Stack::current(cpu);
    if bytes == 8 { Stack::long(current.segment, current.sp, cpu.cpl) } else { current }
}

/// The stack of inner ring `cpl` with the old stack, `count` parameters (legacy gates) and the return address on it.
fn inner_stack(cpu: &mut Cpu, cpl: u8, bytes: u8, count: u8, back: u64) -> Result<Stack, Trap> {
    let mut stack = if bytes == 8 {
        let rsp = cpu.long_tss_stack(4 + 8 * cpl as u64)?;
        Stack::long(null_stack(Selector(cpl as u16), cpl), rsp, cpl)
    } else {
        cpu.legacy_tss_stack(cpl)?
    };
    let mut parameters = [0; 31];
    let old = Stack::current(cpu);
    let count = if bytes == 8 { 0 } else { count as usize };
    let mut reader = old;
    for parameter in &mut parameters[..count] {
        *parameter = reader.pop(cpu, bytes)?;
    }
    let rsp = if bytes == 8 { old.sp } else { cpu.gpr[4] };
    stack.push(cpu, old.segment.selector as u64, bytes)?;
    stack.push(cpu, rsp, bytes)?;
    for parameter in parameters[..count].iter().rev() {
        stack.push(cpu, *parameter, bytes)?;
    }
    pushed(cpu, stack, bytes, back)
}

/// JMP ptr16:16/32 (offset in `imm`, selector in `aux`)
pub(crate) struct JmpFar;
impl Ender for JmpFar {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        transfer(cpu, op, Selector(op.aux), op.imm.get(), Transfer::Jump)
    }
}

/// JMP m16:16/32/64 (operand size in `aux`)
pub(crate) struct JmpFarMem;
impl Ender for JmpFarMem {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let (offset, selector) = far_pointer(cpu, op, op.aux as u8)?;
        transfer(cpu, op, selector, offset, Transfer::Jump)
    }
}

/// CALL ptr16:16/32 (offset in `imm`, selector in `aux`, operand size in `dst`)
pub(crate) struct CallFar;
impl Ender for CallFar {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let call = Transfer::Call { bytes: op.dst, back: cpu.rip_after(op) };
        transfer(cpu, op, Selector(op.aux), op.imm.get(), call)
    }
}

/// CALL m16:16/32/64 (operand size in `aux`)
pub(crate) struct CallFarMem;
impl Ender for CallFarMem {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let (offset, selector) = far_pointer(cpu, op, op.aux as u8)?;
        let call = Transfer::Call { bytes: op.aux as u8, back: cpu.rip_after(op) };
        transfer(cpu, op, selector, offset, call)
    }
}

impl Cpu {
    /// A task switch by an event: faults of the new task combine with the event's.
    pub fn task_switch(&mut self, selector: Selector, cause: TaskCause) -> Result<(), Trap> {
        match self.switch_to_task(selector, cause)? {
            None => Ok(()),
            Some(fault) => {
                self.pending.switched_task = true;
                Err(fault.into())
            }
        }
    }
}
