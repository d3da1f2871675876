//! Stage 1: which memslot holds the address.

use gmem::PageIndex;

use super::{Action, MemoryFaultReason, Stop, Unresolved, memory_fault};
use crate::memslot::{MemSlot, MemSlots};

/// A fault on an address that a memslot holds.
#[derive(Clone, Copy, Debug)]
pub struct InSlot {
    fault: Unresolved,
    slot: MemSlot,
}

impl InSlot {
    /// The fault.
    pub const fn fault(&self) -> &Unresolved {
        &self.fault
    }
    /// The memslot, as it was when looked up.
    pub const fn slot(&self) -> &MemSlot {
        &self.slot
    }
    /// The inode's page behind the address.
    pub const fn index(&self) -> PageIndex {
        self.slot.index_of(self.fault.gfn())
    }
}

/// Finds the slot. Without one the access is MMIO, unless the guest meant private memory, which no device has.
pub fn resolve(slots: &MemSlots, fault: Unresolved) -> Result<InSlot, Stop> {
    match slots.lookup(fault.gfn()) {
        Some(&slot) => Ok(InSlot { fault, slot }),
        None if fault.input().privacy.is_private() => {
            Err(memory_fault(fault.input(), MemoryFaultReason::PrivateWithoutSlot))
        }
        None => Err(Stop::Answer(Action::Mmio { gpa: fault.input().gpa })),
    }
}
