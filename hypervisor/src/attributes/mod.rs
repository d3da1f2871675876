//! Memory attributes of a VM, and where they allow huge leaves.
//!
//! Up to 7.3 the VM says which guest frames are private (`kvm->mem_attr_array`); with conversion in place each inode says
//! so of its pages, and the VM says nothing. One or the other: [`Vm::set_memory_attributes`] is no ioctl
//! where inodes answer.
//!
//! - [`MemoryAttributes`] is the argument of `KVM_SET_MEMORY_ATTRIBUTES`.
//! - [`LpageInfo`] is a slot's record of why a huge leaf may not be (`kvm_lpage_info`).
//!
//! Always true, when nobody holds `slots_lock`: a huge page that a slot contains is marked as mixed exactly if the
//! attributes in it differ. Attributes exist without slots and survive them.

mod lpage;
mod set;
mod tree;

pub use lpage::{LpageInfo, Mixture};
pub use set::{AttributeError, MEMORY_ATTRIBUTE_PRIVATE, MemoryAttributes};
pub(crate) use tree::AttributeTree;

use emu_core::Gfn;
use emu_core::sync::Task;
use gmem::Shareability;

use crate::memslot::{MemSlots, Slot};
use crate::vm::Vm;

impl Vm {
    /// Who may use a guest frame (`kvm_mem_is_private`), at this moment. Where no slot is, only the VM can say that it is
    /// private.
    pub(crate) fn attribute_of(&self, slots: &MemSlots, gfn: Gfn, task: &Task<'_>) -> Shareability {
        self.attribute_in(slots.lookup(gfn), gfn, task)
    }

    /// The same where the lookup is done.
    #[inline]
    pub(crate) fn attribute_in(&self, found: Option<&Slot>, gfn: Gfn, task: &Task<'_>) -> Shareability {
        match found {
            Some(slot) => self.slot_attribute(slot, gfn, task),
            None => self.attributes.read(task).get(gfn.raw()),
        }
    }

    /// The same of a frame of `slot`: what its inode says, or the VM for inodes that say nothing.
    #[inline]
    pub(crate) fn slot_attribute(&self, slot: &Slot, gfn: Gfn, task: &Task<'_>) -> Shareability {
        match slot.gmem_page(gfn) {
            Some((inode, index)) if inode.policy().generation.has_inode_attributes() => inode.attribute(index, task),
            _ => self.attributes.read(task).get(gfn.raw()),
        }
    }
}
