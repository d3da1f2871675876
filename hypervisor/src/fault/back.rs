//! Stage 3: the folio behind the page.

use emu_core::sync::Task;
use gmem::Host;

use super::Stop;
use super::admit::Admitted;
use crate::config::VmError;

/// A fault whose page has a folio.
#[derive(Clone, Copy)]
pub struct Backed<'s> {
    fault: Admitted<'s>,
    folio: gmem::Backed,
}

impl<'s> Backed<'s> {
    /// The fault that may be served.
    pub const fn fault(&self) -> &Admitted<'s> {
        &self.fault
    }
    /// The frame behind the faulting page and the size of its folio.
    pub const fn folio(&self) -> gmem::Backed {
        self.folio
    }
}

/// Finds or allocates the folio (`kvm_gmem_get_pfn`). It may be gone again when the entry is to be written; then the
/// sequence has moved.
pub fn fault_in<'s>(fault: Admitted<'s>, host: &Host, task: &Task<'_>) -> Result<Backed<'s>, Stop> {
    let slot = fault.fault().slot();
    let index = fault.fault().index();
    let shared = slot.inode().shared(task);
    if shared.slot_at(index) != Some(slot.info().id) {
        return Err(VmError::NotBound { slot: slot.info().id, index }.into());
    }
    let folio = shared.get_folio(host, index, task)?;
    Ok(Backed { fault, folio })
}
