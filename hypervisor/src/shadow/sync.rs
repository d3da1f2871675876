//! Shadow pages that follow their guest tables, and those that do so only when the guest flushes.
//!
//! A page of PTEs may go *unsync*: the guest writes its table freely, and the entries are stale until the guest flushes
//! its TLB, as the architecture allows a TLB to be. Whatever stands for a flush (CR3, INVLPG, INVPCID, a change of CR4)
//! synchronises. A table above the lowest level never goes unsync.

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, Gva};
use mmu::{GuestEntry, GuestPaging, GuestRights, Level};

use super::pages::{Following, PageId, ShadowMmu, Slot, Target};
use super::role::{Origin, Role, TableFormat, index_at};
use super::spte::{HostWrite, Purpose, ShadowEntry, ShadowPte, leaf_size};
use super::vcpus::Root;
use crate::flush::Owed;

/// On whose behalf a guest frame is to be made writable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    /// A fault that wants to write.
    Fault,
    /// An entry that is made again from the guest's.
    Sync,
    /// A neighbour of a fault.
    Prefetch,
}

/// What a guest's PTE asks of its shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Nothing,
    Leaf(Target),
}

/// What shadow pages with `role` make of the guest's PTE `raw`: nothing unless it is present and accessed; no right to
/// write while its D bit is clear, so that the first write sets it (`prefetch_invalid_gpte`, `protect_clean_gpte`).
pub(super) fn wanted(paging: &GuestPaging, role: Role, raw: u64) -> Wanted {
    match paging.entry(raw, Level::PT) {
        GuestEntry::Leaf { page, rights, accessed: true, dirty } => {
            let mut access = rights & role.access;
            if !dirty {
                access.remove(GuestRights::WRITE);
            }
            Wanted::Leaf(Target { gfn: page.frame(), access })
        }
        _ => Wanted::Nothing,
    }
}

impl ShadowMmu {
    /// Whether `gfn` may become writable; lets pages that shadow it go unsync for that, where `asking` allows it
    /// (`mmu_try_to_unsync_pages`).
    pub(super) fn allow_writes(&mut self, gfn: Gfn, asking: Asking, task: &Task<'_>) -> bool {
        if !self.shadowed.contains_key(&gfn) {
            return true;
        }
        if self.is_tracked(gfn) {
            return false;
        }
        let Some(ids) = self.by_gfn.get(&gfn) else { return true };
        let follows = |id: &PageId| {
            let page = self.page(*id);
            page.role.origin == Origin::Guest && page.following == Following::Synced
        };
        let following: Vec<PageId> = ids.iter().copied().filter(follows).collect();
        if !following.is_empty() && asking != Asking::Fault {
            return false;
        }
        let any = !following.is_empty();
        following.into_iter().for_each(|id| self.mark_unsync(id, task));
        if any && !task.has(Defect::UnsyncAfterWritable) {
            // Before the guest can write its table: who flushes without the lock and finds nothing unsync relies on it
            // (the barrier in `mmu_try_to_unsync_pages`).
            self.known.set_unsync(self.nr_unsync);
        }
        if any {
            task.at(Point::S1);
        }
        true
    }

    /// The leaf for `target`, as far as the host lets it (`make_spte`), and whether writing was wanted but is not to be.
    pub(super) fn make_leaf(
        &mut self,
        fresh: (emu_core::Sfn, u8),
        target: Target,
        host: HostWrite,
        had_write: bool,
        asking: Asking,
        task: &Task<'_>,
    ) -> (ShadowPte, bool) {
        let (sfn, level) = fresh;
        let Some(size) = leaf_size(level) else { unreachable!("a leaf stands at one of the three lowest levels") };
        let mut rights = target.access;
        let mut protected = false;
        if rights.contains(GuestRights::WRITE) {
            if host == HostWrite::Refused {
                rights.remove(GuestRights::WRITE);
            } else if !had_write && !self.allow_writes(target.gfn, asking, task) {
                rights.remove(GuestRights::WRITE);
                protected = true;
            }
        }
        let purpose = if asking == Asking::Prefetch { Purpose::Prefetch } else { Purpose::Demand };
        (ShadowPte::leaf(sfn, size, rights, host, purpose), protected)
    }

    /// The guest's table behind a page of PTEs, as it stands.
    fn guest_table(&self, id: PageId, bytes: &mut [u8; 4096]) -> bool {
        let source = self.page(id).source;
        source.is_some_and(|sfn| self.memory.read(sfn.base(), bytes).is_ok())
    }

    /// Makes the present entries of an unsync page agree with the guest's table (`__kvm_sync_page`). It stays unsync: to
    /// follow from now on takes a write-protected table. A page made under other registers cannot be read by these and
    /// is zapped; whether it survived.
    pub(super) fn refresh(&mut self, id: PageId, paging: &GuestPaging, owed: &mut Owed, task: &Task<'_>) -> bool {
        let role = self.page(id).role;
        let state = paging.state();
        let alike =
            role.format == TableFormat::of(state.mode()) && role.controls == super::role::RoleControls::of(state);
        let mut guest = [0; 4096];
        if !alike || role.level != 1 || !self.guest_table(id, &mut guest) {
            self.zap_page(id, owed, task);
            return false;
        }
        let mut entries = [0; 4096];
        if self.memory.read(self.page(id).table, &mut entries).is_err() {
            unreachable!("a shadow page lies in the host's memory");
        }
        let (entries, _) = entries.as_chunks::<8>();
        for (index, raw) in entries.iter().enumerate() {
            if *raw != [0; 8] {
                let slot = Slot { page: id, index: index as u16 };
                let offset = role.guest_offset(slot.index) as usize;
                let mut raw = [0; 8];
                let bytes = role.format.entry_bytes() as usize;
                raw[..bytes].copy_from_slice(&guest[offset..offset + bytes]);
                self.sync_entry(slot, u64::from_le_bytes(raw), paging, owed, task);
            }
        }
        self.stats.synced += 1;
        task.report(Event::SyncPage { gfn: self.page(id).gfn, role: Bits(role.word().into()) });
        true
    }

    /// Makes one present entry agree with the guest's PTE (`FNAME(sync_spte)`).
    fn sync_entry(&mut self, slot: Slot, raw: u64, paging: &GuestPaging, owed: &mut Owed, task: &Task<'_>) {
        let page = self.page(slot.page);
        let (role, had) = (page.role, page.target(slot.index));
        let spte = self.load(slot);
        let ShadowEntry::Leaf { sfn, rights } = spte.read(role.level) else { return };
        match wanted(paging, role, raw) {
            Wanted::Leaf(target) if target.gfn == had.gfn => {
                if target.access != had.access {
                    let had_write = rights.contains(GuestRights::WRITE);
                    let (leaf, _) =
                        self.make_leaf((sfn, role.level), target, spte.host_write(), had_write, Asking::Sync, task);
                    self.put_leaf(slot, target, leaf, owed, task);
                }
            }
            _ => self.drop_entry(slot, owed, task),
        }
    }

    /// Makes every unsync page under `id` follow its table again (`mmu_sync_children`): all of their tables lose their
    /// writers, processors forget that they could write, and only then the tables are read.
    pub(super) fn sync_children(
        &mut self,
        id: PageId,
        paging: &GuestPaging,
        flush: &dyn Fn(&Owed),
        owed: &mut Owed,
        task: &Task<'_>,
    ) {
        let mut pages = Vec::new();
        self.unsync_under(id, &mut pages);
        if pages.is_empty() {
            return;
        }
        let mut protected = Owed::default();
        for &page in &pages {
            let gfn = self.page(page).gfn;
            self.write_protect(gfn, &mut protected, task);
        }
        flush(&protected);
        for page in pages {
            self.mark_synced(page);
            self.refresh(page, paging, owed, task);
        }
    }

    /// [`ShadowMmu::sync_children`] for a vCPU's root.
    pub(super) fn sync_root(
        &mut self,
        root: Root,
        paging: &GuestPaging,
        flush: &dyn Fn(&Owed),
        owed: &mut Owed,
        task: &Task<'_>,
    ) {
        for page in root.pages() {
            self.sync_children(page, paging, flush, owed, task);
        }
    }

    /// Makes the entry for one linear address agree with the guest's (`__kvm_mmu_invalidate_addr`).
    pub(super) fn sync_address(
        &mut self,
        root: Root,
        gva: Gva,
        paging: &GuestPaging,
        owed: &mut Owed,
        task: &Task<'_>,
    ) {
        let Some(mut id) = self.root_page(root, gva) else { return };
        loop {
            let page = self.page(id);
            if !page.is_unsync_tree() {
                return;
            }
            let slot = Slot { page: id, index: index_at(gva.raw(), page.role.level) };
            match self.entry(slot) {
                ShadowEntry::Table(table) => match self.page_at(table) {
                    Some(child) => id = child,
                    None => return,
                },
                ShadowEntry::Absent => return,
                ShadowEntry::Leaf { .. } => {
                    if page.following == Following::Unsync && page.role.same_paging_as(paging) {
                        let offset = page.role.guest_offset(slot.index);
                        let raw = page.source.and_then(|sfn| {
                            let at = sfn.base().wrapping_add(offset);
                            match page.role.format.entry_bytes() {
                                4 => self.memory.load::<u32>(at).map(u64::from).ok(),
                                _ => self.memory.load::<u64>(at).ok(),
                            }
                        });
                        self.sync_entry(slot, raw.unwrap_or(0), paging, owed, task);
                    } else if page.following == Following::Unsync {
                        self.zap_page(id, owed, task);
                    }
                    return;
                }
            }
        }
    }

    /// The highest shadow page on the way to `gva`.
    pub(super) fn root_page(&self, root: Root, gva: Gva) -> Option<PageId> {
        match root {
            Root::None | Root::Dummy => None,
            Root::Long(page) => Some(page),
            Root::Pae(pages) => pages[(gva.raw() >> 30 & 3) as usize],
        }
    }
}

impl Role {
    /// Whether the page was made under the registers of `paging`.
    pub(super) fn same_paging_as(self, paging: &GuestPaging) -> bool {
        let state = paging.state();
        self.format == TableFormat::of(state.mode()) && self.controls == super::role::RoleControls::of(state)
    }
}
