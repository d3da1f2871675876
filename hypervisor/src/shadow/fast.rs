//! The fast page fault that shadow tables do not have.
//!
//! [`crate::tdp`] grants a write without any lock when an entry still has the value that it was read with: its place says
//! which guest frame it maps, so an equal value means the same page. The place of a shadow leaf says only which entry of
//! the guest's it stands for. Between the walk of the guest's tables and the exchange the guest may have changed that
//! entry, and the host may have put the frame behind the page that it leads to now; then the equal value grants a write to
//! one page and marks another. So KVM takes the fast path for direct MMUs alone (`fast_page_fault`), and so does this
//! one; what is here is the mistake.

use emu_core::sync::{Point, Task};
use emu_core::{Gva, Spa};

use super::pages::{ShadowMmu, Slot};
use super::role::index_at;
use super::spte::{ShadowEntry, ShadowPte};
use super::vcpus::Root;
use crate::vm::Vm;

impl ShadowMmu {
    /// The leaf for `gva` and where it stands.
    fn leaf_at(&self, root: Root, gva: Gva) -> Option<(Spa, ShadowPte)> {
        let mut id = self.root_page(root, gva)?;
        loop {
            let slot = Slot { page: id, index: index_at(gva.raw(), self.page(id).role.level) };
            match self.entry(slot) {
                ShadowEntry::Table(table) => id = self.page_at(table)?,
                ShadowEntry::Leaf { .. } => return Some((self.place(slot), self.load(slot))),
                ShadowEntry::Absent => return None,
            }
        }
    }

    /// Exchanges the entry at `at`, if its table is still one; whether it was `old`.
    fn exchange(&mut self, at: Spa, old: ShadowPte, new: ShadowPte) -> bool {
        let is_table = self.page_at(at.align_down(emu_core::PageSize::Size4K)).is_some();
        let exchanged = is_table && matches!(self.memory.compare_exchange_u64(at, old.raw(), new.raw()), Ok(Ok(_)));
        self.changes += u64::from(exchanged);
        exchanged
    }
}

impl Vm {
    /// Lets a write through that was withheld for a log; whether it did. The caller marks the page that it looked up.
    pub(super) fn fast_shadow_fault(&self, root: Root, gva: Gva, task: &Task<'_>) -> bool {
        let Some((at, old)) = self.tdp.with_shadow(task, |pages| pages.leaf_at(root, gva)).flatten() else {
            return false;
        };
        task.at(Point::FF1);
        let new = old.write_granted();
        if new == old {
            return false;
        }
        task.at(Point::FF2);
        self.tdp.shadow.lock(task).as_deref_mut().is_some_and(|pages| pages.exchange(at, old, new))
    }
}
