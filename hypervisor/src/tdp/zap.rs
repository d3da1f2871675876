//! Removing leaves and harvesting accessed and dirty flags.

use emu_core::memory::BusError;
use emu_core::sync::Task;
use emu_core::{Gfn, PageSize, Spa};

use super::spte::{Entry, Level, Spte};
use super::tables::{Place, Tables};
use crate::flush::Owed;

/// Which flag to harvest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdBit {
    /// Accessed.
    Accessed,
    /// Dirty.
    Dirty,
}

/// What a visit of leaves does with each.
type Visit<'v> = dyn FnMut(Place, Spte) -> Result<(), BusError> + 'v;

impl Tables {
    /// Removes every leaf that reaches into `[first, first + nr_pages)`, under roots that were given up too: for who takes
    /// the pages away (`kvm_tdp_mmu_unmap_gfn_range`). Tables stay for the next fault.
    pub(crate) fn zap(&self, first: Gfn, nr_pages: u64, owed: &mut Owed, task: &Task<'_>) -> Result<(), BusError> {
        if let Some(shadow) = self.shadow.lock(task).as_mut() {
            shadow.zap_range(first, nr_pages, owed, task);
        }
        self.all_roots(task).into_iter().try_for_each(|root| self.zap_under(root, first, nr_pages, owed, task))
    }

    /// The same under the current root alone: for who changes nothing but the mapping (`kvm_tdp_mmu_zap_leafs`). Where
    /// others should have `mmu_lock` in between it stops, and says from which guest frame on there may be more to do; what
    /// is owed by then must be flushed before the lock is given up.
    pub(crate) fn zap_valid(
        &self,
        first: Gfn,
        nr_pages: u64,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<Option<Gfn>, BusError> {
        if let Some(shadow) = self.shadow.lock(task).as_mut() {
            shadow.zap_range(first, nr_pages, owed, task);
        }
        if !task.needs_resched() {
            return self.zap_under(self.root(), first, nr_pages, owed, task).map(|()| None);
        }
        let end = first.raw().saturating_add(nr_pages);
        let mut found = None;
        self.for_each_leaf(first, nr_pages, &mut |place, _| {
            found = found.or(Some(place));
            Ok(())
        })?;
        let Some(place) = found else { return Ok(None) };
        self.zap_under(self.root(), place.gfn, place.level.frames(), owed, task)?;
        let next = place.gfn.raw() + place.level.frames();
        Ok((next < end).then(|| Gfn::new(next)))
    }

    fn zap_under(
        &self,
        root: Spa,
        first: Gfn,
        nr_pages: u64,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        let clear = &mut |place, spte| self.clear(place, spte, Spte::ABSENT, owed, task);
        self.for_each_leaf_under(root, first, nr_pages, clear)
    }

    /// Removes everything but the root. The tables that held it are freed by the next [`Tables::bury`].
    pub(crate) fn zap_all(&self, owed: &mut Owed, task: &Task<'_>) -> Result<(), BusError> {
        self.drop_entries(self.root(), Level::ROOT, Gfn::new(0), Spte::ABSENT, owed, task)?;
        self.forget_mmio_tables();
        owed.all();
        if let Some(shadow) = self.shadow.lock(task).as_mut() {
            shadow.zap_all(owed, task);
        }
        Ok(())
    }

    /// Clears a flag of every leaf in the range and calls `found` for those that had it. The flush is owed: until it
    /// happens, processors may set nothing because they still hold the flag. Leaves of shadow tables have no dirty flag that
    /// means anything: it is set with the right to write.
    pub(crate) fn harvest(
        &self,
        first: Gfn,
        nr_pages: u64,
        bit: AdBit,
        found: &mut dyn FnMut(Gfn, PageSize),
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        if let Some(shadow) = self.shadow.lock(task).as_mut()
            && bit == AdBit::Accessed
        {
            shadow.harvest_accessed(first, nr_pages, found, owed, task);
        }
        let flag = match bit {
            AdBit::Accessed => self.format.accessed(),
            AdBit::Dirty => self.format.dirty(),
        };
        let tables = self;
        tables.for_each_leaf(first, nr_pages, &mut |place, spte| {
            if let (true, Some(size)) = (spte.raw() & flag != 0, place.level.leaf_size()) {
                let mut old = spte;
                while tables.change(place, old, tables.format.without(old, flag), owed, task)?.is_err() {
                    old = tables.load(place)?;
                }
                found(place.gfn, size);
            }
            Ok(())
        })
    }

    pub(super) fn for_each_leaf(&self, first: Gfn, nr_pages: u64, visit: &mut Visit<'_>) -> Result<(), BusError> {
        self.for_each_leaf_under(self.root(), first, nr_pages, visit)
    }

    fn for_each_leaf_under(&self, root: Spa, first: Gfn, nr_pages: u64, visit: &mut Visit<'_>) -> Result<(), BusError> {
        let top = Level::ROOT.frames() * 512;
        let (from, to) = (first.raw().min(top), first.raw().saturating_add(nr_pages).min(top));
        self.visit_in(root, Level::ROOT, from, to, visit)
    }

    /// Visits the leaves of one table that reach into `[from, to)`, which lies under that table.
    fn visit_in(&self, table: Spa, level: Level, from: u64, to: u64, visit: &mut Visit<'_>) -> Result<(), BusError> {
        let mut at = from;
        while at < to {
            let place = Place::in_table(table, level, Gfn::new(at));
            let next = (place.gfn.raw() + level.frames()).min(to);
            let spte = self.load(place)?;
            match (self.format.read(spte, level), level.below()) {
                (Entry::Leaf { .. }, _) => visit(place, spte)?,
                (Entry::Table(table), Some(below)) => self.visit_in(table, below, at, next, visit)?,
                _ => {}
            }
            at = next;
        }
        Ok(())
    }

    /// Empties an entry, whatever others make of it meanwhile.
    fn clear(&self, place: Place, spte: Spte, to: Spte, owed: &mut Owed, task: &Task<'_>) -> Result<(), BusError> {
        let mut old = spte;
        while self.change(place, old, to, owed, task)?.is_err() {
            old = self.load(place)?;
            if old == to {
                break;
            }
        }
        Ok(())
    }

    /// Removes what a table holds, and the table. The entry that led to it is gone already, but others may be walking it:
    /// every entry is left frozen, so that none of them can put anything there (`handle_removed_pt`).
    pub(super) fn drop_tree(
        &self,
        table: Spa,
        level: Level,
        base: Gfn,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        self.drop_entries(table, level, base, Spte::FROZEN, owed, task)?;
        self.unlink(table, level, task);
        Ok(())
    }

    fn drop_entries(
        &self,
        table: Spa,
        level: Level,
        base: Gfn,
        leave: Spte,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), BusError> {
        for slot in 0..512 {
            let place = Place::in_table(table, level, Gfn::new(base.raw() + slot * level.frames()));
            let spte = self.load(place)?;
            if spte == leave {
                continue;
            }
            let replaced = loop {
                let spte = self.load(place)?;
                if let Ok(replaced) = self.change(place, spte, leave, owed, task)? {
                    break replaced;
                }
            };
            if let (Entry::Table(below), Some(lower)) = (self.format.read(replaced, level), level.below()) {
                self.drop_tree(below, lower, place.gfn, owed, task)?;
            }
        }
        Ok(())
    }
}
