//! Returns to other code: IRET in every mode and far RET, with the checks they share.
//!
//! APM vol. 3, "IRET" and "RET (Far)"; Intel SDM vol. 2, "IRET/IRETD/IRETQ".

use emu_core::regs::Rflags;

use crate::cpu::Cpu;
use crate::dispatch::{Ender, Flow};
use crate::exit::Trap;
use crate::mode::Mode;
use crate::op::Op;
use crate::segment::{SegReg, Segment};
use crate::system::descriptor::{Descriptor, Selector, gp, gp0, np};
use crate::system::flags::FREE;
use crate::system::load::{null_stack, virtual_8086};
use crate::system::stack::Stack;
use crate::system::task::TaskCause;

/// Where a return leads.
struct Return {
    code: Descriptor,
    selector: Selector,
    rip: u64,
}

impl Return {
    fn cpl(&self) -> u8 {
        self.selector.rpl()
    }
}

impl Cpu {
    /// Goes on at `rip`, without the run loop if nothing there can be of interest.
    pub fn go(&mut self, rip: u64) -> Flow {
        let watched = self.pending.nmi
            || self.pending.window
            || self.event.is_some()
            || self.flags.other.intersects(Rflags::TF | Rflags::RF)
            || self.control.dr7.any_enabled();
        if watched {
            self.set_rip(rip);
            Flow::Leave
        } else {
            Flow::Jump(rip)
        }
    }

    /// Whether code of descriptor attributes may run at `rip`: canonical in 64-bit mode, inside the limit otherwise.
    pub fn check_target(&self, code: Descriptor, rip: u64) -> Result<(), Trap> {
        let is_64 = self.is_long() && code.attributes().l();
        let sound = if is_64 { self.is_canonical(rip) } else { code.segment(Selector(0)).contains(rip, 1) };
        if sound { Ok(()) } else { Err(gp0()) }
    }

    /// Refuses L and D together, which only long mode reserves.
    pub fn check_code_size(&self, selector: Selector, code: Descriptor) -> Result<(), Trap> {
        let a = code.attributes();
        if self.is_long() && a.l() && a.db() { Err(gp(selector)) } else { Ok(()) }
    }

    fn return_target(&mut self, selector: Selector, rip: u64) -> Result<Return, Trap> {
        if selector.is_null() {
            return Err(gp0());
        }
        let code = self.descriptor(selector, gp)?;
        let a = code.attributes();
        let rpl = selector.rpl();
        let fits = if a.is_conforming() { a.dpl() <= rpl } else { a.dpl() == rpl };
        if !a.is_code() || rpl < self.cpl || !fits {
            return Err(gp(selector));
        }
        self.check_code_size(selector, code)?;
        if !a.p() {
            return Err(np(selector));
        }
        self.check_target(code, rip)?;
        Ok(Return { code, selector, rip })
    }

    /// The stack that a return to `to` finds.
    fn returned_stack(&mut self, to: &Return, selector: Selector, rsp: u64) -> Result<Stack, Trap> {
        let cpl = to.cpl();
        let to_64 = self.is_long() && to.code.attributes().l();
        let segment = if selector.is_null() {
            if !to_64 || cpl == 3 || selector.rpl() != cpl {
                return Err(gp0());
            }
            null_stack(selector, cpl)
        } else {
            self.stack_segment(selector, cpl, gp)?
        };
        Ok(if to_64 { Stack::long(segment, rsp, cpl) } else { Stack::inner(segment, rsp, cpl) })
    }

    /// Makes the target of a return current; its stack too, if it came with one.
    fn complete_return(&mut self, to: &Return, stack: Option<Stack>) -> Result<(), Trap> {
        let code = self.mark_accessed(to.selector, to.code)?;
        let outer = to.cpl() > self.cpl;
        self.segments.regs[SegReg::Cs as usize] = code.segment(to.selector);
        self.cpl = to.cpl();
        if let Some(stack) = stack {
            self.segments.regs[SegReg::Ss as usize] = stack.segment;
            stack.commit(self);
        }
        self.refresh_mode();
        if outer {
            self.drop_inner_segments(to.cpl());
        }
        Ok(())
    }

    fn return_real(&mut self, selector: Selector, rip: u64) -> Result<(), Trap> {
        let old = *self.segments.get(SegReg::Cs);
        if !old.contains(rip, 1) {
            return Err(gp0());
        }
        self.segments.regs[SegReg::Cs as usize] =
            Segment { selector: selector.0, base: (selector.0 as u64) << 4, ..old };
        Ok(())
    }

    fn iret(&mut self, bytes: u8) -> Result<u64, Trap> {
        self.check_vm86_iopl()?;
        let mut stack = Stack::current(self);
        let rip = stack.pop(self, bytes)?;
        let selector = Selector(stack.pop(self, bytes)? as u16);
        let image = stack.pop(self, bytes)?;
        if self.mode.is_real_addressing() {
            self.return_real(selector, rip)?;
            stack.commit(self);
            let mut mask = FREE | Rflags::IF | Rflags::RF;
            if self.mode == Mode::Real {
                mask |= super::flags::IOPL;
            }
            self.load_flags(image, mask, bytes);
            self.refresh_mode();
            return Ok(rip);
        }
        let to_vm86 = bytes == 4 && image & Rflags::VM.bits() != 0 && self.cpl == 0 && !self.is_long();
        if to_vm86 {
            return self.iret_to_vm86(stack, selector, rip, image);
        }
        let to = self.return_target(selector, rip)?;
        let outer = if self.mode == Mode::Long64 || to.cpl() > self.cpl {
            let rsp = stack.pop(self, bytes)?;
            let selector = Selector(stack.pop(self, bytes)? as u16);
            Some(self.returned_stack(&to, selector, rsp)?)
        } else {
            None
        };
        // What may change is judged by the privilege that executes IRET.
        let mask = self.changeable_flags() | Rflags::RF;
        self.complete_return(&to, Some(outer.unwrap_or(stack)))?;
        self.load_flags(image, mask, bytes);
        self.refresh_privilege();
        Ok(to.rip)
    }

    fn iret_to_vm86(&mut self, mut stack: Stack, cs: Selector, rip: u64, image: u64) -> Result<u64, Trap> {
        let mut popped = [0; 6];
        for value in &mut popped {
            *value = stack.pop(self, 4)?;
        }
        let rip = rip & 0xffff_ffff;
        if rip > 0xffff {
            return Err(gp0());
        }
        let [esp, ss, es, ds, fs, gs] = popped;
        let loads = [
            (SegReg::Cs, cs.0),
            (SegReg::Ss, ss as u16),
            (SegReg::Es, es as u16),
            (SegReg::Ds, ds as u16),
            (SegReg::Fs, fs as u16),
            (SegReg::Gs, gs as u16),
        ];
        for (reg, selector) in loads {
            self.segments.regs[reg as usize] = virtual_8086(Selector(selector));
        }
        self.gpr[4] = esp;
        self.cpl = 3;
        self.load_flags(image, FREE | super::flags::IOPL | Rflags::IF | Rflags::RF | Rflags::VM, 4);
        self.refresh_mode();
        Ok(rip)
    }
}

impl Cpu {
    /// The handler of an NMI returns, unless its guest says so by other means ([`crate::Vcpu::nmi_complete`]).
    fn end_nmi(&mut self) {
        if self.sev.is_none() {
            self.pending.nmi_blocked = false;
        }
    }
}

/// IRET, IRETD, IRETQ (operand size in `aux`)
pub(crate) struct Iret;
impl Ender for Iret {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let nested = cpu.key.is_protected() && cpu.flags.other.contains(Rflags::NT);
        if nested {
            if cpu.is_long() {
                return Err(gp0());
            }
            let link: u16 = cpu.load_system(cpu.system_linear(cpu.segments.tr.base, 0))?;
            let flow = super::far::switch_task(cpu, op, Selector(link), TaskCause::Iret)?;
            cpu.end_nmi();
            return Ok(flow);
        }
        let rip = cpu.iret(op.aux as u8)?;
        cpu.end_nmi();
        Ok(cpu.go(rip))
    }
}

/// RET far (operand size in `aux`, bytes to release in `imm`)
pub(crate) struct RetFar;
impl Ender for RetFar {
    fn exec(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
        let bytes = op.aux as u8;
        let release = op.imm.get();
        let mut stack = Stack::current(cpu);
        let rip = stack.pop(cpu, bytes)?;
        let selector = Selector(stack.pop(cpu, bytes)? as u16);
        stack.release(release);
        if cpu.mode.is_real_addressing() {
            cpu.return_real(selector, rip)?;
            stack.commit(cpu);
            cpu.refresh_mode();
            return Ok(cpu.go(rip));
        }
        let to = cpu.return_target(selector, rip)?;
        if to.cpl() > cpu.cpl {
            let rsp = stack.pop(cpu, bytes)?;
            let selector = Selector(stack.pop(cpu, bytes)? as u16);
            let mut outer = cpu.returned_stack(&to, selector, rsp)?;
            outer.release(release);
            cpu.complete_return(&to, Some(outer))?;
        } else {
            cpu.complete_return(&to, None)?;
            stack.commit(cpu);
        }
        Ok(cpu.go(to.rip))
    }
}
