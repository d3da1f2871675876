//! What must hold of a VM's memory, as named checks.
//!
//! [`Invariant`] is every rule that the pipeline is held to, declared once in [`table`] with its meaning, when it holds
//! and how it is looked at. [`Vm::check`] is the door: it takes one look at the VM without waiting for any lock and runs
//! every check that is a scan. What needs the past (sequence numbers, sizes that never change) is kept in a
//! [`CheckHistory`]; what only the caller can know (the processors' TLBs, what the guest meant by an access, who holds
//! references) it asks a [`Witness`].
//!
//! Always true: a check changes nothing and never waits; what somebody is changing at this moment is left out, not
//! guessed. Cost follows what is mapped and populated, and the tables are read again only when they changed.
//!
//! Left out: rules of a single call (what an error leaves behind, what a read returns), which the tests named in the table
//! prove; rules of parts that are not modelled, which the table calls open.

mod entries;
mod folios;
mod history;
mod inodes;
mod leaves;
mod logs;
mod pools;
mod protocol;
mod records;
mod rmp;
mod scene;
mod shadowed;
pub mod table;
mod witness;

use emu_core::sync::Task;
use thiserror::Error;

use crate::vm::Vm;
use scene::Scene;

pub use history::CheckHistory;
pub use table::{Checked, Invariant, When};
pub use witness::{Cached, Unseen, Witness};

/// What is going on while the checks look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Tasks may be anywhere between two of their steps.
    BetweenSteps,
    /// No operation is under way.
    Quiescent,
}

/// A rule is broken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{invariant}: {found}")]
pub struct Violation {
    /// The rule.
    pub invariant: Invariant,
    /// What was seen instead.
    pub found: String,
}

impl Vm {
    /// Runs every scan that is valid at `moment`. Nothing else may run meanwhile on other host threads: steps of a
    /// schedule, or a machine whose processors take turns.
    ///
    /// # Errors
    /// The first rule, in the order of the table, that does not hold.
    pub fn check(
        &self,
        moment: Moment,
        history: &mut CheckHistory,
        witness: &dyn Witness,
        task: &Task<'_>,
    ) -> Result<(), Violation> {
        history.look(self, task)?;
        let scene = Scene::of(self, moment, history, witness, task);
        for &invariant in Invariant::ALL {
            let Checked::Scan(scan) = invariant.checked() else { continue };
            let due = match invariant.when() {
                When::Always => true,
                When::MmuLockFree => scene.tables.is_some(),
                When::Quiescent => moment == Moment::Quiescent,
                When::Call => false,
            };
            if due {
                scan.run(&scene).map_err(|found| Violation { invariant, found })?;
            }
        }
        drop(scene);
        history.remember(self, task);
        Ok(())
    }

    /// [`Vm::check`] for a caller that has no TLBs to show and between whose operations nothing runs.
    ///
    /// # Errors
    /// As there.
    pub fn check_quiescent(&self, history: &mut CheckHistory) -> Result<(), Violation> {
        self.check(Moment::Quiescent, history, &Unseen, &Task::QUIET)
    }
}

#[cfg(test)]
mod tests;
