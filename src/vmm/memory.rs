//! The VMM's view of guest memory: which inode and which memslot stand behind a range of guest physical addresses.

use emu_core::sync::Task;
use emu_core::{Gpa, PageSize};
use hypervisor::{GmemId, Shareability, SlotFlags, SlotId, Vm, VmError};
use thiserror::Error;

use super::hypercall::{GpaRange, HypercallError};

/// Why the VMM could not do something with guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// Part of the range is not memory.
    #[error("no memslot holds {gpa}")]
    NoSlot {
        /// The first address without one.
        gpa: Gpa,
    },
    /// The VM has no private memory.
    #[error("memory of this kind of VM cannot become private; --vm sw-protected has private memory")]
    NoPrivateMemory,
    /// Not an address or a length in whole pages.
    #[error("{len_bytes:#x} bytes at {gpa} are not a positive number of whole 4 KiB pages")]
    BadRange {
        /// Its start.
        gpa: Gpa,
        /// Its length.
        len_bytes: u64,
    },
    /// The hypervisor refused.
    #[error(transparent)]
    Refused(#[from] VmError),
    /// The host could not access guest memory.
    #[error(transparent)]
    Access(#[from] hypervisor::GuestAccessError),
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
        let offset_bytes = slot.index_of(at.frame()).0 * page;
        found.push(Part { slot: slot.id, flags: slot.flags, gmem: slot.gmem, offset_bytes, range });
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
    for part in parts(vm, range, task)? {
        vm.convert(part.gmem, part.offset_bytes, part.range.len_bytes, to, task)?;
    }
    Ok(())
}

/// Punches a hole: the pages read as zero when they are next used, private or shared as they were.
pub fn punch(vm: &Vm, range: GpaRange, task: &Task<'_>) -> Result<(), MemoryError> {
    for part in parts(vm, range, task)? {
        vm.punch_hole(part.gmem, part.offset_bytes, part.range.len_bytes, task)?;
    }
    Ok(())
}

/// Allocates what is not there (`fallocate` without a hole).
pub fn allocate(vm: &Vm, range: GpaRange, task: &Task<'_>) -> Result<(), MemoryError> {
    let page = PageSize::Size4K.bytes();
    for part in parts(vm, range, task)? {
        let inode = vm.gmem(part.gmem, task).ok_or(VmError::NoSuchGmem { id: part.gmem })?;
        let pages =
            gmem::PageRange { first: gmem::PageIndex(part.offset_bytes / page), nr_pages: part.range.len_bytes / page };
        inode.shared(task).allocate(vm.host(), pages, task).map_err(VmError::from)?;
    }
    Ok(())
}
