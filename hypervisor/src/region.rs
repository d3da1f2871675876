//! `KVM_SET_USER_MEMORY_REGION2`: memslots come, move and go.

use emu_core::Gpa;
use emu_core::event::{Bits, Event, SlotChange};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{MutexGuard, Task};
use gmem::{GmemFlags, SlotId};

use crate::config::VmError;
use crate::flush::Owed;
use crate::memslot::{MemSlot, MemSlotSpec, MemslotError, Slot, SlotFlags};
use crate::plan::RamLayout;
use crate::vm::{GmemId, Vm};

const PAGE: u64 = PAGE_SIZE as u64;

impl Vm {
    /// Adds a memslot: binds it, then publishes it.
    pub fn add_memslot(&self, spec: &MemSlotSpec, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        let info = self.slots.read(task).check(spec, None)?;
        self.bind_and_publish(info, &changes, task)
    }

    fn bind_and_publish(&self, info: MemSlot, _: &MutexGuard<'_, ()>, task: &Task<'_>) -> Result<(), VmError> {
        let inode = self.inode_for_slot(info.gmem, task)?;
        inode.exclusive(task).bind(info.id, info.range(), info.first).map_err(MemslotError::Bind)?;
        let MemSlot { id: SlotId(slot), first: gfn, nr_pages, first_index, .. } = info;
        task.report(Event::GmemBound { ino: inode.ino(), slot, index: first_index.0, nr_pages, gfn });
        self.slots.write(task).publish(Slot::new(info, inode));
        let flags = Bits(info.flags.bits().into());
        task.report(Event::SetMemoryRegion { slot, first: gfn, nr_pages, change: SlotChange::Create, flags });
        Ok(())
    }

    /// Deletes a memslot: its leaves go before anything else can be put there.
    pub fn remove_memslot(&self, id: SlotId, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        self.withdraw(id, &changes, task).map(|_| ())
    }

    /// Moves a memslot to another guest physical address; its bytes stay.
    pub fn move_memslot(&self, id: SlotId, gpa: Gpa, task: &Task<'_>) -> Result<(), VmError> {
        let changes = self.slots_lock.lock(task);
        let moved = {
            let slots = self.slots.read(task);
            let slot = slots.by_id(id).ok_or(MemslotError::NotFound { id })?.info();
            let spec = MemSlotSpec {
                id,
                gpa,
                len_bytes: slot.nr_pages * PAGE,
                flags: slot.flags,
                gmem: slot.gmem,
                offset_bytes: slot.first_index.0 * PAGE,
            };
            slots.check(&spec, Some(id))?
        };
        self.withdraw(id, &changes, task)?;
        self.bind_and_publish(moved, &changes, task)
    }

    /// Takes a slot out of use in the kernel's order: no new fault can use it, the old ones are done, its leaves go, its
    /// binding goes, and only then does it.
    fn withdraw(&self, id: SlotId, _: &MutexGuard<'_, ()>, task: &Task<'_>) -> Result<MemSlot, VmError> {
        let (slot, inode) = {
            let slots = self.slots.read(task);
            let slot = slots.by_id(id).ok_or(MemslotError::NotFound { id })?;
            (*slot.info(), self.inode_for_slot(slot.info().gmem, task)?)
        };
        self.slots.write(task).invalidate(id);
        let zapped = {
            let tables = self.mmu.write(task);
            let mut owed = Owed::default();
            let zapped = tables.zap(slot.first, slot.nr_pages, &mut owed, task);
            self.flush(&owed, task);
            tables.bury(&self.host, task);
            zapped
        };
        inode.exclusive(task).unbind(slot.first_index);
        task.report(Event::GmemUnbound { ino: inode.ino(), index: slot.first_index.0 });
        self.slots.write(task).withdraw(id);
        let (MemSlot { first, nr_pages, .. }, flags) = (slot, Bits(0));
        task.report(Event::SetMemoryRegion { slot: id.0, first, nr_pages, change: SlotChange::Delete, flags });
        zapped?;
        Ok(slot)
    }

    /// Guest RAM: one guest_memfd, shared with the host, and a memslot for each part, numbered from `first_id`. All or
    /// nothing.
    pub fn add_ram(&self, layout: &RamLayout, first_id: SlotId, task: &Task<'_>) -> Result<GmemId, VmError> {
        let flags = GmemFlags::MMAP | GmemFlags::INIT_SHARED;
        let gmem = self.create_guest_memfd(layout.inode_bytes, flags.bits(), task)?;
        for (n, range) in layout.ranges.iter().enumerate() {
            let added = self.add_memslot(
                &MemSlotSpec {
                    id: SlotId(first_id.0.saturating_add(n as u16)),
                    gpa: range.gpa,
                    len_bytes: range.len_bytes,
                    flags: SlotFlags::empty(),
                    gmem,
                    offset_bytes: range.offset_bytes,
                },
                task,
            );
            if let Err(error) = added {
                for n in 0..n {
                    self.remove_memslot(SlotId(first_id.0.saturating_add(n as u16)), task)?;
                }
                self.close_guest_memfd(gmem, task)?;
                return Err(error);
            }
        }
        Ok(gmem)
    }
}
