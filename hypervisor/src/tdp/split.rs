//! Cutting leaves and putting them together again (`tdp_mmu_split_huge_page`, `recover_huge_pages_range`).
//!
//! Neither changes what any address translates to. A split fills a table with parts that have all that the whole has and
//! puts it in the leaf's place: nothing is owed to processors, whose old translation says the same. A recovery puts the
//! leaf that covers a table's first present part in the table's place; what the table held goes with it, and processors
//! must forget the way through it.

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::memory::BusError;
use emu_core::sync::Task;
use emu_core::{Gfn, PageSize, Sfn, Spa};

use super::leaf::{SplitExecute, WholeExecute};
use super::spte::{Entry, Level, Spte};
use super::tables::{Lost, Place, Tables};
use crate::flush::Owed;
use crate::vcpu::TableCache;

/// How far an eager split came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// No huge leaf is left in the range.
    Done,
    /// There was no table left: go on from here with more.
    NeedsTables { from: Gfn },
}

/// Whether a leaf of this size, from this guest frame to this system frame, may stand.
pub(crate) type MayBeHuge<'a> = dyn Fn(Gfn, Sfn, PageSize) -> bool + 'a;

impl Tables {
    /// Replaces the leaf `old` by `fresh`, an empty table that is filled with its parts first.
    pub(super) fn split(
        &self,
        place: Place,
        old: Spte,
        fresh: Spa,
        execute: SplitExecute,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<Result<(), Lost>, BusError> {
        let Some(below) = place.level.below() else { return Ok(Err(Lost)) };
        let fill = |whole: Spte| -> Result<(), BusError> {
            for n in 0..512 {
                let part = self.format.part(whole, place.level, n, execute);
                self.memory.store(fresh.wrapping_add(8 * n), part.raw())?;
            }
            Ok(())
        };
        fill(old)?;
        match self.change(place, old, self.format.table(fresh), owed, task)? {
            Ok(replaced) => {
                let level = place.level.index() as u8 + 1;
                let (gfn, spte) = (place.gfn, Bits(replaced.raw()));
                task.report(Event::SplitHugePage { gfn, spte, level, errno: 0 });
                // A dirty flag that a processor set while the parts were made is every part's: whoever set it may have
                // written to any of them, and nobody can have used the parts' own flags before.
                if replaced != old {
                    self.merge_flags(fresh, below, replaced, owed, task)?;
                }
                self.count_linked(below, task);
                self.count_parts(below, task);
                Ok(Ok(()))
            }
            Err(Lost) => {
                for n in 0..512 {
                    self.memory.store(fresh.wrapping_add(8 * n), Spte::ABSENT.raw())?;
                }
                Ok(Err(Lost))
            }
        }
    }

    /// Gives every leaf of a table the accessed and dirty flags of the leaf that it replaced.
    fn merge_flags(
        &self,
        table: Spa,
        level: Level,
        whole: Spte,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        let flags = whole.raw() & self.format.ad_bits(whole);
        for n in 0..512 {
            let place = Place { at: table.wrapping_add(8 * n), level, gfn: Gfn::new(0) };
            let mut spte = self.load(place)?;
            while let Entry::Leaf { .. } = self.format.read(spte, level) {
                if self.change(place, spte, Spte::from_raw(spte.raw() | flags), owed, task)?.is_ok() {
                    break;
                }
                spte = self.load(place)?;
            }
        }
        Ok(())
    }

    /// Splits every leaf above `largest` that reaches into `[first, first + nr_pages)`. `mmu_lock` is held, for reading at
    /// least.
    pub(crate) fn split_range(
        &self,
        first: Gfn,
        nr_pages: u64,
        largest: PageSize,
        tables: &mut TableCache,
        task: &Task<'_>,
    ) -> Result<Split, BusError> {
        let end = first.raw().saturating_add(nr_pages).min(Level::ROOT.frames() * 512);
        let mut at = first.raw();
        while at < end {
            let (place, spte) = self.last_entry(Gfn::new(at))?;
            let is_leaf = matches!(self.format.read(spte, place.level), Entry::Leaf { .. });
            if !is_leaf || place.level <= Level::of_leaf(largest) {
                at = place.gfn.raw() + place.level.frames();
                continue;
            }
            let Some(fresh) = tables.try_take() else {
                return Ok(Split::NeedsTables { from: Gfn::new(at) });
            };
            if let Err(Lost) = self.split(place, spte, fresh, SplitExecute::Keep, &mut Owed::default(), task)? {
                tables.put(fresh);
            }
        }
        Ok(Split::Done)
    }

    /// Replaces tables in `[first, first + nr_pages)` by huge leaves where `may_be` allows them. `mmu_lock` is held, for
    /// reading at least. What is owed must be flushed before the lock is given up.
    pub(crate) fn recover_range(
        &self,
        first: Gfn,
        nr_pages: u64,
        execute: WholeExecute,
        may_be: &MayBeHuge<'_>,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<u64, BusError> {
        let end = first.raw().saturating_add(nr_pages);
        let mut recovered = 0;
        // From the largest down: a table of tables becomes one leaf at once if it may.
        for size in [PageSize::Size1G, PageSize::Size2M] {
            let whole = first.raw().next_multiple_of(size.frames());
            let around = task.has(Defect::RecoverAroundSlot);
            let mut base = if around { first.align_down(size).raw() } else { whole };
            while if around { base } else { base.saturating_add(size.frames()) } <= end {
                recovered += u64::from(self.recover(Gfn::new(base), size, execute, may_be, owed, task)?);
                base += self.gap(Gfn::new(base), size)?;
            }
        }
        Ok(recovered)
    }

    /// How far to the next place that could hold a table of what lies under a leaf of `size`.
    fn gap(&self, base: Gfn, size: PageSize) -> Result<u64, BusError> {
        let (place, spte) = self.last_entry(base)?;
        let there = matches!(self.format.read(spte, place.level), Entry::Leaf { .. });
        let skip = if there { place.level.frames() } else { place.gfn.raw() + place.level.frames() - base.raw() };
        Ok(skip.max(size.frames()))
    }

    fn recover(
        &self,
        base: Gfn,
        size: PageSize,
        execute: WholeExecute,
        may_be: &MayBeHuge<'_>,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<bool, BusError> {
        let level = Level::of_leaf(size);
        let Some((place, spte)) = self.entry_at(base, level)? else { return Ok(false) };
        let (Entry::Table(table), Some(below)) = (self.format.read(spte, level), level.below()) else {
            return Ok(false);
        };
        let Some((part, sfn)) = self.first_part(table, below, base)? else { return Ok(false) };
        if !may_be(base, sfn, size) || !sfn.is_aligned(size) {
            return Ok(false);
        }
        let mut whole = part;
        for n in 1..=level.index() {
            whole = self.format.whole(whole, Level::of_leaf(PageSize::ALL[n]), execute);
        }
        if self.change(place, spte, whole, owed, task)?.is_err() {
            return Ok(false);
        }
        self.drop_tree(table, below, base, owed, task)?;
        Ok(true)
    }

    /// The first present leaf of 4K under a table, and the frame that the table's first page has if all lie in one block.
    fn first_part(&self, table: Spa, level: Level, base: Gfn) -> Result<Option<(Spte, Sfn)>, BusError> {
        for n in 0..512 {
            let place = Place::in_table(table, level, Gfn::new(base.raw() + n * level.frames()));
            let spte = self.load(place)?;
            match (self.format.read(spte, level), level.below()) {
                (Entry::Leaf { sfn, .. }, _) => {
                    let offset = place.gfn.raw() - base.raw();
                    let Some(head) = sfn.raw().checked_sub(offset) else { return Ok(None) };
                    let mut part = spte;
                    // Down to 4K, so that the caller goes up from one level whatever it was.
                    for n in (1..=level.index()).rev() {
                        part = self.format.part(part, Level::of_leaf(PageSize::ALL[n]), 0, SplitExecute::Keep);
                    }
                    return Ok(Some((part, Sfn::new(head))));
                }
                (Entry::Table(next), Some(below)) => {
                    if let Some((part, sfn)) = self.first_part(next, below, place.gfn)? {
                        let head = sfn.raw().checked_sub(place.gfn.raw() - base.raw());
                        return Ok(head.map(|head| (part, Sfn::new(head))));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The entry of `level` on the way to `gfn`, if the walk gets there.
    pub(super) fn entry_at(&self, gfn: Gfn, level: Level) -> Result<Option<(Place, Spte)>, BusError> {
        let (mut table, mut at) = (self.root(), Level::ROOT);
        loop {
            let place = Place::in_table(table, at, gfn);
            let spte = self.load(place)?;
            if at == level {
                return Ok(Some((place, spte)));
            }
            match (self.format.read(spte, at), at.below()) {
                (Entry::Table(next), Some(below)) => (table, at) = (next, below),
                _ => return Ok(None),
            }
        }
    }
}
