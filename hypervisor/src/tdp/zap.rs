//! Removing leaves and harvesting accessed and dirty flags.

use emu_core::event::EventSink;
use emu_core::memory::BusError;
use emu_core::{Gfn, PageSize, Spa};
use gmem::HostMemory;

use super::spte::{Entry, Level, Spte};
use super::tables::{Place, Tables};

/// Which flag to harvest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdBit {
    /// Accessed.
    Accessed,
    /// Dirty.
    Dirty,
}

impl Tables {
    /// Removes every leaf that reaches into `[first, first + nr_pages)`; tables stay for the next fault.
    pub fn zap(&mut self, first: Gfn, nr_pages: u64, events: &mut dyn EventSink) -> Result<(), BusError> {
        self.for_each_leaf(first, nr_pages, &mut |tables, place, spte| {
            tables.clear(place, spte, events)?;
            Ok(())
        })
    }

    /// Removes everything but the root.
    pub fn zap_all(&mut self, host: &mut HostMemory, events: &mut dyn EventSink) -> Result<(), BusError> {
        self.drop_entries(host, self.root, Level::ROOT, Gfn::new(0), events)?;
        self.owed.all();
        Ok(())
    }

    /// Clears a flag of every leaf in the range and calls `found` for those that had it. The flush is owed: until it
    /// happens, processors may set nothing because they still hold the flag.
    pub fn harvest(
        &mut self,
        first: Gfn,
        nr_pages: u64,
        bit: AdBit,
        events: &mut dyn EventSink,
        found: &mut dyn FnMut(Gfn, PageSize),
    ) -> Result<(), BusError> {
        let flag = match bit {
            AdBit::Accessed => self.format.accessed(),
            AdBit::Dirty => self.format.dirty(),
        };
        self.for_each_leaf(first, nr_pages, &mut |tables, place, spte| {
            if let (true, Some(size)) = (spte.raw() & flag != 0, place.level.leaf_size()) {
                let mut old = spte;
                while tables.change(place, old, tables.format.without(old, flag), events)?.is_err() {
                    old = tables.load(place)?;
                }
                found(place.gfn, size);
            }
            Ok(())
        })
    }

    fn for_each_leaf(
        &mut self,
        first: Gfn,
        nr_pages: u64,
        visit: &mut dyn FnMut(&mut Tables, Place, Spte) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        let top = Level::ROOT.frames() * 512;
        let (from, to) = (first.raw().min(top), first.raw().saturating_add(nr_pages).min(top));
        self.visit_in(self.root, Level::ROOT, from, to, visit)
    }

    /// Visits the leaves of one table that reach into `[from, to)`, which lies under that table.
    fn visit_in(
        &mut self,
        table: Spa,
        level: Level,
        from: u64,
        to: u64,
        visit: &mut dyn FnMut(&mut Tables, Place, Spte) -> Result<(), BusError>,
    ) -> Result<(), BusError> {
        let mut at = from;
        while at < to {
            let place = Place::in_table(table, level, Gfn::new(at));
            let next = (place.gfn.raw() + level.frames()).min(to);
            let spte = self.load(place)?;
            match (self.format.read(spte, level), level.below()) {
                (Entry::Leaf { .. }, _) => visit(self, place, spte)?,
                (Entry::Table(table), Some(below)) => self.visit_in(table, below, at, next, visit)?,
                _ => {}
            }
            at = next;
        }
        Ok(())
    }

    fn clear(&mut self, place: Place, spte: Spte, events: &mut dyn EventSink) -> Result<(), BusError> {
        let mut old = spte;
        while self.change(place, old, Spte::ABSENT, events)?.is_err() {
            old = self.load(place)?;
        }
        Ok(())
    }

    /// Removes what a table holds, then frees it. The entry that led to it is gone already.
    pub(super) fn drop_tree(
        &mut self,
        host: &mut HostMemory,
        table: Spa,
        level: Level,
        base: Gfn,
        events: &mut dyn EventSink,
    ) -> Result<(), BusError> {
        self.drop_entries(host, table, level, base, events)?;
        self.free_table(host, table, level);
        Ok(())
    }

    fn drop_entries(
        &mut self,
        host: &mut HostMemory,
        table: Spa,
        level: Level,
        base: Gfn,
        events: &mut dyn EventSink,
    ) -> Result<(), BusError> {
        for slot in 0..512 {
            let place = Place::in_table(table, level, Gfn::new(base.raw() + slot * level.frames()));
            let spte = self.load(place)?;
            let entry = self.format.read(spte, level);
            if entry != Entry::Absent {
                self.clear(place, spte, events)?;
            }
            if let (Entry::Table(below), Some(lower)) = (entry, level.below()) {
                self.drop_tree(host, below, lower, place.gfn, events)?;
            }
        }
        Ok(())
    }
}
