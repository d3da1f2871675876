//! Shadow pages and the links between them: the part of the shadow MMU that knows no guest table.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::memory::SystemMemory;
use emu_core::sync::Task;
use emu_core::{Gfn, Sfn, Spa};
use gmem::Host;
use mmu::GuestRights;

use super::rmap::{RECYCLE, Rmaps};
use super::role::{Origin, Role, frames, run_base};
use super::spte::{ShadowEntry, ShadowPte, leaf_size};
use super::stats::ShadowStats;
use super::vcpus::{Known, Reloads};
use crate::flush::Owed;

/// Number of a shadow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub(super) u32);

/// An entry of a shadow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// The page.
    pub page: PageId,
    /// The entry in it.
    pub index: u16,
}

/// What a leaf was made from (`shadowed_translation`): the guest frame and what the guest allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The guest frame.
    pub gfn: Gfn,
    /// What the guest's entries allow, before the host had its say.
    pub access: GuestRights,
}

impl Target {
    const NONE: Target = Target { gfn: Gfn::new(0), access: GuestRights::empty() };
}

/// Whether a page of PTEs follows its guest table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Following {
    /// The guest's table is write-protected: every write comes through the hypervisor.
    Synced,
    /// The guest may write its table; entries follow when it flushes its TLB.
    Unsync,
}

/// Whether a page may be found and used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It may.
    Valid,
    /// It was zapped while a vCPU has it as a root; it goes with the last of them.
    Invalid,
}

/// A shadow page (`struct kvm_mmu_page`).
#[derive(Debug)]
pub struct Page {
    /// The table itself.
    pub table: Spa,
    /// The guest's table it shadows, or the first guest frame that it maps.
    pub gfn: Gfn,
    /// What it was made for.
    pub role: Role,
    /// Where the guest's table lies. It cannot move while the page lives: a change of backing zaps it.
    pub source: Option<Sfn>,
    /// See [`Following`].
    pub following: Following,
    /// See [`Standing`].
    pub standing: Standing,
    /// The entries that lead here.
    pub parents: Vec<Slot>,
    /// Entries whose page is unsync or has such a descendant.
    pub unsync_children: [u64; 8],
    /// Emulated writes to the guest's table since the page was last used.
    pub flooding: u8,
    /// Generation it was made in.
    pub generation: u8,
    /// vCPUs and cached roots that have it as their root.
    pub roots: u32,
    targets: Option<Box<[Target; 512]>>,
    age: u64,
}

impl Page {
    /// The number of set bits in [`Page::unsync_children`].
    pub fn nr_unsync_children(&self) -> u32 {
        self.unsync_children.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether it or a descendant does not follow its guest table.
    pub fn is_unsync_tree(&self) -> bool {
        self.following == Following::Unsync || self.unsync_children != [0; 8]
    }

    /// What the leaf at `index` was made from.
    pub fn target(&self, index: u16) -> Target {
        match (&self.targets, self.role.origin) {
            (Some(targets), Origin::Guest) => targets[usize::from(index) % 512],
            _ => Target {
                gfn: Gfn::new(self.gfn.raw() + u64::from(index) * self.role.frames()),
                access: self.role.access,
            },
        }
    }

    /// Whether guest frame `gfn` is a table that this page shadows.
    pub fn shadows(&self, gfn: Gfn) -> bool {
        self.role.origin == Origin::Guest && self.gfn == gfn
    }
}

/// How often a guest frame is shadowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shadowed {
    /// Valid pages that shadow it.
    pub(super) pages: u32,
    /// Of these, pages above the lowest level, for which every write is emulated.
    pub(super) tracked: u32,
}

/// The shadow pages of a VM. All of it is guarded by `mmu_lock`, held for writing.
pub struct ShadowMmu {
    pub(super) memory: Arc<SystemMemory>,
    pages: Vec<Option<Page>>,
    vacant: Vec<PageId>,
    /// Valid pages by guest frame (`mmu_page_hash`): an ordered map, so that a range of frames is found too.
    pub(super) by_gfn: BTreeMap<Gfn, Vec<PageId>>,
    by_table: BTreeMap<Spa, PageId>,
    /// Valid pages, the oldest first (`active_mmu_pages`).
    active: BTreeMap<u64, PageId>,
    next_age: u64,
    /// Also walked without the lock, by who asks for the age of pages.
    pub(super) rmaps: Arc<Rmaps>,
    pub(super) shadowed: BTreeMap<Gfn, Shadowed>,
    /// Valid pages of guest tables (`indirect_shadow_pages`).
    pub(super) indirect: u64,
    pub(super) generation: u8,
    pub(super) max_pages: usize,
    pub(super) reloads: Arc<Reloads>,
    /// What others know without the lock.
    pub(super) known: Arc<Known>,
    /// Pages that do not follow their guest table.
    pub(super) nr_unsync: u64,
    /// Entries written so far.
    pub(crate) changes: u64,
    pub(super) stats: ShadowStats,
    /// Tables of pages that are gone, freed after the flush.
    dead: Vec<Spa>,
    /// An empty table, for a guest whose root lies where no memory is.
    pub(super) dummy: Spa,
}

impl ShadowMmu {
    pub(super) fn new(memory: Arc<SystemMemory>, dummy: Spa, max_pages: usize, reloads: Arc<Reloads>) -> ShadowMmu {
        ShadowMmu {
            memory,
            pages: Vec::new(),
            vacant: Vec::new(),
            by_gfn: BTreeMap::new(),
            by_table: BTreeMap::new(),
            active: BTreeMap::new(),
            next_age: 0,
            rmaps: Arc::default(),
            shadowed: BTreeMap::new(),
            indirect: 0,
            generation: 0,
            max_pages,
            reloads,
            known: Arc::default(),
            nr_unsync: 0,
            changes: 0,
            stats: ShadowStats::default(),
            dead: Vec::new(),
            dummy,
        }
    }

    /// Whether a page has not gone yet.
    pub(super) fn exists(&self, id: PageId) -> bool {
        matches!(self.pages.get(id.0 as usize), Some(Some(_)))
    }

    /// A page that exists.
    ///
    /// # Panics
    /// When it does not: a link outlived its page.
    pub fn page(&self, id: PageId) -> &Page {
        match self.pages.get(id.0 as usize) {
            Some(Some(page)) => page,
            _ => panic!("there is no shadow page {}", id.0),
        }
    }

    pub(super) fn page_mut(&mut self, id: PageId) -> &mut Page {
        match self.pages.get_mut(id.0 as usize) {
            Some(Some(page)) => page,
            _ => panic!("there is no shadow page {}", id.0),
        }
    }

    /// Every page, valid or not.
    pub fn pages(&self) -> impl Iterator<Item = (PageId, &Page)> {
        self.pages.iter().enumerate().filter_map(|(n, page)| Some((PageId(n as u32), page.as_ref()?)))
    }

    /// Pages that exist.
    pub fn nr_pages(&self) -> usize {
        self.pages.len() - self.vacant.len()
    }

    /// The counters.
    pub fn stats(&self) -> ShadowStats {
        ShadowStats { pages: self.nr_pages() as u64, indirect: self.indirect, ..self.stats }
    }

    /// The page whose table this is.
    pub fn page_at(&self, table: Spa) -> Option<PageId> {
        self.by_table.get(&table).copied()
    }

    /// The valid page that has been there longest and is nobody's root.
    pub(super) fn oldest(&self) -> Option<PageId> {
        self.active.values().copied().find(|&id| self.page(id).roots == 0)
    }

    /// Whether a huge leaf of `frames` around `gfn` would cover a shadowed guest table.
    pub(super) fn covers_shadowed(&self, gfn: Gfn, frames: u64) -> bool {
        let base = run_base(gfn, frames);
        self.shadowed.range(base..Gfn::new(base.raw() + frames)).next().is_some()
    }

    /// Whether every write to `gfn` is emulated (`kvm_gfn_is_write_tracked`).
    pub fn is_tracked(&self, gfn: Gfn) -> bool {
        self.shadowed.get(&gfn).is_some_and(|shadowed| shadowed.tracked > 0)
    }

    pub(super) fn place(&self, slot: Slot) -> Spa {
        self.page(slot.page).table.wrapping_add(8 * u64::from(slot.index))
    }

    /// The entry as it stands.
    pub fn load(&self, slot: Slot) -> ShadowPte {
        match self.memory.load(self.place(slot)) {
            Ok(raw) => ShadowPte::from_raw(raw),
            Err(error) => unreachable!("a shadow page lies in the host's memory: {error}"),
        }
    }

    /// The entry, read.
    pub fn entry(&self, slot: Slot) -> ShadowEntry {
        self.load(slot).read(self.page(slot.page).role.level)
    }

    /// The funnel: every entry changes here. Notes the flush that is owed and returns what was replaced.
    ///
    /// # Panics
    /// When a present leaf would change its frame: whoever remaps drops first.
    pub(super) fn change(&mut self, slot: Slot, new: ShadowPte, owed: &mut Owed, task: &Task<'_>) -> ShadowPte {
        let level = self.page(slot.page).role.level;
        let at = self.place(slot);
        let mut old = self.load(slot);
        loop {
            match self.memory.compare_exchange_u64(at, old.raw(), new.raw()) {
                Ok(Ok(_)) => break,
                // A walking processor has set a flag.
                Ok(Err(seen)) => old = ShadowPte::from_raw(seen),
                Err(error) => unreachable!("a shadow page lies in the host's memory: {error}"),
            }
        }
        self.changes += 1;
        let size = leaf_size(level);
        match (old.read(level), new.read(level)) {
            (ShadowEntry::Leaf { sfn, rights: had }, ShadowEntry::Leaf { sfn: to, rights: has }) => {
                assert_eq!(sfn, to, "the leaf at {slot:?} changes its frame while present");
                let protects = old.may_be_cached_writable() && !new.may_be_cached_writable();
                if !has.contains(had) || protects || old.is_accessed() && !new.is_accessed() {
                    owed.range(Gfn::new(sfn.raw()), frames(level));
                }
            }
            (ShadowEntry::Leaf { sfn, .. }, _) => {
                owed.range(Gfn::new(sfn.raw()), frames(level));
                if let Some(size) = size {
                    self.stats.zapped[size.index()] += 1;
                    task.report(Event::Zapped { gfn: self.page(slot.page).target(slot.index).gfn, size });
                }
            }
            (ShadowEntry::Table(_), _) => owed.all(),
            (ShadowEntry::Absent, _) => {}
        }
        old
    }

    /// Puts a leaf that maps `target` into an entry that is empty or maps the same frame. Whether the frame has more
    /// entries now than should be kept.
    pub(super) fn put_leaf(
        &mut self,
        slot: Slot,
        target: Target,
        new: ShadowPte,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> usize {
        let old = self.change(slot, new, owed, task);
        let page = self.page_mut(slot.page);
        let level = page.role.level;
        if let Some(targets) = &mut page.targets {
            targets[usize::from(slot.index) % 512] = target;
        }
        if old.is_present() {
            return 0;
        }
        if let (Some(size), ShadowEntry::Leaf { sfn, .. }) = (leaf_size(level), new.read(level)) {
            self.stats.installed[size.index()] += 1;
            task.report(Event::Mapped { gfn: target.gfn, sfn, size });
        }
        self.rmaps.add(level, target.gfn, (slot, self.place(slot)), task)
    }

    /// Whether so many entries for one frame must be dropped.
    pub(super) const fn is_too_many(entries: usize) -> bool {
        entries > RECYCLE
    }

    /// Empties an entry, whatever it holds (`mmu_page_zap_pte`). A page below only loses a parent.
    pub(super) fn drop_entry(&mut self, slot: Slot, owed: &mut Owed, task: &Task<'_>) {
        match self.entry(slot) {
            ShadowEntry::Absent => {}
            ShadowEntry::Leaf { .. } => {
                self.change(slot, ShadowPte::ABSENT, owed, task);
                let page = self.page(slot.page);
                let (level, target) = (page.role.level, page.target(slot.index));
                self.rmaps.remove(level, target.gfn, slot, task);
            }
            ShadowEntry::Table(table) => {
                self.change(slot, ShadowPte::ABSENT, owed, task);
                if let Some(child) = self.page_at(table) {
                    self.page_mut(child).parents.retain(|parent| *parent != slot);
                }
                self.clear_unsync_child(slot);
            }
        }
    }

    /// Takes the right to write from every entry that maps `gfn`, and removes what maps it by a larger page: such a page
    /// may not cover a guest table at all (`kvm_mmu_slot_gfn_write_protect`, `disallow_lpage`).
    pub(super) fn write_protect(&mut self, gfn: Gfn, owed: &mut Owed, task: &Task<'_>) {
        for level in 2..=3 {
            for slot in self.rmaps.of(level, run_base(gfn, frames(level)), task) {
                self.drop_entry(slot, owed, task);
            }
        }
        for slot in self.rmaps.of(1, gfn, task) {
            let spte = self.load(slot);
            // By MMU-writable and not by W: who withheld W for a log flushes after it has given the lock up.
            let by_hardware = task.has(Defect::FlushByHardwareWrite);
            if spte.is_writable() || spte.may_be_cached_writable() && !by_hardware {
                self.change(slot, spte.write_protected(), owed, task);
                self.stats.write_protected += 1;
            }
        }
    }

    /// Removes every entry that maps a guest frame of `[first, end)`.
    pub(super) fn drop_mappings(&mut self, first: Gfn, end: Gfn, owed: &mut Owed, task: &Task<'_>) {
        for slot in self.rmaps.reaching(first, end, task) {
            self.drop_entry(slot, owed, task);
        }
    }

    /// Enters a new page. A guest's table is counted, then loses its writers: whoever counts none has written before
    /// (the barrier in `account_shadowed`).
    pub(super) fn add_page(
        &mut self,
        table: Spa,
        gfn: Gfn,
        role: Role,
        source: Option<Sfn>,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> PageId {
        let is_guests = role.origin == Origin::Guest;
        let targets = (is_guests && leaf_size(role.level).is_some()).then(|| Box::new([Target::NONE; 512]));
        let age = self.next_age;
        self.next_age += 1;
        let page = Page {
            table,
            gfn,
            role,
            source,
            following: Following::Synced,
            standing: Standing::Valid,
            parents: Vec::new(),
            unsync_children: [0; 8],
            flooding: 0,
            generation: self.generation,
            roots: 0,
            targets,
            age,
        };
        let id = match self.vacant.pop() {
            Some(id) => {
                self.pages[id.0 as usize] = Some(page);
                id
            }
            None => {
                self.pages.push(Some(page));
                PageId(self.pages.len() as u32 - 1)
            }
        };
        self.by_table.insert(table, id);
        self.by_gfn.entry(gfn).or_default().push(id);
        self.active.insert(age, id);
        self.stats.created += 1;
        self.changes += 1;
        if is_guests {
            self.indirect += 1;
            self.known.set_indirect(self.indirect);
            let shadowed = self.shadowed.entry(gfn).or_default();
            shadowed.pages += 1;
            shadowed.tracked += u32::from(role.level > 1);
            self.write_protect(gfn, owed, task);
        }
        id
    }

    /// Takes a valid page out of every list that finds it.
    pub(super) fn retire(&mut self, id: PageId) {
        let page = self.page_mut(id);
        assert_eq!(page.standing, Standing::Valid, "a page is retired once");
        page.standing = Standing::Invalid;
        self.changes += 1;
        let page = self.page(id);
        let (gfn, age, role) = (page.gfn, page.age, page.role);
        self.active.remove(&age);
        if let Some(list) = self.by_gfn.get_mut(&gfn) {
            list.retain(|one| *one != id);
            if list.is_empty() {
                self.by_gfn.remove(&gfn);
            }
        }
        if role.origin == Origin::Guest {
            self.indirect -= 1;
            if let Some(shadowed) = self.shadowed.get_mut(&gfn) {
                shadowed.pages -= 1;
                shadowed.tracked -= u32::from(role.level > 1);
                if shadowed.pages == 0 {
                    self.shadowed.remove(&gfn);
                }
            }
        }
    }

    /// Lets a retired page without parents, entries and roots go. Its table waits for the flush.
    pub(super) fn release(&mut self, id: PageId) {
        let Some(page) = self.pages[id.0 as usize].take() else { return };
        debug_assert!(page.parents.is_empty() && page.roots == 0);
        self.by_table.remove(&page.table);
        self.vacant.push(id);
        self.dead.push(page.table);
    }

    /// Ends an operation: frees the tables of pages that are gone and tells what is left. After a flush, with `mmu_lock`
    /// held for writing.
    pub(crate) fn bury(&mut self, host: &Host, task: &Task<'_>) {
        self.known.set_indirect(self.indirect);
        self.known.set_unsync(self.nr_unsync);
        if !self.dead.is_empty() {
            let mut host = host.lock(task);
            self.dead.drain(..).for_each(|table| host.free_table(table));
        }
    }

    /// Makes `child` the page behind an empty entry.
    pub(super) fn link(&mut self, slot: Slot, child: PageId, owed: &mut Owed, task: &Task<'_>) {
        let table = self.page(child).table;
        let old = self.change(slot, ShadowPte::table(table), owed, task);
        debug_assert!(!old.is_present(), "an entry is emptied before it leads elsewhere");
        let page = self.page_mut(child);
        page.parents.push(slot);
        if page.is_unsync_tree() {
            self.set_unsync_child(slot);
        }
    }

    /// Lets a page go its own way until the guest flushes (`kvm_unsync_page`). The mark comes before the entry that
    /// makes the guest's table writable: who finds no mark finds no newer table either.
    pub(super) fn mark_unsync(&mut self, id: PageId, task: &Task<'_>) {
        let page = self.page_mut(id);
        if page.following == Following::Unsync {
            return;
        }
        page.following = Following::Unsync;
        task.report(Event::UnsyncPage { gfn: page.gfn, role: Bits(page.role.word().into()) });
        self.nr_unsync += 1;
        self.changes += 1;
        self.stats.unsync += 1;
        for slot in self.page(id).parents.clone() {
            self.set_unsync_child(slot);
        }
    }

    /// Takes the mark back; the page follows its table again.
    pub(super) fn mark_synced(&mut self, id: PageId) {
        let page = self.page_mut(id);
        let was_unsync = core::mem::replace(&mut page.following, Following::Synced) == Following::Unsync;
        self.nr_unsync -= u64::from(was_unsync);
        self.changes += 1;
        self.settle(id);
    }

    fn set_unsync_child(&mut self, slot: Slot) {
        let page = self.page_mut(slot.page);
        let had = page.unsync_children != [0; 8];
        page.unsync_children[usize::from(slot.index) / 64 % 8] |= 1 << (slot.index % 64);
        if !had {
            for above in self.page(slot.page).parents.clone() {
                self.set_unsync_child(above);
            }
        }
    }

    fn clear_unsync_child(&mut self, slot: Slot) {
        let page = self.page_mut(slot.page);
        let bit = 1 << (slot.index % 64);
        let word = &mut page.unsync_children[usize::from(slot.index) / 64 % 8];
        if *word & bit != 0 {
            *word &= !bit;
            self.settle(slot.page);
        }
    }

    /// Tells the parents of a page that nothing below them waits there any more.
    fn settle(&mut self, id: PageId) {
        if !self.page(id).is_unsync_tree() {
            for slot in self.page(id).parents.clone() {
                self.clear_unsync_child(slot);
            }
        }
    }

    /// The unsync pages under `id`, itself included (`mmu_unsync_walk`).
    pub(super) fn unsync_under(&self, id: PageId, found: &mut Vec<PageId>) {
        let page = self.page(id);
        if page.following == Following::Unsync {
            if !found.contains(&id) {
                found.push(id);
            }
            return;
        }
        for (n, &word) in page.unsync_children.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                let index = (n * 64) as u16 + rest.trailing_zeros() as u16;
                rest &= rest - 1;
                if let ShadowEntry::Table(table) = self.entry(Slot { page: id, index })
                    && let Some(child) = self.page_at(table)
                {
                    self.unsync_under(child, found);
                }
            }
        }
    }
}
