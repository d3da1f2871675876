//! Faults on purpose: when the host lies to its guest, and what came of it.
//!
//! [`crate::config::Injection`] says what; the hypervisor does it to memory by the instructions a host has
//! (`hypervisor::snp::memory`), and here the answers of VMGEXIT are falsified on their way to the guest. A lie is told once.
//! When the processor catches it, by a nested fault with the RMP bit, the host gives it up: leaves that show other frames
//! go, and the ordinary path puts the right ones back, as a host does that wants its guest to live.
//!
//! Always true: a run without `--inject` does not come here; the moment and the page are functions of configuration and seed.

use emu_core::cpuid::CpuidResult;
use emu_core::page::PAGE_SIZE;
use emu_core::rng::{Consumer, Seed, Stream};
use emu_core::time::{Duration, Instant};
use emu_core::{Access, AccessKind, Gfn, Gpa, Gva, PageSize, Privilege};
use hypervisor::LieError;
use hypervisor::snp::ghcb::{CpuidRequest, Field, GhcbMemory, VALID_BITMAP};
use mmu::{NestedFaultKind, NestedPageFault};

use super::vmgexit::Shared;
use crate::config::{Defence, Injection, Lie, LieTarget};
use crate::machine::{Machine, RunError};
use crate::vmm::hypercall::GpaRange;
use crate::vmm::memory;

/// How long the host keeps what it read before it writes it back, in instructions.
const REPLAY_AFTER: u64 = 1 << 20;

/// How often the host looks whether a program runs, in instructions.
const LOOK_AGAIN: u64 = 5_000;

/// SW_EXITINFO1 of a falsified answer: no outcome that the specification knows.
const NO_OUTCOME: u64 = 0xbad;

/// What became of a lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LieResult {
    /// It was told.
    Done,
    /// The architecture does not let the host do it.
    Refused(String),
    /// There was nothing to do it to.
    Impossible(String),
}

/// A lie that was told, or was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// What.
    pub lie: Lie,
    /// Instructions of all processors before it.
    pub at: u64,
    /// About which page.
    pub gpa: Option<Gpa>,
    /// Which page had a part in it besides.
    pub other: Option<Gpa>,
    /// What became of it.
    pub result: LieResult,
    /// What the architecture promises against it.
    pub promised: Defence,
    /// Instructions before the first nested fault with the RMP bit on one of these pages.
    pub caught: Option<u64>,
}

impl Injected {
    /// A lie at this moment that was told, about no page as yet.
    fn new(lie: Lie, at: u64) -> Injected {
        let promised = lie.defence(PageSize::Size4K);
        Injected { lie, at, gpa: None, other: None, result: LieResult::Done, promised, caught: None }
    }
}

/// What is still to be done.
enum Step {
    /// It is not time yet.
    Wait { until: u64 },
    /// To write back what was read.
    WriteBack { until: u64, gfn: Gfn, bytes: Box<[u8; PAGE_SIZE]> },
    /// To falsify the next answer that fits.
    Answer,
    /// To falsify what else is asked about this leaf of CPUID: through the MSR each register is a question of its own.
    Registers { leaf: u32, left: u8 },
    /// Nothing.
    Over,
}

/// The lie of a run.
pub(in crate::machine) struct Injector {
    plan: Injection,
    choice: Stream,
    step: Step,
    /// Pages whose leaves are wrong, or whose entries are.
    pages: Vec<(Gfn, PageSize)>,
    pub(in crate::machine) record: Option<Injected>,
}

impl Injector {
    pub(in crate::machine) fn new(plan: Injection, seed: Seed) -> Injector {
        let step = Step::Wait { until: plan.at };
        Injector { plan, choice: seed.stream(Consumer::Injection), step, pages: Vec::new(), record: None }
    }

    fn due(&self) -> Option<u64> {
        match self.step {
            Step::Wait { until } | Step::WriteBack { until, .. } => Some(until),
            Step::Answer | Step::Registers { .. } | Step::Over => None,
        }
    }

    /// Takes note that an answer was falsified.
    fn answered(&mut self, at: u64) {
        let lie = self.plan.lie;
        self.record = Some(Injected::new(lie, at));
        self.step = Step::Over;
    }

    /// One of `pages`, by the seed.
    fn choose(&mut self, pages: &[(Gfn, PageSize)]) -> Option<(Gfn, PageSize)> {
        pages.get(self.choice.below(pages.len() as u64) as usize).copied()
    }
}

impl Machine {
    /// Lies if it is time to. When it wants to next, if no other processor runs until then.
    pub(in crate::machine) fn lie_when_due(&mut self, n: usize) -> Result<Option<Instant>, RunError> {
        let Some(due) = self.injector.as_ref().and_then(Injector::due) else { return Ok(None) };
        let done = self.instructions();
        if due > done {
            return Ok(Some(self.now + Duration::new(due - done)));
        }
        let Some(mut injector) = self.injector.take() else { return Ok(None) };
        if injector.plan.target == LieTarget::User && matches!(injector.step, Step::Wait { .. }) && !self.runs_program()
        {
            injector.step = Step::Wait { until: done + LOOK_AGAIN };
            self.injector = Some(injector);
            return Ok(Some(self.now + Duration::new(LOOK_AGAIN)));
        }
        self.look_at_host();
        injector.step = self.lie(&mut injector, done);
        self.flush_owed();
        let next = injector.due().map(|due| self.now + Duration::new(due.saturating_sub(done).max(1)));
        self.injector = Some(injector);
        self.look_at(n);
        Ok(next)
    }

    fn lie(&mut self, injector: &mut Injector, done: u64) -> Step {
        let lie = injector.plan.lie;
        let mut step = Step::Over;
        let mut record = Injected::new(lie, done);
        let told = match core::mem::replace(&mut injector.step, Step::Over) {
            Step::Wait { .. } if !lie.is_about_a_page() => return Step::Answer,
            Step::WriteBack { gfn, bytes, .. } => {
                record.gpa = Some(gfn.base());
                self.vm.snp_host_write(gfn, &bytes, &self.lens.task())
            }
            _ => self.lie_about_a_page(injector, &mut record, &mut step),
        };
        record.result = match told {
            // The page was read, and is written later.
            Ok(()) if matches!(step, Step::WriteBack { .. }) => return step,
            Ok(()) => LieResult::Done,
            Err(cause) if cause.is_refusal() => LieResult::Refused(cause.to_string()),
            Err(cause) => LieResult::Impossible(cause.to_string()),
        };
        injector.record = Some(record);
        Step::Over
    }

    fn lie_about_a_page(
        &mut self,
        injector: &mut Injector,
        record: &mut Injected,
        step: &mut Step,
    ) -> Result<(), LieError> {
        let pages = self.vm.snp_mapped_pages(&self.lens.task())?;
        let gfn = match injector.plan.target {
            LieTarget::Seed => injector.choose(&pages).map(|(gfn, _)| gfn),
            LieTarget::Code => self.used_page(AccessKind::Execute),
            LieTarget::User => self.used_page(AccessKind::Write),
            LieTarget::Page(gpa) => Some(gpa.frame()),
        };
        let gfn = gfn.ok_or(LieError::NoPage { gfn: Gfn::new(0) })?;
        record.gpa = Some(gfn.base());
        let leaf = pages.iter().copied().find(|&(head, size)| head == gfn.align_down(size));
        let (head, size) = leaf.ok_or(LieError::NoPage { gfn })?;
        record.promised = record.lie.defence(size);
        let others: Vec<_> = pages.into_iter().filter(|&(other, its)| other != head && its == size).collect();
        let task = self.lens.task();
        let mut lied = vec![(head, size)];
        match record.lie {
            Lie::Replay => {
                let bytes = Box::new(self.vm.snp_read_ciphertext(gfn, &task)?);
                *step = Step::WriteBack { until: record.at + REPLAY_AFTER, gfn, bytes };
                return Ok(());
            }
            Lie::Remap | Lie::Swap => {
                let (other, _) = injector.choose(&others).ok_or(LieError::NoPage { gfn })?;
                record.other = Some(other.base());
                if record.lie == Lie::Remap {
                    self.vm.snp_remap(gfn, other, &task)?;
                } else {
                    self.vm.snp_swap(gfn, other, &task)?;
                    lied.push((other, size));
                }
            }
            Lie::Resize => self.vm.snp_resize(gfn, &task)?,
            Lie::Drop => self.vm.snp_drop(gfn, &task)?,
            Lie::DoubleValidate => self.give_another(head, size)?,
            // They are no page's.
            Lie::Ghcb | Lie::GhcbValid | Lie::Cpuid => return Ok(()),
        }
        injector.pages = lied;
        Ok(())
    }

    /// Punches the pages out of their guest_memfd: the next use faults, and gets memory that is assigned and not validated.
    fn give_another(&self, head: Gfn, size: PageSize) -> Result<(), LieError> {
        let task = self.lens.task();
        let range = GpaRange { gpa: head.base(), len_bytes: size.bytes() };
        let parts = memory::parts(&self.vm, range, &task).map_err(|_| LieError::NoPage { gfn: head })?;
        parts
            .iter()
            .try_for_each(|part| Ok(self.vm.punch_hole(part.gmem, part.offset_bytes, part.range.len_bytes, &task)?))
    }

    /// Whether the first processor executes a program, as its registers say: a debugger beneath the host can see them.
    fn runs_program(&mut self) -> bool {
        const CPL: u16 = 3;
        self.vcpu_state(0).is_some_and(|state| state.segments.regs[1].selector & CPL == CPL)
    }

    /// The page that the first processor executes, or that its stack pointer points to.
    fn used_page(&mut self, kind: AccessKind) -> Option<Gfn> {
        const RSP: usize = 4;
        let vcpu = self.vcpus.first_mut()?.vcpu.present()?;
        let state = vcpu.state();
        let gva = Gva::new(if kind == AccessKind::Execute { state.rip } else { state.gpr[RSP] });
        let probe = |privilege| vcpu.mmu().probe(gva, Access::new(kind, privilege)).ok();
        [Privilege::Supervisor, Privilege::User].into_iter().find_map(probe).map(|found| found.gpa.frame())
    }

    /// A nested fault: whether it catches the lie. The host that is caught undoes what it did to leaves.
    pub(in crate::machine) fn saw_nested_fault(&mut self, fault: &NestedPageFault) -> Result<(), RunError> {
        if self.injector.is_none() {
            return Ok(());
        }
        let done = self.instructions();
        let Some(injector) = &mut self.injector else { return Ok(()) };
        let gfn = fault.gpa.frame();
        if !injector.pages.iter().any(|&(head, size)| head == gfn.align_down(size)) {
            return Ok(());
        }
        if let (NestedFaultKind::Rmp(_), Some(record)) = (fault.kind, &mut injector.record) {
            record.caught.get_or_insert(done);
        }
        if matches!(injector.plan.lie, Lie::Remap | Lie::Swap) {
            for (head, size) in core::mem::take(&mut injector.pages) {
                self.vm.zap_range(head, size.frames(), &self.lens.task())?;
            }
            self.flush_owed();
        }
        Ok(())
    }

    /// What the guest is told about CPUID: the truth, or what is injected.
    pub(super) fn cpuid_answer(&mut self, request: &CpuidRequest, truth: CpuidResult) -> CpuidResult {
        let done = self.instructions();
        let Some(injector) = self.injector.as_mut().filter(|injector| injector.plan.lie == Lie::Cpuid) else {
            return truth;
        };
        let left = match injector.step {
            Step::Answer => 4,
            Step::Registers { leaf, left } if leaf == request.leaf => left,
            _ => return truth,
        };
        if left == 4 {
            injector.answered(done);
        }
        injector.step = match left {
            1 => Step::Over,
            left => Step::Registers { leaf: request.leaf, left: left - 1 },
        };
        let CpuidResult { eax, ebx, ecx, edx } = truth;
        CpuidResult { eax: !eax, ebx: !ebx, ecx: !ecx, edx: !edx }
    }

    /// An answer stands in the GHCB at `page`, to an input or to something else: falsifies it if that is what is injected.
    pub(super) fn falsify_ghcb(&mut self, page: Gpa, input: IsInput) {
        let done = self.instructions();
        let Some(injector) = self.injector.as_mut().filter(|injector| matches!(injector.step, Step::Answer)) else {
            return;
        };
        let mut memory = Shared { vm: &self.vm, task: self.lens.task() };
        let written = match (injector.plan.lie, input) {
            (Lie::Ghcb, _) => {
                memory.write(page.wrapping_add(Field::SW_EXITINFO1.offset() as u64), &NO_OUTCOME.to_le_bytes())
            }
            (Lie::GhcbValid, IsInput::Yes) => memory.write(page.wrapping_add(VALID_BITMAP as u64), &[0; 16]),
            _ => return,
        };
        // Where the page cannot be written the guest has no answer at all, and the next one is falsified.
        if written.is_ok() {
            injector.answered(done);
            if let Some(record) = &mut injector.record {
                record.gpa = Some(page);
            }
        }
    }
}

/// Whether a VMGEXIT was an input from a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IsInput {
    /// It was.
    Yes,
    /// It was something else.
    No,
}
