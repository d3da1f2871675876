//! Writes to guest tables, which the hypervisor makes for the guest (`kvm_mmu_track_write`).

use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};

use super::pages::{Following, ShadowMmu, Slot};
use super::role::Origin;
use crate::flush::Owed;

/// Emulated writes to a table that was not used between, after which it is no longer taken for one
/// (`detect_write_flooding`).
const FLOOD: u8 = 3;

impl ShadowMmu {
    /// Drops what was made from the entries that `len` bytes at `gpa` have just changed. A table that is written too
    /// often, or not in whole entries, is zapped.
    pub(super) fn track_write(&mut self, gpa: Gpa, len: u64, owed: &mut Owed, task: &Task<'_>) {
        let offset = gpa.offset_in(PageSize::Size4K);
        let mut at = 0;
        while let Some(&id) = self.by_gfn.get(&gpa.frame()).and_then(|list| list.get(at)) {
            let page = self.page_mut(id);
            let role = page.role;
            if role.origin == Origin::Direct {
                at += 1;
                continue;
            }
            let entry = role.format.entry_bytes();
            let misaligned = len < 4 || offset / entry != (offset + len - 1) / entry;
            // Tables of PTEs go unsync instead of being written again and again.
            let flooded = role.level > 1 && {
                page.flooding += 1;
                page.flooding >= FLOOD
            };
            if misaligned || flooded {
                self.stats.flooded += 1;
                self.zap_page(id, owed, task);
                continue;
            }
            if page.following == Following::Synced
                && let Some((first, count)) = role.shadow_entries(offset)
            {
                for index in first..first + count {
                    self.drop_entry(Slot { page: id, index }, owed, task);
                }
            }
            at += 1;
        }
    }
}
