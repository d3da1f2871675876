//! Dirty logging over shadow tables, by the reverse map (`rmap_write_protect`, `kvm_rmap_zap_collapsible_sptes`).
//!
//! Always true while a memslot is logged: a leaf in it has the host-writable bit only if its page has been marked since it
//! was last armed. So whatever makes a leaf again from the guest's entry, as a sync does, gives no right to write that
//! nobody was told of; only a fault gives it, and marks the page under the same lock.

use emu_core::sync::Task;
use emu_core::{Gfn, PageSize};

use super::pages::{ShadowMmu, Slot};
use super::role::Origin;
use super::spte::leaf_size;
use crate::flush::Owed;

impl ShadowMmu {
    fn reaching(&self, first: Gfn, nr_pages: u64, task: &Task<'_>) -> Vec<Slot> {
        self.rmaps.reaching(first, Gfn::new(first.raw().saturating_add(nr_pages)), task)
    }

    /// Arms every leaf that reaches into the range: the next write through it faults.
    pub(crate) fn arm_range(&mut self, first: Gfn, nr_pages: u64, owed: &mut Owed, task: &Task<'_>) {
        for slot in self.reaching(first, nr_pages, task) {
            let spte = self.load(slot);
            let armed = spte.host_write_withheld();
            if armed != spte {
                self.change(slot, armed, owed, task);
            }
        }
    }

    /// Removes the leaves in the range that are 4K although the guest's page is larger, so that faults can make them large
    /// again.
    pub(crate) fn drop_collapsible(&mut self, first: Gfn, nr_pages: u64, owed: &mut Owed, task: &Task<'_>) {
        for slot in self.reaching(first, nr_pages, task) {
            let role = self.page(slot.page).role;
            if role.origin == Origin::Direct && role.level == 1 {
                self.drop_entry(slot, owed, task);
            }
        }
    }

    /// Clears the accessed flag of every leaf in the range, and calls `found` for those that had it.
    pub(crate) fn harvest_accessed(
        &mut self,
        first: Gfn,
        nr_pages: u64,
        found: &mut dyn FnMut(Gfn, PageSize),
        owed: &mut Owed,
        task: &Task<'_>,
    ) {
        for slot in self.reaching(first, nr_pages, task) {
            let spte = self.load(slot);
            let page = self.page(slot.page);
            if let (true, Some(size)) = (spte.is_accessed(), leaf_size(page.role.level)) {
                found(page.target(slot.index).gfn, size);
                self.change(slot, spte.unaccessed(), owed, task);
            }
        }
    }
}
