//! The table in memory: reading the entry that decides on a page, and changing entries so that nobody sees half a change.
//!
//! A 2 MiB page has its entry in the slot of its first frame; the other 511 slots say only that they are assigned. A
//! region of 4 KiB pages counts, in that same slot, how many of the other 511 are assigned, so that whether a write through
//! a 2 MiB mapping is allowed is seen by one look.
//!
//! Readers take no lock: a region has a sequence number that is odd while somebody changes the region, and a reader that saw
//! it move looks again. Writers of one region exclude each other. Regions share locks and numbers by their number modulo
//! [`SHARDS`]. Nothing here reaches a point of a schedule, so the locks are taken without a task.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::Arc;

use emu_core::memory::SystemMemory;
use emu_core::sync::{Mutex, MutexGuard, Task};
use emu_core::{PageSize, Sfn, Spa};

use super::entry::{REGION_FRAMES, RmpEntry, RmpPageSize};
use super::place::{ENTRY_BYTES, Layout};
use super::transition::Region;
use crate::stage2::Asid;

const SHARDS: usize = 64;

/// What the regions with one remainder share. On a cache line of its own.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Shard {
    sequence: AtomicU64,
    /// Frames that running virtual processors use; one may be there twice. Who holds it may change the regions.
    in_use: Mutex<Vec<Sfn>>,
}

#[derive(Debug)]
pub(super) struct Table {
    memory: Arc<SystemMemory>,
    pub(super) layout: Layout,
    shards: Box<[Shard]>,
}

impl Table {
    pub(super) fn new(memory: Arc<SystemMemory>, layout: Layout) -> Table {
        Table { memory, layout, shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    /// The memory it is in, and is about.
    pub(super) fn memory(&self) -> &SystemMemory {
        &self.memory
    }

    #[inline]
    fn shard(&self, sfn: Sfn) -> &Shard {
        &self.shards[(sfn.raw() / REGION_FRAMES) as usize % SHARDS]
    }

    #[inline]
    fn load(&self, slot: Spa) -> RmpEntry {
        self.memory.load(slot).map_or(RmpEntry::NO_MEMORY, RmpEntry::from_words)
    }

    /// Runs `look` until nobody changed the region meanwhile.
    #[inline]
    fn read<R>(&self, sfn: Sfn, look: impl Fn() -> R) -> R {
        let shard = self.shard(sfn);
        loop {
            let before = shard.sequence.load(Ordering::Acquire);
            if before.is_multiple_of(2) {
                let seen = look();
                fence(Ordering::Acquire);
                if shard.sequence.load(Ordering::Relaxed) == before {
                    return seen;
                }
            }
            wait(shard);
        }
    }

    /// The effective entry of a frame; `None`: it has none.
    #[inline]
    pub(super) fn entry(&self, sfn: Sfn) -> Option<RmpEntry> {
        let head = self.layout.slot(sfn.align_down(PageSize::Size2M))?;
        Some(self.read(sfn, || self.effective(head, sfn)))
    }

    #[inline]
    fn effective(&self, head_slot: Spa, sfn: Sfn) -> RmpEntry {
        let (head, number) = (self.load(head_slot), sfn.raw() % REGION_FRAMES);
        match head.page_size() {
            RmpPageSize::Size2M => head.with_gpa(head.part(number).gpa()),
            RmpPageSize::Size4K if number == 0 => head.with_subpage_count(0),
            RmpPageSize::Size4K => self.load(head_slot.wrapping_add(number * ENTRY_BYTES)),
        }
    }

    /// The effective entry, and whether another page of the region of `sfn` than its first is assigned.
    pub(super) fn entry_and_others(&self, sfn: Sfn) -> Option<(RmpEntry, bool)> {
        let slot = self.layout.slot(sfn.align_down(PageSize::Size2M))?;
        Some(self.read(sfn, || {
            let head = self.load(slot);
            let others = head.page_size() == RmpPageSize::Size2M || head.subpage_count() != 0;
            (self.effective(slot, sfn), others)
        }))
    }

    /// Whether a page of the region of `sfn` is assigned; `None`: it is not covered.
    #[inline]
    pub(super) fn region_is_assigned(&self, sfn: Sfn) -> Option<bool> {
        let slot = self.layout.slot(sfn.align_down(PageSize::Size2M))?;
        let head = self.read(sfn, || self.load(slot));
        Some(head.assigned() || head.subpage_count() != 0)
    }

    /// Excludes every other writer of the region of `sfn`; `None`: it is not covered.
    pub(super) fn write(&self, sfn: Sfn) -> Option<Writer<'_>> {
        let first = sfn.align_down(PageSize::Size2M);
        let head_slot = self.layout.slot(first)?;
        let shard = self.shard(sfn);
        Some(Writer { table: self, shard, first, head_slot, in_use: shard.in_use.lock(&Task::QUIET) })
    }

    /// Notes a use of a frame, or the end of one.
    pub(super) fn use_frame(&self, sfn: Sfn) {
        self.shard(sfn).in_use.lock(&Task::QUIET).push(sfn);
    }
    pub(super) fn unuse_frame(&self, sfn: Sfn) {
        let mut in_use = self.shard(sfn).in_use.lock(&Task::QUIET);
        let place = in_use.iter().position(|&used| used == sfn).expect("a use that ends was noted when it began");
        in_use.swap_remove(place);
    }

    /// How many 4 KiB pages carry `asid`.
    pub(super) fn count_of(&self, asid: Asid) -> u64 {
        self.memory.load(self.layout.counter(asid)).unwrap_or(u64::MAX)
    }

    fn recount(&self, asid: Asid, change: impl Fn(u64) -> u64) {
        if asid.0 != 0 {
            // A counter that no memory answers for reads as all ones, whatever is stored.
            let _ = self.memory.update(self.layout.counter(asid), |count: u64| (change(count), ()));
        }
    }
}

/// Lets whoever changes the region finish.
#[cold]
fn wait(shard: &Shard) {
    drop(shard.in_use.lock(&Task::QUIET));
}

/// The right to change one region.
pub(super) struct Writer<'a> {
    table: &'a Table,
    shard: &'a Shard,
    first: Sfn,
    head_slot: Spa,
    in_use: MutexGuard<'a, Vec<Sfn>>,
}

impl Writer<'_> {
    pub(super) fn entry(&self, sfn: Sfn) -> RmpEntry {
        self.table.effective(self.head_slot, sfn)
    }

    /// Whether a running virtual processor uses one of `frames` frames from `first`.
    pub(super) fn is_in_use(&self, first: Sfn, frames: u64) -> bool {
        self.in_use.iter().any(|&used| used.offset_from(first).is_some_and(|distance| distance < frames))
    }

    /// Notes a use of a frame.
    pub(super) fn note_use(&mut self, sfn: Sfn) {
        self.in_use.push(sfn);
    }

    /// Every slot of the region as it is, Subpage_Count apart.
    pub(super) fn slots(&self) -> Vec<RmpEntry> {
        let slot = |n| self.table.load(self.head_slot.wrapping_add(n * ENTRY_BYTES));
        (0..REGION_FRAMES).map(|n| if n == 0 { slot(n).with_subpage_count(0) } else { slot(n) }).collect()
    }

    pub(super) fn region(&self) -> Region {
        let (mut assigned, mut immutable) = (false, false);
        for n in 0..REGION_FRAMES {
            let entry = self.table.load(self.head_slot.wrapping_add(n * ENTRY_BYTES));
            assigned |= entry.assigned();
            immutable |= entry.immutable();
        }
        Region { head: self.entry(self.first), assigned, immutable }
    }

    /// Gives the page of `sfn` an entry of the size it has.
    pub(super) fn replace(&self, sfn: Sfn, new: RmpEntry) {
        let (old, number) = (self.entry(sfn), sfn.raw() % REGION_FRAMES);
        let head = self.table.load(self.head_slot);
        self.change(|| match old.page_size() {
            RmpPageSize::Size2M => self.store(0, new.with_gpa(new.gpa().align_down(PageSize::Size2M))),
            RmpPageSize::Size4K if number == 0 => self.store(0, new.with_subpage_count(head.subpage_count())),
            RmpPageSize::Size4K => {
                self.store(number, new);
                let count = head.subpage_count() + u64::from(new.assigned()) - u64::from(old.assigned());
                self.store(0, head.with_subpage_count(count));
            }
        });
        self.recount(old, new, old.page_size().frames());
    }

    /// Makes the region one page of 2 MiB, or one of the hypervisor's.
    pub(super) fn replace_all(&self, new: RmpEntry) {
        let old: Vec<RmpEntry> = self.slots();
        let part = if new.assigned() { RmpEntry::PART_OF_2M } else { RmpEntry::HYPERVISOR };
        self.change(|| {
            self.store(0, new);
            (1..REGION_FRAMES).for_each(|n| self.store(n, part));
        });
        match old[0].page_size() {
            RmpPageSize::Size2M => self.recount(old[0], new, REGION_FRAMES),
            RmpPageSize::Size4K => old.iter().for_each(|&old| self.recount(old, new, 1)),
        }
    }

    /// Makes 512 pages of the 2 MiB page `head`.
    pub(super) fn divide(&self, head: RmpEntry) {
        self.change(|| {
            self.store(0, head.part(0).with_subpage_count(REGION_FRAMES - 1));
            (1..REGION_FRAMES).for_each(|n| self.store(n, head.part(n)));
        });
    }

    fn recount(&self, old: RmpEntry, new: RmpEntry, pages: u64) {
        if old.asid() != new.asid() {
            self.table.recount(old.asid(), |count| count.wrapping_sub(pages));
            self.table.recount(new.asid(), |count| count.wrapping_add(pages));
        }
    }

    /// The sequence number is odd while `stores` runs.
    fn change(&self, stores: impl FnOnce()) {
        let sequence = self.shard.sequence.load(Ordering::Relaxed);
        self.shard.sequence.store(sequence + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        stores();
        self.shard.sequence.store(sequence + 2, Ordering::Release);
    }

    fn store(&self, number: u64, entry: RmpEntry) {
        // Where no memory answers, nothing is stored and every entry reads as one that fits nobody.
        let _ = self.table.memory.store(self.head_slot.wrapping_add(number * ENTRY_BYTES), entry.words());
    }
}
