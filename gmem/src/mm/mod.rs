//! The address space of a process on the host, above all the VMM's (`struct mm_struct`).
//!
//! [`Mm`] is the door: it maps anonymous memory, guest_memfd and device memory at host user addresses ([`emu_core::Hva`]),
//! resolves user faults, and answers get_user_pages ([`gup`]). Its page table ([`table::UserTable`]) lives apart from
//! its VMAs, because an inode that takes a page away from everybody ([`crate::Exclusive::unmap_users`]) must reach the
//! entries of every process without their `mmap_lock`.
//!
//! Every operation takes a [`Kernel`]: the host's memory, the secondary MMUs to tell ([`MmuNotifier`]) and the task.
//! Locks, outer to inner: `mmap_lock` (the VMAs), an inode's `invalidate_lock`, an inode's list of user mappings, what a
//! notifier takes (`mmu_lock`), a page table, the host's memory.
//!
//! Always true:
//! - an entry of a page table that is not special holds one reference and one map count on its folio;
//! - an entry goes, or loses rights, only between a notifier's start and end that covers it;
//! - an index of a guest_memfd that is private is in no page table, whatever the VMAs say;
//! - device memory ([`What::Device`]) is mapped by special entries, which hold nothing.
//!
//! Left out: copy on write (memory that a process had at a fork stays common to both), protection keys, stacks and
//! heaps, files other than guest_memfd.

mod access;
mod advise;
mod device;
mod fault;
pub mod gup;
mod notifier;
pub mod table;
#[cfg(test)]
mod tests;
mod unmap;
mod vma;

use std::sync::Arc;

use emu_core::errno::Errno;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{ReadGuard, ShardedLock, Task};
use emu_core::{Hva, Hvn};
use thiserror::Error;

use crate::{GmemFlags, Host, OutOfMemory};
use table::UserTable;
use vma::Vmas;

pub use access::{UserAccess, UserAccessError};
pub use advise::{Advice, Advised};
pub use device::{DeviceError, DeviceMemory};
pub use fault::UserFault;
pub use gup::{Foll, GupError, Hold, PageRef, Wait};
pub use notifier::{MmuNotifier, NoNotifier, NotifyReason};
pub use unmap::{UserMapping, UserMappings};
pub use vma::{Prot, ThpChoice, Vma, What};

/// The first address that no process has (`TASK_SIZE_MAX` with 4-level tables).
pub const TASK_SIZE: u64 = (1 << 47) - PAGE_SIZE as u64;

/// Number of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MmId(pub u32);

/// Whole pages of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HvaRange {
    /// The first page.
    pub first: Hvn,
    /// How many.
    pub nr_pages: u64,
}

impl HvaRange {
    /// The first page behind the range.
    pub const fn end(self) -> Hvn {
        Hvn::new(self.first.raw().saturating_add(self.nr_pages))
    }

    /// Whether `page` lies in it.
    pub const fn contains(self, page: Hvn) -> bool {
        page.raw().wrapping_sub(self.first.raw()) < self.nr_pages
    }

    /// The pages it has in common with another.
    pub fn intersection(self, other: HvaRange) -> Option<HvaRange> {
        let first = self.first.max(other.first);
        let nr_pages = self.end().min(other.end()).offset_from(first).filter(|&nr| nr > 0)?;
        Some(HvaRange { first, nr_pages })
    }

    /// The pages from `at` on, `len_bytes` of them; as `mmap` with `MAP_FIXED` and `munmap` check them.
    pub fn checked(at: Hva, len_bytes: u64) -> Result<HvaRange, MmError> {
        let page = PAGE_SIZE as u64;
        if len_bytes == 0 || !at.raw().is_multiple_of(page) {
            return Err(MmError::Misaligned { at, len_bytes });
        }
        let end = len_bytes.checked_next_multiple_of(page).and_then(|len| at.raw().checked_add(len));
        match end.filter(|&end| end <= TASK_SIZE) {
            Some(end) => Ok(HvaRange { first: at.frame(), nr_pages: (end - at.raw()) / page }),
            None => Err(MmError::BeyondTaskSize { at, len_bytes }),
        }
    }
}

/// Why a call that changes an address space was refused. Of a range, what came before the error is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MmError {
    /// `EINVAL`: no length, or an address that is no multiple of 4 KiB.
    #[error("{len_bytes:#x} bytes at {at} are not whole pages of an address space")]
    Misaligned {
        /// The address.
        at: Hva,
        /// The length.
        len_bytes: u64,
    },
    /// `ENOMEM`.
    #[error("{len_bytes:#x} bytes at {at} end behind the last user address {TASK_SIZE:#x}")]
    BeyondTaskSize {
        /// The address.
        at: Hva,
        /// The length.
        len_bytes: u64,
    },
    /// `EEXIST`: mappings are placed with `MAP_FIXED_NOREPLACE`.
    #[error("{at} is mapped already")]
    Taken {
        /// The first address that is.
        at: Hva,
    },
    /// `ENOMEM`: a part of the range is not mapped.
    #[error("nothing is mapped at {at}")]
    NotMapped {
        /// The first address without a mapping.
        at: Hva,
    },
    /// `EPERM`: guest_memfd lies on a file system without executables.
    #[error("guest_memfd cannot be mapped executable")]
    NoExec,
    /// `ENODEV`.
    #[error("the guest_memfd was created without GUEST_MEMFD_FLAG_MMAP")]
    NotMappable,
    /// `EINVAL`.
    #[error("guest_memfd can only be mapped MAP_SHARED")]
    NotShared,
    /// `EINVAL`: this kind of memory does not take this advice.
    #[error("{advice:?} means nothing to the memory at {at}")]
    BadAdvice {
        /// Where.
        at: Hva,
        /// What was asked.
        advice: Advice,
    },
    /// `EAGAIN`: a page is held by somebody, or busy.
    #[error("the page at {at} is held")]
    Held {
        /// Where.
        at: Hva,
    },
    /// `ENOMEM`.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl MmError {
    /// What the system call returns.
    pub const fn errno(&self) -> Errno {
        match self {
            MmError::Misaligned { .. } | MmError::NotShared | MmError::BadAdvice { .. } => Errno::Inval,
            MmError::BeyondTaskSize { .. } | MmError::NotMapped { .. } | MmError::OutOfMemory(_) => Errno::NoMem,
            MmError::Taken { .. } => Errno::Exist,
            MmError::NoExec => Errno::Perm,
            MmError::NotMappable => Errno::NoDev,
            MmError::Held { .. } => Errno::Again,
        }
    }
}

/// Who executes an operation on an address space, and on what.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    /// The host's memory.
    pub host: &'a Host,
    /// Who must know before entries go.
    pub notifier: &'a dyn MmuNotifier,
    /// The thread.
    pub task: &'a Task<'a>,
}

impl<'a> Kernel<'a> {
    /// A kernel in which no secondary MMU looks at user addresses.
    pub fn alone(host: &'a Host, task: &'a Task<'a>) -> Kernel<'a> {
        Kernel { host, notifier: &NoNotifier, task }
    }
}

/// Whether writes reach what is mapped (`MAP_SHARED`, `MAP_PRIVATE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// They do.
    Shared,
    /// They would go to a copy; only anonymous memory allows it.
    Private,
}

/// What `mmap` is asked for, always at a fixed address that must be free.
#[derive(Clone)]
pub struct MapRequest {
    /// Where.
    pub at: Hva,
    /// Length, rounded up to whole pages.
    pub len_bytes: u64,
    /// What may be done with it.
    pub prot: Prot,
    /// Shared or private.
    pub sharing: Sharing,
    /// What is mapped.
    pub what: What,
}

/// See the module.
pub struct Mm {
    id: MmId,
    /// `mmap_lock` and what it guards.
    vmas: ShardedLock<Vmas>,
    table: Arc<UserTable>,
}

impl Mm {
    /// An empty address space over the host's `memory`.
    pub fn new(id: MmId, memory: Arc<emu_core::memory::SystemMemory>) -> Mm {
        Mm { id, vmas: ShardedLock::default(), table: Arc::new(UserTable::new(id, memory)) }
    }

    /// Its number.
    pub const fn id(&self) -> MmId {
        self.id
    }

    /// Its page table.
    pub const fn table(&self) -> &Arc<UserTable> {
        &self.table
    }

    /// The mapping that holds `page`.
    pub fn vma(&self, page: Hvn, task: &Task<'_>) -> Option<Vma> {
        self.vmas.read(task).find(page).cloned()
    }

    /// Every mapping, ascending.
    pub fn vmas(&self, task: &Task<'_>) -> Vec<Vma> {
        self.vmas.read(task).iter().cloned().collect()
    }

    fn read_vmas<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, Vmas> {
        self.vmas.read(task)
    }

    /// `mmap` with `MAP_FIXED_NOREPLACE`. Populates nothing.
    pub fn map(&self, request: MapRequest, task: &Task<'_>) -> Result<HvaRange, MmError> {
        let MapRequest { at, len_bytes, prot, sharing, what } = request;
        let range = HvaRange::checked(at, len_bytes)?;
        let mut vmas = self.vmas.write(task);
        if let Some(taken) = vmas.reaching_into(range).next() {
            return Err(MmError::Taken { at: taken.range().first.max(range.first).base() });
        }
        if let What::Gmem { inode, .. } = &what {
            // In the order of `do_mmap`: the mount first, then the file, which looks at its flag before the mapping's.
            if prot.contains(Prot::EXEC) {
                return Err(MmError::NoExec);
            }
            if !inode.flags().contains(GmemFlags::MMAP) {
                return Err(MmError::NotMappable);
            }
            if sharing == Sharing::Private {
                return Err(MmError::NotShared);
            }
        }
        let vma = Vma::new(range, prot, what);
        self.attach(&vma, task);
        vmas.insert(vma);
        Ok(range)
    }

    /// `fork`: another address space with the same mappings and the same pages in them.
    pub fn fork(&self, id: MmId, kernel: Kernel<'_>) -> Result<Mm, MmError> {
        let child = Mm::new(id, Arc::clone(self.table.memory()));
        {
            let ours = self.vmas.read(kernel.task);
            let mut theirs = child.vmas.write(kernel.task);
            for vma in ours.iter() {
                child.attach(vma, kernel.task);
                theirs.insert(vma.clone());
            }
            // An inode that unmaps while this copies finds the child too: it is attached, and a page is either copied
            // before or not there any more.
            if let Err(error) = self.table.copy_into(&child.table, kernel.host, kernel.task) {
                drop(theirs);
                drop(ours);
                child.exit(kernel);
                return Err(error.into());
            }
        }
        Ok(child)
    }

    /// `exit_mmap`: everything goes.
    pub fn exit(&self, kernel: Kernel<'_>) {
        let all = HvaRange { first: Hvn::new(0), nr_pages: TASK_SIZE / PAGE_SIZE as u64 };
        self.unmap_range(all, kernel);
    }

    /// Tells the inode of a mapping that it is mapped here.
    fn attach(&self, vma: &Vma, task: &Task<'_>) {
        if let What::Gmem { inode, first } = vma.what() {
            inode.users().replace(&self.table, None, &[(vma.range(), *first)], task);
        }
    }
}
