//! Stage 2: whether the attributes of the page and the slot allow the access.

use emu_core::AccessKind;
use gmem::Shareability;

use super::resolve::InSlot;
use super::{Action, MemoryFaultReason, Resumed, Stop, memory_fault};
use crate::memslot::{SlotFlags, SlotState};
use crate::tdp::Rights;

/// A fault that may be served.
#[derive(Clone, Copy)]
pub struct Admitted<'s> {
    fault: InSlot<'s>,
    rights: Rights,
}

impl<'s> Admitted<'s> {
    /// The fault in its slot.
    pub const fn fault(&self) -> &InSlot<'s> {
        &self.fault
    }
    /// The most an entry may allow.
    pub const fn rights(&self) -> Rights {
        self.rights
    }
}

/// Compares what the guest meant with what the page is, then looks at the slot's state, then at the access.
#[inline(always)]
pub fn admit(attribute: Shareability, fault: InSlot<'_>) -> Result<Admitted<'_>, Stop> {
    let input = fault.fault().input();
    if attribute != input.privacy {
        return Err(memory_fault(input, MemoryFaultReason::PrivacyMismatch));
    }
    if fault.slot().state() == SlotState::Invalid {
        return Err(Stop::Answer(Action::Resume(Resumed::Retry)));
    }
    if attribute.is_private() && fault.slot().info().gmem.is_none() {
        return Err(memory_fault(input, MemoryFaultReason::PrivateWithoutGmem));
    }
    let mut rights = Rights::all();
    if fault.slot().info().flags.contains(SlotFlags::READONLY) {
        if input.kind == AccessKind::Write {
            return Err(Stop::Answer(Action::RomWrite { gpa: input.gpa }));
        }
        rights.remove(Rights::WRITE);
    }
    Ok(Admitted { fault, rights })
}
