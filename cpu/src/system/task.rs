//! Hardware task switches, which only legacy protected mode has.
//!
//! APM vol. 2, "Hardware Task-Management in Legacy Mode"; Intel SDM vol. 3, "Task Switching".
//!
//! A switch that leaves with an exit in the middle starts again from the old task: registers are put back, and the
//! busy bit of the new task, the only write that its own checks would trip over, is set last.

use emu_core::Exception;
use emu_core::regs::{Cr0, Dr6, Rflags};
use mmu::PagingChange;

use crate::cpu::{Control, Cpu};
use crate::exit::Trap;
use crate::flags::Flags;
use crate::op::GPR_SLOTS;
use crate::segment::{SegReg, Segment, Segments};
use crate::system::descriptor::{Descriptor, Selector, SystemKind, gp, gp0, np, ts};
use crate::system::load::virtual_8086;
use crate::system::stack::Stack;

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskCause {
    Jump,
    Call,
    Iret,
    /// A task gate of the IDT: with the error code to push and the flags to save.
    Event {
        error: Option<u32>,
        flags: Rflags,
    },
}

/// The registers a TSS holds, whichever its layout.
#[derive(Clone, Copy, Default)]
struct TaskState {
    cr3: u64,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Offsets of the two layouts.
struct Layout {
    /// Of EIP; flags, eight registers and the selectors follow.
    rip: u64,
    width: u64,
    /// Distance of two selectors.
    selector_step: u64,
    selectors: usize,
    limit: u32,
}

const TSS16: Layout = Layout { rip: 0x0e, width: 2, selector_step: 2, selectors: 4, limit: 0x2b };
const TSS32: Layout = Layout { rip: 0x20, width: 4, selector_step: 4, selectors: 6, limit: 0x67 };

const fn layout(is_32: bool) -> &'static Layout {
    if is_32 { &TSS32 } else { &TSS16 }
}

/// What is put back when a switch stops in the middle.
struct Snapshot {
    gpr: [u64; GPR_SLOTS],
    flags: Flags,
    segments: Segments,
    control: Control,
    cpl: u8,
}

impl Cpu {
    /// Switches to the task of `selector`; RIP is what the old task goes on at. On an error the old task is current
    /// and unchanged; `Ok(Some(_))` is a fault in the new task.
    pub fn switch_to_task(&mut self, selector: Selector, cause: TaskCause) -> Result<Option<Exception>, Trap> {
        let refuse = if cause == TaskCause::Iret { ts } else { gp };
        if selector.is_null() || selector.is_local() {
            return Err(refuse(selector));
        }
        let descriptor = self.descriptor(selector, refuse)?;
        let is_32 = match descriptor.system() {
            Some(SystemKind::Tss { busy }) if busy == (cause == TaskCause::Iret) => true,
            Some(SystemKind::Tss16 { busy }) if busy == (cause == TaskCause::Iret) => false,
            _ => return Err(refuse(selector)),
        };
        if !descriptor.attributes().p() {
            return Err(np(selector));
        }
        if descriptor.limit() < layout(is_32).limit {
            return Err(ts(selector));
        }
        let state = self.read_task(descriptor.base(), is_32)?;
        self.save_task(cause)?;
        let snapshot = Snapshot {
            gpr: self.gpr,
            flags: self.flags.clone(),
            segments: self.segments.clone(),
            control: self.control.clone(),
            cpl: self.cpl,
        };
        let old_tr = self.segments.tr;
        self.take_over(selector, descriptor, &state, is_32, cause);
        let entered = self.enter_task(&state, is_32, cause);
        let finished = match entered {
            Ok(()) => self.link_tasks(old_tr, selector, descriptor, cause).map(|()| None),
            Err(Trap::Exception(fault)) => self.link_tasks(old_tr, selector, descriptor, cause).map(|()| Some(fault)),
            Err(trap) => Err(trap),
        };
        if finished.is_err() {
            self.put_back(snapshot);
        }
        finished
    }

    fn put_back(&mut self, snapshot: Snapshot) {
        self.gpr = snapshot.gpr;
        self.flags = snapshot.flags;
        self.segments = snapshot.segments;
        self.control = snapshot.control;
        self.cpl = snapshot.cpl;
        self.update_paging(PagingChange::MovCr3);
        self.refresh_mode();
    }

    fn task_field(&mut self, base: u64, offset: u64, width: u64) -> Result<u64, Trap> {
        let linear = self.system_linear(base, offset);
        Ok(if width == 2 { self.load_system::<u16>(linear)? as u64 } else { self.load_system::<u32>(linear)? as u64 })
    }

    fn read_task(&mut self, base: u64, is_32: bool) -> Result<TaskState, Trap> {
        let l = layout(is_32);
        let mut state = TaskState::default();
        if is_32 {
            state.cr3 = self.task_field(base, 0x1c, 4)?;
            state.trap = self.task_field(base, 0x64, 2)? & 1 != 0;
        }
        state.rip = self.task_field(base, l.rip, l.width)?;
        state.flags = self.task_field(base, l.rip + l.width, l.width)?;
        for n in 0..8 {
            state.gpr[n] = self.task_field(base, l.rip + l.width * (2 + n as u64), l.width)?;
        }
        let selectors = l.rip + l.width * 10;
        for n in 0..l.selectors {
            state.selectors[n] = self.task_field(base, selectors + l.selector_step * n as u64, 2)? as u16;
        }
        state.ldt = self.task_field(base, selectors + l.selector_step * l.selectors as u64, 2)? as u16;
        Ok(state)
    }

    fn save_task(&mut self, cause: TaskCause) -> Result<(), Trap> {
        let tr = self.segments.tr;
        let l = layout(tr.attributes.kind() & 8 != 0);
        let flags = match cause {
            TaskCause::Event { flags, .. } => flags,
            TaskCause::Iret => self.flags.rflags() - Rflags::NT,
            TaskCause::Jump | TaskCause::Call => self.flags.rflags(),
        };
        let mut values = [0; 10];
        values[0] = self.rip();
        values[1] = flags.bits();
        values[2..].copy_from_slice(&self.gpr[..8]);
        for (n, value) in values.into_iter().enumerate() {
            let linear = self.system_linear(tr.base, l.rip + l.width * n as u64);
            if l.width == 2 {
                self.store_system(linear, value as u16)?;
            } else {
                self.store_system(linear, value as u32)?;
            }
        }
        for n in 0..l.selectors {
            let linear = self.system_linear(tr.base, l.rip + l.width * 10 + l.selector_step * n as u64);
            self.store_system(linear, self.segments.regs[n].selector)?;
        }
        Ok(())
    }

    /// Loads everything that needs no check.
    fn take_over(&mut self, tss: Selector, descriptor: Descriptor, state: &TaskState, is_32: bool, cause: TaskCause) {
        let mut tr = descriptor.segment(tss);
        tr.attributes.set_kind(tr.attributes.kind() | 2);
        self.segments.tr = tr;
        self.control.cr0 |= Cr0::TS;
        // Local breakpoints belong to the old task.
        self.control.dr7.0 &= !0x55;
        let mut flags = Rflags::from_bits_retain(state.flags);
        if !matches!(cause, TaskCause::Jump | TaskCause::Iret) {
            flags |= Rflags::NT;
        }
        if !is_32 {
            flags &= Rflags::from_bits_retain(0xffff);
        }
        self.flags.set_rflags(flags & Rflags::all());
        for n in 0..8 {
            // A 16-bit TSS says nothing about the upper halves.
            self.gpr[n] = if is_32 { state.gpr[n] } else { state.gpr[n] | 0xffff_0000 };
        }
        self.set_rip(state.rip);
        if is_32 && self.control.cr0.contains(Cr0::PG) {
            self.control.cr3 = state.cr3;
            self.control.pdptes = None;
            self.update_paging(PagingChange::MovCr3);
        }
        for (reg, &selector) in self.segments.regs.iter_mut().zip(&state.selectors) {
            *reg = Segment { selector, ..Segment::NULL };
        }
        self.segments.ldtr = Segment { selector: state.ldt, ..Segment::NULL };
        self.cpl = if flags.contains(Rflags::VM) { 3 } else { Selector(state.selectors[1]).rpl() };
        self.refresh_mode();
    }

    /// Loads LDTR and the segment registers, whose faults are the new task's.
    fn enter_task(&mut self, state: &TaskState, is_32: bool, cause: TaskCause) -> Result<(), Trap> {
        if self.pae_is_on() {
            self.load_pdptes()?;
        }
        let ldt = Selector(state.ldt);
        if !ldt.is_null() {
            if ldt.is_local() {
                return Err(ts(ldt));
            }
            let descriptor = self.descriptor(ldt, ts)?;
            if descriptor.system() != Some(SystemKind::Ldt) || !descriptor.attributes().p() {
                return Err(ts(ldt));
            }
            self.segments.ldtr = descriptor.segment(ldt);
        }
        let [es, cs, ss, ds, fs, gs] = state.selectors.map(Selector);
        if self.flags.other.contains(Rflags::VM) {
            for reg in SegReg::ALL {
                let selector = Selector(state.selectors[reg as usize]);
                self.segments.regs[reg as usize] = virtual_8086(selector);
            }
            self.refresh_mode();
        } else {
            let code = self.task_code(cs)?;
            // SS first: its checks need the CPL, which is CS's RPL already.
            let stack = self.stack_segment(ss, cs.rpl(), ts)?;
            self.segments.regs[SegReg::Cs as usize] = code;
            self.set_segment(SegReg::Ss, stack);
            for (reg, selector) in [(SegReg::Es, es), (SegReg::Ds, ds), (SegReg::Fs, fs), (SegReg::Gs, gs)] {
                let segment = self.loaded(reg, selector).map_err(as_invalid_tss)?;
                self.set_segment(reg, segment);
            }
        }
        if let TaskCause::Event { error: Some(error), .. } = cause {
            let mut stack = Stack::current(self);
            stack.push(self, error as u64, if is_32 { 4 } else { 2 })?;
            stack.commit(self);
        }
        if !self.segments.get(SegReg::Cs).contains(state.rip, 1) {
            return Err(gp0());
        }
        if state.trap {
            return Err(Exception::Debug { dr6: Dr6::BT }.into());
        }
        Ok(())
    }

    fn task_code(&mut self, cs: Selector) -> Result<Segment, Trap> {
        if cs.is_null() {
            return Err(ts(cs));
        }
        let code = self.descriptor(cs, ts)?;
        let a = code.attributes();
        let fits = if a.is_conforming() { a.dpl() <= cs.rpl() } else { a.dpl() == cs.rpl() };
        if !a.is_code() || !fits {
            return Err(ts(cs));
        }
        if !a.p() {
            return Err(np(cs));
        }
        Ok(self.mark_accessed(cs, code)?.segment(cs))
    }

    /// Writes the back link and the busy bits.
    fn link_tasks(
        &mut self,
        old: Segment,
        new: Selector,
        descriptor: Descriptor,
        cause: TaskCause,
    ) -> Result<(), Trap> {
        match cause {
            TaskCause::Jump | TaskCause::Iret => self.mark_busy(Selector(old.selector), false)?,
            TaskCause::Call | TaskCause::Event { .. } => {
                let linear = self.system_linear(descriptor.base(), 0);
                self.store_system(linear, old.selector)?;
            }
        }
        if cause == TaskCause::Iret { Ok(()) } else { self.mark_busy(new, true) }
    }
}

/// Segment faults during a task switch blame the TSS, absent segments apart.
fn as_invalid_tss(trap: Trap) -> Trap {
    match trap {
        Trap::Exception(Exception::GeneralProtection(error)) => Exception::InvalidTss(error).into(),
        other => other,
    }
}
