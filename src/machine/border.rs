//! The border of the guest: what a processor loads before it enters, and what it leaves behind when it comes out
//! (`vcpu_enter_guest`).
//!
//! Always true: a processor never enters over tables that were given up, and what it logged of its writes is with the
//! hypervisor before anybody else acts.

use cpu::Vcpu;
use emu_core::Spa;
use emu_core::sync::Task;
use hypervisor::{Reloaded, VcpuId, Vm};
use mmu::{Ept, Eptp, ModificationLog, Npt, Stage2};

use super::{RunError, shadow};

/// Before the guest: processor `n` loads the registers it is to run with, if it must load others. This may wait for locks
/// of the hypervisor's, so it is done before the processor counts as being in the guest.
pub(super) fn prepare(vm: &Vm, n: usize, vcpu: &mut Vcpu, task: &Task<'_>) -> Result<(), RunError> {
    shadow::reload(vm, n, vcpu, task)?;
    let id = VcpuId(n as u16);
    while !vm.is_shadowing() && vm.must_reload(id) {
        match vm.snp_reload_save_area(id, task)? {
            Reloaded::At(sfn) => vcpu.set_vmsa(sfn.base()),
            // VMRUN finds that the page is nobody's save area.
            Reloaded::Gone => break,
            // Another thread of the host is about to take the page away.
            Reloaded::Retry => std::thread::yield_now(),
        }
    }
    Ok(())
}

/// At the last moment: processor `n` loads the root of new nested tables, if the old one was given up. Nothing is waited
/// for. Who gives a root up from here on waits until the processor has left the guest.
pub(super) fn enter(vm: &Vm, n: usize, vcpu: &mut Vcpu) -> Result<(), RunError> {
    if let Some(register) = vm.take_root(VcpuId(n as u16))? {
        let stage2 = over(*vcpu.mmu().stage2(), register);
        vcpu.mmu().set_stage2(stage2);
    }
    Ok(())
}

/// After the guest: the hypervisor reads what processor `n` logged, and its log is empty again.
pub(super) fn leave(vm: &Vm, n: usize, vcpu: &mut Vcpu, task: &Task<'_>) -> Result<(), RunError> {
    if let Some(log) = vcpu.mmu().modification_log() {
        vm.flush_pml_buffer(VcpuId(n as u16), log.page, log.index, task)?;
        *log = ModificationLog::new(log.page);
    }
    Ok(())
}

/// The same second stage over the root that nCR3 or the EPT pointer `register` names.
pub(super) fn over(stage2: Stage2, register: u64) -> Stage2 {
    match stage2 {
        Stage2::Npt(npt) => Stage2::Npt(Npt { root: Spa::new(register), ..npt }),
        Stage2::Ept(ept) => Stage2::Ept(Ept { eptp: Eptp(register), ..ept }),
        Stage2::None | Stage2::Untranslated(_) => stage2,
    }
}
