//! Mappings of guest frames that last longer than a fault (`__kvm_vcpu_map`): what the hypervisor reads and writes of the
//! guest's memory while the guest runs, such as the control block of a nested guest.
//!
//! They live outside of `mmu_lock` and so outside of the MMU notifier's protection. User memory is pinned; memory of a
//! device is refused ([`super::UnsafeMappings`]). A page of guest_memfd is held by a reference, so a conversion to private
//! finds it busy for as long as the mapping lasts.

use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::defect::Defect;
use emu_core::memory::BusError;
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, Sfn};
use gmem::mm::{Hold, PageRef, UserAccess, Wait};

use super::{FollowPfn, MapWritable, OwnAccess, follow};
use crate::io::GuestAccessError;
use crate::memslot::{Slot, SlotFlags, SlotState};
use crate::vm::Vm;

/// A guest frame that the hypervisor can get at until it [unmaps](Vm::unmap_guest_page) it.
#[derive(Debug)]
#[must_use = "a mapping that is never undone keeps its page for ever"]
pub struct HostMap {
    gfn: Gfn,
    sfn: Sfn,
    access: UserAccess,
    held: Held,
}

/// What keeps the frame.
#[derive(Debug)]
enum Held {
    /// A pin on user memory.
    Pinned(PageRef),
    /// A reference on a page of guest_memfd.
    Gmem,
    /// Nothing: memory of a device, by the owner's leave.
    Nothing,
}

/// Unsafe mappings made so far.
#[derive(Debug, Default)]
pub(crate) struct Taint(AtomicU64);

impl HostMap {
    /// The guest frame.
    pub const fn gfn(&self) -> Gfn {
        self.gfn
    }
    /// The frame behind it, when it was mapped.
    pub const fn sfn(&self) -> Sfn {
        self.sfn
    }
}

impl Vm {
    /// Long mappings of a device's memory that the owner's leave made possible. A VM that has any is tainted: what went
    /// wrong in it may be the driver's memory having moved under one.
    pub fn unsafe_mappings(&self) -> u64 {
        self.taint.0.load(Ordering::Relaxed)
    }

    /// Maps a guest frame (`kvm_vcpu_map`).
    pub fn map_guest_page(&self, gfn: Gfn, access: UserAccess, task: &Task<'_>) -> Result<HostMap, GuestAccessError> {
        let slots = self.slots.read(task);
        let slot = slots.lookup(gfn).filter(|slot| slot.state() == SlotState::Active);
        let slot = slot.ok_or(GuestAccessError::NoSlot { gpa: gfn.base() })?;
        self.map_in_slot(slot, gfn, access, task)
    }

    fn map_in_slot(
        &self,
        slot: &Slot,
        gfn: Gfn,
        access: UserAccess,
        task: &Task<'_>,
    ) -> Result<HostMap, GuestAccessError> {
        let info = slot.info();
        if access == UserAccess::Write && info.flags.contains(SlotFlags::READONLY) {
            return Err(GuestAccessError::ReadOnly { gpa: gfn.base(), slot: info.id.0 });
        }
        if let Some((inode, index)) = self.own_access_through_gmem(slot, gfn, task) {
            let sfn = inode.shared(task).get_page(&self.host, index, task)?;
            return Ok(HostMap { gfn, sfn, access, held: Held::Gmem });
        }
        let writable = MapWritable::Ignored;
        let ask = FollowPfn { slot: info, gfn, access, writable, hold: Hold::Pin, wait: Wait::Block };
        let found = follow(&self.mm, self.follow.unsafe_mappings, ask, self.kernel(task))?;
        if found.page.is_none() {
            self.taint.0.fetch_add(1, Ordering::Relaxed);
        }
        let held = found.page.map_or(Held::Nothing, Held::Pinned);
        Ok(HostMap { gfn, sfn: found.sfn, access, held })
    }

    /// Undoes a mapping (`kvm_vcpu_unmap`); one for writing has made its page dirty, in the memslot's log too.
    pub fn unmap_guest_page(&self, map: HostMap, task: &Task<'_>) {
        if map.access == UserAccess::Write
            && let Some(slot) = self.slots.read(task).lookup(map.gfn)
        {
            self.mark_dirty(slot, map.gfn, None, task);
        }
        let mut host = self.host.lock(task);
        let dirty = map.access == UserAccess::Write;
        match map.held {
            Held::Pinned(page) => {
                host.mark_page(page.sfn(), dirty);
                page.release_locked(&mut host);
            }
            Held::Gmem => {
                host.mark_page(map.sfn, dirty);
                host.put_page(map.sfn, 1);
            }
            Held::Nothing => {}
        }
    }

    /// Reads through a mapping.
    pub fn read_mapped(&self, map: &HostMap, offset: usize, into: &mut [u8]) -> Result<(), BusError> {
        self.memory().read(map.sfn.base().wrapping_add(offset as u64), into)
    }

    /// Writes through a mapping.
    pub fn write_mapped(&self, map: &HostMap, offset: usize, from: &[u8]) -> Result<(), BusError> {
        self.memory().write(map.sfn.base().wrapping_add(offset as u64), from)
    }

    /// The inode's page that the hypervisor's own access to `gfn` goes to; `None` if it goes to user memory.
    pub(crate) fn own_access_through_gmem<'s>(
        &self,
        slot: &'s Slot,
        gfn: Gfn,
        task: &Task<'_>,
    ) -> Option<(&'s gmem::GuestMemfd, gmem::PageIndex)> {
        let own_access = match task.has(Defect::OwnAccessToUserMemory) {
            true => OwnAccess::UserMemory,
            false => self.follow.own_access,
        };
        let through_gmem = slot.info().is_gmem_only() && own_access == OwnAccess::Gmem;
        slot.gmem_page(gfn).filter(|_| through_gmem)
    }

    /// Whether the guest's own accesses to `gpa` and the hypervisor's on its behalf would go to different memory
    /// (invariant K5): a slot that guest_memfd serves alone, whose user address shows something else.
    pub fn is_split_view(&self, gpa: Gpa, task: &Task<'_>) -> bool {
        let slots = self.slots.read(task);
        let Some(slot) = slots.lookup(gpa.frame()).filter(|slot| slot.info().is_gmem_only()) else { return false };
        let Some((inode, index)) = slot.gmem_page(gpa.frame()) else { return false };
        let hva = slot.info().hva_of(gpa.frame());
        self.mm.vma(hva.frame(), task).is_some_and(|vma| {
            vma.index_of(hva.frame()).is_none_or(|(shown, at)| !core::ptr::eq(&**shown, inode) || at != index)
        })
    }
}
