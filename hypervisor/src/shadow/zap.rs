//! Pages that go: zapped one by one, by guest frames, by age, or all at once.

use emu_core::Gfn;
use emu_core::event::{Bits, Event};
use emu_core::sync::Task;

use super::pages::{Following, PageId, ShadowMmu, Slot, Standing};
use super::role::Origin;
use crate::flush::Owed;

impl ShadowMmu {
    /// Takes a page out of use: its unsync descendants go with it, its entries and those that lead to it are emptied
    /// (`kvm_mmu_prepare_zap_page`). As some vCPU's root it stays, invalid and empty, until that vCPU has loaded another.
    pub(super) fn zap_page(&mut self, id: PageId, owed: &mut Owed, task: &Task<'_>) {
        if self.page(id).standing == Standing::Invalid {
            return;
        }
        let page = self.page(id);
        task.report(Event::PrepareZapPage { gfn: page.gfn, role: Bits(page.role.word().into()) });
        let mut below = Vec::new();
        self.unsync_under(id, &mut below);
        self.retire(id);
        for child in below {
            if child != id {
                self.zap_page(child, owed, task);
            }
        }
        for index in 0..512 {
            self.drop_entry(Slot { page: id, index }, owed, task);
        }
        for parent in self.page(id).parents.clone() {
            self.drop_entry(parent, owed, task);
        }
        if self.page(id).following == Following::Unsync {
            self.mark_synced(id);
        }
        self.stats.zapped_pages += 1;
        if self.page(id).roots == 0 {
            self.release(id);
        } else {
            self.reloads.ask();
        }
    }

    /// A vCPU has taken `id` as a root.
    pub(super) fn take_root(&mut self, id: PageId) {
        self.page_mut(id).roots += 1;
    }

    /// A vCPU has given root `id` up.
    pub(super) fn put_root(&mut self, id: PageId) {
        let page = self.page_mut(id);
        page.roots -= 1;
        if page.roots == 0 && page.standing == Standing::Invalid {
            self.release(id);
        }
    }

    /// Removes what maps guest frames of `[first, first + nr_pages)`, and the pages that shadow guest tables there: they
    /// remember where the table lay (`kvm_unmap_gfn_range`, and for slots `kvm_mmu_zap_memslot`).
    pub(crate) fn zap_range(&mut self, first: Gfn, nr_pages: u64, owed: &mut Owed, task: &Task<'_>) {
        let end = Gfn::new(first.raw().saturating_add(nr_pages));
        let pages: Vec<PageId> = self.by_gfn.range(first..end).flat_map(|(_, ids)| ids.iter().copied()).collect();
        for id in pages {
            // One may have gone with another.
            if self.exists(id) && self.page(id).role.origin == Origin::Guest {
                self.zap_page(id, owed, task);
            }
        }
        self.drop_mappings(first, end, owed, task);
    }

    /// Starts a new generation, in which no page of the old one is found, and zaps those (`kvm_mmu_zap_all_fast`).
    pub(crate) fn zap_all(&mut self, owed: &mut Owed, task: &Task<'_>) {
        self.generation ^= 1;
        let (generation, used_pages) = (self.generation, self.nr_pages() as u64);
        task.report(Event::ZapAllFast { generation, used_pages });
        self.reloads.ask();
        let obsolete: Vec<PageId> =
            self.pages().filter(|(_, page)| page.generation != self.generation).map(|(id, _)| id).collect();
        for id in obsolete {
            // One may have gone with another.
            if self.exists(id) {
                self.zap_page(id, owed, task);
            }
        }
        owed.all();
    }

    /// Makes room for `wanted` pages below the limit, at the cost of the oldest (`make_mmu_pages_available`).
    pub(super) fn make_room(&mut self, wanted: usize, owed: &mut Owed, task: &Task<'_>) {
        while self.nr_pages() + wanted > self.max_pages {
            let Some(id) = self.oldest() else { return };
            self.zap_page(id, owed, task);
            self.stats.recycled += 1;
        }
    }
}
