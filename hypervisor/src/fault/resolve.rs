//! Stage 1: which memslot holds the address.

use gmem::PageIndex;

use super::{Action, MemoryFaultReason, Stop, Unresolved, memory_fault};
use crate::memslot::Slot;

/// A fault on an address that a memslot holds. The slot cannot go while the fault holds the memslots.
#[derive(Clone, Copy)]
pub struct InSlot<'s> {
    fault: Unresolved,
    slot: &'s Slot,
}

impl<'s> InSlot<'s> {
    /// The fault.
    pub const fn fault(&self) -> &Unresolved {
        &self.fault
    }
    /// The memslot.
    pub const fn slot(&self) -> &'s Slot {
        self.slot
    }
    /// The inode's page behind the address, if the slot has an inode.
    pub fn index(&self) -> Option<PageIndex> {
        self.slot.info().index_of(self.fault.gfn())
    }
}

/// Answers where no slot was found: the access is MMIO, unless the guest meant private memory, which no device has.
#[inline(always)]
pub fn resolve(found: Option<&Slot>, fault: Unresolved) -> Result<InSlot<'_>, Stop> {
    match found {
        Some(slot) => Ok(InSlot { fault, slot }),
        None if fault.input().privacy.is_private() => {
            Err(memory_fault(fault.input(), MemoryFaultReason::PrivateWithoutSlot))
        }
        None => Err(Stop::Answer(Action::Mmio { gpa: fault.input().gpa })),
    }
}
