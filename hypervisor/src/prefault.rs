//! `KVM_PRE_FAULT_MEMORY`: mapping a range before the guest touches it; and the count of faults that come again.

use emu_core::defect::Defect;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gpa, PageSize};
use thiserror::Error;

use crate::config::VmError;
use crate::dirty::DirtyRing;
use crate::fault::{Action, FaultInput, Resumed, Stop};
use crate::memslot::SlotState;
use crate::tdp::Touch;
use crate::vcpu::VcpuId;
use crate::vm::Vm;

/// What is still to be mapped (`struct kvm_pre_fault_memory`); a call moves it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreFault {
    /// First address.
    pub gpa: Gpa,
    /// Length.
    pub len_bytes: u64,
    /// Must be zero.
    pub flags: u64,
}

/// Why nothing was mapped. After some progress a call succeeds instead, and says so in what is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PreFaultError {
    /// `EINVAL`: flags, a range that is empty, wraps or is not whole pages.
    #[error("{len_bytes:#x} bytes at {gpa} with flags {flags:#x}: whole pages, at least one, and no flags are allowed")]
    Invalid {
        /// First address.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// Flags.
        flags: u64,
    },
    /// `EOPNOTSUPP`: a guest physical range has no entries in shadow tables.
    #[error("the VM shadows its guest's tables: nothing can be mapped ahead")]
    Shadowing,
    /// `ENOENT`.
    #[error("no memslot holds {gpa}")]
    NoSlot {
        /// The first address without one.
        gpa: Gpa,
    },
    /// `EAGAIN`: the memslot is being deleted or moved.
    #[error("the memslot at {gpa} is being changed")]
    SlotChanging {
        /// The address.
        gpa: Gpa,
    },
    /// `EINTR`: the caller was asked to stop, or the processor's dirty ring is full.
    #[error("interrupted")]
    Interrupted,
    /// `EFAULT`: the guest could not have what it would mean there either.
    #[error("memory at {gpa} cannot be had")]
    MemoryFault {
        /// The address.
        gpa: Gpa,
    },
    /// The host could not go on.
    #[error(transparent)]
    Failed(#[from] VmError),
}

/// How a page fared.
enum Page {
    /// It is mapped by a leaf of this size.
    Mapped(PageSize),
    /// Something changed meanwhile.
    Again,
}

impl Vm {
    /// Maps `range` as read faults of `vcpu` would, without marking anything accessed. Stops at the first page that cannot
    /// be mapped, or when `keep_going` says no, and moves `range` past what is done. An error means that nothing was.
    pub fn pre_fault_memory(
        &self,
        vcpu: VcpuId,
        range: &mut PreFault,
        keep_going: &mut dyn FnMut() -> bool,
        task: &Task<'_>,
    ) -> Result<(), PreFaultError> {
        let &mut PreFault { gpa, len_bytes, flags } = range;
        let whole = gpa.is_aligned(PageSize::Size4K) && len_bytes.is_multiple_of(PAGE_SIZE as u64) && len_bytes != 0;
        if flags != 0 || !whole || gpa.checked_add(len_bytes).is_none() {
            return Err(PreFaultError::Invalid { gpa, len_bytes, flags });
        }
        if self.is_shadowing() {
            return Err(PreFaultError::Shadowing);
        }
        // For the whole of the call, as `KVM_PRE_FAULT_MEMORY` is in one section of SRCU: whoever publishes memslots waits.
        let _slots = self.slots.read(task);
        while range.len_bytes != 0 {
            let done = match keep_going() {
                true => self.pre_fault_page(vcpu, range.gpa, task),
                false => Err(PreFaultError::Interrupted),
            };
            match done {
                Ok(Page::Mapped(size)) => {
                    let step = (size.bytes() - range.gpa.offset_in(size)).min(range.len_bytes);
                    range.gpa = range.gpa.wrapping_add(step);
                    range.len_bytes -= step;
                }
                // Whoever made it come again is making progress.
                Ok(Page::Again) => task.give_way(),
                Err(_) if range.gpa != gpa => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn pre_fault_page(&self, vcpu: VcpuId, gpa: Gpa, task: &Task<'_>) -> Result<Page, PreFaultError> {
        let privacy = {
            let slots = self.slots.read(task);
            let slot = slots.lookup(gpa.frame()).ok_or(PreFaultError::NoSlot { gpa })?;
            if slot.state() == SlotState::Invalid && !task.has(Defect::PrefaultWaitsForSlot) {
                // Not to be waited for: who changes it waits for those that use the memslots.
                return Err(PreFaultError::SlotChanging { gpa });
            }
            self.slot_attribute(slot, gpa.frame(), task)
        };
        let vcpu = self.vcpu(vcpu)?;
        let mut own = vcpu.mmu.lock(task);
        if own.ring.as_ref().is_some_and(DirtyRing::is_soft_full) {
            // What is mapped writable is pushed: the rest waits until entries are reset.
            return Err(PreFaultError::Interrupted);
        }
        let input = FaultInput { privacy, ..FaultInput::new(gpa, AccessKind::Read) };
        match self.fault(vcpu, &mut own, input, Touch::Ahead, task) {
            Ok(Resumed::Fixed { size }) => Ok(Page::Mapped(size)),
            Ok(Resumed::Spurious) => {
                let _walking = self.tdp.lockless(task);
                let size = self.tdp.leaf_size(gpa.frame()).map_err(VmError::from)?;
                Ok(size.map_or(Page::Again, Page::Mapped))
            }
            Ok(Resumed::Retry) | Err(Stop::Answer(Action::Resume(_))) => Ok(Page::Again),
            Err(Stop::Answer(Action::Mmio { gpa })) => Err(PreFaultError::NoSlot { gpa }),
            // A read is no write, and the attribute was the page's: it changed in between.
            Err(Stop::Answer(Action::MemoryFault(_) | Action::RomWrite { .. })) => {
                Err(PreFaultError::MemoryFault { gpa })
            }
            Err(Stop::Failed(error)) => Err(error.into()),
        }
    }
}

/// Finds a processor that faults on one access for ever: the same fault, answered by "try again" or "it was there",
/// while no invalidation ends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repeats {
    last: Option<(Gpa, AccessKind, u64)>,
    times: u64,
}

impl Repeats {
    /// Notes a fault and its answer; how often it has come again by now.
    pub(crate) fn note(&mut self, fault: &FaultInput, action: &Action, seq: u64) -> u64 {
        if !matches!(action, Action::Resume(Resumed::Retry | Resumed::Spurious)) {
            *self = Repeats::default();
            return 0;
        }
        let this = Some((fault.gpa, fault.kind, seq));
        self.times = if this == self.last { self.times + 1 } else { 0 };
        self.last = this;
        self.times
    }
}
