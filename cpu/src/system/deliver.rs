//! Delivery of exceptions and interrupts: from a vector to the first instruction of its handler.
//!
//! APM vol. 2, "Exceptions and Interrupts" (real-mode, legacy protected-mode, virtual-8086 and long-mode interrupt
//! control transfers; "Double-Fault Exception"); Intel SDM vol. 3, "Interrupt and Exception Handling".
//!
//! Always true: an exit or a fault on the way leaves every register as it was, but for CR2 and DR6, which the
//! event has changed by being raised. The delivery starts again after an exit and writes the same bytes again.

use emu_core::Exception;
use emu_core::exception::{ExceptionClass, SelectorError};
use emu_core::regs::{Dr6, Dr7, Rflags};

use crate::cpu::Cpu;
use crate::event::{Asked, Event, InterruptShadow, SoftwareKind};
use crate::exit::{Exit, Trap};
use crate::mode::Mode;
use crate::segment::{SegReg, Segment};
use crate::system::descriptor::{Descriptor, Selector, SystemKind, gp, gp0, np};
use crate::system::load::null_stack;
use crate::system::stack::Stack;
use crate::system::task::TaskCause;

/// An event as delivery needs it.
#[derive(Clone, Copy)]
struct Delivery {
    vector: u8,
    error: Option<u32>,
    /// An instruction asked, so the gate's DPL is checked.
    checks_dpl: bool,
    /// Faults on the way carry the EXT bit.
    external: bool,
    /// Sets RF in the image: the instruction will run again.
    resumes: bool,
}

impl Delivery {
    fn of(event: Event) -> Delivery {
        let plain = Delivery { vector: 0, error: None, checks_dpl: false, external: true, resumes: false };
        match event {
            Event::Exception(e) => {
                let is_fault = !matches!(
                    e,
                    Exception::Debug { .. }
                        | Exception::Breakpoint
                        | Exception::Overflow
                        | Exception::DoubleFault
                        | Exception::MachineCheck
                );
                Delivery { vector: e.vector(), error: e.error_code(), resumes: is_fault, ..plain }
            }
            Event::Interrupt { vector } => Delivery { vector, ..plain },
            Event::Nmi => Delivery { vector: 2, ..plain },
            Event::Software { vector, kind, .. } => {
                let icebp = kind == SoftwareKind::Icebp;
                Delivery { vector, checks_dpl: !icebp, external: icebp, ..plain }
            }
        }
    }
}

fn idt_error(vector: u8) -> Trap {
    Exception::GeneralProtection(SelectorError::idt(vector)).into()
}

/// Sets EXT in the error code of a segment fault.
fn external(exception: Exception) -> Exception {
    match exception {
        Exception::InvalidTss(e) => Exception::InvalidTss(e.external()),
        Exception::SegmentNotPresent(e) => Exception::SegmentNotPresent(e.external()),
        Exception::StackFault(e) => Exception::StackFault(e.external()),
        Exception::GeneralProtection(e) => Exception::GeneralProtection(e.external()),
        other => other,
    }
}

impl Cpu {
    /// The exit that a retired instruction asked for.
    pub fn take_asked(&mut self) -> Option<Exit> {
        match self.pending.asked.take()? {
            Asked::Hypercall => Some(Exit::Hypercall),
            Asked::VmgExit => Some(Exit::VmgExit),
            Asked::TscMoved => Some(Exit::TscMoved),
            Asked::Paging(change) => Some(Exit::PagingWritten { change }),
            Asked::Invlpg(gva) => Some(Exit::Invlpg { gva }),
            Asked::Invpcid(what) => Some(Exit::Invpcid { what }),
            // Whatever is about to be delivered ends the halt before it began.
            Asked::Halt if self.event.is_some() || self.nmi_is_due() => None,
            Asked::Halt if self.window_is_open() => {
                self.pending.window = false;
                Some(Exit::InterruptWindow)
            }
            Asked::Halt => Some(Exit::Halt),
        }
    }

    fn nmi_is_due(&self) -> bool {
        self.pending.nmi && !self.pending.nmi_blocked && self.latch.is_empty()
    }

    fn window_is_open(&self) -> bool {
        self.pending.window && self.flags.other.contains(Rflags::IF) && self.latch.is_empty()
    }

    /// What must happen before the next instruction: an NMI becomes the event, an open interrupt window an exit.
    pub fn take_pending(&mut self) -> Option<Exit> {
        if self.shadow != InterruptShadow::None {
            return None;
        }
        if self.nmi_is_due() {
            self.pending.nmi = false;
            self.event = Some(Event::Nmi);
        } else if self.window_is_open() {
            self.pending.window = false;
            return Some(Exit::InterruptWindow);
        }
        None
    }

    /// Delivers `event` through the IDT. On an error nothing has changed but memory that delivery will write again.
    pub fn deliver_event(&mut self, event: Event) -> Result<(), Trap> {
        self.note_raised(event);
        let delivery = Delivery::of(event);
        let rip = self.rip();
        let delivered = if self.mode == Mode::Real {
            self.deliver_real(delivery)
        } else if self.is_long() {
            self.deliver_long(delivery)
        } else {
            self.deliver_protected(delivery)
        };
        match delivered {
            Ok(()) => {
                self.shadow = InterruptShadow::None;
                self.pending.between_iterations = false;
                if event == Event::Nmi {
                    self.pending.nmi_blocked = true;
                }
                if let Event::Exception(Exception::VmmCommunication { exit_code }) = event {
                    self.record_vc(rip, exit_code);
                }
                Ok(())
            }
            Err(Trap::Exception(exception)) if delivery.external => Err(external(exception).into()),
            Err(trap) => Err(trap),
        }
    }

    /// What an exception changes by being raised.
    pub fn note_raised(&mut self, event: Event) {
        match event {
            Event::Exception(Exception::PageFault { gva, .. }) => self.control.cr2 = gva.raw(),
            Event::Exception(Exception::Debug { dr6 }) => {
                let c = &mut self.control;
                // B0 to B3 say what has hit now; the other bits stay until software clears them.
                c.dr6 -= Dr6::B0 | Dr6::B1 | Dr6::B2 | Dr6::B3;
                c.dr6 |= dr6;
                c.dr7.0 &= !Dr7::GD;
            }
            _ => {}
        }
    }

    /// What becomes of `first` when its delivery raised `second`; `None` is a triple fault.
    pub fn combine(&mut self, first: Event, second: Exception) -> Option<Event> {
        let switched = core::mem::take(&mut self.pending.switched_task);
        if let Event::Software { rip, .. } = first
            && !switched
        {
            self.set_rip(rip);
        }
        let class = match first {
            Event::Exception(Exception::DoubleFault) => {
                if second.class() != ExceptionClass::Benign {
                    return None;
                }
                ExceptionClass::Benign
            }
            Event::Exception(first) => first.class(),
            Event::Interrupt { .. } | Event::Nmi | Event::Software { .. } => ExceptionClass::Benign,
        };
        let doubles = match (class, second.class()) {
            (ExceptionClass::Contributory, ExceptionClass::Contributory) => true,
            (ExceptionClass::PageFault, ExceptionClass::Contributory | ExceptionClass::PageFault) => true,
            (_, _) => false,
        };
        if doubles {
            self.note_raised(Event::Exception(second));
        }
        Some(Event::Exception(if doubles { Exception::DoubleFault } else { second }))
    }

    /// The flags image that delivery pushes: with RF where the same instruction runs again, as a fault leaves it and as
    /// any event leaves a repeated string instruction that is not done.
    fn pushed_flags(&self, delivery: Delivery) -> Rflags {
        let flags = self.flags.rflags();
        if delivery.resumes || self.pending.between_iterations { flags | Rflags::RF } else { flags }
    }

    fn clear_flags(&mut self, clear: Rflags) {
        self.flags.other.remove(clear);
    }

    fn deliver_real(&mut self, delivery: Delivery) -> Result<(), Trap> {
        let offset = delivery.vector as u64 * 4;
        if offset + 3 > self.segments.idtr.limit as u64 {
            return Err(idt_error(delivery.vector));
        }
        let linear = self.system_linear(self.segments.idtr.base.raw(), offset);
        let target: u32 = self.load_system(linear)?;
        let mut stack = Stack::current(self);
        for value in [self.flags.rflags().bits(), self.segments.get(SegReg::Cs).selector as u64, self.rip()] {
            stack.push(self, value, 2)?;
        }
        stack.commit(self);
        let cs = Selector((target >> 16) as u16);
        let old = *self.segments.get(SegReg::Cs);
        self.segments.regs[SegReg::Cs as usize] = Segment { selector: cs.0, base: (cs.0 as u64) << 4, ..old };
        self.set_rip((target & 0xffff) as u64);
        self.clear_flags(Rflags::IF | Rflags::TF | Rflags::AC | Rflags::RF);
        self.refresh_mode();
        Ok(())
    }

    /// The code segment a gate leads to, and the CPL of its handler.
    fn handler_segment(&mut self, selector: Selector) -> Result<(Descriptor, u8), Trap> {
        if selector.is_null() {
            return Err(gp0());
        }
        let code = self.descriptor(selector, gp)?;
        let a = code.attributes();
        if !a.is_code() || a.dpl() > self.cpl {
            return Err(gp(selector));
        }
        if !a.p() {
            return Err(np(selector));
        }
        Ok((code, if a.is_conforming() { self.cpl } else { a.dpl() }))
    }

    fn deliver_long(&mut self, delivery: Delivery) -> Result<(), Trap> {
        let Delivery { vector, .. } = delivery;
        let offset = vector as u64 * 16;
        if offset + 15 > self.segments.idtr.limit as u64 {
            return Err(idt_error(vector));
        }
        let raw: u128 = self.load_system(self.segments.idtr.base.raw().wrapping_add(offset))?;
        let gate = Descriptor(raw as u64);
        let masks = match gate.system() {
            Some(SystemKind::InterruptGate) => true,
            Some(SystemKind::TrapGate) => false,
            _ => return Err(idt_error(vector)),
        };
        if delivery.checks_dpl && gate.attributes().dpl() < self.cpl {
            return Err(idt_error(vector));
        }
        if !gate.attributes().p() {
            return Err(Exception::SegmentNotPresent(SelectorError::idt(vector)).into());
        }
        let selector = gate.gate_selector();
        let (code, cpl) = self.handler_segment(selector)?;
        if !code.attributes().l() || code.attributes().db() {
            return Err(gp(selector));
        }
        let target = gate.gate_offset() | ((raw >> 64) as u64) << 32;
        if !self.is_canonical(target) {
            return Err(gp0());
        }
        let ist = (gate.0 >> 32 & 7) as u8;
        let inner = cpl < self.cpl;
        let rsp = if ist != 0 {
            self.long_tss_stack(0x1c + 8 * ist as u64)?
        } else if inner {
            self.long_tss_stack(4 + 8 * cpl as u64)?
        } else if self.mode == Mode::Long64 {
            self.gpr[4]
        } else {
            self.stack_pointer()
        };
        let segment = if inner { null_stack(Selector(cpl as u16), cpl) } else { *self.segments.get(SegReg::Ss) };
        let mut stack = Stack::long(segment, rsp & !0xf, cpl);
        let old_rsp = if self.mode == Mode::Long64 { self.gpr[4] } else { self.gpr[4] & 0xffff_ffff };
        let frame = [
            self.segments.get(SegReg::Ss).selector as u64,
            old_rsp,
            self.pushed_flags(delivery).bits(),
            self.segments.get(SegReg::Cs).selector as u64,
            self.rip(),
        ];
        for value in frame {
            stack.push(self, value, 8)?;
        }
        if let Some(error) = delivery.error {
            stack.push(self, error as u64, 8)?;
        }
        let code = self.mark_accessed(selector, code)?;
        stack.commit(self);
        self.enter_handler(code.segment(selector.with_rpl(cpl)), segment, target, cpl, masks);
        Ok(())
    }

    /// Makes the handler current: CS, SS, RIP, CPL and the flags that entry clears.
    fn enter_handler(&mut self, cs: Segment, ss: Segment, target: u64, cpl: u8, masks_interrupts: bool) {
        self.segments.regs[SegReg::Cs as usize] = cs;
        self.segments.regs[SegReg::Ss as usize] = ss;
        self.set_rip(target);
        self.cpl = cpl;
        self.clear_flags(Rflags::TF | Rflags::NT | Rflags::RF | Rflags::VM);
        if masks_interrupts {
            self.clear_flags(Rflags::IF);
        }
        self.refresh_mode();
    }

    /// A stack pointer out of the 64-bit TSS.
    pub(crate) fn long_tss_stack(&mut self, offset: u64) -> Result<u64, Trap> {
        let tr = self.segments.tr;
        if offset + 7 > tr.limit as u64 {
            return Err(Exception::InvalidTss(Selector(tr.selector).error()).into());
        }
        let rsp: u64 = self.load_system(tr.base.wrapping_add(offset))?;
        if !self.is_canonical(rsp) {
            return Err(Exception::StackFault(SelectorError::NONE).into());
        }
        Ok(rsp)
    }

    /// The stack of ring `cpl` out of the legacy TSS.
    pub(crate) fn legacy_tss_stack(&mut self, cpl: u8) -> Result<Stack, Trap> {
        let tr = self.segments.tr;
        let tss = Selector(tr.selector);
        let is_32 = tr.attributes.kind() & 8 != 0;
        let (offset, len) = if is_32 { (4 + 8 * cpl as u64, 6) } else { (2 + 4 * cpl as u64, 4) };
        if offset + len - 1 > tr.limit as u64 {
            return Err(Exception::InvalidTss(tss.error()).into());
        }
        let linear = self.system_linear(tr.base, offset);
        let (sp, ss) = if is_32 {
            let sp: u32 = self.load_system(linear)?;
            let ss: u16 = self.load_system(self.system_linear(tr.base, offset + 4))?;
            (sp as u64, ss)
        } else {
            let raw: u32 = self.load_system(linear)?;
            ((raw & 0xffff) as u64, (raw >> 16) as u16)
        };
        let segment = self.stack_segment(Selector(ss), cpl, super::descriptor::ts)?;
        Ok(Stack::inner(segment, sp, cpl))
    }

    fn deliver_protected(&mut self, delivery: Delivery) -> Result<(), Trap> {
        let Delivery { vector, .. } = delivery;
        let offset = vector as u64 * 8;
        if offset + 7 > self.segments.idtr.limit as u64 {
            return Err(idt_error(vector));
        }
        let linear = self.system_linear(self.segments.idtr.base.raw(), offset);
        let gate = Descriptor(self.load_system(linear)?);
        let (bytes, masks) = match gate.system() {
            Some(SystemKind::TaskGate) => (0, false),
            Some(SystemKind::InterruptGate16) => (2, true),
            Some(SystemKind::TrapGate16) => (2, false),
            Some(SystemKind::InterruptGate) => (4, true),
            Some(SystemKind::TrapGate) => (4, false),
            _ => return Err(idt_error(vector)),
        };
        if delivery.checks_dpl && gate.attributes().dpl() < self.cpl {
            return Err(idt_error(vector));
        }
        if !gate.attributes().p() {
            return Err(Exception::SegmentNotPresent(SelectorError::idt(vector)).into());
        }
        let selector = gate.gate_selector();
        if bytes == 0 {
            let flags = self.pushed_flags(delivery);
            return self.task_switch(selector, TaskCause::Event { error: delivery.error, flags });
        }
        let (code, cpl) = self.handler_segment(selector)?;
        let from_vm86 = self.mode == Mode::Virtual8086;
        if from_vm86 && cpl != 0 {
            return Err(gp(selector));
        }
        let mut stack = if cpl < self.cpl { self.legacy_tss_stack(cpl)? } else { Stack::current(self) };
        let target = if bytes == 2 { gate.gate_offset() & 0xffff } else { gate.gate_offset() };
        let cs = code.segment(selector.with_rpl(cpl));
        if !cs.contains(target, 1) {
            return Err(gp0());
        }
        if from_vm86 {
            for reg in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                stack.push(self, self.segments.get(reg).selector as u64, bytes)?;
            }
        }
        if cpl < self.cpl {
            stack.push(self, self.segments.get(SegReg::Ss).selector as u64, bytes)?;
            stack.push(self, self.gpr[4], bytes)?;
        }
        stack.push(self, self.pushed_flags(delivery).bits(), bytes)?;
        stack.push(self, self.segments.get(SegReg::Cs).selector as u64, bytes)?;
        stack.push(self, self.rip(), bytes)?;
        if let Some(error) = delivery.error {
            stack.push(self, error as u64, bytes)?;
        }
        let cs = Segment { attributes: self.mark_accessed(selector, code)?.attributes(), ..cs };
        stack.commit(self);
        if from_vm86 {
            for reg in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
                self.segments.regs[reg as usize] = Segment::NULL;
            }
        }
        self.enter_handler(cs, stack.segment, target, cpl, masks);
        Ok(())
    }
}
