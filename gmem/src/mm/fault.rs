//! User faults (`handle_mm_fault`): finding or making the page behind a mapping.

use emu_core::defect::Defect;
use emu_core::errno::Errno;
use emu_core::sync::{Point, Task};
use emu_core::{Hva, Hvn, PageSize, Sfn};
use thiserror::Error;

use super::table::{PteFlags, UserPte};
use super::vma::{ThpChoice, Vma, What};
use super::{HvaRange, Kernel, Mm, Prot, UserAccess};
use crate::folio::FolioKind;
use crate::{GetError, GuestMemfd, HostMemory, OutOfMemory, PageIndex};

/// Why a page could not be had; the signal that a process gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UserFault {
    /// `SIGSEGV`, `SEGV_MAPERR`.
    #[error("nothing is mapped at {at}")]
    NotMapped {
        /// Where.
        at: Hva,
    },
    /// `SIGSEGV`, `SEGV_ACCERR`.
    #[error("the mapping at {at} does not allow a {access:?}")]
    Denied {
        /// Where.
        at: Hva,
        /// What was wanted.
        access: UserAccess,
    },
    /// `SIGBUS`, `BUS_ADRERR`: behind the end of the file, or a page that is the guest's alone.
    #[error("there is no page for the host at {at}")]
    BusError {
        /// Where.
        at: Hva,
    },
    /// `SIGBUS`, `BUS_MCEERR_AR`: the memory failed.
    #[error("the memory at {at} has failed")]
    HwPoison {
        /// Where.
        at: Hva,
    },
    /// `VM_FAULT_OOM`.
    #[error("no memory for the page at {at}: {cause}")]
    OutOfMemory {
        /// Where.
        at: Hva,
        /// What the allocator said.
        cause: OutOfMemory,
    },
}

impl UserFault {
    /// What a system call returns that ran into it.
    pub const fn errno(&self) -> Errno {
        match self {
            UserFault::HwPoison { .. } => Errno::HwPoison,
            UserFault::OutOfMemory { .. } => Errno::NoMem,
            _ => Errno::Fault,
        }
    }
}

/// How a page came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultedIn {
    /// It was in memory, or is fresh.
    Minor,
    /// It had to be read back.
    Major,
}

impl Mm {
    /// Makes `page` usable for `access`. A moment later it may be gone again.
    pub(super) fn fault(&self, page: Hvn, access: UserAccess, kernel: Kernel<'_>) -> Result<FaultedIn, UserFault> {
        let vmas = self.read_vmas(kernel.task);
        let vma = vmas.find(page).ok_or(UserFault::NotMapped { at: page.base() })?;
        self.fault_in_vma(vma, page, access, kernel)
    }

    pub(super) fn fault_in_vma(
        &self,
        vma: &Vma,
        page: Hvn,
        access: UserAccess,
        kernel: Kernel<'_>,
    ) -> Result<FaultedIn, UserFault> {
        let at = page.base();
        if !vma.prot().allows(access) {
            return Err(UserFault::Denied { at, access });
        }
        let write = if vma.prot().contains(Prot::WRITE) { PteFlags::WRITE } else { PteFlags::empty() };
        if self.widen(page, access, write, kernel.task) {
            return Ok(FaultedIn::Minor);
        }
        match vma.what() {
            What::Anonymous { thp } => self.fault_anonymous(vma.range(), *thp, page, write, kernel),
            What::Gmem { inode, first } => {
                let index = PageIndex(first.0 + (page.raw() - vma.range().first.raw()));
                self.fault_gmem(inode, index, page, write, kernel)
            }
            What::Device { first } => {
                let sfn = Sfn::new(first.raw() + (page.raw() - vma.range().first.raw()));
                let pte = UserPte { sfn, flags: write | PteFlags::SPECIAL };
                let mut entries = self.table.lock(kernel.task);
                if entries.leaf(page).is_none() {
                    let entered = entries.enter(page, PageSize::Size4K, pte, &mut kernel.host.lock(kernel.task));
                    entered.map_err(|_| UserFault::BusError { at })?;
                }
                Ok(FaultedIn::Minor)
            }
        }
    }

    /// An entry that is there gets the right that its mapping has. Whether that was all.
    fn widen(&self, page: Hvn, access: UserAccess, write: PteFlags, task: &Task<'_>) -> bool {
        self.table.lock(task).change_flags(page, |flags| {
            if access == UserAccess::Write {
                flags.insert(write);
            }
        })
    }

    /// `do_anonymous_page`, `do_swap_page`: a zeroed folio, or what was paged out.
    fn fault_anonymous(
        &self,
        vma: HvaRange,
        thp: ThpChoice,
        page: Hvn,
        write: PteFlags,
        kernel: Kernel<'_>,
    ) -> Result<FaultedIn, UserFault> {
        let mut entries = self.table.lock(kernel.task);
        if entries.leaf(page).is_some() {
            return Ok(FaultedIn::Minor);
        }
        let mut host = kernel.host.lock(kernel.task);
        let huge = PageSize::Size2M;
        let around = HvaRange { first: page.align_down(huge), nr_pages: huge.frames() };
        let fits = thp == ThpChoice::Huge && vma.intersection(around) == Some(around) && entries.is_vacant(page, huge);
        let sizes: &[PageSize] = if fits { &[PageSize::Size2M, PageSize::Size4K] } else { &[PageSize::Size4K] };
        let mut refused = None;
        for &size in sizes {
            let sfn = match host.alloc_anonymous(size) {
                Ok(sfn) => sfn,
                Err(cause) => {
                    refused = Some(cause);
                    continue;
                }
            };
            let saved = entries.swap_mut().remove(&page.raw());
            if let Some(bytes) = &saved {
                // The frame is the host's own, which is system memory.
                let written = self.table.memory().write(sfn.base(), &bytes[..]);
                assert!(written.is_ok(), "{sfn:?} is system memory");
            }
            let entered = entries.enter(page.align_down(size), size, UserPte { sfn, flags: write }, &mut host);
            assert!(entered.is_ok(), "a fresh folio can be mapped: {entered:?}");
            // The entry's reference is the only one.
            host.put_page(sfn, 1);
            return Ok(if saved.is_some() { FaultedIn::Major } else { FaultedIn::Minor });
        }
        let cause = refused.unwrap_or(OutOfMemory { size: PageSize::Size4K, free_frames: 0 });
        Err(UserFault::OutOfMemory { at: page.base(), cause })
    }

    /// `kvm_gmem_fault_user_mapping`: a page that is shared, found or allocated under the inode's lock, which is held until
    /// it is mapped: so a conversion that holds the lock alone has every mapping before its eyes.
    fn fault_gmem(
        &self,
        inode: &GuestMemfd,
        index: PageIndex,
        page: Hvn,
        write: PteFlags,
        kernel: Kernel<'_>,
    ) -> Result<FaultedIn, UserFault> {
        let at = page.base();
        let Kernel { host, task, .. } = kernel;
        let shared = inode.shared(task);
        if index.0 >= inode.nr_pages() || !inode.attribute(index, task).host_may_use() {
            return Err(UserFault::BusError { at });
        }
        let sfn = shared.for_host(host, index, task).map_err(|error| match error {
            GetError::Poisoned { .. } => UserFault::HwPoison { at },
            GetError::NoFolio { .. } | GetError::Split { .. } | GetError::Hole { .. } => UserFault::OutOfMemory {
                at,
                cause: OutOfMemory { size: PageSize::Size4K, free_frames: host.lock(task).stats().free_frames },
            },
            _ => UserFault::BusError { at },
        })?;
        let locked = (!task.has(Defect::MapAfterUnlock)).then_some(shared);
        if locked.is_none() {
            task.at(Point::F4);
        }
        let mut entries = self.table.lock(task);
        let mut memory = host.lock(task);
        if is_poisoned(&memory, sfn.sfn) {
            return Err(UserFault::HwPoison { at });
        }
        if entries.leaf(page).is_none() {
            let pte = UserPte { sfn: sfn.sfn, flags: write };
            entries.enter(page, PageSize::Size4K, pte, &mut memory).map_err(|_| UserFault::BusError { at })?;
            drop(memory);
            inode.batches.add(sfn.sfn, host, task);
        }
        Ok(FaultedIn::Minor)
    }
}

/// Whether the memory behind a frame has failed.
pub(super) fn is_poisoned(host: &HostMemory, sfn: Sfn) -> bool {
    host.is_poisoned(sfn)
}

impl HostMemory {
    /// A zeroed folio of anonymous memory with one reference.
    pub(super) fn alloc_anonymous(&mut self, size: PageSize) -> Result<Sfn, OutOfMemory> {
        self.alloc_folio(size, FolioKind::Anonymous)
    }
}
