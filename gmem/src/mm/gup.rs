//! get_user_pages: a page of a process for somebody who is not that process (`mm/gup.c`).
//!
//! [`Mm::gup_fast`] walks the page table alone and gives up where anything is missing; [`Mm::gup`] takes `mmap_lock` and
//! faults. Both return a [`PageRef`], which keeps the frame, not the mapping: the process may unmap the page meanwhile,
//! and a guest_memfd that wants it back finds that it is held.

use emu_core::defect::Defect;
use emu_core::errno::Errno;
use emu_core::sync::Task;
use emu_core::{Hva, Hvn, PageSize, Sfn};
use thiserror::Error;

use super::fault::is_poisoned;
use super::table::{Entries, PteFlags, UserLeaf};
use super::vma::What;
use super::{Kernel, Mm, UserAccess, UserFault};
use crate::folio::FolioFlags;
use crate::{Host, HostMemory};

/// How a page is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// `FOLL_GET`: a reference.
    Get,
    /// `FOLL_PIN`: a device may access it, for as long as it likes.
    Pin,
}

/// Whether a page that must be read from a disk is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    /// Yes.
    Block,
    /// `FOLL_NOWAIT`: no.
    Never,
}

/// What a caller wants with a page (`FOLL_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Foll {
    /// What for (`FOLL_WRITE`).
    pub access: UserAccess,
    /// How to hold it.
    pub hold: Hold,
    /// How long to wait.
    pub wait: Wait,
}

/// Why a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GupError {
    /// `EFAULT`, or whatever the fault says.
    #[error(transparent)]
    Fault(#[from] UserFault),
    /// `EFAULT`: device memory has no page to hold.
    #[error("{at} shows memory of a device")]
    Device {
        /// Where.
        at: Hva,
    },
    /// The page must be read from a disk first.
    #[error("the page at {at} is not in memory")]
    NeedsIo {
        /// Where.
        at: Hva,
    },
    /// `ENOMEM`: no more references can be counted.
    #[error("the page at {at} has as many users as can be counted")]
    Saturated {
        /// Where.
        at: Hva,
    },
}

impl GupError {
    /// What get_user_pages returns.
    pub const fn errno(&self) -> Errno {
        match self {
            GupError::Fault(fault) => fault.errno(),
            GupError::Device { .. } => Errno::Fault,
            GupError::NeedsIo { .. } => Errno::Again,
            GupError::Saturated { .. } => Errno::NoMem,
        }
    }
}

/// A page that is held. It must be [released](PageRef::release).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a page that is never released is never freed"]
pub struct PageRef {
    sfn: Sfn,
    hold: Hold,
    flags: PteFlags,
    size: PageSize,
}

impl PageRef {
    /// Its frame.
    pub const fn sfn(&self) -> Sfn {
        self.sfn
    }
    /// How it is held.
    pub const fn hold(&self) -> Hold {
        self.hold
    }
    /// Whether the process could write when it was taken.
    pub const fn is_writable(&self) -> bool {
        self.flags.contains(PteFlags::WRITE)
    }
    /// Size of the entry it was taken from.
    pub const fn size(&self) -> PageSize {
        self.size
    }
    /// Gives it back (`put_page`, `unpin_user_page`).
    pub fn release(self, host: &Host, task: &Task<'_>) {
        self.release_locked(&mut host.lock(task));
    }

    /// The same with the host's lock held.
    pub fn release_locked(self, host: &mut HostMemory) {
        match self.hold {
            Hold::Get => host.put_page(self.sfn, 1),
            Hold::Pin => host.unpin_page(self.sfn),
        }
    }
}

/// What a walk of the page table found.
enum Walked {
    Held(PageRef),
    Missing,
    Refused(GupError),
}

impl Entries {
    fn take_page(&mut self, page: Hvn, foll: Foll, host: &mut HostMemory, task: &Task<'_>) -> Walked {
        let at = page.base();
        let Some(leaf) = self.leaf(page).filter(|leaf| leaf.allows(foll.access)) else { return Walked::Missing };
        if leaf.flags.contains(PteFlags::SPECIAL) && !task.has(Defect::ReferenceDevicePages) {
            return Walked::Refused(GupError::Device { at });
        }
        if is_poisoned(host, leaf.sfn) {
            return Walked::Refused(UserFault::HwPoison { at }.into());
        }
        let held = match foll.hold {
            Hold::Get => host.get_page(leaf.sfn),
            Hold::Pin => host.pin_page(leaf.sfn),
        };
        match held {
            Ok(()) => {
                self.change_flags(page, |flags| flags.insert(PteFlags::ACCESSED));
                Walked::Held(PageRef { sfn: leaf.sfn, hold: foll.hold, flags: leaf.flags, size: leaf.size })
            }
            Err(_) => Walked::Refused(GupError::Saturated { at }),
        }
    }
}

impl Mm {
    /// `get_user_pages_fast_only`, `pin_user_pages_fast` up to where they would fault: the page, if the process has it
    /// and may do with it what is wanted.
    pub fn gup_fast(&self, at: Hva, access: UserAccess, hold: Hold, host: &Host, task: &Task<'_>) -> Option<PageRef> {
        let foll = Foll { access, hold, wait: Wait::Never };
        let mut entries = self.table.lock(task);
        match entries.take_page(at.frame(), foll, &mut host.lock(task), task) {
            Walked::Held(page) => Some(page),
            Walked::Missing | Walked::Refused(_) => None,
        }
    }

    /// `get_user_pages_unlocked`: faults until the page is there.
    pub fn gup(&self, at: Hva, foll: Foll, kernel: Kernel<'_>) -> Result<PageRef, GupError> {
        let page = at.frame();
        loop {
            let vmas = self.read_vmas(kernel.task);
            let vma = vmas.find(page).ok_or(UserFault::NotMapped { at: page.base() })?;
            if let What::Device { .. } = vma.what() {
                return Err(GupError::Device { at: page.base() });
            }
            if !vma.prot().allows(foll.access) {
                return Err(UserFault::Denied { at: page.base(), access: foll.access }.into());
            }
            {
                let mut entries = self.table.lock(kernel.task);
                match entries.take_page(page, foll, &mut kernel.host.lock(kernel.task), kernel.task) {
                    Walked::Held(page) => return Ok(page),
                    Walked::Refused(error) => return Err(error),
                    Walked::Missing => {}
                }
                if foll.wait == Wait::Never && entries.swap_mut().contains_key(&page.raw()) {
                    return Err(GupError::NeedsIo { at: page.base() });
                }
            }
            self.fault_in_vma(vma, page, foll.access, kernel)?;
            drop(vmas);
            kernel.task.give_way();
        }
    }

    /// The frame behind memory of a device (`follow_pfnmap_start`, and `fixup_user_fault` where there is no entry yet). It
    /// holds nothing: the driver may move the memory as soon as a notifier has said so.
    pub fn follow_device(&self, at: Hva, access: UserAccess, kernel: Kernel<'_>) -> Result<UserLeaf, UserFault> {
        let page = at.frame();
        loop {
            let vmas = self.read_vmas(kernel.task);
            let vma = vmas.find(page).ok_or(UserFault::NotMapped { at: page.base() })?;
            let leaf = self.table.lock(kernel.task).leaf(page);
            if let Some(leaf) = leaf.filter(|leaf| leaf.allows(access)) {
                return Ok(leaf);
            }
            self.fault_in_vma(vma, page, access, kernel)?;
        }
    }

    /// Size of the entry behind an address (`host_pfn_mapping_level`); 4 KiB where there is none.
    pub fn mapping_level(&self, at: Hva, task: &Task<'_>) -> PageSize {
        self.table.lock(task).leaf(at.frame()).map_or(PageSize::Size4K, |leaf| leaf.size)
    }
}

impl HostMemory {
    /// `SetPageDirty`, `mark_page_accessed`: what a user of a page says when it lets go.
    ///
    /// # Panics
    /// When nobody uses the frame: it was let go too early.
    pub fn mark_page(&mut self, sfn: Sfn, dirty: bool) {
        let flags = &mut self.folios.meta_mut(sfn).flags;
        flags.insert(FolioFlags::REFERENCED);
        if dirty {
            flags.insert(FolioFlags::DIRTY);
        }
    }
}
