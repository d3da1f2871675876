//! Save areas that a guest makes for its processors in pages of its own (`sev_snp_reload_vmsa`).

use emu_core::sync::Task;
use emu_core::{Gfn, Sfn};

use crate::vm::Vm;

impl Vm {
    /// The frame behind a private page of the guest, for the VMCB to point at. Whether it is a save area is for VMRUN to find
    /// out; while a processor runs from it the RMP keeps it where it is.
    pub fn snp_save_area(&self, gfn: Gfn, task: &Task<'_>) -> Option<Sfn> {
        let slots = self.slots.read(task);
        let slot = slots.lookup(gfn)?;
        let (inode, index) = slot.gmem_page(gfn)?;
        let _stays = inode.shared(task);
        let is_private = self.slot_attribute(slot, gfn, task).is_private();
        inode.peek(index, task).filter(|_| is_private).map(|folio| folio.sfn)
    }
}
