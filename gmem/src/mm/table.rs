//! The page table of an address space: host user page to frame, in entries of 4 KiB or 2 MiB.
//!
//! [`UserTable`] is a lock around [`Entries`]. Always true: an entry without [`PteFlags::SPECIAL`] holds a reference and
//! a map count on the folio around its frame, a 2 MiB entry one of each; what was paged out has no entry.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitflags::bitflags;
use emu_core::memory::{BusError, SystemMemory};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Mutex, MutexGuard, Task};
use emu_core::{Hvn, PageSize, Sfn};

use super::{HvaRange, MmId, Prot, UserAccess};
use crate::folio::RefError;
use crate::pagemap::{Hit, Packed, PageMap};
use crate::{Host, HostMemory, OutOfMemory};

bitflags! {
    /// Bits of an entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PteFlags: u8 {
        /// The process may write.
        const WRITE = 1 << 0;
        /// `pte_special`: no `struct page` may be touched through it.
        const SPECIAL = 1 << 1;
        /// The process has used it.
        const ACCESSED = 1 << 2;
        /// The process has written.
        const DIRTY = 1 << 3;
        /// `_PAGE_PROTNONE`: the page is there, and the process may do nothing with it.
        const PROT_NONE = 1 << 4;
    }
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserPte {
    /// The frame behind the first page of the entry.
    pub sfn: Sfn,
    /// Its bits.
    pub flags: PteFlags,
}

/// The frame above eight bits.
impl Packed for UserPte {
    fn pack(self) -> u64 {
        self.sfn.raw() << 8 | u64::from(self.flags.bits())
    }
    fn unpack(bits: u64) -> UserPte {
        UserPte { sfn: Sfn::new(bits >> 8), flags: PteFlags::from_bits_retain(bits as u8) }
    }
}

/// What an entry says about one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserLeaf {
    /// The frame behind the page itself.
    pub sfn: Sfn,
    /// Size of the entry.
    pub size: PageSize,
    /// Its bits.
    pub flags: PteFlags,
}

impl UserLeaf {
    /// Whether an access of this kind needs no fault.
    pub const fn allows(&self, access: UserAccess) -> bool {
        match access {
            UserAccess::Read => !self.flags.contains(PteFlags::PROT_NONE),
            UserAccess::Write => self.flags.contains(PteFlags::WRITE),
        }
    }
}

/// See the module.
pub struct UserTable {
    mm: MmId,
    memory: Arc<SystemMemory>,
    entries: Mutex<Entries>,
}

/// What the lock guards.
#[derive(Default)]
pub(super) struct Entries {
    map: PageMap<UserPte>,
    /// Contents of pages that were paged out.
    swap: BTreeMap<u64, Box<[u8; PAGE_SIZE]>>,
}

impl UserTable {
    pub(super) fn new(mm: MmId, memory: Arc<SystemMemory>) -> UserTable {
        UserTable { mm, memory, entries: Mutex::default() }
    }

    /// Whose it is.
    pub const fn mm(&self) -> MmId {
        self.mm
    }

    pub(super) const fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    pub(super) fn lock<'a>(&'a self, task: &Task<'a>) -> MutexGuard<'a, Entries> {
        self.entries.lock(task)
    }

    /// The entry of `page`, at this moment.
    pub fn leaf(&self, page: Hvn, task: &Task<'_>) -> Option<UserLeaf> {
        self.entries.lock(task).leaf(page)
    }

    /// Every entry, ascending: first page, size, entry.
    pub fn list(&self, task: &Task<'_>) -> Vec<(Hvn, PageSize, UserPte)> {
        let entries = self.entries.lock(task);
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(hit) = entries.map.next_from(at) {
            at = hit.end();
            found.push((Hvn::new(hit.base), hit.size, hit.value));
        }
        found
    }

    /// Pages in entries, and pages that were paged out.
    pub fn resident(&self, task: &Task<'_>) -> (u64, u64) {
        let entries = self.entries.lock(task);
        let mapped = PageSize::ALL.iter().map(|&size| entries.map.count(size) * size.frames()).sum();
        (mapped, entries.swap.len() as u64)
    }

    /// Removes the entries of `range`, of larger ones the part inside; how many pages had one.
    pub(super) fn zap(&self, range: HvaRange, host: &Host, task: &Task<'_>) -> u64 {
        let mut entries = self.entries.lock(task);
        let mut host = host.lock(task);
        entries.drop_swap(range);
        entries.cut_edges(range, &mut host);
        let mut pages = 0;
        while let Some(hit) = entries.first_in(range) {
            entries.remove(&hit, &mut host);
            pages += hit.size.frames();
        }
        pages
    }

    /// Takes from the entries of `range` what `prot` does not give.
    pub(super) fn protect(&self, range: HvaRange, prot: Prot, host: &Host, task: &Task<'_>) {
        let mut entries = self.entries.lock(task);
        entries.cut_edges(range, &mut host.lock(task));
        let mut at = range.first.raw();
        while let Some(hit) = entries.map.next_from(at).filter(|hit| hit.base < range.end().raw()) {
            at = hit.end();
            entries.map.update(hit.base, |pte| {
                if !prot.contains(Prot::WRITE) {
                    pte.flags.remove(PteFlags::WRITE);
                }
                pte.flags.set(PteFlags::PROT_NONE, prot.is_empty());
            });
        }
    }

    /// Makes every entry and every paged-out page a child's too.
    pub(super) fn copy_into(&self, child: &UserTable, host: &Host, task: &Task<'_>) -> Result<(), OutOfMemory> {
        let ours = self.entries.lock(task);
        let mut theirs = child.entries.lock(task);
        let mut host = host.lock(task);
        let mut at = 0;
        while let Some(hit) = ours.map.next_from(at) {
            at = hit.end();
            if theirs.enter(Hvn::new(hit.base), hit.size, hit.value, &mut host).is_err() {
                return Err(OutOfMemory { size: hit.size, free_frames: host.stats().free_frames });
            }
        }
        theirs.swap.clone_from(&ours.swap);
        Ok(())
    }
}

impl Entries {
    pub(super) fn leaf(&self, page: Hvn) -> Option<UserLeaf> {
        let hit = self.map.get(page.raw())?;
        let sfn = Sfn::new(hit.value.sfn.raw() + (page.raw() - hit.base));
        Some(UserLeaf { sfn, size: hit.size, flags: hit.value.flags })
    }

    /// Changes the bits of the entry of `page`; whether there is one.
    pub(super) fn change_flags(&mut self, page: Hvn, change: impl FnOnce(&mut PteFlags)) -> bool {
        self.map.update(page.raw(), |pte| change(&mut pte.flags)).is_some()
    }

    /// Whether 2 MiB around `page` have neither an entry nor a page that was paged out.
    pub(super) fn is_vacant(&self, page: Hvn, size: PageSize) -> bool {
        let base = page.align_down(size).raw();
        self.map.vacancy(page.raw()).is_some_and(|vacant| vacant >= size)
            && self.swap.range(base..base + size.frames()).next().is_none()
    }

    pub(super) fn first_in(&self, range: HvaRange) -> Option<Hit<UserPte>> {
        self.map.next_from(range.first.raw()).filter(|hit| hit.base < range.end().raw())
    }

    pub(super) fn swap_mut(&mut self) -> &mut BTreeMap<u64, Box<[u8; PAGE_SIZE]>> {
        &mut self.swap
    }

    pub(super) fn drop_swap(&mut self, range: HvaRange) {
        let gone: Vec<u64> = self.swap.range(range.first.raw()..range.end().raw()).map(|(&page, _)| page).collect();
        for page in gone {
            self.swap.remove(&page);
        }
    }

    /// Puts an entry where none is, with what it holds.
    pub(super) fn enter(
        &mut self,
        page: Hvn,
        size: PageSize,
        pte: UserPte,
        host: &mut HostMemory,
    ) -> Result<(), RefError> {
        if !pte.flags.contains(PteFlags::SPECIAL) {
            host.map_page(pte.sfn)?;
        }
        let entered = self.map.insert(page.raw(), size, pte);
        assert!(entered.is_ok(), "{page:?} of {size} has an entry already");
        Ok(())
    }

    /// Takes an entry out, with what it holds.
    pub(super) fn remove(&mut self, hit: &Hit<UserPte>, host: &mut HostMemory) {
        self.map.remove(hit.base);
        if !hit.value.flags.contains(PteFlags::SPECIAL) {
            host.unmap_page(hit.value.sfn);
        }
    }

    /// Splits the 2 MiB entries that reach over an edge of `range` (`split_huge_pmd`). The folio stays as it is.
    pub(super) fn cut_edges(&mut self, range: HvaRange, host: &mut HostMemory) {
        for edge in [range.first, range.end()] {
            let Some(hit) = self.map.get(edge.raw()).filter(|hit| hit.base < edge.raw()) else { continue };
            self.map.remove(hit.base);
            for n in 0..hit.size.frames() {
                let pte = UserPte { sfn: Sfn::new(hit.value.sfn.raw() + n), flags: hit.value.flags };
                // The folio has the large entry's reference until the end, so it is in use.
                let entered = self.enter(Hvn::new(hit.base + n), PageSize::Size4K, pte, host);
                assert!(entered.is_ok(), "a folio has room for its own pages: {entered:?}");
            }
            host.unmap_page(hit.value.sfn);
        }
    }

    /// Copies between a page and a buffer, if the entry allows it: what a processor of the host does through its TLB,
    /// which whoever removes the entry waits for.
    pub(super) fn access(
        &mut self,
        page: Hvn,
        access: UserAccess,
        copy: impl FnOnce(Sfn) -> Result<(), BusError>,
    ) -> Option<Result<(), BusError>> {
        let leaf = self.leaf(page).filter(|leaf| leaf.allows(access))?;
        self.change_flags(page, |flags| {
            flags.insert(PteFlags::ACCESSED);
            flags.set(PteFlags::DIRTY, flags.contains(PteFlags::DIRTY) || access == UserAccess::Write);
        });
        Some(copy(leaf.sfn))
    }
}
