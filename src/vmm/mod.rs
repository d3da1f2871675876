//! The VMM: the program in user space that a machine's hypervisor belongs to, and that answers what the kernel leaves to
//! it.
//!
//! Modelled: what a KVM VMM does on `KVM_EXIT_HYPERCALL` and `KVM_EXIT_MEMORY_FAULT`. [`hypercall`] is the guest's side of
//! the interface, [`memory`] the way from guest physical ranges to inodes,
//! [`SharedSide`] where the shared pages of such a range are, [`Vmm`] decides. By its own will it does what a
//! script says ([`script`], [`agent`], [`act`], [`migrate`]), and at random what the guest must not notice ([`random`]).
//!
//! Always true: it acts while no processor executes the guest, on the machine's own time line, so that what it does is a
//! function of image, configuration and seed like everything else. Whoever calls it makes processors forget what the
//! hypervisor says they must.
//!
//! Left out: a VMM with threads of its own beside the processors; the races that these make are explored by
//! [`crate::explore`].

pub mod act;
pub mod agent;
pub mod fuzz;
pub mod hypercall;
pub mod memory;
mod migrate;
pub mod random;
pub mod script;
mod sides;

use emu_core::rng::Seed;
use emu_core::sync::Task;
use hypervisor::snp::memory::PageStateChange;
use hypervisor::{MemoryFault, MemoryFaultReason, Vm, VmError};

use agent::{Agenda, Deeds};
use hypercall::{GpaRange, Hypercall, HypercallError, Request};
use script::{Happening, Range, Script, What};

/// What the VMM does with a fault that the hypervisor hands to it (`KVM_EXIT_MEMORY_FAULT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnMemoryFault {
    /// Converts the page to what the guest meant and lets it go on (implicit conversion).
    #[default]
    Convert,
    /// Ends the run, for its caller to look at; run again, the same fault comes again.
    Stop,
}

/// How a software-protected VM's RAM begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum InitialRam {
    /// Shared (`GUEST_MEMFD_FLAG_INIT_SHARED`).
    #[default]
    Shared,
    /// Private. The image is loaded while RAM is shared, then all of it is converted before the first instruction.
    Private,
}

/// Where a software-protected VM has the memory that it shares with the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum SharedSide {
    /// Where its private memory is: one page of guest_memfd is private or shared (conversion in place).
    #[default]
    Gmem,
    /// In the VMM's own memory, beside a guest_memfd for private pages: what Linux 7.3 has.
    UserMemory,
}

/// What becomes of a processor after a memory fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterFault {
    /// It tries the instruction again.
    Retry,
    /// It stays where it is: nothing was changed.
    Stop,
}

/// What the VMM was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct VmmCounters {
    /// Hypercalls, answered or refused.
    pub hypercalls: u64,
    /// Of these refused.
    pub refused: u64,
    /// `KVM_HC_MAP_GPA_RANGE` that were carried out.
    pub conversions: u64,
    /// Memory faults.
    pub memory_faults: u64,
    /// Exits of processors whose dirty ring was full.
    pub full_rings: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Vmm {
    on_memory_fault: OnMemoryFault,
    agenda: Agenda,
    counters: VmmCounters,
}

impl Vmm {
    /// A VMM that treats memory faults so and does what `script` says, in a run with this seed.
    pub fn new(on_memory_fault: OnMemoryFault, script: &Script, seed: Seed) -> Vmm {
        Vmm { on_memory_fault, agenda: Agenda::new(script, seed), counters: VmmCounters::default() }
    }

    /// Notes what happened to the machine: a script may wait for it.
    #[inline]
    pub fn note(&mut self, event: Happening) {
        self.agenda.note(event);
    }

    /// Instructions that may be executed after the first `done` before the VMM wants to act; `None`: it never does.
    #[inline]
    pub fn until_due(&self, done: u64) -> Option<u64> {
        self.agenda.until_due(done)
    }

    /// Does what is due after `done` instructions. Whether anything was.
    pub fn act(&mut self, vm: &Vm, done: u64, task: &Task<'_>) -> bool {
        self.agenda.act(vm, done, task)
    }

    /// What it did by its own will so far.
    pub const fn deeds(&self) -> &Deeds {
        self.agenda.deeds()
    }

    /// What it was asked so far.
    pub const fn counters(&self) -> VmmCounters {
        self.counters
    }

    /// Answers a hypercall: what RAX is to hold. The VMM takes conversions only where memory can be private
    /// (`KVM_CAP_EXIT_HYPERCALL`); elsewhere the call does not exist.
    pub fn hypercall(&mut self, vm: &Vm, asked: Result<Hypercall, HypercallError>, task: &Task<'_>) -> u64 {
        self.counters.hypercalls += 1;
        self.agenda.note(Happening::Hypercall);
        let answer = asked.and_then(|call| match call {
            Hypercall::PollIrq => Ok(()),
            Hypercall::MapGpaRange { range, to } => {
                if !vm.kind().has_private_memory() {
                    return Err(HypercallError::NoSuchCall);
                }
                memory::convert(vm, range, to, task).map_err(|error| error.for_guest())?;
                self.counters.conversions += 1;
                self.agenda.note(Happening::Conversion);
                Ok(())
            }
            Hypercall::Vmm { request, range } => self.request_of(vm, request, range, task),
        });
        match answer {
            Ok(()) => 0,
            Err(error) => {
                self.counters.refused += 1;
                error.rax()
            }
        }
    }

    /// Makes a range of an SNP guest's memory private or shared, as the guest asks by its GHCB. Whether that was done.
    pub fn page_state(&mut self, vm: &Vm, change: PageStateChange, task: &Task<'_>) -> bool {
        let done = vm.page_state_change(change, task).is_ok();
        if done {
            self.counters.conversions += 1;
            self.agenda.note(Happening::Conversion);
        }
        done
    }

    /// Takes what is in the rings, because that of a processor is full (`KVM_EXIT_DIRTY_RING_FULL`).
    ///
    /// # Errors
    /// The hypervisor cannot arm the pages again: the processor may not go on.
    pub fn ring_is_full(&mut self, vm: &Vm, task: &Task<'_>) -> Result<(), VmError> {
        self.counters.full_rings += 1;
        self.agenda.empty_rings(vm, task)
    }

    /// Answers a memory fault.
    pub fn memory_fault(&mut self, vm: &Vm, fault: &MemoryFault, task: &Task<'_>) -> AfterFault {
        self.counters.memory_faults += 1;
        self.agenda.note(Happening::MemoryFault);
        let range = GpaRange { gpa: fault.gpa, len_bytes: fault.len_bytes };
        match self.on_memory_fault {
            OnMemoryFault::Stop => AfterFault::Stop,
            // The page is what the guest takes it for, and refuses it all the same.
            OnMemoryFault::Convert if fault.reason == MemoryFaultReason::RmpDenied => AfterFault::Stop,
            // What cannot be converted would fault for ever.
            OnMemoryFault::Convert => match memory::convert(vm, range, fault.privacy, task) {
                Ok(()) => AfterFault::Retry,
                Err(_) => AfterFault::Stop,
            },
        }
    }

    fn request_of(
        &mut self,
        vm: &Vm,
        request: Request,
        range: GpaRange,
        task: &Task<'_>,
    ) -> Result<(), HypercallError> {
        let what = match request {
            Request::Punch => What::Punch(Range::Gpa(range)),
            Request::Allocate => What::Allocate(Range::Gpa(range)),
        };
        self.agenda.on_request(vm, &what, task).map_err(|error| error.for_guest())
    }
}

#[cfg(test)]
mod tests;
