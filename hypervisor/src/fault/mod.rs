//! The fault pipeline: from a nested fault to an installed entry (`arch/x86/kvm/mmu/mmu.c`, `struct kvm_page_fault`).
//!
//! ```text
//! FaultInput -> Unresolved -resolve-> InSlot -admit-> Admitted -fault_in-> Backed -choose-> Sized -install-> Outcome
//! ```
//!
//! Each arrow is a function in the module of its name that takes the left type and is the only maker of the right one. A stage that ends the fault early returns a [`Stop`]. The sequence number is sampled before anything is read and
//! compared before anything is written.

pub mod admit;
pub mod back;
pub mod level;
pub mod resolve;

use emu_core::event::{FaultOutcome, NpfCode};
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, Gpa, PageSize};
use gmem::{Invalidation, SeqSample, Shareability};
use mmu::RmpCause;

use crate::config::VmError;

/// On whose behalf the address was translated (exit qualification, or error code bits 32 and 33).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultCause {
    /// The address the guest's instruction wanted.
    FinalAddress,
    /// The address of an entry of the guest's own tables.
    GuestTable,
}

/// What the processor found in the nested tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// No present entry (error code bit 0 clear).
    NotPresent,
    /// An entry that did not allow the access (bit 0 set).
    Denied,
    /// An entry with a reserved bit (bit 3), or an EPT misconfiguration: what entries for devices are made for.
    Reserved,
    /// An entry that allowed the access to a page whose entry in the reverse map did not (bits 0 and 31).
    Rmp(RmpCause),
}

/// A nested fault as it left the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultInput {
    /// Where.
    pub gpa: Gpa,
    /// What for.
    pub kind: AccessKind,
    /// On whose behalf.
    pub cause: FaultCause,
    /// What was found.
    pub entry: EntryState,
    /// Which side of the memory the guest meant (the C-bit, where there is one).
    pub privacy: Shareability,
}

impl FaultInput {
    /// A fault on the final address, through a non-present entry, of a guest without private memory.
    pub const fn new(gpa: Gpa, kind: AccessKind) -> FaultInput {
        FaultInput {
            gpa,
            kind,
            cause: FaultCause::FinalAddress,
            entry: EntryState::NotPresent,
            privacy: Shareability::SHARED,
        }
    }

    /// The error code that the processor reports such a fault with.
    pub fn error_code(&self) -> NpfCode {
        let mut code = NpfCode::USER;
        code |= match self.kind {
            AccessKind::Read => NpfCode::empty(),
            AccessKind::Write => NpfCode::WRITE,
            AccessKind::Execute => NpfCode::FETCH,
        };
        code |= match self.cause {
            FaultCause::FinalAddress => NpfCode::GUEST_FINAL,
            FaultCause::GuestTable => NpfCode::GUEST_PAGE,
        };
        if let EntryState::Rmp(cause) = self.entry {
            code |= NpfCode::GUEST_RMP;
            code.set(NpfCode::GUEST_SIZEM, cause == RmpCause::SizeMismatch);
            code.set(NpfCode::GUEST_VMPL, cause == RmpCause::Vmpl);
        }
        code.set(NpfCode::PRESENT, self.entry != EntryState::NotPresent);
        code.set(NpfCode::RSVD, self.entry == EntryState::Reserved);
        code.set(NpfCode::GUEST_ENC, self.privacy.is_private());
        code
    }
}

/// Why the guest may simply go on (`RET_PF_FIXED`, `RET_PF_SPURIOUS`, `RET_PF_RETRY`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// An entry of this size was installed or widened.
    Fixed {
        /// Level of the leaf.
        size: PageSize,
    },
    /// The entry allowed the access already; another vCPU was first.
    Spurious,
    /// The fault raced with an invalidation. It will come again if it still matters.
    Retry,
}

/// Why the VMM must decide (`KVM_EXIT_MEMORY_FAULT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFaultReason {
    /// The guest meant private memory where it is shared, or the other way round.
    PrivacyMismatch,
    /// Private memory where no memslot is.
    PrivateWithoutSlot,
    /// Private memory in a memslot that has user memory alone.
    PrivateWithoutGmem,
    /// Memory of a guest_memfd whose file was closed.
    FileClosed,
    /// The reverse map withholds the page for good: from this privilege level, or until the firmware has launched it.
    RmpDenied,
}

/// An exit to the VMM about guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFault {
    /// First address of the page.
    pub gpa: Gpa,
    /// Length of the range in question.
    pub len_bytes: u64,
    /// What the guest meant.
    pub privacy: Shareability,
    /// Why it cannot be had.
    pub reason: MemoryFaultReason,
}

/// What the machine does with a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let the vCPU restart the instruction.
    Resume(Resumed),
    /// No memory there: emulate the instruction on the device that answers.
    Mmio {
        /// The faulting address.
        gpa: Gpa,
    },
    /// A write to read-only memory: emulate the instruction, drop or trap the write.
    RomWrite {
        /// The faulting address.
        gpa: Gpa,
    },
    /// Leave the run loop.
    MemoryFault(MemoryFault),
}

/// As events tell it.
impl From<&Action> for FaultOutcome {
    fn from(action: &Action) -> FaultOutcome {
        match action {
            Action::Resume(Resumed::Fixed { .. }) => FaultOutcome::Fixed,
            Action::Resume(Resumed::Spurious) => FaultOutcome::Spurious,
            Action::Resume(Resumed::Retry) => FaultOutcome::Retry,
            Action::Mmio { .. } => FaultOutcome::Emulate,
            Action::RomWrite { .. } => FaultOutcome::WriteProtected,
            Action::MemoryFault(_) => FaultOutcome::MemoryFault,
        }
    }
}

/// A stage ended the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// With an answer.
    Answer(Action),
    /// Because the host could not go on.
    Failed(VmError),
}

impl<E: Into<VmError>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::Failed(error.into())
    }
}

/// A fault whose sequence number is sampled and of which nothing else is known.
#[derive(Clone, Copy, Debug)]
pub struct Unresolved {
    input: FaultInput,
    sample: SeqSample,
}

impl Unresolved {
    /// Samples the sequence.
    pub fn new(input: FaultInput, invalidation: &Invalidation) -> Unresolved {
        Unresolved { input, sample: invalidation.sample() }
    }
    /// The fault.
    pub const fn input(&self) -> &FaultInput {
        &self.input
    }
    /// The faulting guest frame.
    pub const fn gfn(&self) -> Gfn {
        self.input.gpa.frame()
    }

    /// Whether a change since the sample, or one in progress, says that the fault must start over. Exact with `mmu_lock`
    /// held, a hint without.
    #[inline]
    pub fn is_stale(&self, invalidation: &Invalidation, task: &Task<'_>) -> bool {
        invalidation.must_retry(self.sample, self.gfn(), task)
    }
}

pub(crate) fn memory_fault(input: &FaultInput, reason: MemoryFaultReason) -> Stop {
    Stop::Answer(Action::MemoryFault(MemoryFault {
        gpa: input.gpa.align_down(PageSize::Size4K),
        len_bytes: PageSize::Size4K.bytes(),
        privacy: input.privacy,
        reason,
    }))
}
