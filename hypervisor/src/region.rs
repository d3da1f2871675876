//! `KVM_SET_USER_MEMORY_REGION2`: memslots come, move, change their flags and go.
//!
//! Both doors end in the same few steps. A slot comes: its place and its inode are checked, it is bound, and only then
//! published. A slot goes: it is published as invalid, so that no fault uses it, its leaves go, it is published as gone,
//! and only then is it unbound. A call that fails has changed nothing.

use std::sync::Arc;

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event, SlotChange as Happened};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{MutexGuard, Task};
use emu_core::{Gpa, Hva};
use gmem::mm::Prot;
use gmem::policy::Generation;
use gmem::{FilePut, GmemFlags, GuestMemfd, PageIndex, SlotId};

use crate::config::VmError;
use crate::dirty::DirtyLogging;
use crate::flush::Owed;
use crate::memslot::{
    GmemServes, GmemView, MemFd, MemSlot, MemSlotSpec, MemslotError, Publication, Request, Slot, SlotChange, SlotFlags,
    SlotState, UserMemoryRegion2, Wanted,
};
use crate::params::SlotZap;
use crate::vm::{GmemId, Vm};

type SlotsLock<'a> = MutexGuard<'a, ()>;

impl Vm {
    /// `KVM_SET_USER_MEMORY_REGION2`.
    pub fn set_user_memory_region2(&self, region: &UserMemoryRegion2, task: &Task<'_>) -> Result<SlotChange, VmError> {
        let done = self.set_region(region, task);
        self.release_closed(task)?;
        done
    }

    fn set_region(&self, region: &UserMemoryRegion2, task: &Task<'_>) -> Result<SlotChange, VmError> {
        self.check_open()?;
        let changes = self.slots_lock.lock(task);
        let request = region.check(self.nr_address_spaces())?;
        let old = self.slots.read(task).by_id_in(request.space, request.id).cloned();
        match (request.wants(old.as_ref().map(Slot::info))?, old) {
            (Wanted::Create, _) | (_, None) => {
                self.slots.read(task).check_place(&request)?;
                self.create_slot(&request, &changes, task)?;
                Ok(SlotChange::Create)
            }
            (Wanted::Delete, Some(old)) => {
                self.delete_slot(&old, &changes, task)?;
                Ok(SlotChange::Delete)
            }
            (Wanted::Move, Some(old)) => {
                self.slots.read(task).check_place(&request)?;
                self.relocate(&old, request.gpa, request.flags, &changes, task)?;
                Ok(SlotChange::Move)
            }
            (Wanted::FlagsOnly, Some(old)) => {
                // Everything but whether writes are logged is fixed.
                self.log_writes(&old, logging(request.flags), &changes, task)?;
                report(&MemSlot { flags: request.flags, ..*old.info() }, Happened::Flags, task);
                Ok(SlotChange::FlagsOnly)
            }
            (Wanted::Nothing, Some(_)) => Ok(SlotChange::Nothing),
        }
    }

    /// `KVM_SET_USER_MEMORY_REGION`, which knows nothing of guest_memfd.
    pub fn set_user_memory_region(&self, region: &UserMemoryRegion2, task: &Task<'_>) -> Result<SlotChange, VmError> {
        let unknown = region.flags & SlotFlags::GUEST_MEMFD.bits();
        if unknown != 0 {
            return Err(MemslotError::UnknownFlags { unknown }.into());
        }
        self.set_user_memory_region2(region, task)
    }

    /// Address spaces of the guest (`kvm_arch_nr_memslot_as_ids`): private memory and system management mode exclude
    /// each other.
    pub const fn nr_address_spaces(&self) -> u32 {
        if self.kind.has_private_memory() { 1 } else { 2 }
    }

    /// Adds a memslot on guest_memfd: binds it, then publishes it.
    pub fn add_memslot(&self, spec: &MemSlotSpec, task: &Task<'_>) -> Result<(), VmError> {
        let done = self.add_slot(spec, task);
        self.release_closed(task)?;
        done
    }

    fn add_slot(&self, spec: &MemSlotSpec, task: &Task<'_>) -> Result<(), VmError> {
        self.check_open()?;
        let changes = self.slots_lock.lock(task);
        let request = spec.check()?;
        {
            let slots = self.slots.read(task);
            if slots.by_id_in(request.space, request.id).is_some() {
                return Err(MemslotError::Immutable { id: request.id }.into());
            }
            slots.check_place(&request)?;
        }
        self.create_slot(&request, &changes, task)
    }

    /// Deletes a memslot: its leaves go before anything else can be put there.
    pub fn remove_memslot(&self, id: SlotId, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        let old = self.slots.read(task).by_id(id).cloned().ok_or(MemslotError::NotFound { id })?;
        self.delete_slot(&old, &changes, task)
    }

    /// Deletes all of them, in every address space (`kvm_free_memslots`).
    pub(crate) fn remove_all_memslots(&self, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        let all: Vec<Slot> = self.slots.read(task).slots().cloned().collect();
        all.iter().map(|slot| self.delete_slot(slot, &changes, task)).fold(Ok(()), Result::and)
    }

    /// Moves a memslot to another guest physical address; its bytes stay.
    pub fn move_memslot(&self, id: SlotId, gpa: Gpa, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        let old = self.slots.read(task).by_id(id).cloned().ok_or(MemslotError::NotFound { id })?;
        let &MemSlot { space, nr_pages, flags, hva, .. } = old.info();
        if !gpa.is_aligned(emu_core::PageSize::Size4K) {
            let len_bytes = nr_pages * PAGE_SIZE as u64;
            return Err(MemslotError::Misaligned { gpa, len_bytes, offset_bytes: 0 }.into());
        }
        self.slots.read(task).check_place(&Request { id, space, gpa, nr_pages, flags, hva, gmem: None })?;
        self.relocate(&old, gpa, flags, &changes, task)
    }

    fn create_slot(&self, request: &Request, changes: &SlotsLock<'_>, task: &Task<'_>) -> Result<(), VmError> {
        let &Request { id, space, gpa, nr_pages, flags, hva, gmem } = request;
        let unlogged = flags - SlotFlags::LOG_DIRTY_PAGES;
        let mut info = MemSlot { id, space, first: gpa.frame(), nr_pages, flags: unlogged, hva, gmem: None };
        let mut inode = None;
        if let Some((fd, first_index)) = gmem {
            let gmem = match fd {
                MemFd::NotOpen => return Err(MemslotError::FdNotOpen.into()),
                MemFd::Other => return Err(MemslotError::FdNotGmem.into()),
                MemFd::Gmem(gmem) => gmem,
            };
            let file = self.inode_for_slot(gmem, task)?;
            // Nobody who creates a slot may find the file gone before it is bound (`fget`).
            if !file.get_file() {
                return Err(MemslotError::FdNotOpen.into());
            }
            info.gmem = Some(GmemView { gmem, first_index, serves: serves(&file) });
            let bound = self.check_views_agree(&info, &file, task).and_then(|()| bind(&info, &file, task));
            if bound.is_ok() || !task.has(Defect::LeakFileOnError) {
                self.put_file_later(gmem, &file, task);
            }
            bound?;
            inode = Some(file);
        }
        let slot = Slot::new(info, inode);
        self.publish_new(slot.clone(), Happened::Create, changes, task);
        Ok(self.log_writes(&slot, logging(flags), changes, task)?)
    }

    /// Drops a reference on a file with `slots_lock` held. If it is the last, the file is released once the lock is given
    /// up ([`Vm::release_closed`]).
    fn put_file_later(&self, id: GmemId, file: &GuestMemfd, task: &Task<'_>) {
        if file.put_file() == FilePut::Last {
            self.closed.lock(task).push(id);
        }
    }

    /// Releases the files whose last reference was dropped with `slots_lock` held (`____fput`).
    fn release_closed(&self, task: &Task<'_>) -> Result<(), VmError> {
        let closed = std::mem::take(&mut *self.closed.lock(task));
        closed.into_iter().try_for_each(|id| match self.gmem(id, task) {
            Some(inode) => self.release_file(id, &inode, task),
            None => Ok(()),
        })
    }

    /// Publishes a slot that is new at its place.
    fn publish_new(&self, slot: Slot, happened: Happened, changes: &SlotsLock<'_>, task: &Task<'_>) {
        report(slot.info(), happened, task);
        self.record_attributes_of_new(&slot, task);
        self.slots.publish(Publication::Put(slot), changes, task);
    }

    /// The posting of May 2025 refuses a slot whose user address does not show the same pages, where it shows any.
    fn check_views_agree(&self, info: &MemSlot, file: &Arc<GuestMemfd>, task: &Task<'_>) -> Result<(), MemslotError> {
        let checked = file.policy().generation == Generation::V2 && file.flags().contains(GmemFlags::MMAP);
        if checked && info.hva != Hva::new(0) && !self.shows_the_same(info, file, task) {
            return Err(MemslotError::SplitView { hva: info.hva });
        }
        Ok(())
    }

    /// Whether `userspace_addr` shows the pages of the inode that stand behind the slot.
    pub(crate) fn shows_the_same(&self, info: &MemSlot, file: &GuestMemfd, task: &Task<'_>) -> bool {
        let Some(vma) = self.mm.vma(info.hva.frame(), task) else { return false };
        let whole = vma.range().intersection(info.hva_range()) == Some(info.hva_range());
        let same = vma.index_of(info.hva.frame()).is_some_and(|(inode, index)| {
            core::ptr::eq(Arc::as_ptr(inode), file) && Some(index) == info.index_of(info.first)
        });
        whole && same && vma.prot().contains(Prot::READ)
    }

    /// Takes a slot out of use in the kernel's order: no new fault can use it, the old ones are done, its leaves go, it
    /// goes, and only then does its binding.
    fn delete_slot(&self, old: &Slot, changes: &SlotsLock<'_>, task: &Task<'_>) -> Result<(), VmError> {
        let zapped = self.invalidate_slot(old, changes, task);
        let &MemSlot { space, id, .. } = old.info();
        self.slots.publish(Publication::Remove(space, id), changes, task);
        let dying = old.inode().is_some_and(GuestMemfd::is_dying);
        let forgotten = task.has(Defect::KeepBinding) || dying && task.has(Defect::SkipDyingFile);
        if !forgotten {
            self.unbind(old, task);
        }
        report(&MemSlot { flags: SlotFlags::empty(), ..*old.info() }, Happened::Delete, task);
        zapped
    }

    /// The same, and it comes back elsewhere.
    fn relocate(
        &self,
        old: &Slot,
        gpa: Gpa,
        flags: SlotFlags,
        changes: &SlotsLock<'_>,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let info = MemSlot { first: gpa.frame(), flags, ..*old.info() };
        // Before anything is changed: the file may have been closed. From here on slots_lock keeps it.
        let inode = info.gmem.map(|view| self.inode_for_slot(view.gmem, task)).transpose()?;
        let zapped = self.invalidate_slot(old, changes, task);
        if let Some(file) = inode.as_ref().filter(|_| !task.has(Defect::MoveWithoutUnbind)) {
            self.unbind(old, task);
            // What was bound a moment ago can be bound again.
            bind(&info, file, task)?;
        }
        // What was logged so far is still to be reported.
        let slot = Slot::new(info, inode).with_log(old.log().cloned());
        self.publish_new(slot.clone(), Happened::Move, changes, task);
        self.log_writes(&slot, logging(flags), changes, task)?;
        zapped
    }

    /// `kvm_invalidate_memslot`: after this no fault uses the slot, and nothing of it is mapped.
    fn invalidate_slot(&self, old: &Slot, changes: &SlotsLock<'_>, task: &Task<'_>) -> Result<(), VmError> {
        self.slots.publish(Publication::Put(old.in_state(SlotState::Invalid)), changes, task);
        if task.has(Defect::DeletionTakesAll) {
            self.take_all_back(task)?;
        }
        if self.params.slot_zap == SlotZap::All && !self.kind.has_private_memory() {
            return self.zap_all_fast(task);
        }
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        let zapped = tables.zap(old.info().first, old.info().nr_pages, &mut owed, task);
        self.flush(&owed, task);
        self.reload_save_areas(old.info().first, old.info().nr_pages, task);
        tables.bury(&self.host, task);
        Ok(zapped?)
    }

    fn unbind(&self, old: &Slot, task: &Task<'_>) {
        if let (Some(inode), Some(view)) = (old.inode(), old.info().gmem) {
            inode.exclusive(task).unbind(view.first_index);
            task.report(Event::GmemUnbound { ino: inode.ino(), index: view.first_index.0 });
        }
    }
}

/// Which accesses an inode serves in a slot (`KVM_MEMSLOT_GMEM_ONLY`): up to 7.3 all of them where the host can map it,
/// with conversion in place always.
fn serves(inode: &GuestMemfd) -> GmemServes {
    match inode.policy().generation {
        Generation::V7_3 | Generation::V1 if !inode.flags().contains(GmemFlags::MMAP) => GmemServes::Private,
        _ => GmemServes::All,
    }
}

fn bind(info: &MemSlot, inode: &GuestMemfd, task: &Task<'_>) -> Result<(), MemslotError> {
    if let Some(range) = info.range() {
        inode.exclusive(task).bind(info.binding_id(), range, info.first)?;
        let (slot, PageIndex(index), gfn) = (info.id.0, range.first, info.first);
        task.report(Event::GmemBound { ino: inode.ino(), slot, index, nr_pages: range.nr_pages, gfn });
    }
    Ok(())
}

fn logging(flags: SlotFlags) -> DirtyLogging {
    if flags.contains(SlotFlags::LOG_DIRTY_PAGES) { DirtyLogging::On } else { DirtyLogging::Off }
}

fn report(info: &MemSlot, change: Happened, task: &Task<'_>) {
    let &MemSlot { id: SlotId(slot), first, nr_pages, flags, .. } = info;
    task.report(Event::SetMemoryRegion { slot, first, nr_pages, change, flags: Bits(flags.bits().into()) });
}
