//! A nested fault from its exit to its answer (`kvm_mmu_page_fault`, `kvm_tdp_mmu_page_fault`): the stages of
//! [`crate::fault`] in their order, with the locks and checks between them.

use emu_core::defect::Defect;
use emu_core::event::{Event, FaultOutcome, Stage};
use emu_core::sync::{Point, Task};

use crate::config::VmError;
use crate::fault::{
    Action, EntryState, FaultCause, FaultInput, Resumed, Stop, Unresolved, admit, back, level, resolve,
};
use crate::flush::Owed;
use crate::tdp::{Install, Outcome};
use crate::vcpu::{TableCache, VcpuId};
use crate::vm::Vm;

const RETRY: Stop = Stop::Answer(Action::Resume(Resumed::Retry));

impl Vm {
    /// Answers a nested fault of `vcpu`.
    pub fn handle_fault(&self, vcpu: VcpuId, fault: FaultInput, task: &Task<'_>) -> Result<Action, VmError> {
        let mut own = self.vcpu(vcpu)?.mmu.lock(task);
        own.stats.taken += 1;
        own.stats.on_guest_tables += u64::from(fault.cause == FaultCause::GuestTable);
        own.stats.denied += u64::from(fault.entry == EntryState::Denied);
        task.report_with(|| Event::PageFault { gpa: fault.gpa, access: fault.kind, error_code: fault.error_code() });
        let action = match self.fault(&mut own.tables, fault, task) {
            Ok(resumed) => Ok(Action::Resume(resumed)),
            Err(Stop::Answer(action)) => Ok(action),
            Err(Stop::Failed(error)) => Err(error),
        };
        task.report_with(|| Event::FaultDone {
            gpa: fault.gpa,
            outcome: action.as_ref().map_or(FaultOutcome::Error, |action| action.into()),
        });
        let action = action?;
        own.stats.count(&action);
        Ok(action)
    }

    fn fault(&self, cache: &mut TableCache, input: FaultInput, task: &Task<'_>) -> Result<Resumed, Stop> {
        task.report(Event::FaultStage { stage: Stage::Resolve });
        // Held to the end: whoever withdraws a slot waits for the faults that use it.
        let slots = self.slots.read(task);
        task.at(Point::F0);
        let input = self.kind.meant(input, &slots, task);
        let unresolved = Unresolved::new(input, &self.invalidation);
        task.at(Point::F1);
        let fault = resolve::resolve(&slots, unresolved)?;
        let attribute = fault.slot().inode().attribute(fault.index(), task);
        task.at(Point::F2);
        task.report(Event::FaultStage { stage: Stage::Admit });
        let fault = admit::admit(attribute, fault)?;
        if unresolved.is_stale(&self.invalidation, task) {
            // Saves populating a page that is about to go.
            return Err(RETRY);
        }
        task.report(Event::FaultStage { stage: Stage::TopUp });
        cache.top_up(&self.host, task)?;
        task.report(Event::FaultStage { stage: Stage::FaultIn });
        task.at(Point::F3);
        let fault = back::fault_in(fault, &self.host, task)?;
        task.at(Point::F4);
        let sampled = match task.has(Defect::SampleAfterLookup) {
            true => Unresolved::new(input, &self.invalidation),
            false => unresolved,
        };
        let is_stale = || sampled.is_stale(&self.invalidation, task) && !task.has(Defect::SkipStaleCheck);
        if is_stale() {
            return Err(RETRY);
        }
        task.report(Event::FaultStage { stage: Stage::Lock });
        task.at(Point::F5);
        let mut owed = Owed::default();
        let outcome = {
            let tables = self.mmu.read(task);
            if is_stale() {
                return Err(RETRY);
            }
            task.report(Event::FaultStage { stage: Stage::Level });
            let fault = level::choose(fault, self.pages.max_level, task);
            task.report(Event::FaultStage { stage: Stage::Install });
            task.at(Point::F6);
            let outcome = tables.install(&fault, &mut Install { cache, owed: &mut owed, task })?;
            task.report(Event::FaultStage { stage: Stage::Finish });
            self.flush(&owed, task);
            task.at(Point::F7);
            outcome
        };
        if !owed.is_empty() {
            // A huge leaf took the place of a table, which can be freed once nobody walks it.
            self.mmu.write(task).bury(&self.host, task);
        }
        drop(slots);
        task.at(Point::F8);
        Ok(match outcome {
            Outcome::Fixed { size } => Resumed::Fixed { size },
            Outcome::Spurious => Resumed::Spurious,
            Outcome::Retry => Resumed::Retry,
        })
    }
}
