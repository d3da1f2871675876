//! Tables that exist only because leaves above 4K may not be executed (`possible_nx_huge_pages`).
//!
//! [`Tables::install`] notes a table here when a fetch made it where a huge leaf was possible. A worker gives some of them
//! up now and then ([`Tables::recover_nx`]): if the code in them is not executed any more, the next fault maps a huge leaf
//! again.

use std::collections::VecDeque;

use emu_core::event::Event;
use emu_core::memory::BusError;
use emu_core::sync::Task;
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

    /// Gives up the oldest `nr` tables that `may_go` (`kvm_recover_nx_huge_pages`); how many went. One is zapped only if
    /// the entry above still leads to it: another fault may have replaced it since it was listed.
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
            let spte = self.load(parent)?;
            let leads = self.format.read(spte, parent.level) == Entry::Table(table);
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
