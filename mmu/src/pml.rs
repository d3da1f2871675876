//! Page-modification logging (Intel SDM vol. 3, "Page-Modification Logging" and "Page-Modification Log-Full Event").
//!
//! Modelled: when the processor sets a dirty flag for EPT that was clear, it writes the guest physical address of the
//! access to the entry that the PML index names, and counts the index down. When it would have to set an accessed or dirty
//! flag while the index names no entry, it sets nothing and leaves the guest. [`ModificationLog`] is the pair of VMCS
//! fields; [`crate::Mmu::set_modification_log`] is where a VM entry puts them.
//!
//! Always true: a flag is set only when there is room for one entry, so that no dirty flag is ever set unlogged.

use emu_core::memory::{BusError, SystemMemory};
use emu_core::{Gpa, PageSize, Spa};

/// The PML address and the PML index of a VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ModificationLog {
    /// The PML address: a page of [`ModificationLog::ENTRIES`] entries of 8 bytes. Bits 11:0 are ignored.
    pub page: Spa,
    /// The PML index: the entry that is written next. There is room while it is below [`ModificationLog::ENTRIES`]; behind
    /// entry 0 it wraps to 65535.
    pub index: u16,
}

impl ModificationLog {
    /// Entries of the page.
    pub const ENTRIES: u16 = 512;

    /// An empty log in `page`: the first entry to be written is the last of the page.
    pub const fn new(page: Spa) -> ModificationLog {
        ModificationLog { page, index: Self::ENTRIES - 1 }
    }

    /// Whether the next flag to be set causes a page-modification log-full event.
    pub const fn is_full(&self) -> bool {
        self.index >= Self::ENTRIES
    }

    /// Logs the page of `gpa`. There is room.
    pub(crate) fn note(&mut self, memory: &SystemMemory, gpa: Gpa) -> Result<(), BusError> {
        debug_assert!(!self.is_full(), "asked before the flag was set");
        let entry = self.page.align_down(PageSize::Size4K).wrapping_add(8 * u64::from(self.index));
        memory.store(entry, gpa.align_down(PageSize::Size4K).raw())?;
        self.index = self.index.wrapping_sub(1);
        Ok(())
    }
}
