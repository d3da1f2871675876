//! A nested fault because of the RMP (`sev_handle_rmp_fault`): leaf and entry differ in size.
//!
//! The ordinary path has run by then: the page is private, has memory and is assigned. What is left is an entry of 2M under a
//! smaller leaf, or under PVALIDATE of 4K: the entry is split and the 2M range is mapped anew. Splitting lies between the
//! begin and the end of an invalidation, so that no leaf is installed by the size before. An entry of 4K is what somebody
//! else has split already, and an unassigned one is a page that is being taken away: both come again if they matter.

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, PageSize, Sfn};
use gmem::Shareability;
use mmu::RmpCause;
use mmu::rmp::RmpError;

use super::{AssignError, SnpMemory, code, count};
use crate::config::VmError;
use crate::fault::{FaultInput, MemoryFaultReason, Stop, memory_fault};
use crate::flush::Owed;
use crate::memslot::SlotState;
use crate::vm::Vm;

impl Vm {
    /// Answers what the ordinary path left of an RMP fault.
    #[cold]
    pub(crate) fn rmp_fault(&self, input: &FaultInput, cause: RmpCause, task: &Task<'_>) -> Result<(), Stop> {
        let Some(snp) = self.snp.as_deref() else { return Ok(()) };
        count(&snp.counters.rmp_faults, 1);
        if input.privacy == Shareability::SHARED {
            return Ok(());
        }
        let gfn = input.gpa.frame();
        let slots = self.slots.read(task);
        let Some(slot) = slots.lookup(gfn).filter(|slot| slot.state() == SlotState::Active) else { return Ok(()) };
        let Some((inode, index)) = slot.gmem_page(gfn) else { return Ok(()) };
        let _stays = inode.shared(task);
        if !self.slot_attribute(slot, gfn, task).is_private() {
            return Ok(());
        }
        let Some(folio) = inode.peek(index, task) else { return Ok(()) };
        let Some(entry) = snp.rmp.entry(folio.sfn).filter(|&entry| snp.is_at(entry, gfn)) else { return Ok(()) };
        let rmp_level = entry.page_size().page_size();
        let mut smashed = Ok(());
        let denied = cause == RmpCause::Vmpl || entry.immutable();
        task.at(Point::O1);
        if !denied {
            if rmp_level == PageSize::Size2M {
                smashed = self.smash(snp, gfn, folio.sfn, task)?;
            } else if self.leaf_size(gfn, task)?.is_some_and(|leaf| leaf > rmp_level) {
                self.zap_range(gfn.align_down(PageSize::Size2M), PageSize::Size2M.frames(), task)?;
            }
        }
        task.report_with(|| Event::RmpFault {
            gpa: input.gpa,
            sfn: folio.sfn,
            error_code: input.error_code(),
            rmp_level,
            psmash_ret: code(smashed),
        });
        if let Err(cause) = smashed
            && task.has(Defect::SecondPsmashFails)
        {
            return Err(VmError::from(AssignError::Refused { sfn: folio.sfn, gfn, cause }).into());
        }
        // Nothing the hypervisor does makes these succeed.
        if denied { Err(memory_fault(input, MemoryFaultReason::RmpDenied)) } else { Ok(()) }
    }

    fn leaf_size(&self, gfn: Gfn, task: &Task<'_>) -> Result<Option<PageSize>, VmError> {
        let _walking = self.tdp.lockless(task);
        Ok(self.tdp.leaf_size(gfn)?)
    }

    /// PSMASH of the entry behind `gfn`, and the 2M around it is mapped anew. What the instruction said comes back.
    pub(super) fn smash(
        &self,
        snp: &SnpMemory,
        gfn: Gfn,
        sfn: Sfn,
        task: &Task<'_>,
    ) -> Result<Result<(), RmpError>, VmError> {
        self.resize(gfn, task, || {
            let _alone = snp.block(sfn, task);
            snp.psmash(sfn, task)
        })
    }

    /// Changes the size of the entries behind the 2M around `gfn` while nothing of it is mapped.
    pub(super) fn resize<T>(&self, gfn: Gfn, task: &Task<'_>, change: impl FnOnce() -> T) -> Result<T, VmError> {
        let (first, nr_pages) = (gfn.align_down(PageSize::Size2M), PageSize::Size2M.frames());
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        self.invalidation.begin(task);
        self.invalidation.add_range(first, nr_pages, task);
        let zapped = match task.has(Defect::PsmashWithoutZap) {
            true => Ok(()),
            false => tables.zap(first, nr_pages, &mut owed, task),
        };
        if !task.has(Defect::ResizeWithoutFlush) {
            self.flush(&owed, task);
        }
        task.at(Point::I3);
        if task.has(Defect::PsmashAfterUnlock) {
            self.invalidation.end(task);
            tables.bury(&self.host, task);
            drop(tables);
            task.at(Point::I5);
            return Ok(change());
        }
        let changed = change();
        task.at(Point::O2);
        self.invalidation.end(task);
        tables.bury(&self.host, task);
        zapped?;
        Ok(changed)
    }
}
