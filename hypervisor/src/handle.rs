//! A nested fault from its exit to its answer (`kvm_mmu_page_fault`, `kvm_tdp_mmu_page_fault`): the stages of
//! [`crate::fault`] in their order, with the locks and checks between them.

use std::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::event::{Bits, ClipReason, Event, FaultOutcome, Stage};
use emu_core::sync::{Point, Task};
use emu_core::{AccessKind, PageSize};
use gmem::Shareability;
use gmem::mm::UserAccess;

use crate::config::VmError;
use crate::fault::level::Sized;
use crate::fault::{
    Action, EntryState, FaultCause, FaultInput, MemoryFaultReason, Resumed, Stop, Unresolved, admit, back, level,
    memory_fault, resolve,
};
use crate::flush::Owed;
use crate::kind::VmKind;
use crate::memslot::Slot;
use crate::mmio::MmioFault;
use crate::params::NxHugePages;
use crate::tdp::{AdType, Fast, Install, Logged, Outcome, Rights, Touch};
use crate::vcpu::{Vcpu, VcpuId, VcpuMmu};
use crate::vm::Vm;

const RETRY: Stop = Stop::Answer(Action::Resume(Resumed::Retry));

impl Vm {
    /// Answers a nested fault of `vcpu`.
    pub fn handle_fault(&self, vcpu: VcpuId, fault: FaultInput, task: &Task<'_>) -> Result<Action, VmError> {
        let vcpu = self.vcpu(vcpu)?;
        let mut own = vcpu.mmu.lock(task);
        own.stats.taken += 1;
        own.stats.on_guest_tables += u64::from(fault.cause == FaultCause::GuestTable);
        own.stats.denied += u64::from(fault.entry == EntryState::Denied);
        task.report_with(|| Event::PageFault { gpa: fault.gpa, access: fault.kind, error_code: fault.error_code() });
        let done = self.fault(vcpu, &mut own, fault, Touch::Demand, task).and_then(|resumed| {
            if let EntryState::Rmp(cause) = fault.entry
                && resumed != Resumed::Retry
            {
                self.rmp_fault(&fault, cause, task)?;
            }
            Ok(resumed)
        });
        let action = match done {
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
        let repeats = own.repeats.note(&fault, &action, self.invalidation.seq());
        own.stats.most_repeats = own.stats.most_repeats.max(repeats);
        Ok(action)
    }

    /// The stages. `own` is the processor's, whose mutex the caller holds.
    pub(crate) fn fault(
        &self,
        vcpu: &Vcpu,
        own: &mut VcpuMmu,
        input: FaultInput,
        touch: Touch,
        task: &Task<'_>,
    ) -> Result<Resumed, Stop> {
        task.report(Event::FaultStage { stage: Stage::Resolve });
        if own.ring.as_ref().is_some_and(|ring| ring.room() == 0) {
            return Err(VmError::DirtyRingFull.into());
        }
        let gfn = input.gpa.frame();
        if input.entry == EntryState::Reserved && self.mmio_fault(own, gfn, task)? == MmioFault::Mmio {
            return Err(match input.privacy.is_private() {
                true if self.kind == VmKind::Snp => VmError::PrivateMmio { gpa: input.gpa }.into(),
                true => memory_fault(&input, MemoryFaultReason::PrivateWithoutSlot),
                false => Stop::Answer(Action::Mmio { gpa: input.gpa }),
            });
        }
        // Held to the end: whoever withdraws a slot waits for the faults that use it.
        let slots = self.slots.read(task);
        task.at(Point::F0);
        let (slots, reused) = match task.has(Defect::TrustReusedFile) {
            true => self.look_up_again(slots, gfn, task),
            false => (slots, None),
        };
        let found = match &reused {
            Some(slot) => Some(slot),
            None => slots.lookup_near(gfn, &mut own.slot),
        };
        let input = self.kind.meant(input, || self.attribute_in(found, gfn, task));
        let unresolved = Unresolved::new(input, &self.invalidation);
        task.at(Point::F1);
        let fault = match resolve::resolve(found, unresolved) {
            Ok(fault) => fault,
            Err(stop) => {
                if touch == Touch::Demand && matches!(stop, Stop::Answer(Action::Mmio { .. })) {
                    self.remember_mmio(own, gfn, &slots, task)?;
                }
                return Err(stop);
            }
        };
        let attribute = self.slot_attribute(fault.slot(), unresolved.gfn(), task);
        if touch == Touch::Demand
            && let Some(resumed) = self.fast_fault(own, fault.slot(), &input, attribute, task)?
        {
            return Ok(resumed);
        }
        task.at(Point::F2);
        task.report(Event::FaultStage { stage: Stage::Admit });
        let fault = admit::admit(attribute, fault)?;
        if unresolved.is_stale(&self.invalidation, task) {
            // Saves populating a page that is about to go.
            return Err(RETRY);
        }
        task.report(Event::FaultStage { stage: Stage::TopUp });
        own.tables.top_up(&self.host, task)?;
        task.report(Event::FaultStage { stage: Stage::FaultIn });
        task.at(Point::F3);
        let backed = back::fault_in(fault, self, task)?;
        let slot = backed.fault().fault().slot();
        task.at(Point::F4);
        let sampled = match task.has(Defect::SampleAfterLookup) {
            true => Unresolved::new(input, &self.invalidation),
            false => unresolved,
        };
        let is_stale = || sampled.is_stale(&self.invalidation, task) && !task.has(Defect::SkipStaleCheck);
        if is_stale() {
            return Err(RETRY);
        }
        let is_obsolete = || touch == Touch::Demand && vcpu.obsolete.load(Ordering::Acquire);
        task.report(Event::FaultStage { stage: Stage::Lock });
        task.at(Point::F5);
        let mut owed = Owed::default();
        let mut unmarked = None;
        let outcome = {
            let tables = self.mmu.read(task);
            if is_stale() || is_obsolete() {
                return Err(RETRY);
            }
            task.report(Event::FaultStage { stage: Stage::Level });
            let fault = self.limited(level::choose(&backed, self, task), slot);
            if task.is_reporting() {
                report_level(&fault, slot, self, task);
            }
            task.report(Event::FaultStage { stage: Stage::Install });
            task.at(Point::F6);
            let outcome = tables.install(
                &fault,
                &mut Install {
                    cache: &mut own.tables,
                    walked: &mut own.walked,
                    owed: &mut owed,
                    touch,
                    nx: self.nx_huge_pages(),
                    task,
                },
            )?;
            if matches!(outcome, Outcome::Fixed { .. }) && fault.rights().contains(Rights::WRITE) {
                // Whether or not this access writes, the next one may without being noticed.
                self.mark_dirty(slot, fault.gfn(), own.ring.as_mut(), task);
            }
            task.report(Event::FaultStage { stage: Stage::Finish });
            self.flush(&owed, task);
            task.at(Point::F7);
            if task.has(Defect::MarkAfterRelease) {
                unmarked = backed.page().release_early();
            }
            // The page is marked and let go while nobody can take it away.
            drop(backed);
            outcome
        };
        if !owed.is_empty() {
            // A huge leaf took the place of a table, which can be freed once nobody walks it.
            self.mmu.write(task).bury(&self.host, task);
        }
        drop(slots);
        task.at(Point::F8);
        if let Some((sfn, rights)) = unmarked {
            self.host.lock(task).mark_page(sfn, rights == UserAccess::Write);
        }
        Ok(match outcome {
            Outcome::Fixed { size } => Resumed::Fixed { size },
            Outcome::Spurious => Resumed::Spurious,
            Outcome::Retry => Resumed::Retry,
        })
    }

    /// The leaf is no larger than logging and the NX workaround let it be.
    #[inline(always)]
    fn limited<'s>(&self, fault: Sized<'s>, slot: &Slot) -> Sized<'s> {
        let executes = fault.kind() == AccessKind::Execute && self.nx_huge_pages() == NxHugePages::On;
        match slot.log().is_some() {
            // Not a table that could be recovered: nothing larger was possible.
            true => fault.capped(PageSize::Size4K),
            false if executes => fault.at_most(PageSize::Size4K),
            false => fault,
        }
    }

    /// Whether rights that are only withheld or tracked answer the fault (`page_fault_can_be_fast`). What the guest means
    /// must agree with what the page is: otherwise the entry of the other side would look like an answer for ever.
    fn fast_fault(
        &self,
        own: &mut VcpuMmu,
        slot: &Slot,
        input: &FaultInput,
        attribute: Shareability,
        task: &Task<'_>,
    ) -> Result<Option<Resumed>, Stop> {
        let may_be_tracked = self.tdp.ad() == AdType::Disabled;
        let candidate = match input.entry {
            EntryState::Reserved | EntryState::Rmp(_) => false,
            EntryState::NotPresent => may_be_tracked,
            EntryState::Denied => may_be_tracked || input.kind == AccessKind::Write,
        };
        if !candidate || attribute != input.privacy && !task.has(Defect::FastPathIgnoresPrivacy) {
            return Ok(None);
        }
        task.report(Event::FaultStage { stage: Stage::Fast });
        let logged = if slot.log().is_some() { Logged::Yes } else { Logged::No };
        let gfn = input.gpa.frame();
        Ok(match self.tdp.fast_fault(gfn, input.kind, logged, task).map_err(VmError::from)? {
            Fast::Declined => None,
            Fast::Spurious => Some(Resumed::Spurious),
            Fast::Fixed { size, old, new } => {
                own.stats.fast += 1;
                task.report_with(|| Event::FastPageFault {
                    gpa: input.gpa,
                    error_code: input.error_code(),
                    old_spte: Bits(old.raw()),
                    new_spte: Bits(new.raw()),
                    outcome: FaultOutcome::Fixed,
                });
                if input.kind == AccessKind::Write {
                    // Afterwards, and before the guest can write: a harvest in between arms the leaf again, and the write
                    // faults again.
                    self.mark_dirty(slot, gfn, own.ring.as_mut(), task);
                }
                Some(Resumed::Fixed { size })
            }
        })
    }
}

/// Reports the leaf that a fault asks for, and what made it smaller than the memory behind it.
#[cold]
fn report_level(fault: &Sized<'_>, slot: &Slot, vm: &Vm, task: &Task<'_>) {
    let (gfn, sfn, size) = (fault.gfn(), fault.sfn(), fault.size());
    task.report(Event::SpteRequested { gfn, sfn, size });
    let folio = fault.folio_size();
    if size == folio {
        return;
    }
    let fits = level::largest(slot.info(), gfn, sfn, folio);
    let reason = if size < fault.requested() {
        ClipReason::NxHugePage
    } else if slot.log().is_some() {
        ClipReason::DirtyLogging
    } else if size == vm.pages.max_level {
        ClipReason::Limit
    } else if vm.snp.is_some() && {
        let (memory, origin) = fault.memory();
        size < level::allowed_by_memory(vm, slot, gfn, memory, origin, task)
    } {
        ClipReason::Rmp
    } else if size < fits {
        ClipReason::Attributes
    } else if (gfn.raw() ^ sfn.raw()) & (folio.frames() - 1) != 0 {
        ClipReason::Alignment
    } else {
        ClipReason::Slot
    };
    task.report(Event::OrderClipped { gfn, folio, size, reason });
}
