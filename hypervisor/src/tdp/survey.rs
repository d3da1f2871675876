//! All of a tree at one moment, for checks and listings.
//!
//! [`Tables::survey`] reads every table once, as a whole. Whoever calls it sees to it that nothing changes meanwhile, or
//! makes do with tables of slightly different moments.

use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gfn, Spa};

use super::spte::{Entry, Level, Spte};
use super::tables::{LeafView, Tables};

const ENTRIES: usize = PAGE_SIZE / size_of::<u64>();

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Every present leaf, ascending.
    pub leaves: Vec<LeafView>,
    /// Every table that a walk can reach, the root first.
    pub tables: Vec<Spa>,
    /// Entries of those that are frozen.
    pub frozen: u64,
}

impl Tables {
    /// Looks at everything that a walk from the root can reach.
    ///
    /// # Errors
    /// A table that lies outside system memory.
    pub fn survey(&self) -> Result<Survey, BusError> {
        let mut survey = Survey::default();
        self.look(self.root(), Level::ROOT, Gfn::new(0), &mut survey)?;
        Ok(survey)
    }

    /// Every present leaf, ascending.
    ///
    /// # Errors
    /// As [`Tables::survey`].
    pub fn leaves(&self) -> Result<Vec<LeafView>, BusError> {
        Ok(self.survey()?.leaves)
    }

    /// The leaves that are left under roots that were given up, root by root.
    ///
    /// # Errors
    /// As [`Tables::survey`].
    pub(crate) fn given_up_leaves(&self, task: &Task<'_>) -> Result<Vec<LeafView>, BusError> {
        let mut survey = Survey::default();
        let roots = self.kept.lock(task).invalid_roots.clone();
        roots.into_iter().try_for_each(|root| self.look(root, Level::ROOT, Gfn::new(0), &mut survey))?;
        Ok(survey.leaves)
    }

    fn look(&self, table: Spa, level: Level, base: Gfn, survey: &mut Survey) -> Result<(), BusError> {
        survey.tables.push(table);
        let mut page = [0; PAGE_SIZE];
        self.memory.read(table, &mut page)?;
        let (entries, _) = page.as_chunks::<{ PAGE_SIZE / ENTRIES }>();
        for (slot, entry) in (0..).zip(entries) {
            let spte = Spte::from_raw(u64::from_le_bytes(*entry));
            if spte == Spte::ABSENT {
                continue;
            }
            let gfn = Gfn::new(base.raw() + slot * level.frames());
            match (self.format.read(spte, level), level.leaf_size(), level.below()) {
                (Entry::Leaf { sfn, rights }, Some(size), _) => {
                    survey.leaves.push(LeafView { gfn, sfn, size, rights, spte });
                }
                (Entry::Table(next), _, Some(below)) => self.look(next, below, gfn, survey)?,
                (Entry::Frozen, ..) => survey.frozen += 1,
                _ => {}
            }
        }
        Ok(())
    }
}
