//! From a guest frame to a host frame through user memory (`virt/kvm/kvm_main.c`, `struct kvm_follow_pfn`).
//!
//! [`FollowPfn`] is the question, [`Followed`] the answer. The walk first tries without `mmap_lock`, then with it, and
//! last looks for memory of a device, which has no page that could be held.
//!
//! The contract of an answer without a page: it may be used only where the MMU notifier would have told, which is under
//! `mmu_lock` after the check for staleness, by a fault that sampled the sequence before. Whoever keeps a frame longer
//! must pin it ([`map::HostMap`]), and memory of a device cannot be pinned unless
//! [`UnsafeMappings::Allowed`] says that the owner of the machine takes the risk.
//!
//! Always true: an answer with a page holds one reference or one pin; it is given back by [`HeldPage`] when the fault
//! ends, however it ends, while `mmu_lock` is held if the frame was used.

pub mod map;

use core::cell::Cell;

use emu_core::defect::Defect;
use emu_core::sync::Task;
use emu_core::{Errno, Gfn, Hva, PageSize, Sfn};
use gmem::mm::{Foll, GupError, Hold, PageRef, UserAccess, UserFault, Wait};
use gmem::{Host, Kernel, Mm};
use thiserror::Error;

use crate::memslot::{MemSlot, SlotFlags};

/// Whether memory of a device may be mapped for longer than a fault (`kvm.allow_unsafe_mappings`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum UnsafeMappings {
    /// No.
    #[default]
    Refused,
    /// Yes: the driver may move the memory under the mapping, and nobody will notice.
    Allowed,
}

/// Where KVM's own accesses to a slot that guest_memfd serves alone go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OwnAccess {
    /// To the inode, as the guest's own accesses do.
    #[default]
    Gmem,
    /// To `userspace_addr`, as KVM does up to 7.3 at least. If that shows something else the guest has two views of one
    /// address.
    UserMemory,
}

/// How the hypervisor gets at memory beside the fault path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FollowPolicy {
    /// Long mappings of device memory.
    pub unsafe_mappings: UnsafeMappings,
    /// Its own accesses.
    pub own_access: OwnAccess,
}

impl FollowPolicy {
    /// What this model proposes.
    pub const DEFAULT: FollowPolicy =
        FollowPolicy { unsafe_mappings: UnsafeMappings::Refused, own_access: OwnAccess::Gmem };
}

/// A signal to a thread of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserSignal {
    /// `SIGBUS` with `BUS_MCEERR_AR`: memory that the guest used has failed.
    HwPoison {
        /// The user address of the page.
        hva: Hva,
    },
}

/// Whether the caller can make use of the right to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapWritable {
    /// It would like to have it, even if it only reads now (`map_writable` is not null).
    Wanted,
    /// Only if it writes now.
    Ignored,
}

/// The question.
#[derive(Clone, Copy, Debug)]
pub struct FollowPfn<'s> {
    /// The slot, which has user memory for `gfn`.
    pub slot: &'s MemSlot,
    /// The guest frame.
    pub gfn: Gfn,
    /// What for.
    pub access: UserAccess,
    /// Whether writing is of use.
    pub writable: MapWritable,
    /// Reference or pin.
    pub hold: Hold,
    /// Whether to wait for a disk.
    pub wait: Wait,
}

/// The answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Followed {
    /// The frame.
    pub sfn: Sfn,
    /// Size of the host's entry around it.
    pub size: PageSize,
    /// Whether the host lets the guest write.
    pub rights: UserAccess,
    /// The page that is held; none for memory of a device.
    pub page: Option<PageRef>,
}

/// Why there is no frame (`KVM_PFN_ERR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PfnError {
    /// `KVM_PFN_ERR_RO_FAULT`: a write to what is read-only.
    #[error("{gfn:?} is read-only")]
    ReadOnly {
        /// The guest frame.
        gfn: Gfn,
    },
    /// `KVM_PFN_ERR_HWPOISON`.
    #[error("the memory at {hva} has failed")]
    HwPoison {
        /// The user address.
        hva: Hva,
    },
    /// `KVM_PFN_ERR_NEEDS_IO`.
    #[error("the page at {hva} must be read back first")]
    NeedsIo {
        /// The user address.
        hva: Hva,
    },
    /// Memory of a device was to be pinned.
    #[error("memory of a device at {hva} cannot be mapped for long")]
    Unsafe {
        /// The user address.
        hva: Hva,
    },
    /// `KVM_PFN_ERR_FAULT`.
    #[error("user memory behind {gfn:?}: {cause}")]
    Fault {
        /// The guest frame.
        gfn: Gfn,
        /// What get_user_pages said.
        cause: GupError,
    },
}

impl PfnError {
    /// What `KVM_RUN` returns, or the call that wanted the mapping.
    pub const fn errno(&self) -> Errno {
        match self {
            PfnError::Unsafe { .. } => Errno::Inval,
            PfnError::HwPoison { .. } => Errno::HwPoison,
            PfnError::ReadOnly { .. } | PfnError::NeedsIo { .. } | PfnError::Fault { .. } => Errno::Fault,
        }
    }
}

/// Asks (`kvm_follow_pfn`).
pub fn follow(
    mm: &Mm,
    unsafe_mappings: UnsafeMappings,
    ask: FollowPfn<'_>,
    kernel: Kernel<'_>,
) -> Result<Followed, PfnError> {
    let FollowPfn { slot, gfn, access, hold, wait, .. } = ask;
    let read_only = slot.flags.contains(SlotFlags::READONLY);
    if read_only && access == UserAccess::Write {
        return Err(PfnError::ReadOnly { gfn });
    }
    let wants_writable = ask.writable == MapWritable::Wanted && !read_only;
    let hva = slot.hva_of(gfn);
    let found = |page: PageRef, rights| Followed { sfn: page.sfn(), size: page.size(), rights, page: Some(page) };
    let fast = || mm.gup_fast(hva, UserAccess::Write, hold, kernel.host, kernel.task);
    if (access == UserAccess::Write || wants_writable)
        && let Some(page) = fast()
    {
        return Ok(found(page, UserAccess::Write));
    }
    match mm.gup(hva, Foll { access, hold, wait }, kernel) {
        Ok(page) if access == UserAccess::Write => Ok(found(page, UserAccess::Write)),
        Ok(page) => {
            // The process may write but this was a read: with luck the entry is writable already.
            if wants_writable && let Some(writable) = fast() {
                page.release(kernel.host, kernel.task);
                return Ok(found(writable, UserAccess::Write));
            }
            Ok(found(page, UserAccess::Read))
        }
        Err(GupError::NeedsIo { .. }) => Err(PfnError::NeedsIo { hva }),
        Err(GupError::Fault(UserFault::HwPoison { .. })) => Err(PfnError::HwPoison { hva }),
        Err(GupError::Device { .. })
            if hold == Hold::Pin
                && unsafe_mappings == UnsafeMappings::Refused
                && !kernel.task.has(Defect::MapDeviceForLong) =>
        {
            Err(PfnError::Unsafe { hva })
        }
        Err(GupError::Device { .. }) => match mm.follow_device(hva, access, kernel) {
            Ok(leaf) => {
                let write = leaf.allows(UserAccess::Write) && !read_only;
                let rights = if write { UserAccess::Write } else { UserAccess::Read };
                Ok(Followed { sfn: leaf.sfn, size: leaf.size, rights, page: None })
            }
            Err(UserFault::Denied { .. }) => Err(PfnError::ReadOnly { gfn }),
            Err(fault) => Err(PfnError::Fault { gfn, cause: fault.into() }),
        },
        Err(cause) => Err(PfnError::Fault { gfn, cause }),
    }
}

/// How a fault used a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// It did not (`kvm_release_page_unused`).
    Unused,
    /// It may have mapped it.
    Mapped,
}

/// A page that a fault holds until it ends (`kvm_release_faultin_page`).
///
/// What was mapped is marked as accessed, and as dirty if the host lets the guest write: whether it does write is known to
/// the entry alone, and who removes that does no accounting.
pub struct HeldPage<'s> {
    page: Cell<Option<PageRef>>,
    rights: UserAccess,
    used: Cell<Use>,
    host: &'s Host,
    task: &'s Task<'s>,
}

impl<'s> HeldPage<'s> {
    pub(crate) const fn new(
        page: Option<PageRef>,
        rights: UserAccess,
        host: &'s Host,
        task: &'s Task<'s>,
    ) -> HeldPage<'s> {
        HeldPage { page: Cell::new(page), rights, used: Cell::new(Use::Unused), host, task }
    }

    /// Lets go of the page before it was marked; what is to be marked, with what is to be said of it.
    pub(crate) fn release_early(&self) -> Option<(Sfn, UserAccess)> {
        let page = self.page.take()?;
        let sfn = page.sfn();
        page.release(self.host, self.task);
        Some((sfn, self.rights))
    }

    /// The fault is not stale and goes on to map the page; `mmu_lock` is held from here to the end.
    pub(crate) fn use_it(&self) {
        self.used.set(Use::Mapped);
    }
}

impl Drop for HeldPage<'_> {
    fn drop(&mut self) {
        if let Some(page) = self.page.take() {
            let mut host = self.host.lock(self.task);
            if self.used.get() == Use::Mapped {
                host.mark_page(page.sfn(), self.rights == UserAccess::Write);
            }
            page.release_locked(&mut host);
        }
    }
}
