//! Aging leaves, with or without accessed flags.

use emu_core::memory::BusError;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, PageSize};

use super::leaf::SplitExecute;
use super::spte::Entry;
use super::tables::Tables;
use crate::age::Aging;
use crate::flush::Owed;
use crate::vcpu::TableCache;

impl Tables {
    /// See [`crate::Vm::age_range`]. The caller walks lockless.
    pub(crate) fn age(&self, first: Gfn, nr_pages: u64, aging: Aging, task: &Task<'_>) -> Result<bool, BusError> {
        let mut young = false;
        self.for_each_leaf(first, nr_pages, &mut |place, spte| {
            if self.format.is_accessed(spte) {
                young = true;
                if aging == Aging::Clear {
                    task.at(Point::FF2);
                    // Who loses leaves the leaf to whoever changed it; what is owed is not paid, see `crate::age`.
                    let _ = self.change(place, spte, self.format.age(spte), &mut Owed::default(), task)?;
                }
            }
            Ok(())
        })?;
        Ok(young)
    }

    /// The size of the leaf at `gfn`.
    pub(crate) fn leaf_size(&self, gfn: Gfn) -> Result<Option<PageSize>, BusError> {
        let (place, spte) = self.last_entry(gfn)?;
        let is_leaf = matches!(self.format.read(spte, place.level), Entry::Leaf { .. });
        Ok(place.level.leaf_size().filter(|_| is_leaf))
    }

    /// Splits the leaf that covers `end` and the frame before it, once; whether there may be more to do. `mmu_lock` is held,
    /// for reading at least.
    pub(crate) fn split_across(&self, end: Gfn, tables: &mut TableCache, task: &Task<'_>) -> Result<bool, BusError> {
        let (place, spte) = self.last_entry(end)?;
        let is_leaf = matches!(self.format.read(spte, place.level), Entry::Leaf { .. });
        if !is_leaf || place.gfn == end {
            return Ok(false);
        }
        let fresh = tables.take();
        if self.split(place, spte, fresh, SplitExecute::Keep, &mut Owed::default(), task)?.is_err() {
            tables.put(fresh);
        }
        Ok(true)
    }
}
