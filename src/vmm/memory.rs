//! The VMM's view of guest memory: which inode and which memslot stand behind a range of guest physical addresses.

use emu_core::sync::Task;
use emu_core::{Gpa, Hva, PageSize};
use hypervisor::memslot::GmemServes;
use hypervisor::{GmemId, MEMORY_ATTRIBUTE_PRIVATE, MemoryAttributes, Shareability, SlotFlags, SlotId, Vm, VmError};
use thiserror::Error;

use super::hypercall::{GpaRange, HypercallError};
use super::sides::{self, Sides};

/// Why the VMM could not do something with guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// Part of the range is not memory.
    #[error("no memslot holds {gpa}")]
    NoSlot {
        /// The first address without one.
        gpa: Gpa,
    },
    /// The memslot shows user memory alone, which nobody can convert or punch.
    #[error("the memslot at {gpa} has no guest_memfd")]
    NoGmem {
        /// The first address in it.
        gpa: Gpa,
    },
    /// The VM has no private memory.
    #[error("memory of this kind of VM cannot become private; --vm sw-protected has private memory")]
    NoPrivateMemory,
    /// Who may use memory is said of guest physical addresses here, and an inode's page may be shown at several, or at none.
    #[error("here the VM says who may use guest physical memory: give a range without gmem{}:", gmem.0)]
    AttributesOfVm {
        /// The inode that was named.
        gmem: GmemId,
    },
    /// The VMM itself holds a page that would have to go.
    #[error("page {} of guest_memfd {} is pinned by the script", index.0, gmem.0)]
    Pinned {
        /// The inode.
        gmem: GmemId,
        /// The page.
        index: gmem::PageIndex,
    },
    /// A migration found a page whose copy is old.
    #[error("page {} of guest_memfd {} is not what was copied: a write to it was not logged", index.0, gmem.0)]
    NotLogged {
        /// The inode.
        gmem: GmemId,
        /// The page.
        index: gmem::PageIndex,
    },
    /// A step of a migration out of order.
    #[error("{}", if *.running { "a migration is under way" } else { "no migration is under way: log-start begins one" })]
    Migration {
        /// Whether one is under way.
        running: bool,
    },
    /// The dirty log refused.
    #[error(transparent)]
    Log(#[from] hypervisor::dirty::DirtyLogError),
    /// `bind` without an `unbind`.
    #[error("memslot {} was not deleted by the script, so it cannot come back", slot.0)]
    NotUnbound {
        /// The number.
        slot: SlotId,
    },
    /// An action on the pages of an inode, where shared pages are the VMM's own memory.
    #[error("shared memory is the VMM's own here, not guest_memfd's: {what} is for memory that is converted in place")]
    TwoSided {
        /// The action.
        what: &'static str,
    },
    /// The VMM's own memory cannot be changed.
    #[error(transparent)]
    UserMapping(#[from] gmem::mm::MmError),
    /// The VMM's own memory cannot be reached.
    #[error(transparent)]
    UserAccess(#[from] gmem::mm::UserAccessError),
    /// The VMM's own memory cannot be populated.
    #[error(transparent)]
    UserFault(#[from] gmem::mm::UserFault),
    /// The VM's attributes cannot be set.
    #[error(transparent)]
    Attributes(#[from] hypervisor::AttributeError),
    /// The hypervisor refused.
    #[error(transparent)]
    Refused(#[from] VmError),
}

impl MemoryError {
    /// What a guest reads whose request failed for this reason.
    pub fn for_guest(&self) -> HypercallError {
        match self {
            MemoryError::Refused(VmError::Convert(gmem::ConvertError::Busy { .. })) => HypercallError::Busy,
            MemoryError::NoPrivateMemory => HypercallError::NoSuchCall,
            _ => HypercallError::Invalid,
        }
    }
}

/// A part of a range that one memslot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The memslot.
    pub slot: SlotId,
    /// Its flags.
    pub flags: SlotFlags,
    /// The inode behind it.
    pub gmem: GmemId,
    /// Where the part starts in the inode, in bytes.
    pub offset_bytes: u64,
    /// Where it is in guest physical memory.
    pub range: GpaRange,
    /// Where the VMM has its shared side, if that is not the inode too.
    pub user: Option<Hva>,
}

/// The memslots behind `range`, ascending; all of it is memory or the answer is an error.
pub fn parts(vm: &Vm, range: GpaRange, task: &Task<'_>) -> Result<Vec<Part>, MemoryError> {
    let slots = vm.memslots(task);
    let page = PageSize::Size4K.bytes();
    let end = range.gpa.raw() + range.len_bytes;
    let mut found = Vec::new();
    let mut at = range.gpa;
    while at.raw() < end {
        let slot = slots.lookup(at.frame()).ok_or(MemoryError::NoSlot { gpa: at })?.info();
        let stop = end.min(slot.end().raw() * page);
        let range = GpaRange { gpa: at, len_bytes: stop - at.raw() };
        let view = slot.gmem.ok_or(MemoryError::NoGmem { gpa: at })?;
        let offset_bytes = (view.first_index.0 + (at.frame().raw() - slot.first.raw())) * page;
        let user = (view.serves == GmemServes::Private).then(|| slot.hva_of(at.frame()));
        found.push(Part { slot: slot.id, flags: slot.flags, gmem: view.gmem, offset_bytes, range, user });
        at = Gpa::new(stop);
    }
    Ok(found)
}

/// Makes `range` private or shared. Each memslot's part changes as a whole or not at all; an error leaves the parts before
/// it changed, and asking again is harmless.
pub fn convert(vm: &Vm, range: GpaRange, to: Shareability, task: &Task<'_>) -> Result<(), MemoryError> {
    if to.is_private() && !vm.kind().has_private_memory() {
        return Err(MemoryError::NoPrivateMemory);
    }
    if vm.supported_memory_attributes() != 0 {
        // KVM keeps attributes of frames that are no memory too; a VMM converts memory.
        let parts = parts(vm, range, task)?;
        if parts.iter().any(|part| part.user.is_some()) {
            return parts.iter().try_for_each(|part| match Sides::of(part) {
                Some(both) => sides::convert(vm, both, to, task),
                None => set_attributes(vm, part.range, to, task),
            });
        }
        return set_attributes(vm, range, to, task);
    }
    for part in parts(vm, range, task)? {
        vm.convert(part.gmem, part.offset_bytes, part.range.len_bytes, to, task)?;
    }
    Ok(())
}

/// `KVM_SET_MEMORY_ATTRIBUTES`.
pub(super) fn set_attributes(vm: &Vm, range: GpaRange, to: Shareability, task: &Task<'_>) -> Result<(), MemoryError> {
    let attributes = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
    let wanted = MemoryAttributes { address: range.gpa.raw(), size: range.len_bytes, attributes, flags: 0 };
    Ok(vm.set_memory_attributes(&wanted, task)?)
}
