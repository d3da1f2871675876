//! The host kernel's direct map: how the host itself maps its memory, and what guest-private pages do to that
//! (`arch/x86/mm/pat/set_memory.c`; `adjust_direct_map` in `arch/x86/virt/svm/sev.c`).
//!
//! [`DirectMap`] is the door: every frame of a range lies in an entry of 1G, 2M or 4K, or in none. The mechanism is here;
//! when it is used is [`DirectMapPolicy`]'s, by the events of [`policy`]; what an access of the host meets is
//! [`access`].
//!
//! Always true: the entries are disjoint and inside the range; at the start they are as large as alignment allows. Only
//! GiBs that deviate from that have a node, so the cost is in step with them.
//!
//! Left out: permissions other than present, the kernel's own read-only and executable parts, the page tables' bytes,
//! the page tables above the 1G entries.

pub mod access;
pub mod policy;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use emu_core::{PageSize, Sfn};

pub use access::{HostAccess, HostOp, Protection};
pub use policy::{DirectMapPolicy, Event, Refused};

const BLOCKS: usize = 512;
const M2: u64 = PageSize::Size2M.frames();
const G1: u64 = PageSize::Size1G.frames();

/// 512 pages, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
struct Bits([u64; 8]);

impl Bits {
    fn set(&mut self, first: u64, nr: u64, on: bool) {
        for page in first..first + nr {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if on {
                self.0[word] |= bit;
            } else {
                self.0[word] &= !bit;
            }
        }
    }

    fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] >> (page % 64) & 1 != 0
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[derive(Clone, Debug, Default)]
struct Pages {
    mapped: Bits,
    /// Pages for whose sake the block is split, as far as the policy keeps that in mind.
    deviating: Bits,
}

#[derive(Clone, Debug)]
enum Block {
    /// One 2M entry.
    Large,
    /// No entry.
    Empty,
    /// A page table.
    Small(Box<Pages>),
}

/// A page directory.
#[derive(Clone, Debug)]
struct Directory {
    blocks: [Block; BLOCKS],
}

/// The directory of a GiB, made from its 1G entry if it has none.
fn directory_of<'a>(
    gibs: &'a mut BTreeMap<u64, Box<Directory>>,
    entries: &mut [u64; 3],
    gib: u64,
    effect: &mut Effect,
) -> &'a mut Directory {
    gibs.entry(gib).or_insert_with(|| {
        entries[2] -= 1;
        entries[1] += BLOCKS as u64;
        effect.splits += 1;
        effect.tables_allocated += 1;
        Box::new(Directory { blocks: [const { Block::Large }; BLOCKS] })
    })
}

/// What changed, or all that ever did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Effect {
    /// Entries split into 512 (`direct_map_level2_splits` and `3`).
    pub splits: u64,
    /// Tables of 512 entries made one entry (`direct_map_level2_collapses` and `3`).
    pub collapses: u64,
    /// TLB flushes on all processors.
    pub flushes: u64,
    /// Page-table pages allocated.
    pub tables_allocated: u64,
    /// Page-table pages freed.
    pub tables_freed: u64,
    /// Frames made unreachable.
    pub removed_frames: u64,
    /// Frames made reachable again.
    pub restored_frames: u64,
}

impl Effect {
    fn add(&mut self, other: Effect) {
        self.splits += other.splits;
        self.collapses += other.collapses;
        self.flushes += other.flushes;
        self.tables_allocated += other.tables_allocated;
        self.tables_freed += other.tables_freed;
        self.removed_frames += other.removed_frames;
        self.restored_frames += other.restored_frames;
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct DirectMap {
    first: u64,
    end: u64,
    policy: DirectMapPolicy,
    /// GiBs that are not one 1G entry, by number.
    gibs: BTreeMap<u64, Box<Directory>>,
    /// Entries by [`PageSize::index`].
    entries: [u64; 3],
    page_tables: u64,
    done: Effect,
    /// 2M blocks given away for the sake of fewer shared pages: shared frames by block number.
    shared: BTreeMap<u64, u64>,
}

impl DirectMap {
    /// The map of `nr_frames` frames from `first` as it is after boot (`init_memory_mapping`).
    pub fn new(first: Sfn, nr_frames: u64, policy: DirectMapPolicy) -> DirectMap {
        let (first, end) = (first.raw(), first.raw().saturating_add(nr_frames));
        let mut map = DirectMap {
            first,
            end,
            policy,
            gibs: BTreeMap::new(),
            entries: [0; 3],
            page_tables: 0,
            done: Effect::default(),
            shared: BTreeMap::new(),
        };
        if first < end {
            let (low, high) = (first / G1, (end - 1) / G1);
            map.entries[2] = high + 1 - low;
            for gib in [low, high] {
                let inside = first <= gib * G1 && (gib + 1) * G1 <= end;
                if !inside && !map.gibs.contains_key(&gib) {
                    map.entries[2] -= 1;
                    let directory = map.edge(gib);
                    map.gibs.insert(gib, directory);
                }
            }
        }
        map
    }

    /// A GiB that the range covers only in part.
    fn edge(&mut self, gib: u64) -> Box<Directory> {
        let mut directory = Box::new(Directory { blocks: [const { Block::Empty }; BLOCKS] });
        for (block, base) in directory.blocks.iter_mut().zip((gib * G1..).step_by(M2 as usize)) {
            let (from, to) = (self.first.max(base), self.end.min(base + M2));
            if to <= from {
                continue;
            }
            if to - from == M2 {
                *block = Block::Large;
                self.entries[1] += 1;
            } else {
                let mut pages = Box::new(Pages::default());
                pages.mapped.set(from - base, to - from, true);
                *block = Block::Small(pages);
                self.entries[0] += to - from;
                self.page_tables += 1;
            }
        }
        directory
    }

    /// The policy.
    pub const fn policy(&self) -> DirectMapPolicy {
        self.policy
    }

    /// Entries by [`PageSize::index`] (`DirectMap4k`, `2M`, `1G` of `/proc/meminfo`, as numbers).
    pub const fn entries(&self) -> [u64; 3] {
        self.entries
    }

    /// Page-table pages below the level of 1G entries.
    pub fn table_pages(&self) -> u64 {
        self.gibs.len() as u64 + self.page_tables
    }

    /// All that was done so far.
    pub const fn totals(&self) -> Effect {
        self.done
    }

    /// The size of the entry that maps `sfn`; `None` for a frame that is not mapped, or not in the range.
    pub fn lookup(&self, sfn: Sfn) -> Option<PageSize> {
        let frame = sfn.raw();
        if frame < self.first || frame >= self.end {
            return None;
        }
        let Some(directory) = self.gibs.get(&(frame / G1)) else { return Some(PageSize::Size1G) };
        match &directory.blocks[(frame / M2) as usize % BLOCKS] {
            Block::Large => Some(PageSize::Size2M),
            Block::Empty => None,
            Block::Small(pages) => pages.mapped.get(frame % M2).then_some(PageSize::Size4K),
        }
    }

    fn small(&mut self, block: u64, effect: &mut Effect) -> &mut Pages {
        let directory = directory_of(&mut self.gibs, &mut self.entries, block * M2 / G1, effect);
        let slot = &mut directory.blocks[block as usize % BLOCKS];
        if !matches!(slot, Block::Small(_)) {
            let mut pages = Box::new(Pages::default());
            if let Block::Large = slot {
                pages.mapped.set(0, M2, true);
                self.entries[1] -= 1;
                self.entries[0] += M2;
                effect.splits += 1;
            }
            effect.tables_allocated += 1;
            self.page_tables += 1;
            *slot = Block::Small(pages);
        }
        match slot {
            Block::Small(pages) => pages,
            Block::Large | Block::Empty => unreachable!("made a page table above"),
        }
    }

    /// Makes the entry around `sfn` no larger than `to` (`split_large_page`).
    pub fn split(&mut self, sfn: Sfn, to: PageSize) -> Effect {
        let mut effect = Effect::default();
        if self.lookup(sfn).is_some_and(|size| size > to) {
            directory_of(&mut self.gibs, &mut self.entries, sfn.raw() / G1, &mut effect);
            if to == PageSize::Size4K {
                self.small(sfn.raw() / M2, &mut effect);
            }
            effect.flushes = 1;
        }
        self.done.add(effect);
        effect
    }

    /// Makes entries of `[first, first + nr_frames)` as large as they can be again (`cpa_collapse_large_pages`): 512
    /// mapped pages for whose sake nothing is split become one, then 512 such blocks.
    pub fn collapse(&mut self, first: Sfn, nr_frames: u64) -> Effect {
        let mut effect = Effect::default();
        let (from, to) = self.clip(first, nr_frames);
        if from < to {
            let gibs: Vec<u64> = self.gibs.range(from / G1..=(to - 1) / G1).map(|(&gib, _)| gib).collect();
            for gib in gibs {
                self.collapse_gib(gib, from, to, &mut effect);
            }
        }
        effect.flushes = u64::from(effect.collapses > 0);
        self.done.add(effect);
        effect
    }

    fn collapse_gib(&mut self, gib: u64, from: u64, to: u64, effect: &mut Effect) {
        let Some(directory) = self.gibs.get_mut(&gib) else { return };
        for (block, base) in directory.blocks.iter_mut().zip((gib * G1..).step_by(M2 as usize)) {
            let overlaps = base < to && from < base + M2;
            if let Block::Small(pages) = block
                && overlaps
                && pages.mapped.count() == M2
                && pages.deviating.count() == 0
            {
                *block = Block::Large;
                self.entries[0] -= M2;
                self.entries[1] += 1;
                self.page_tables -= 1;
                effect.collapses += 1;
                effect.tables_freed += 1;
            }
        }
        if directory.blocks.iter().all(|block| matches!(block, Block::Large)) {
            self.gibs.remove(&gib);
            self.entries[1] -= BLOCKS as u64;
            self.entries[2] += 1;
            effect.collapses += 1;
            effect.tables_freed += 1;
        }
    }

    fn clip(&self, first: Sfn, nr_frames: u64) -> (u64, u64) {
        (first.raw().max(self.first), first.raw().saturating_add(nr_frames).min(self.end))
    }

    /// Takes `nr_frames` frames out of the map (`set_direct_map_invalid_noflush` and the flush): whole 2M entries where
    /// the range covers them, and pages of split ones elsewhere.
    pub fn set_invalid(&mut self, first: Sfn, nr_frames: u64) -> Effect {
        self.set_present(first, nr_frames, false)
    }

    /// Puts frames back (`set_direct_map_default_noflush`). What was split stays so until [`DirectMap::collapse`].
    pub fn set_default(&mut self, first: Sfn, nr_frames: u64) -> Effect {
        self.set_present(first, nr_frames, true)
    }

    fn set_present(&mut self, first: Sfn, nr_frames: u64, present: bool) -> Effect {
        let mut effect = Effect::default();
        let (mut at, to) = self.clip(first, nr_frames);
        while at < to {
            let base = at & !(M2 - 1);
            let end = to.min(base + M2);
            if present && !self.gibs.contains_key(&(at / G1)) {
                // One 1G entry: nothing is missing in it.
                at = to.min((at / G1 + 1) * G1);
                continue;
            }
            self.set_block(base, at - base, end - at, present, &mut effect);
            at = end;
        }
        effect.flushes = u64::from(effect.removed_frames > 0 || effect.splits > 0);
        self.done.add(effect);
        effect
    }

    fn set_block(&mut self, base: u64, offset: u64, nr: u64, present: bool, effect: &mut Effect) {
        let directory = directory_of(&mut self.gibs, &mut self.entries, base / G1, effect);
        let slot = &mut directory.blocks[(base / M2) as usize % BLOCKS];
        match (&*slot, present) {
            (Block::Large, true) | (Block::Empty, false) => {}
            (Block::Large, false) if nr == M2 => {
                *slot = Block::Empty;
                self.entries[1] -= 1;
                effect.removed_frames += M2;
            }
            (Block::Empty, true) if nr == M2 => {
                *slot = Block::Large;
                self.entries[1] += 1;
                effect.restored_frames += M2;
            }
            _ => {
                let pages = self.small(base / M2, effect);
                let before = pages.mapped.count();
                pages.mapped.set(offset, nr, present);
                let after = pages.mapped.count();
                self.entries[0] = self.entries[0] + after - before;
                effect.removed_frames += before.saturating_sub(after);
                effect.restored_frames += after.saturating_sub(before);
            }
        }
    }
}
