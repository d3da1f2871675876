//! Memory attributes of a VM, and where they allow huge leaves.
//!
//! [`LpageInfo`] is a slot's record of why a huge leaf may not be (`kvm_lpage_info`).

mod lpage;

pub use lpage::{LpageInfo, Mixture};

use emu_core::Gfn;
use emu_core::sync::Task;
use gmem::Shareability;

use crate::memslot::{MemSlots, Slot};
use crate::vm::Vm;

impl Vm {
    /// Who may use a guest frame (`kvm_mem_is_private`), at this moment. Where no slot is nothing is private.
    pub(crate) fn attribute_of(&self, slots: &MemSlots, gfn: Gfn, task: &Task<'_>) -> Shareability {
        slots.lookup(gfn).map_or(Shareability::SHARED, |slot| self.slot_attribute(slot, gfn, task))
    }

    /// The same of a frame of `slot`: what its inode says, or the VM for inodes that say nothing.
    pub(crate) fn slot_attribute(&self, slot: &Slot, gfn: Gfn, task: &Task<'_>) -> Shareability {
        match slot.gmem_page(gfn) {
            Some((inode, index)) if inode.policy().generation.has_inode_attributes() => inode.attribute(index, task),
            _ => self.attributes.read(task).get(gfn.raw()),
        }
    }
}
