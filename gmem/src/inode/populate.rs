//! Finding folios with the inode locked against everybody, for who must keep a folio where it is while it is filled.

use emu_core::sync::Task;

use super::PageIndex;
use super::cache::{Backed, GetError};
use super::lock::Exclusive;
use crate::Host;

impl Exclusive<'_> {
    /// The folio at `index`, populated if there is none (`__kvm_gmem_get_pfn`). It stays while the lock is held.
    ///
    /// # Errors
    /// As [`super::Shared::get_folio`].
    pub fn get_folio(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        let backed = self.inode.find_or_allocate(host, index, task)?;
        self.inode.around_poison(host, index, backed, task)
    }
}
