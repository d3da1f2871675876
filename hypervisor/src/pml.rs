//! Page-modification logging (Intel SDM vol. 3, "Page-Modification Logging"; `vmx_flush_pml_buffer`).
//!
//! The processor writes the guest physical address of every page whose dirty flag it sets to a buffer of 512 entries,
//! from the last one down, and leaves the guest when there is no room. Software reads it at every exit, in the order in
//! which it was filled.

use emu_core::sync::Task;
use emu_core::{Gpa, Spa};

use crate::config::VmError;
use crate::vcpu::VcpuId;
use crate::vm::Vm;

/// Entries of a buffer, which is one 4 KiB page.
pub const PML_ENTRIES: u16 = 512;

impl Vm {
    /// The page in which `vcpu` logs what it writes (the PML address), if processors log: where tables are in EPT format
    /// and the VM was made with [`crate::Pml::On`].
    pub fn pml_buffer(&self, vcpu: VcpuId) -> Result<Option<Spa>, VmError> {
        Ok(self.vcpu(vcpu)?.pml)
    }

    /// Marks what a processor logged: entries of the buffer at `page` above `index`, which is where the processor would
    /// write next; 511 when it logged nothing, 65535 when the buffer is full. The processor starts over at 511.
    pub fn flush_pml_buffer(&self, vcpu: VcpuId, page: Spa, index: u16, task: &Task<'_>) -> Result<(), VmError> {
        let last = PML_ENTRIES - 1;
        if index == last {
            return Ok(());
        }
        let first = if index > last { 0 } else { index + 1 };
        let mut own = self.vcpu(vcpu)?.mmu.lock(task);
        if own.ring.as_ref().is_some_and(|ring| ring.room() < usize::from(last + 1 - first)) {
            return Err(VmError::DirtyRingFull);
        }
        let slots = self.slots.read(task);
        for entry in (first..=last).rev() {
            let gpa = Gpa::new(self.memory().load(page.wrapping_add(8 * u64::from(entry)))?);
            if let Some(slot) = slots.lookup(gpa.frame()) {
                self.mark_dirty(slot, gpa.frame(), own.ring.as_mut(), task);
            }
        }
        Ok(())
    }
}
