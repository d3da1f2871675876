//! Stage 2: whether the attributes of the page and the slot allow the access.

use emu_core::AccessKind;
use gmem::ShareabilityMap;

use super::resolve::InSlot;
use super::{Action, MemoryFaultReason, Stop, memory_fault};
use crate::memslot::SlotFlags;
use crate::tdp::Rights;

/// A fault that may be served.
#[derive(Clone, Copy, Debug)]
pub struct Admitted {
    fault: InSlot,
    rights: Rights,
}

impl Admitted {
    /// The fault in its slot.
    pub const fn fault(&self) -> &InSlot {
        &self.fault
    }
    /// The most an entry may allow.
    pub const fn rights(&self) -> Rights {
        self.rights
    }
}

/// Compares what the guest meant with what the page is, then the access with the slot.
pub fn admit(shareability: &ShareabilityMap, fault: InSlot) -> Result<Admitted, Stop> {
    let input = fault.fault().input();
    if shareability.get(fault.index().0) != input.privacy {
        return Err(memory_fault(input, MemoryFaultReason::PrivacyMismatch));
    }
    let mut rights = Rights::all();
    if fault.slot().flags.contains(SlotFlags::READONLY) {
        if input.kind == AccessKind::Write {
            return Err(Stop::Answer(Action::RomWrite { gpa: input.gpa }));
        }
        rights.remove(Rights::WRITE);
    }
    Ok(Admitted { fault, rights })
}
