//! Stage 5: writing the entry (`kvm_tdp_mmu_map`).

use emu_core::sync::Task;
use emu_core::{PageSize, Sfn};

use super::spte::{Entry, Level, Rights, Spte};
use super::tables::{Lost, Place, Tables};
use crate::config::VmError;
use crate::fault::level::Sized;
use crate::flush::Owed;
use crate::vcpu::TableCache;

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
    /// Another task changed the entry meanwhile; nothing was written.
    Retry,
}

/// What an installation may use and leaves behind.
pub(crate) struct Install<'a> {
    pub(crate) cache: &'a mut TableCache,
    pub(crate) owed: &'a mut Owed,
    pub(crate) task: &'a Task<'a>,
}

impl Tables {
    /// Puts the leaf that `fault` asks for into the tree. `mmu_lock` is held, for reading at least, and the fault was
    /// found not to be stale under it.
    ///
    /// # Panics
    /// When the page is mapped to another frame already: some removal did not zap.
    pub(crate) fn install(&self, fault: &Sized<'_>, with: &mut Install<'_>) -> Result<Outcome, VmError> {
        let gfn = fault.gfn();
        let goal = Level::of_leaf(fault.size());
        let (mut table, mut level) = (self.root, Level::ROOT);
        loop {
            let place = Place::in_table(table, level, gfn);
            let spte = self.load(place)?;
            let entry = self.format.read(spte, level);
            if entry == Entry::Frozen {
                return Ok(Outcome::Retry);
            }
            if let Entry::Leaf { sfn, rights } = entry {
                return self.widen(place, spte, sfn, rights, fault, with);
            }
            let below = level.below().filter(|_| level > goal);
            let Some(below) = below else {
                return self.put_leaf(place, spte, fault, with);
            };
            table = match entry {
                Entry::Table(next) => next,
                _ => {
                    let fresh = with.cache.take();
                    if let Err(Lost) = self.change(place, spte, self.format.table(fresh), with.owed, with.task)? {
                        with.cache.put(fresh);
                        return Ok(Outcome::Retry);
                    }
                    self.count_linked(below, with.task);
                    fresh
                }
            };
            level = below;
        }
    }

    fn put_leaf(&self, place: Place, old: Spte, fault: &Sized<'_>, with: &mut Install<'_>) -> Result<Outcome, VmError> {
        let size = fault.size();
        let leaf = self.format.leaf(fault.sfn().align_down(size), size, fault.rights());
        if let Err(Lost) = self.change(place, old, leaf, with.owed, with.task)? {
            return Ok(Outcome::Retry);
        }
        // A table that stood here is left over from smaller pages.
        if let (Entry::Table(table), Some(below)) = (self.format.read(old, place.level), place.level.below()) {
            self.drop_tree(table, below, place.gfn, with.owed, with.task)?;
        }
        Ok(Outcome::Fixed { size })
    }

    /// The page is mapped, by a leaf of whatever size. If it does not allow the access it gets the rights it may have.
    fn widen(
        &self,
        place: Place,
        old: Spte,
        head: Sfn,
        had: Rights,
        fault: &Sized<'_>,
        with: &mut Install<'_>,
    ) -> Result<Outcome, VmError> {
        let Some(size) = place.level.leaf_size() else { return Ok(Outcome::Retry) };
        let mapped = head.raw() + (fault.gfn().raw() - place.gfn.raw());
        assert_eq!(mapped, fault.sfn().raw(), "{:?} is mapped to another frame than its folio's", fault.gfn());
        if had.allow(fault.kind()) {
            return Ok(Outcome::Spurious);
        }
        let wide = self.format.leaf(head, size, had | fault.rights());
        Ok(match self.change(place, old, wide, with.owed, with.task)? {
            Ok(_) => Outcome::Fixed { size },
            Err(Lost) => Outcome::Retry,
        })
    }
}
