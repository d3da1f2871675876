//! Frames leave the private side (`sev_gmem_invalidate`): a page becomes shared, is punched out, or its inode ends.
//!
//! gmem says which frames, after all that showed them is gone and before the host uses them. An entry of 2M goes as one where
//! all of it goes; where a part of it goes it is split first. A frame that does not come back, as the save area of a
//! processor that runs at this moment, is reported as kept and given up by gmem (`snp_leak_pages`).

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::memory::Key;
use emu_core::sync::{Point, Task};
use emu_core::{PageSize, Sfn};
use gmem::{FrameOwner, Leaving, Reclaimed};
use mmu::rmp::{FirmwareCommand, RmpEntry, RmpError, RmpPageSize, RmpUpdate};

use super::SnpMemory;
use crate::config::VmError;
use crate::vm::Vm;

impl FrameOwner for SnpMemory {
    fn reclaim(&self, first: Sfn, nr_frames: u64, leaving: Leaving, each: &mut dyn FnMut(Reclaimed), task: &Task<'_>) {
        let (mut at, end) = (first.raw(), first.raw() + nr_frames);
        while at < end {
            let sfn = Sfn::new(at);
            at += 1;
            let Some(entry) = self.rmp.entry(sfn).filter(|entry| entry.assigned()) else { continue };
            let whole = sfn.is_aligned(PageSize::Size2M) && at - 1 + PageSize::Size2M.frames() <= end;
            let size = if whole { entry.page_size() } else { RmpPageSize::Size4K };
            let (sfn, size) = match task.has(Defect::TakeBackWhole) {
                true => (sfn.align_down(entry.page_size().page_size()), entry.page_size()),
                false => (sfn, size),
            };
            task.at(Point::O1);
            if self.take_back(sfn, entry, size, task).is_ok() {
                if leaving == Leaving::Shared {
                    // What the guest left there is noise to the host. Freed frames are cleared.
                    (0..size.frames()).for_each(|n| {
                        self.memory.rekey(Sfn::new(sfn.raw() + n), Key::HOST);
                    });
                }
                each(Reclaimed::Returned { block: sfn, size: size.page_size() });
            } else {
                if leaving == Leaving::Freed {
                    task.report(Event::FramesLeaked { sfn, nr_frames: size.frames() });
                }
                (0..size.frames()).for_each(|n| each(Reclaimed::Kept { sfn: Sfn::new(sfn.raw() + n) }));
            }
            task.at(Point::O2);
            at += size.frames() - 1;
        }
    }
}

impl SnpMemory {
    /// RMPUPDATE to the hypervisor's, of all of an entry or of 4K of it.
    pub(super) fn take_back(
        &self,
        sfn: Sfn,
        entry: RmpEntry,
        size: RmpPageSize,
        task: &Task<'_>,
    ) -> Result<(), RmpError> {
        if entry.immutable() {
            // Left by a launch that failed (`snp_page_reclaim`).
            let reclaim = FirmwareCommand::Reclaim { size: entry.page_size() };
            let block = sfn.align_down(entry.page_size().page_size());
            self.rmp.firmware(block.base(), reclaim).map_err(|_| RmpError::FailPermission)?;
        }
        if entry.page_size() != size {
            self.psmash(sfn, task)?;
        }
        self.rmpupdate(sfn, RmpUpdate::hypervisor(size), task)
    }
}

impl Vm {
    /// The mistake of a deletion that drops what is private in every memslot.
    pub(crate) fn take_all_back(&self, task: &Task<'_>) -> Result<(), VmError> {
        let Some(snp) = self.snp.as_deref() else { return Ok(()) };
        let leaves = self.mmu.write(task).leaves()?;
        self.zap_all(task)?;
        for leaf in leaves {
            let Some(entry) = snp.rmp.entry(leaf.sfn).filter(|&entry| snp.is_at(entry, leaf.gfn)) else { continue };
            // What does not come back stays.
            let _ = snp.take_back(leaf.sfn.align_down(entry.page_size().page_size()), entry, entry.page_size(), task);
        }
        Ok(())
    }
}
