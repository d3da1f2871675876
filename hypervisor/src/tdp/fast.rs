//! The fast page fault: rights that are there for the taking, granted without any lock (`fast_page_fault`).
//!
//! It serves a store to a leaf whose W is withheld, and any access to a leaf whose rights are tracked. Nothing keeps the
//! leaf as it was read but the compare-exchange; a leaf of these tables always shows the same guest frame, so an equal
//! value means that nothing relevant happened in between. Tables that are being walked are not freed
//! ([`Tables::lockless`]).

use emu_core::memory::BusError;
use emu_core::sync::{Point, ReadGuard, Task};
use emu_core::{AccessKind, Gfn, PageSize};

use super::leaf::WriteState;
use super::spte::{Entry, Level, Spte};
use super::tables::{Place, Tables};
use crate::flush::Owed;

/// How often a walk is repeated that lost its entry to another writer.
const ATTEMPTS: usize = 5;

/// How the fast path ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fast {
    /// The leaf allows the access now. Whoever logs writes marks the page before the guest can write it.
    Fixed {
        /// Its size.
        size: PageSize,
        /// The leaf before.
        old: Spte,
        /// The leaf after.
        new: Spte,
    },
    /// It did already.
    Spurious,
    /// Not a case for the fast path (`RET_PF_INVALID`).
    Declined,
}

/// Whether stores to the slot are logged: then the fast path leaves huge leaves to be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logged {
    Yes,
    No,
}

impl Tables {
    /// Keeps every table from being freed, without keeping anybody from changing it (`walk_shadow_page_lockless_begin`).
    pub(crate) fn lockless<'a>(&'a self, task: &Task<'a>) -> ReadGuard<'a, ()> {
        self.walkers.read(task)
    }

    /// The entry at which a walk for `gfn` ends: a leaf, or whatever else is not a table. What it says may have changed by
    /// the time it is read.
    pub(super) fn last_entry(&self, gfn: Gfn) -> Result<(Place, Spte), BusError> {
        let (mut table, mut level) = (self.root(), Level::ROOT);
        loop {
            let place = Place::in_table(table, level, gfn);
            let spte = self.load(place)?;
            match (self.format.read(spte, level), level.below()) {
                (Entry::Table(next), Some(below)) => (table, level) = (next, below),
                _ => return Ok((place, spte)),
            }
        }
    }

    /// What stands at the end of the walk for `gfn`.
    pub(crate) fn last(&self, gfn: Gfn) -> Result<Entry, BusError> {
        let (place, spte) = self.last_entry(gfn)?;
        Ok(self.format.read(spte, place.level))
    }

    /// Tries to allow an access of `kind` to `gfn` without `mmu_lock`.
    pub(crate) fn fast_fault(
        &self,
        gfn: Gfn,
        kind: AccessKind,
        logged: Logged,
        task: &Task<'_>,
    ) -> Result<Fast, BusError> {
        let _walking = self.lockless(task);
        for _ in 0..ATTEMPTS {
            let (place, old) = self.last_entry(gfn)?;
            let (Entry::Leaf { .. }, Some(size)) = (self.format.read(old, place.level), place.level.leaf_size()) else {
                return Ok(Fast::Declined);
            };
            task.at(Point::FF1);
            if self.format.allows(old, place.level, kind) {
                return Ok(Fast::Spurious);
            }
            let mut new = self.format.restore_access(old);
            if kind == AccessKind::Write && self.format.write_state(new) == Some(WriteState::Withheld) {
                if logged == Logged::Yes && size > PageSize::Size4K {
                    return Ok(Fast::Declined);
                }
                new = self.format.grant_write(new);
            }
            if new == old || !self.format.allows(new, place.level, kind) {
                return Ok(Fast::Declined);
            }
            task.at(Point::FF2);
            // Rights are only added: nothing can be owed.
            if self.change(place, old, new, &mut Owed::default(), task)?.is_ok() {
                return Ok(Fast::Fixed { size, old, new });
            }
        }
        Ok(Fast::Declined)
    }
}
