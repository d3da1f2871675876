//! `KVM_SET_MEMORY_ATTRIBUTES` on the VM (`kvm_vm_set_mem_attributes`).
//!
//! In three steps with `slots_lock` held: announce and zap what changes, store, recompute which huge pages are mixed and
//! end. Announced is more than what changes: a fault on a neighbour must not put a huge leaf over it because it saw the
//! page before it became mixed. Where no slot shows any of the range nothing can be mapped, and nothing is announced.

use emu_core::defect::Defect;
use emu_core::event::{Bits, Event};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Point, Task};
use emu_core::{Errno, Gfn, Gpa};
use gmem::Shareability;
use thiserror::Error;

use super::lpage::{HUGE, Mixture};
use super::tree::NodeMemory;
use crate::config::VmError;
use crate::flush::Owed;
use crate::memslot::{AddressSpaceId, Slot};
use crate::vm::Vm;

const PAGE: u64 = PAGE_SIZE as u64;

/// `KVM_MEMORY_ATTRIBUTE_PRIVATE`.
pub const MEMORY_ATTRIBUTE_PRIVATE: u64 = 1 << 3;

/// `struct kvm_memory_attributes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryAttributes {
    /// First guest physical address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
    /// [`MEMORY_ATTRIBUTE_PRIVATE`] or nothing.
    pub attributes: u64,
    /// None are defined.
    pub flags: u64,
}

/// Why attributes could not be set; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AttributeError {
    /// `ENOTTY`: each guest_memfd has attributes of its own.
    #[error("the VM has no attributes: each guest_memfd says who may use its pages")]
    PerInode,
    /// `EINVAL`.
    #[error("flags {flags:#x} of memory attributes are not defined")]
    Flags {
        /// The flags.
        flags: u64,
    },
    /// `EINVAL`: a bit without meaning, or private memory of a VM that has none.
    #[error("memory attributes {refused:#x} are not supported by this VM")]
    Unsupported {
        /// The bits that are not.
        refused: u64,
    },
    /// `EINVAL`: nothing, not whole pages, or a range that wraps.
    #[error("{size:#x} bytes at {gpa} are not a positive number of whole 4 KiB pages")]
    BadRange {
        /// Its start.
        gpa: Gpa,
        /// Its length.
        size: u64,
    },
    /// `ENOMEM`: entries of the frames before this one stay reserved.
    #[error("no memory to store the attributes of guest frame {:#x}", gfn.raw())]
    NoMemory {
        /// The first frame that has no entry.
        gfn: Gfn,
    },
    /// The nested tables cannot be read.
    #[error(transparent)]
    Vm(#[from] VmError),
}

impl AttributeError {
    /// What the ioctl returns.
    pub const fn errno(&self) -> Errno {
        match self {
            AttributeError::PerInode => Errno::NoTty,
            AttributeError::Flags { .. } | AttributeError::Unsupported { .. } | AttributeError::BadRange { .. } => {
                Errno::Inval
            }
            AttributeError::NoMemory { .. } => Errno::NoMem,
            AttributeError::Vm(_) => Errno::Fault,
        }
    }
}

impl Vm {
    /// The attributes that [`Vm::set_memory_attributes`] takes (`KVM_CAP_MEMORY_ATTRIBUTES`).
    pub const fn supported_memory_attributes(&self) -> u64 {
        let by_vm = !self.gmem.generation.has_inode_attributes();
        if by_vm && self.kind.has_private_memory() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 }
    }

    /// `KVM_SET_MEMORY_ATTRIBUTES`. What has the attributes already is left alone: no zap, no flush, no retry.
    pub fn set_memory_attributes(&self, wanted: &MemoryAttributes, task: &Task<'_>) -> Result<(), AttributeError> {
        let &MemoryAttributes { address, size, attributes, flags } = wanted;
        if self.gmem.generation.has_inode_attributes() {
            return Err(AttributeError::PerInode);
        }
        if flags != 0 {
            return Err(AttributeError::Flags { flags });
        }
        let refused = attributes & !self.supported_memory_attributes();
        if refused != 0 {
            return Err(AttributeError::Unsupported { refused });
        }
        let aligned = address.is_multiple_of(PAGE) && size.is_multiple_of(PAGE);
        if size == 0 || !aligned || address.checked_add(size).is_none() {
            return Err(AttributeError::BadRange { gpa: Gpa::new(address), size });
        }
        let to = match attributes & MEMORY_ATTRIBUTE_PRIVATE {
            0 => Shareability::SHARED,
            _ => Shareability::PRIVATE,
        };
        self.change_attributes(Gpa::new(address).frame(), size / PAGE, to, task)
    }

    fn change_attributes(
        &self,
        first: Gfn,
        nr_pages: u64,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<(), AttributeError> {
        let _changes = self.slots_lock.lock(task);
        {
            let attributes = self.attributes.read(task);
            if attributes.is_uniform(first.raw(), nr_pages, task) && attributes.get(first.raw()) == to {
                return Ok(());
            }
        }
        let end = Gfn::new(first.raw() + nr_pages);
        if to.is_private() {
            let memory = match self.host.lock(task).stats().free_frames {
                0 => NodeMemory::None,
                _ => NodeMemory::Plenty,
            };
            let reserved = self.attributes.write(task).reserve(first.raw()..end.raw(), memory);
            reserved.map_err(|lacking| AttributeError::NoMemory { gfn: Gfn::new(lacking.at) })?;
        }
        let shown: Vec<(Slot, Gfn, Gfn)> = {
            let slots = self.slots.read(task);
            let part = |slot: &Slot| (slot.clone(), slot.info().first.max(first), slot.info().end().min(end));
            slots.in_range(AddressSpaceId::Normal, first, nr_pages).map(part).collect()
        };
        if !shown.is_empty() {
            self.announce_attributes(&shown, task)?;
        }
        self.attributes.write(task).set(first.raw(), nr_pages, to);
        let bits = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
        task.report(Event::SetMemAttributes { start: first, end, attributes: Bits(bits) });
        task.at(Point::I4);
        if !shown.is_empty() {
            // Under one lock: whoever finds the invalidation ended finds the record of mixed pages new.
            let mut tables = self.mmu.write(task);
            if task.has(Defect::RecordMixedAfterEnd) {
                self.invalidation.end(task);
                drop(tables);
                task.at(Point::I5);
                tables = self.mmu.write(task);
            }
            for (slot, from, to) in &shown {
                self.record_mixed(slot, *from, *to, task);
            }
            if !task.has(Defect::RecordMixedAfterEnd) {
                self.invalidation.end(task);
            }
            drop(tables);
        }
        task.at(Point::I5);
        Ok(())
    }

    /// `kvm_pre_set_memory_attributes`: begins, zaps and flushes.
    fn announce_attributes(&self, shown: &[(Slot, Gfn, Gfn)], task: &Task<'_>) -> Result<(), VmError> {
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        let mut zapped = Ok(());
        self.invalidation.begin(task);
        task.at(Point::I1);
        for (slot, from, end) in shown {
            let nr_pages = end.raw() - from.raw();
            self.invalidation.add_range(*from, nr_pages, task);
            if !task.has(Defect::NarrowConversion) {
                for size in HUGE {
                    for edge in [*from, Gfn::new(end.raw() - 1)] {
                        let could_be_huge = slot.lpage().contains(edge, size)
                            && slot.lpage().mixture(edge, size, task) == Mixture::Uniform;
                        if could_be_huge {
                            self.invalidation.add_range(edge.align_down(size), size.frames(), task);
                        }
                    }
                }
            }
            zapped = zapped.and(tables.zap(*from, nr_pages, &mut owed, task));
        }
        task.at(Point::I2);
        self.flush(&owed, task);
        tables.bury(&self.host, task);
        if zapped.is_err() {
            self.invalidation.end(task);
        }
        drop(tables);
        task.at(Point::I3);
        Ok(zapped?)
    }

    /// `kvm_arch_post_set_memory_attributes`: pages that changed as a whole are uniform, and the two at the edges are
    /// looked at. The slot contains `[from, end)`.
    fn record_mixed(&self, slot: &Slot, from: Gfn, end: Gfn, task: &Task<'_>) {
        for size in HUGE {
            let inside = from.raw().next_multiple_of(size.frames())..end.raw() & !(size.frames() - 1);
            if !inside.is_empty() {
                slot.lpage().make_uniform(inside.start, inside.end, size, task);
            }
            for edge in [from, Gfn::new(end.raw() - 1)] {
                self.record_page(slot, edge, size, task);
            }
        }
    }

    fn record_page(&self, slot: &Slot, gfn: Gfn, size: emu_core::PageSize, task: &Task<'_>) {
        let uniform = self.attributes.read(task).is_uniform(gfn.align_down(size).raw(), size.frames(), task);
        let mixture = if uniform { Mixture::Uniform } else { Mixture::Mixed };
        slot.lpage().set_mixture(gfn, size, mixture, task);
    }

    /// `kvm_mmu_init_memslot_memory_attributes`: a slot that comes finds the attributes that are there.
    pub(crate) fn record_attributes_of_new(&self, slot: &Slot, task: &Task<'_>) {
        let (first, end) = (slot.info().first.raw(), slot.info().end().raw());
        let edges: Vec<u64> = self.attributes.read(task).map().runs_in(first, end).map(|(at, ..)| at).collect();
        for edge in edges.into_iter().filter(|&edge| edge > first) {
            for size in HUGE {
                self.record_page(slot, Gfn::new(edge), size, task);
            }
        }
    }

    /// Who may use a guest frame: what its inode says where inodes do, otherwise what the VM was told.
    pub fn memory_attribute(&self, gfn: Gfn, task: &Task<'_>) -> Shareability {
        let slots = self.slots.read(task);
        self.attribute_of(&slots, gfn, task)
    }
}
