//! Races of the memory pipeline, found by machine.
//!
//! [`SCENARIOS`] are a few tasks each: processors that fault, and a host that punches, converts and withdraws meanwhile.
//! [`interleave`] runs them under every order of their steps that a strategy chooses, and after each step the
//! pipeline's invariants are looked at. [`Defect`]s are known bugs that can be put back in; [`Scenario::shows`] says
//! which of them a scenario must bring to light. Without a defect no order may break anything.
//!
//! - [`world`]: the VM, its processors' TLBs, and the invariants.
//! - [`programs`]: the scenarios' tasks; [`directed`]: those of one task.
//! - [`catalogue`]: the known races and mistakes by number, and which scenario shows each.
//! - [`words`]: what a step means, for the reader of a timeline.
//! - [`choices`]: an interleaving as a line of text.

pub mod catalogue;
pub mod choices;
mod directed;
mod programs;
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
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// The scenario that shows `defect`.
    pub fn showing(defect: Defect) -> Option<&'static Scenario> {
        SCENARIOS.iter().find(|scenario| scenario.shows.contains(&defect))
    }

    /// A finding as columns of steps in words, one column a task.
    pub fn picture(&self, defects: Defects, finding: &Finding) -> String {
        let program = self.start(defects);
        let names: Vec<&str> = program.threads.iter().map(|thread| thread.0).collect();
        timeline::render(finding, &names, &|pause| words::of(pause).to_owned())
    }
}

/// Every scenario.
pub const SCENARIOS: [Scenario; 19] = [
    Scenario {
        name: "fault-punch",
        what: "a processor touches a page while it is punched out",
        shows: &[Defect::SkipStaleCheck, Defect::SampleAfterLookup, Defect::IgnoreRangeInProgress],
        start: programs::fault_and_punch,
    },
    Scenario {
        name: "tlb-punch",
        what: "a processor reads a page again and again while it is punched out: translations must go with it",
        shows: &[Defect::SkipFlush],
        start: programs::tlb_and_punch,
    },
    Scenario {
        name: "fault-two-punches",
        what: "two inodes are punched at once, and a processor touches the first",
        shows: &[Defect::ResetRangeOnBegin],
        start: programs::fault_and_two_punches,
    },
    Scenario {
        name: "fault-convert",
        what: "the host makes shared what a processor touches as private",
        shows: &[Defect::StoreAttributeAfterEnd],
        start: programs::private_fault_and_conversion,
    },
    Scenario {
        name: "unbind-punch",
        what: "a memslot is deleted while pages it shows are punched out, and a processor touches them",
        shows: &[Defect::UnlockDuringInvalidation],
        start: programs::unbind_and_punch,
    },
    Scenario {
        name: "two-faults-punch",
        what: "two processors touch the same pages while they are punched out",
        shows: &[],
        start: programs::two_faults,
    },
    Scenario {
        name: "two-huge-faults",
        what: "two processors touch one huge page that is reserved once",
        shows: &[Defect::AllocateTwice],
        start: programs::two_huge_faults,
    },
    Scenario {
        name: "huge-fault-convert",
        what: "a processor touches a huge page while another page of it is made private",
        shows: &[Defect::NarrowConversion],
        start: programs::huge_fault_and_conversion,
    },
    Scenario {
        name: "fault-unbind",
        what: "a memslot is deleted while a processor touches it",
        shows: &[Defect::KeepBinding],
        start: programs::fault_and_unbind,
    },
    Scenario {
        name: "misaligned-slot",
        what: "processors touch huge pages through a slot that shows them one page out of step",
        shows: &[Defect::OrderWithoutCongruence],
        start: programs::misaligned_slot,
    },
    Scenario {
        name: "faults-convert-empty",
        what: "pages that were never populated are made private while processors touch them",
        shows: &[],
        start: programs::faults_and_conversion_of_nothing,
    },
    Scenario {
        name: "fault-failure",
        what: "the memory of a page fails while a processor touches it",
        shows: &[Defect::FailureTellsNobody],
        start: programs::fault_and_failure,
    },
    Scenario {
        name: "refused-conversion",
        what: "a conversion to private is refused because of one page",
        shows: &[Defect::RollbackSharesAll],
        start: directed::refused_conversion,
    },
    Scenario {
        name: "conversion-without-memory",
        what: "the bookkeeping of a conversion runs out of memory",
        shows: &[Defect::SilentPartial],
        start: directed::conversion_without_memory,
    },
    Scenario {
        name: "small-hole",
        what: "one page is punched out of a huge page",
        shows: &[Defect::HoleClearsHugePage],
        start: directed::small_hole,
    },
    Scenario {
        name: "upper-hole",
        what: "the upper half of a huge page is punched out",
        shows: &[Defect::HoleClearsFromHead],
        start: directed::upper_hole,
    },
    Scenario {
        name: "small-allocation",
        what: "a few pages of a huge page are populated",
        shows: &[Defect::AllocationRoundsDown],
        start: directed::small_allocation,
    },
    Scenario {
        name: "fresh-huge-page",
        what: "a fresh huge page is read beyond its first 4 KiB",
        shows: &[Defect::ClearFirst4K],
        start: directed::fresh_huge_page,
    },
    Scenario {
        name: "page-by-page",
        what: "a huge page is made private page by page",
        shows: &[Defect::MergeInsideRangeOnly],
        start: directed::page_by_page,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defect_has_a_scenario_and_names_are_unique() {
        for defect in Defect::ALL {
            assert!(Scenario::showing(defect).is_some(), "{defect:?}");
        }
        for scenario in &SCENARIOS {
            assert_eq!(SCENARIOS.iter().filter(|other| other.name == scenario.name).count(), 1);
        }
    }
}
