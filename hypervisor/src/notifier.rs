//! The VM as a secondary MMU of the VMM's address space (`kvm_mmu_notifier_ops`).
//!
//! What the VMM unmaps, protects or replaces is found in the memslots by user address and zapped by guest frame, between
//! a begin and an end of an invalidation. From start to end no memslot is published, so that the end meets the slots
//! that the start met. Slots whose guest_memfd serves every access are zapped like others: they fault again.
//!
//! Always true: the memslots are read without waiting for whoever changes them, because this may run under an inode's lock
//! that the faults wait for that such a change waits for.

use emu_core::Gfn;
use emu_core::event::{Bits, Event};
use emu_core::sync::{Point, Task};
use gmem::mm::{HvaRange, NotifyReason};
use gmem::{MmId, MmuNotifier};

use crate::age::Aging;
use crate::flush::Owed;
use crate::memslot::Slot;
use crate::vm::Vm;

impl Vm {
    /// The guest frames that claim to show user pages of `range`, ascending.
    fn shown_at(&self, range: HvaRange, task: &Task<'_>) -> Vec<(Gfn, u64)> {
        let slots = self.slots.read(task);
        let part = |slot: &Slot| {
            let part = slot.info().hva_range().intersection(range)?;
            Some((slot.info().gfn_of(part.first), part.nr_pages))
        };
        let mut shown: Vec<(Gfn, u64)> = slots.in_hva(range).filter_map(part).collect();
        shown.sort_unstable();
        shown
    }

    /// `kvm_mmu_notifier_invalidate_range_start`.
    fn notified_start(&self, range: HvaRange, task: &Task<'_>) {
        let shown = self.shown_at(range, task);
        if shown.is_empty() {
            return;
        }
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        self.invalidation.begin(task);
        task.at(Point::I1);
        for (first, nr_pages) in shown {
            self.invalidation.add_range(first, nr_pages, task);
            // A table that cannot be read is not memory; nothing of it can have been mapped.
            let zapped = tables.zap(first, nr_pages, &mut owed, task);
            assert!(zapped.is_ok(), "nested tables lie in system memory: {zapped:?}");
        }
        task.at(Point::I2);
        self.flush(&owed, task);
        tables.bury(&self.host, task);
        drop(tables);
        task.at(Point::I3);
    }

    /// Asks for each part of guest memory that shows user pages of `range` whether it was used.
    fn age<'a>(
        &'a self,
        mm: MmId,
        range: HvaRange,
        aging: Aging,
        task: &'a Task<'a>,
    ) -> impl Iterator<Item = bool> + 'a {
        let shown = if mm == self.mm.id() { self.shown_at(range, task) } else { Vec::new() };
        shown.into_iter().map(move |(first, nr_pages)| {
            let young = self.age_range(first, nr_pages, aging, task);
            assert!(young.is_ok(), "nested tables lie in system memory: {young:?}");
            young == Ok(true)
        })
    }

    /// `kvm_mmu_notifier_invalidate_range_end`.
    fn notified_end(&self, range: HvaRange, task: &Task<'_>) {
        if !self.shown_at(range, task).is_empty() {
            let _tables = self.mmu.write(task);
            self.invalidation.end(task);
        }
    }
}

impl MmuNotifier for Vm {
    fn invalidate(
        &self,
        mm: MmId,
        range: HvaRange,
        _: NotifyReason,
        task: &Task<'_>,
        change: &mut dyn FnMut(&Task<'_>),
    ) {
        // A child of the VMM has the VMM's pages, but the guest is not its guest.
        if mm != self.mm.id() {
            return change(task);
        }
        let (start, end) = (Bits(range.first.base().raw()), Bits(range.end().base().raw()));
        task.report(Event::UnmapHvaRange { start, end });
        let _notifying = self.slots.notifying(task);
        self.notified_start(range, task);
        change(task);
        task.at(Point::I4);
        self.notified_end(range, task);
        task.at(Point::I5);
    }

    fn clear_young(&self, mm: MmId, range: HvaRange, task: &Task<'_>) -> bool {
        let (start, end) = (Bits(range.first.base().raw()), Bits(range.end().base().raw()));
        task.report(Event::AgeHva { start, end });
        // Every part is aged, whatever was found in those before.
        self.age(mm, range, Aging::Clear, task).fold(false, |young, part| young | part)
    }

    fn test_young(&self, mm: MmId, range: HvaRange, task: &Task<'_>) -> bool {
        task.report(Event::TestAgeHva { hva: Bits(range.first.base().raw()) });
        self.age(mm, range, Aging::Test, task).any(|young| young)
    }
}
