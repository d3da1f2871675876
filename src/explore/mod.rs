//! Races of the memory pipeline, found by machine.
//!
//! [`scenarios`] are a few tasks each: processors that fault, and a host that punches, converts and withdraws meanwhile.
//! [`interleave`] runs them under every order of their steps that a strategy chooses, and after each step the
//! pipeline's invariants are looked at. [`Defect`]s are known bugs that can be put back in; [`Scenario::shows`] says
//! which of them a scenario must bring to light. Without a defect no order may break anything.
//!
//! - [`world`]: the VM and the invariants; [`processor`]: its processors; [`migration`]: a VMM that copies its memory.
//! - [`programs`]: faults against changes of backing; [`logging`]: the fast path and logs of writes; [`roots`]: entries
//!   and roots that go another way; [`lifetime`]: how files end; [`records`]: the VM's own attributes; [`references`]:
//!   those of the host; [`splits`]: huge folios; [`user_memory`]: the VMM's address space; [`shadowed`]: guests over
//!   shadow tables; [`recycled`]: what is used after it was freed; [`launch`]: launch images; [`snp`]: guests under
//!   SEV-SNP; [`directed`]: histories of one task.
//! - [`catalogue`]: the known races and mistakes by number, and which scenario shows each.
//! - [`words`]: what a step means, for the reader of a timeline.
//! - [`choices`]: an interleaving as a line of text.

pub mod catalogue;
pub mod choices;
mod directed;
mod launch;
mod lifetime;
mod logging;
mod migration;
mod processor;
mod programs;
mod records;
mod recycled;
mod references;
mod roots;
mod shadowed;
mod snp;
mod splits;
mod user_memory;
pub mod words;
mod world;

use emu_core::defect::{Defect, Defects};
use interleave::{Finding, Program, timeline};

/// A few tasks whose steps interleave.
#[derive(Clone, Copy)]
pub struct Scenario {
    /// Its name on a command line.
    pub name: &'static str,
    /// What happens at the same time, in a line.
    pub what: &'static str,
    /// The known bugs that it brings to light.
    pub shows: &'static [Defect],
    start: fn(Defects) -> Program,
}

impl Scenario {
    /// A fresh program for a pipeline with these defects.
    pub fn start(&self, defects: Defects) -> Program {
        (self.start)(defects)
    }

    /// The scenario of this name.
    pub fn named(name: &str) -> Option<&'static Scenario> {
        scenarios().find(|scenario| scenario.name == name)
    }

    /// The scenario that shows `defect`.
    pub fn showing(defect: Defect) -> Option<&'static Scenario> {
        scenarios().find(|scenario| scenario.shows.contains(&defect))
    }

    /// Its tasks' names.
    pub fn tasks(&self, defects: Defects) -> Vec<&'static str> {
        self.start(defects).threads.iter().map(|thread| thread.0).collect()
    }

    /// A finding as columns of steps in words, one column a task.
    pub fn picture(&self, defects: Defects, finding: &Finding) -> String {
        timeline::render(finding, &self.tasks(defects), &|pause| words::of(pause).to_owned())
    }
}

/// The scenarios of each module, in the order in which they are told.
const GROUPS: &[&[Scenario]] = &[
    programs::SCENARIOS,
    logging::SCENARIOS,
    roots::SCENARIOS,
    lifetime::SCENARIOS,
    records::SCENARIOS,
    references::SCENARIOS,
    splits::SCENARIOS,
    user_memory::SCENARIOS,
    shadowed::SCENARIOS,
    recycled::SCENARIOS,
    launch::SCENARIOS,
    snp::sizes::SCENARIOS,
    snp::owners::SCENARIOS,
    snp::host::SCENARIOS,
    snp::areas::SCENARIOS,
    directed::SCENARIOS,
];

/// Every scenario.
pub fn scenarios() -> impl Iterator<Item = &'static Scenario> {
    GROUPS.iter().copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_has_a_scenario_and_names_are_unique() {
        for &defect in Defect::ALL {
            assert!(Scenario::showing(defect).is_some(), "{defect:?}");
        }
        for scenario in scenarios() {
            assert_eq!(scenarios().filter(|other| other.name == scenario.name).count(), 1);
        }
    }
}
