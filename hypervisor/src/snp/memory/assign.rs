//! A private page becomes the guest's (`sev_gmem_prepare`): after its folio is found, before a leaf shows it.
//!
//! What is assigned to the guest at this place already stays as it is, accepted or not. A frame that stands elsewhere in the
//! guest's memory, because its memslot moved, is assigned anew and must be accepted anew; Linux would leave it, and the guest
//! would fault on it for ever.

use emu_core::defect::Defect;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, PageSize, Sfn};
use gmem::Host;
use mmu::Asid;
use mmu::rmp::{Assigned, RegionStatus, RmpError, RmpPageSize, RmpUpdate};
use thiserror::Error;

use super::{RmpSizes, SnpMemory};
use crate::config::VmError;
use crate::vm::Vm;

/// Why a page cannot be the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AssignError {
    /// `ENOENT`: the reverse map ends before.
    #[error("the reverse map does not cover {sfn:?}")]
    NotCovered {
        /// The frame.
        sfn: Sfn,
    },
    /// The frame is another guest's, or the firmware's.
    #[error("{sfn:?} belongs to ASID {}", asid.0)]
    Foreign {
        /// The frame.
        sfn: Sfn,
        /// Whose it is.
        asid: Asid,
    },
    /// `EINVAL`: RMPUPDATE failed.
    #[error("{sfn:?} cannot be assigned to guest frame {:#x}: {cause}", gfn.raw())]
    Refused {
        /// The frame.
        sfn: Sfn,
        /// Where it was to be.
        gfn: Gfn,
        /// What the instruction said.
        cause: RmpError,
    },
}

impl Vm {
    /// Makes a private page the guest's.
    pub(crate) fn assign(
        &self,
        snp: &SnpMemory,
        (gfn, sfn): (Gfn, Sfn),
        largest: PageSize,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        Ok(snp.assign((gfn, sfn), largest, &self.host, task)?)
    }
}

impl SnpMemory {
    /// Makes the frame `sfn` page `gfn` of the guest, with the 2M around it if `largest`, the policy and the entries there
    /// allow that. The caller keeps the folio where it is and private.
    #[inline]
    fn assign(&self, page: (Gfn, Sfn), largest: PageSize, host: &Host, task: &Task<'_>) -> Result<(), AssignError> {
        let (gfn, sfn) = page;
        let entry = self.rmp.entry(sfn).ok_or(AssignError::NotCovered { sfn })?;
        if self.is_at(entry, gfn) || entry.assigned() && task.has(Defect::AssignAnywhere) {
            return Ok(());
        }
        task.at(Point::O1);
        self.assign_alone(page, largest, host, task)
    }

    /// The same, alone in the 2M block: what was found unassigned must still be when it is assigned, or a page that the
    /// guest has accepted meanwhile would have to be accepted again.
    #[cold]
    fn assign_alone(
        &self,
        (gfn, sfn): (Gfn, Sfn),
        largest: PageSize,
        host: &Host,
        task: &Task<'_>,
    ) -> Result<(), AssignError> {
        let _alone = self.block(sfn, task);
        let entry = self.rmp.entry(sfn).ok_or(AssignError::NotCovered { sfn })?;
        if self.is_at(entry, gfn) {
            return Ok(());
        }
        let refused = |cause| AssignError::Refused { sfn, gfn, cause };
        if entry.assigned() {
            if entry.asid() != self.asid {
                return Err(AssignError::Foreign { sfn, asid: entry.asid() });
            }
            if entry.page_size() == RmpPageSize::Size2M {
                self.psmash(sfn, task).map_err(refused)?;
            }
        } else if largest >= PageSize::Size2M && self.sizes != RmpSizes::Only4K && self.is_free(sfn) {
            let (block, first) = (sfn.align_down(PageSize::Size2M), gfn.align_down(PageSize::Size2M));
            let whole = RmpUpdate::guest(self.asid, first.base(), RmpPageSize::Size2M);
            if self.hand_over(block, whole, host, task).is_ok() {
                return Ok(());
            }
        }
        let page = RmpUpdate::guest(self.asid, gfn.base(), RmpPageSize::Size4K);
        self.hand_over(sfn, page, host, task).map_err(refused)
    }

    /// RMPUPDATE to the guest's, and the host's own map is out of its way before.
    fn hand_over(&self, sfn: Sfn, update: RmpUpdate, host: &Host, task: &Task<'_>) -> Result<(), RmpError> {
        let size = update.page_size.page_size();
        let late = task.has(Defect::SplitDirectMapLate);
        if !late {
            host.assign_block(sfn, size, task);
        }
        let done = self.rmpupdate(sfn, update, task);
        task.at(Point::O2);
        match (done.is_ok(), late) {
            (true, true) => host.assign_block(sfn, size, task),
            (false, false) => host.keep_block(sfn, size, task),
            (true, false) | (false, true) => {}
        }
        done
    }

    /// Whether nothing of the 2M around `sfn` is assigned (`is_large_rmp_possible`).
    pub(super) fn is_free(&self, sfn: Sfn) -> bool {
        let head = self.rmp.rmpread(sfn.align_down(PageSize::Size2M).base());
        head.is_ok_and(|head| head.assigned == Assigned::No && head.region == RegionStatus::Free)
    }
}
