//! Looking at the hypervisor's invariants while the guest runs.
//!
//! [`hypervisor::check`] has the rules; the machine adds what only it can know, the translations that its processors have
//! cached. A check changes nothing and takes no time of the guest's, so that a run with checks is the run without them.

use emu_core::sync::Task;
use hypervisor::check::{Cached, CheckHistory, Moment, Witness};
use hypervisor::{VcpuId, shadow};

use super::{Machine, Outcome};

/// When to look, and what was seen before.
pub(super) struct Checks {
    /// Instructions between two looks, at least 1.
    interval: u64,
    /// The instruction after which the next one is due.
    due: u64,
    history: CheckHistory,
    /// Looks so far.
    pub(super) done: u64,
}

impl Checks {
    /// A look every `interval` instructions.
    pub(super) fn every(interval: u64) -> Checks {
        Checks { interval: interval.max(1), due: 0, history: CheckHistory::new(), done: 0 }
    }
}

/// The translations of each processor.
struct Processors(Vec<Vec<Cached>>);

impl Witness for Processors {
    fn translations(&self, vcpu: VcpuId, each: &mut dyn FnMut(Cached)) {
        self.0.get(usize::from(vcpu.0)).into_iter().flatten().for_each(|cached| each(*cached));
    }
}

impl Machine {
    /// Looks if it is time to. How the run ends if a rule is broken.
    pub(super) fn check_when_due(&mut self) -> Option<Outcome> {
        let done = self.instructions();
        match &self.checks {
            Some(checks) if checks.due <= done => self.check_invariants(),
            _ => None,
        }
    }

    /// Looks now, if the machine looks at all.
    pub(super) fn check_invariants(&mut self) -> Option<Outcome> {
        let at = self.instructions();
        self.flush_owed();
        let checks = self.checks.as_mut()?;
        let of_each = self.vcpus.iter_mut().map(|processor| {
            let mmu = processor.vcpu.mmu();
            let cached = mmu.cached_guest_pages();
            cached.map(|page| Cached { gfn: page.gpa.frame(), sfn: page.spa.frame(), size: page.size }).collect()
        });
        let witness = Processors(of_each.collect());
        checks.due = at.saturating_add(checks.interval);
        checks.done += 1;
        let seen = self.vm.check(Moment::Quiescent, &mut checks.history, &witness, &Task::QUIET);
        let features = cpu::Vcpu::paging_features(&self.config.model);
        let shadow =
            self.vm.tables(&Task::QUIET).with_shadow(&Task::QUIET, |pages| shadow::check::all(pages, &features));
        if let Some(Err(broken)) = shadow {
            return Some(Outcome::InvariantBroken { at, invariant: broken.rule.to_string(), found: broken.what });
        }
        seen.err().map(|violation| Outcome::InvariantBroken {
            at,
            invariant: violation.invariant.to_string(),
            found: violation.found,
        })
    }
}
