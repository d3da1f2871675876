//! Taking pages away from processes: from one by its addresses, from all by the pages of an inode.

use std::sync::Arc;

use emu_core::defect::Defect;
use emu_core::sync::{Mutex, Task};
use emu_core::{Hva, Hvn};

use super::table::UserTable;
use super::vma::{Taken, Vma, Vmas, What};
use super::{HvaRange, Kernel, Mm, MmError, MmId, MmuNotifier, NotifyReason, Prot};
use crate::{Exclusive, Host, PageIndex, PageRange};

/// A mapping of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserMapping {
    /// In which address space.
    pub mm: MmId,
    /// Where.
    pub at: HvaRange,
    /// The inode's page behind the first page.
    pub first: PageIndex,
}

/// Who maps an inode (`i_mmap`).
#[derive(Default)]
pub struct UserMappings {
    list: Mutex<Vec<(Arc<UserTable>, UserMapping)>>,
}

impl UserMappings {
    /// Replaces mappings of one address space by others, in one step: an inode that unmaps meanwhile misses none.
    ///
    /// # Panics
    /// When one of `gone` is not there.
    pub(super) fn replace(
        &self,
        table: &Arc<UserTable>,
        gone: Option<HvaRange>,
        come: &[(HvaRange, PageIndex)],
        task: &Task<'_>,
    ) {
        let mut list = self.list.lock(task);
        if let Some(at) = gone {
            match list.iter().position(|(of, mapping)| Arc::ptr_eq(of, table) && mapping.at == at) {
                Some(place) => {
                    list.swap_remove(place);
                }
                None => panic!("{at:?} is not a mapping of the inode"),
            }
        }
        for &(at, first) in come {
            list.push((Arc::clone(table), UserMapping { mm: table.mm(), at, first }));
        }
    }

    /// Every mapping, in no particular order.
    pub fn list(&self, task: &Task<'_>) -> Vec<UserMapping> {
        self.list.lock(task).iter().map(|(_, mapping)| *mapping).collect()
    }
}

impl Exclusive<'_> {
    /// Takes pages of the inode out of every process (`unmap_mapping_pages`): before they become private or go. Mappings
    /// stay; whoever touches them faults again. How many entries went.
    pub fn unmap_users(&self, range: PageRange, host: &Host, notifier: &dyn MmuNotifier, task: &Task<'_>) -> u64 {
        // Held throughout: what is mapped at an address stays this inode until its entries are gone.
        let list = self.inode.users().list.lock(task);
        let mut gone = 0;
        for (table, mapping) in list.iter() {
            let first = range.first.max(mapping.first);
            let end = range.end().0.min(mapping.first.0.saturating_add(mapping.at.nr_pages));
            if first.0 >= end {
                continue;
            }
            let from = Hvn::new(mapping.at.first.raw() + (first.0 - mapping.first.0));
            let at = HvaRange { first: from, nr_pages: end - first.0 };
            notifier.invalidate(table.mm(), at, NotifyReason::Clear, task, &mut |task| {
                gone += table.zap(at, host, task);
            });
            if task.has(Defect::UnmapOneProcess) {
                break;
            }
        }
        gone
    }
}

impl Mm {
    /// `munmap`. What is not mapped is no error.
    pub fn munmap(&self, at: Hva, len_bytes: u64, kernel: Kernel<'_>) -> Result<(), MmError> {
        self.unmap_range(HvaRange::checked(at, len_bytes)?, kernel);
        Ok(())
    }

    pub(super) fn unmap_range(&self, range: HvaRange, kernel: Kernel<'_>) {
        let mut vmas = self.vmas.write(kernel.task);
        let gone = vmas.take(range);
        for taken in &gone {
            let part = taken.part.range();
            kernel.notifier.invalidate(self.id, part, NotifyReason::Unmap, kernel.task, &mut |task| {
                self.table.zap(part, kernel.host, task);
            });
            self.reattach(&taken.old, &taken.left, kernel.task);
        }
    }

    /// `mprotect`. On [`MmError::NotMapped`] nothing was changed.
    pub fn mprotect(&self, at: Hva, len_bytes: u64, prot: Prot, kernel: Kernel<'_>) -> Result<(), MmError> {
        let range = HvaRange::checked(at, len_bytes)?;
        let mut vmas = self.vmas.write(kernel.task);
        vmas.must_cover(range)?;
        let is_gmem = |vma: &Vma| matches!(vma.what(), What::Gmem { .. });
        if prot.contains(Prot::EXEC) && vmas.reaching_into(range).any(is_gmem) {
            return Err(MmError::NoExec);
        }
        for pages in self.change_vmas(&mut vmas, range, &|vma| vma.set_prot(prot), kernel.task) {
            // Rights that are gained come by the next fault.
            kernel.notifier.invalidate(self.id, pages, NotifyReason::Protection, kernel.task, &mut |task| {
                self.table.protect(pages, prot, kernel.host, task);
            });
        }
        Ok(())
    }

    /// Changes the parts of mappings in `range`, cutting them at its edges; which pages each part has.
    pub(super) fn change_vmas(
        &self,
        vmas: &mut Vmas,
        range: HvaRange,
        change: &dyn Fn(&mut Vma),
        task: &Task<'_>,
    ) -> Vec<HvaRange> {
        let taken = vmas.take(range);
        let parts = taken.into_iter().map(|Taken { old, mut part, mut left }| {
            change(&mut part);
            let pages = part.range();
            vmas.insert(part.clone());
            left.push(part);
            self.reattach(&old, &left, task);
            pages
        });
        parts.collect()
    }

    /// Tells an inode that a mapping is now these parts of it.
    fn reattach(&self, old: &Vma, parts: &[Vma], task: &Task<'_>) {
        if let What::Gmem { inode, .. } = old.what() {
            let come: Vec<_> = parts.iter().filter_map(|part| Some((part.range(), part.first_index()?))).collect();
            inode.users().replace(&self.table, Some(old.range()), &come, task);
        }
    }
}
