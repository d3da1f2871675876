//! Memory failure: 4 KiB are lost, the rest of what they were part of is not (`mm/memory-failure.c`).
//!
//! [`HostMemory::poison`] marks one frame for good. In a huge folio the mark is kept beside it (the kernel's list of raw
//! error pages of a huge page) and lands on the right piece when the folio is split; so the folio stays usable around
//! the lost frame, and who maps it must map around it, asking [`HostMemory::is_poisoned`]. When the unit goes back to its
//! source, the lost frames stay out and the others go to the page allocator.
//!
//! Left out: signals, soft offlining, unpoisoning.

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::folio::{Folio, FolioFlags, FolioKind};
use crate::host::HostMemory;
use crate::pool::HugeSize;

/// Where a failure struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poisoned {
    /// In a folio in use. Of a 4K folio nothing is left; a larger one can be split around the frame.
    InFolio(Folio),
    /// In a piece that waits for the rest of its unit.
    Waiting,
    /// In a free frame, which is gone now.
    Free,
    /// In a free page of a pool that could not be taken apart: allocations skip it.
    Skipped {
        /// The page's size.
        size: PageSize,
    },
    /// In a frame that had failed before.
    Already,
}

/// A failure that cannot be contained; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoisonError {
    /// A kernel page (`MF_MSG_KERNEL`).
    #[error("{sfn:?} holds a page table")]
    PageTable {
        /// The frame.
        sfn: Sfn,
    },
    /// A frame whose owner is not known here: outside the host's memory, in the vmemmap, or lent out.
    #[error("nothing is known of {sfn:?}")]
    Unknown {
        /// The frame.
        sfn: Sfn,
    },
}

impl HostMemory {
    /// The 4 KiB at `sfn` failed.
    pub fn poison(&mut self, sfn: Sfn) -> Result<Poisoned, PoisonError> {
        if self.is_poisoned(sfn) {
            return Ok(Poisoned::Already);
        }
        if let Some(folio) = self.folios.get(sfn) {
            if folio.meta.kind == FolioKind::PageTable {
                return Err(PoisonError::PageTable { sfn });
            }
            self.poisoned.insert(sfn.raw());
            let flag = match folio.size {
                PageSize::Size4K => FolioFlags::HWPOISON,
                _ => FolioFlags::HAS_HWPOISONED,
            };
            let meta = self.folios.meta_mut(sfn);
            meta.flags |= flag;
            return Ok(Poisoned::InFolio(Folio { meta: *meta, ..folio }));
        }
        if self.units.is_waiting(sfn) {
            self.poisoned.insert(sfn.raw());
            return Ok(Poisoned::Waiting);
        }
        for huge in HugeSize::ALL {
            if self.pool(huge).is_free(sfn) {
                self.poisoned.insert(sfn.raw());
                let size = huge.page_size();
                let (pool, frames) = self.pool_mut(huge);
                let Some(head) = pool.poison_free(frames, sfn) else { return Ok(Poisoned::Skipped { size }) };
                if let Some(sound) = self.sound_runs(head, size) {
                    self.scatter(size, &sound);
                }
                return Ok(Poisoned::Free);
            }
        }
        if self.frames.pages.take_off(sfn) || self.cma.iter_mut().any(|area| area.retire_free(sfn)) {
            self.poisoned.insert(sfn.raw());
            self.retired += 1;
            return Ok(Poisoned::Free);
        }
        Err(PoisonError::Unknown { sfn })
    }

    /// Whether the memory of `sfn` failed.
    pub fn is_poisoned(&self, sfn: Sfn) -> bool {
        self.poisoned.contains(&sfn.raw())
    }

    /// Frames of a block that failed, ascending.
    pub fn poisoned_in(&self, head: Sfn, size: PageSize) -> impl Iterator<Item = Sfn> + '_ {
        self.poisoned.range(head.raw()..head.raw() + size.frames()).map(|&frame| Sfn::new(frame))
    }

    /// Carries the marks of a folio that was split to its pieces.
    pub(super) fn mark_poison(&mut self, head: Sfn, size: PageSize) {
        for &frame in self.poisoned.range(head.raw()..head.raw() + size.frames()) {
            let sfn = Sfn::new(frame);
            let Some(piece) = self.folios.get(sfn) else { continue };
            self.folios.meta_mut(sfn).flags |= match piece.size {
                PageSize::Size4K => FolioFlags::HWPOISON,
                _ => FolioFlags::HAS_HWPOISONED,
            };
        }
    }

    /// The runs of a block that did not fail; `None` when all of it is sound.
    pub(super) fn sound_runs(&self, head: Sfn, size: PageSize) -> Option<Vec<(Sfn, u64)>> {
        let mut at = head.raw();
        let mut runs = Vec::new();
        for frame in self.poisoned_in(head, size) {
            if frame.raw() > at {
                runs.push((Sfn::new(at), frame.raw() - at));
            }
            at = frame.raw() + 1;
        }
        if at == head.raw() {
            return None;
        }
        let end = head.raw() + size.frames();
        if at < end {
            runs.push((Sfn::new(at), end - at));
        }
        Some(runs)
    }
}
