//! Processors over shadow tables: what their intercepts lead to.
//!
//! The hypervisor says what a page fault is (the guest's own, a write of a guest table, a device, memory to be mapped) and
//! which registers the processor is to run with; here the one goes to the processor as a completion and the other as
//! registers.

use cpu::{Completion, LinearData, MmioAccess, MmioData, PageFaultExit, Vcpu};
use devices::BoardEvents;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, Gva};
use hypervisor::shadow::{Emulated, ShadowAnswer, ShadowFault};
use hypervisor::{Action, VcpuId, Vm};
use mmu::{Invpcid, PagingChange};

use super::exits::Handled;
use super::{Machine, RunError};

fn id(n: usize) -> VcpuId {
    VcpuId(n as u16)
}

/// Gives processor `n` another root if the hypervisor has taken the one it runs with.
pub(super) fn reload(vm: &Vm, n: usize, vcpu: &mut Vcpu, task: &Task<'_>) -> Result<(), RunError> {
    if vm.is_shadowing()
        && let Some(registers) = vm.reload_guest_paging(id(n), task)?
    {
        vcpu.run_over(registers, PagingChange::WorldSwitch);
    }
    Ok(())
}

impl Machine {
    pub(super) fn page_fault(&mut self, n: usize, exit: PageFaultExit) -> Result<Handled, RunError> {
        let PageFaultExit { gva, access, code, operand } = exit;
        let answer = self.vm.handle_page_fault(id(n), ShadowFault { gva, access, code }, &self.lens.task())?;
        self.flush_owed();
        let nothing = BoardEvents::empty();
        let action = match answer {
            ShadowAnswer::Reflect(code) => {
                self.vcpus[n].vcpu.complete(Completion::PageFault(code));
                return Ok(Ok(nothing));
            }
            ShadowAnswer::EmulateWrite { gpa } => return Ok(self.emulate_write(n, gpa, exit)),
            ShadowAnswer::Host(action) => action,
        };
        let gpa = match action {
            Action::Mmio { gpa } | Action::RomWrite { gpa } => gpa,
            action => return Ok(self.after_fault(n, action, None)),
        };
        let Some(operand) = operand else {
            if access.kind == AccessKind::Execute {
                return Ok(Err(self.no_memory(n, gpa)));
            }
            // The access itself will come and be answered.
            self.vcpus[n].vcpu.complete(Completion::value(0));
            return Ok(Ok(nothing));
        };
        let data = match operand.data {
            LinearData::Read => MmioData::Read,
            LinearData::Write(bytes) => MmioData::Write(bytes),
            // Memory that can be read and not written: ROM. The write is dropped.
            LinearData::Exchange { old, .. } => {
                self.vcpus[n].vcpu.complete(Completion::Done(old));
                return Ok(Ok(nothing));
            }
        };
        Ok(self.after_fault(n, action, Some(MmioAccess { gpa, len_bytes: operand.len_bytes, data })))
    }

    /// Makes a write to a guest table in place of the instruction.
    fn emulate_write(&mut self, n: usize, gpa: Gpa, exit: PageFaultExit) -> Handled {
        let task = &self.lens.task();
        let done = match exit.operand {
            // It will come, and then it comes with its data.
            None => Ok(Some([0; 32])),
            Some(operand) => {
                let len = usize::from(operand.len_bytes).min(32);
                match operand.data {
                    LinearData::Read => Ok(None),
                    LinearData::Write(bytes) => {
                        self.vm.emulate_write(id(n), gpa, &bytes[..len], task).map(|()| Some([0; 32]))
                    }
                    LinearData::Exchange { old, new } => {
                        let exchanged = self.vm.emulate_exchange(id(n), gpa, &old[..len], &new[..len], task);
                        exchanged.map(|one| (one == Emulated::Done).then_some(old))
                    }
                }
            }
        };
        self.flush_owed();
        match done {
            Ok(Some(bytes)) => {
                self.vcpus[n].vcpu.complete(Completion::Done(bytes));
                Ok(BoardEvents::empty())
            }
            Ok(None) => Ok(BoardEvents::empty()),
            Err(_) => Err(self.no_memory(n, gpa)),
        }
    }

    pub(super) fn paging_written(&mut self, n: usize, change: PagingChange) -> Result<Handled, RunError> {
        let guest = self.vcpus[n].vcpu.guest_paging();
        let registers = self.vm.set_guest_paging(id(n), &guest, change, &self.lens.task())?;
        self.vcpus[n].vcpu.run_over(registers, change);
        self.flush_owed();
        Ok(Ok(BoardEvents::empty()))
    }

    pub(super) fn shadow_invlpg(&mut self, n: usize, gva: Gva) -> Result<Handled, RunError> {
        self.vm.shadow_invlpg(id(n), gva, &self.lens.task())?;
        self.flush_owed();
        Ok(Ok(BoardEvents::empty()))
    }

    pub(super) fn shadow_invpcid(&mut self, n: usize, what: Invpcid) -> Result<Handled, RunError> {
        self.vm.shadow_invpcid(id(n), what, &self.lens.task())?;
        self.flush_owed();
        Ok(Ok(BoardEvents::empty()))
    }

    /// PDPTEs where no memory is cannot be loaded: #GP.
    pub(super) fn read_pdptes(&mut self, n: usize, gpa: Gpa) -> BoardEvents {
        let mut bytes = [0; 32];
        let completion = match self.vm.guest_read(gpa, &mut bytes, &self.lens.task()) {
            Ok(()) => Completion::Done(bytes),
            Err(_) => Completion::Refused,
        };
        self.vcpus[n].vcpu.complete(completion);
        BoardEvents::empty()
    }
}
