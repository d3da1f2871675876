//! Writes that the hypervisor makes in place of an instruction, because they go to guest tables
//! (`emulator_write_emulated`, `emulator_cmpxchg_emulated`).

use std::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::memory::BusError;
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, Spa};
use thiserror::Error;

use crate::config::VmError;
use crate::flush::Owed;
use crate::io::GuestAccessError;
use crate::vcpu::VcpuId;
use crate::vm::Vm;

/// Why a write cannot be made for the guest.
#[derive(Debug, Error)]
pub enum EmulationError {
    /// Guest memory cannot be accessed there.
    #[error(transparent)]
    Access(#[from] GuestAccessError),
    /// The hypervisor refuses.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// What became of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// Done.
    Done,
    /// The memory holds something else by now: the instruction starts over.
    Changed,
}

impl Vm {
    /// Writes `bytes` at `gpa` for the guest, and drops what was made from them.
    pub fn emulate_write(&self, vcpu: VcpuId, gpa: Gpa, bytes: &[u8], task: &Task<'_>) -> Result<(), EmulationError> {
        let write = || {
            let mut own = self.vcpu(vcpu)?.mmu.lock(task);
            Ok(self.write_for(gpa, bytes, own.ring.as_mut(), task)?)
        };
        self.emulating(task, write, |()| Some((gpa, bytes.len() as u64)))
    }

    /// Writes `new` at `gpa` if `old` is there, in one step for 4 and 8 bytes that are aligned.
    pub fn emulate_exchange(
        &self,
        vcpu: VcpuId,
        gpa: Gpa,
        old: &[u8],
        new: &[u8],
        task: &Task<'_>,
    ) -> Result<Emulated, EmulationError> {
        let mut own = self.vcpu(vcpu)?.mmu.lock(task);
        let slots = self.slots.read(task);
        let at = self.table_frame(&slots, gpa.frame(), task).ok_or(GuestAccessError::NoSlot { gpa })?;
        let spa = at.base().wrapping_add(gpa.page_offset() as u64);
        let exchange = || {
            let exchanged = self.exchange_at(spa, old, new).map_err(GuestAccessError::from)?;
            if exchanged == Emulated::Done
                && let Some(slot) = slots.lookup(gpa.frame())
            {
                self.mark_dirty(slot, gpa.frame(), own.ring.as_mut(), task);
            }
            Ok(exchanged)
        };
        let done = |exchanged: &Emulated| (*exchanged == Emulated::Done).then_some((gpa, new.len() as u64));
        self.emulating(task, exchange, done)
    }

    fn exchange_at(&self, spa: Spa, old: &[u8], new: &[u8]) -> Result<Emulated, BusError> {
        let memory = self.memory();
        let is_aligned = spa.raw().is_multiple_of(new.len().max(1) as u64);
        let done = match (<[u8; 8]>::try_from(old), <[u8; 8]>::try_from(new)) {
            (Ok(old), Ok(new)) if is_aligned => {
                memory.compare_exchange_u64(spa, u64::from_le_bytes(old), u64::from_le_bytes(new))?.is_ok()
            }
            _ => match (<[u8; 4]>::try_from(old), <[u8; 4]>::try_from(new)) {
                (Ok(old), Ok(new)) if is_aligned => {
                    memory.compare_exchange_u32(spa, u32::from_le_bytes(old), u32::from_le_bytes(new))?.is_ok()
                }
                _ => {
                    let mut now = [0; 32];
                    let now = &mut now[..old.len().min(32)];
                    memory.read(spa, now)?;
                    let same = now == old;
                    if same {
                        memory.write(spa, new)?;
                    }
                    same
                }
            },
        };
        Ok(if done { Emulated::Done } else { Emulated::Changed })
    }

    /// Writes guest memory by `write` and tells the shadow MMU what `wrote` says. The write comes first: whoever begins to
    /// shadow the table afterwards counts it, takes its writers away, and then reads it (the barriers in
    /// `kvm_mmu_track_write` and `account_shadowed`).
    fn emulating<T>(
        &self,
        task: &Task<'_>,
        write: impl FnOnce() -> Result<T, EmulationError>,
        wrote: impl FnOnce(&T) -> Option<(Gpa, u64)>,
    ) -> Result<T, EmulationError> {
        let Some(shadow) = &self.shadow else { return write() };
        let too_early = task.has(Defect::CountBeforeWrite).then(|| shadow.known.any_indirect());
        shadow.emulating.fetch_add(1, Ordering::AcqRel);
        let written = write();
        if let Ok(written) = &written
            && let Some((gpa, len)) = wrote(written)
            && too_early.unwrap_or_else(|| shadow.known.any_indirect())
        {
            self.track_write(gpa, len, task);
        }
        shadow.emulating.fetch_sub(1, Ordering::AcqRel);
        written
    }

    fn track_write(&self, gpa: Gpa, len: u64, task: &Task<'_>) {
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let mut owed = Owed::default();
        if let Some(pages) = pages.as_deref_mut()
            && pages.indirect > 0
        {
            pages.stats.emulated += 1;
            pages.track_write(gpa, len, &mut owed, task);
            self.flush(&owed, task);
            pages.bury(&self.host, task);
        }
    }

    /// Stops shadowing the table at `gfn`, so that the guest can write it by itself
    /// (`kvm_mmu_unprotect_gfn_and_retry`). Whether there was anything to stop.
    pub fn unprotect(&self, gfn: Gfn, task: &Task<'_>) -> Result<bool, VmError> {
        self.shadow()?;
        let tables = self.mmu.write(task);
        let mut pages = tables.shadow.lock(task);
        let mut owed = Owed::default();
        let Some(pages) = pages.as_deref_mut() else { return Ok(false) };
        let found: Vec<_> = pages.by_gfn.get(&gfn).cloned().unwrap_or_default();
        let mut any = false;
        for id in found {
            if pages.exists(id) && pages.page(id).shadows(gfn) {
                pages.zap_page(id, &mut owed, task);
                any = true;
            }
        }
        self.flush(&owed, task);
        pages.bury(&self.host, task);
        Ok(any)
    }
}
