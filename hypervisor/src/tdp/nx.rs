//! Tables that exist only because leaves above 4K may not be executed (`possible_nx_huge_pages`).
//!
//! [`Tables::install`] notes a table here when a fetch made it where a huge leaf was possible. A worker gives some of them
//! up now and then ([`Tables::recover_nx`]): if the code in them is not executed any more, the next fault maps a huge leaf
//! again.

use std::collections::VecDeque;

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::memory::BusError;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, Spa};

use super::spte::{Entry, Spte};
use super::tables::{Place, Tables};
use crate::flush::Owed;

/// The list, oldest first.
#[derive(Debug, Default)]
pub(super) struct NxTables {
    list: VecDeque<(Spa, Place)>,
}

impl NxTables {
    pub(super) fn forget(&mut self, table: Spa) {
        self.list.retain(|(other, _)| *other != table);
    }
}

impl Tables {
    pub(super) fn track_nx(&self, table: Spa, parent: Place, task: &Task<'_>) {
        self.kept.lock(task).nx.list.push_back((table, parent));
    }

    pub(super) fn is_nx_disallowed(&self, table: Spa, task: &Task<'_>) -> bool {
        self.kept.lock(task).nx.list.iter().any(|(other, _)| *other == table)
    }

    /// Tables on the list, with the first guest frame under each and how many frames that is.
    pub fn nx_tables(&self, task: &Task<'_>) -> Vec<(Gfn, u64)> {
        self.kept.lock(task).nx.list.iter().map(|(_, parent)| (parent.gfn, parent.level.frames())).collect()
    }

    /// The first guest frame under a listed table to which the entry above does not lead, or which is listed twice: for
    /// checks.
    pub(crate) fn misplaced_nx_table(&self, task: &Task<'_>) -> Result<Option<Gfn>, BusError> {
        let kept = self.kept.lock(task);
        for (n, (table, parent)) in kept.nx.list.iter().enumerate() {
            let leads = self.format.read(self.load(*parent)?, parent.level) == Entry::Table(*table);
            if !leads || kept.nx.list.iter().skip(n + 1).any(|(other, _)| other == table) {
                return Ok(Some(parent.gfn));
            }
        }
        Ok(None)
    }

    /// Gives up the oldest `nr` tables that `may_go` (`kvm_recover_nx_huge_pages`); how many went. One is zapped only if
    /// the entry above still leads to it: a fault that found it on the list no more may have replaced it. `mmu_lock` is
    /// held, for reading at least, and what is owed is flushed before it is given up.
    pub(crate) fn recover_nx(
        &self,
        nr: usize,
        may_go: &dyn Fn(Gfn, u64) -> bool,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<usize, BusError> {
        let mut gone = 0;
        for _ in 0..nr {
            let Some((table, parent)) = self.kept.lock(task).nx.list.pop_front() else { break };
            if !may_go(parent.gfn, parent.level.frames()) {
                // To the end: others get their turn.
                self.kept.lock(task).nx.list.push_back((table, parent));
                continue;
            }
            task.at(Point::N1);
            let spte = self.load(parent)?;
            let leads = self.format.read(spte, parent.level) == Entry::Table(table) || task.has(Defect::RecoverBlindly);
            if let (true, Some(below)) = (leads, parent.level.below())
                && self.change(parent, spte, Spte::ABSENT, owed, task)?.is_ok()
            {
                self.drop_tree(table, below, parent.gfn, owed, task)?;
                gone += 1;
                if let Some(size) = parent.level.leaf_size() {
                    task.report(Event::NxRecovered { gfn: parent.gfn, size });
                }
            }
        }
        Ok(gone)
    }
}
