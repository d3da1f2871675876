//! Stage 5: writing the entry (`kvm_tdp_mmu_map`).

use emu_core::event::EventSink;
use emu_core::{PageSize, Sfn};
use gmem::{HostMemory, Invalidation};

use super::spte::{Entry, Level, Rights, Spte};
use super::tables::{Lost, Place, Tables};
use crate::config::VmError;
use crate::fault::level::Sized;

/// How an installation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The entry allows the access now.
    Fixed {
        /// Its level.
        size: PageSize,
    },
    /// It did already.
    Spurious,
    /// What the fault read has changed; nothing was written.
    Retry,
}

impl Tables {
    /// Puts the leaf that `fault` asks for into the tree, unless something it read has changed since.
    ///
    /// # Panics
    /// When the page is mapped to another frame already: some removal did not zap.
    pub fn install(
        &mut self,
        host: &mut HostMemory,
        invalidation: &Invalidation,
        fault: Sized,
        events: &mut dyn EventSink,
    ) -> Result<Outcome, VmError> {
        let gfn = fault.gfn();
        if invalidation.must_retry(fault.sample(), gfn) {
            return Ok(Outcome::Retry);
        }
        let goal = Level::of_leaf(fault.size());
        let (mut table, mut level) = (self.root, Level::ROOT);
        loop {
            let place = Place::in_table(table, level, gfn);
            let spte = self.load(place)?;
            let entry = self.format.read(spte, level);
            if let Entry::Leaf { sfn, rights } = entry {
                return self.widen(place, spte, sfn, rights, &fault, events);
            }
            let below = level.below().filter(|_| level > goal);
            let Some(below) = below else {
                return self.put_leaf(host, place, spte, &fault, events);
            };
            table = match entry {
                Entry::Table(next) => next,
                _ => {
                    let fresh = self.alloc_table(host, below)?;
                    if let Err(Lost) = self.change(place, spte, self.format.table(fresh), events)? {
                        self.free_table(host, fresh, below);
                        return Ok(Outcome::Retry);
                    }
                    fresh
                }
            };
            level = below;
        }
    }

    fn put_leaf(
        &mut self,
        host: &mut HostMemory,
        place: Place,
        old: Spte,
        fault: &Sized,
        events: &mut dyn EventSink,
    ) -> Result<Outcome, VmError> {
        let size = fault.size();
        let leaf = self.format.leaf(fault.sfn().align_down(size), size, fault.rights());
        if let Err(Lost) = self.change(place, old, leaf, events)? {
            return Ok(Outcome::Retry);
        }
        // A table that stood here is left over from smaller pages.
        if let (Entry::Table(table), Some(below)) = (self.format.read(old, place.level), place.level.below()) {
            self.drop_tree(host, table, below, place.gfn, events)?;
        }
        Ok(Outcome::Fixed { size })
    }

    /// The page is mapped, by a leaf of whatever size. If it does not allow the access it gets the rights it may have.
    fn widen(
        &mut self,
        place: Place,
        old: Spte,
        head: Sfn,
        had: Rights,
        fault: &Sized,
        events: &mut dyn EventSink,
    ) -> Result<Outcome, VmError> {
        let Some(size) = place.level.leaf_size() else { return Ok(Outcome::Retry) };
        let mapped = head.raw() + (fault.gfn().raw() - place.gfn.raw());
        assert_eq!(mapped, fault.sfn().raw(), "{:?} is mapped to another frame than its folio's", fault.gfn());
        if had.allow(fault.kind()) {
            return Ok(Outcome::Spurious);
        }
        let wide = self.format.leaf(head, size, had | fault.rights());
        Ok(match self.change(place, old, wide, events)? {
            Ok(_) => Outcome::Fixed { size },
            Err(Lost) => Outcome::Retry,
        })
    }
}
