//! One look at a VM: every part whose lock was free.

use std::collections::BTreeMap;
use std::sync::Arc;

use emu_core::Gfn;
use emu_core::sync::{MutexGuard, ReadGuard, Task};
use gmem::{FolioRun, HostMemory, InodeView, PageIndex, Shareability};

use super::Moment;
use super::history::CheckHistory;
use super::witness::Witness;
use crate::attributes::AttributeTree;
use crate::memslot::{GmemServes, MemSlots, Slot};
use crate::tdp::{LeafView, Tables};
use crate::vm::{GmemId, Vm};

/// See the module.
pub(super) struct Scene<'a> {
    pub(super) vm: &'a Vm,
    pub(super) moment: Moment,
    pub(super) history: &'a CheckHistory,
    pub(super) witness: &'a dyn Witness,
    /// Nobody is adding, moving or deleting memslots.
    pub(super) slots_settled: bool,
    pub(super) slots: Option<ReadGuard<'a, MemSlots>>,
    pub(super) tables: Option<ReadGuard<'a, Arc<Tables>>>,
    pub(super) host: Option<MutexGuard<'a, HostMemory>>,
    /// `None` while an inode comes or goes.
    pub(super) inodes: Option<BTreeMap<GmemId, InodeView>>,
    /// `mem_attr_array`; `None` while it changes.
    pub(super) attributes: Option<ReadGuard<'a, AttributeTree>>,
    pub(super) covered: Option<(Gfn, Gfn)>,
}

/// A leaf with the slot and the folio behind its first page.
pub(super) struct Placed<'s> {
    pub(super) leaf: LeafView,
    pub(super) slot: &'s Slot,
    pub(super) inode: &'s InodeView,
    pub(super) index: PageIndex,
    pub(super) folio: Option<&'s FolioRun>,
}

impl<'a> Scene<'a> {
    pub(super) fn of(
        vm: &'a Vm,
        moment: Moment,
        history: &'a CheckHistory,
        witness: &'a dyn Witness,
        task: &Task<'a>,
    ) -> Scene<'a> {
        let inodes = vm.live_inodes(task);
        let views = inodes.map(|live| live.into_iter().map(|(id, inode)| (id, inode.view(task))).collect());
        Scene {
            vm,
            moment,
            history,
            witness,
            slots_settled: vm.slots_lock.try_lock(task).is_some(),
            slots: vm.slots.try_read(task),
            tables: vm.try_tables(task),
            host: vm.host.try_lock(task),
            inodes: views,
            attributes: vm.attributes.try_read(task),
            covered: vm.invalidation().range(),
        }
    }

    /// Every present leaf, ascending; only while `mmu_lock` is free.
    pub(super) fn leaves(&self) -> &'a [LeafView] {
        self.history.tree().map_or(&[], |survey| &survey.leaves)
    }

    /// Whether an invalidation in progress reaches any of these frames, so that nothing is promised about them.
    pub(super) fn is_covered(&self, first: Gfn, nr_pages: u64) -> bool {
        let end = first.raw().saturating_add(nr_pages);
        self.covered.is_some_and(|(from, to)| from.raw() < end && first.raw() < to.raw())
    }

    /// Whether the page behind `gfn` is private or shared; `None` while that changes.
    pub(super) fn attribute(&self, slot: &Slot, gfn: Gfn) -> Option<Shareability> {
        match slot.gmem_page(gfn) {
            Some((inode, index)) if inode.policy().generation.has_inode_attributes() => {
                self.inodes.as_ref()?.get(&slot.info().gmem?.gmem)?.attribute(index)
            }
            _ => Some(self.attributes.as_ref()?.get(gfn.raw())),
        }
    }

    /// Whether all pages behind `leaf` are private, or all shared; `None` while that changes.
    pub(super) fn is_uniform(&self, Placed { leaf, slot, inode, index, .. }: &Placed<'_>) -> Option<bool> {
        let nr_pages = leaf.size.frames();
        match slot.inode() {
            Some(shown) if shown.policy().generation.has_inode_attributes() => inode.is_uniform(*index, nr_pages),
            _ => Some(self.attributes.as_ref()?.map().is_uniform(leaf.gfn.raw(), nr_pages)),
        }
    }

    /// The inode's page behind `gfn`, if the access that made a leaf there went to the inode and not to user memory.
    pub(super) fn served_by_gmem(&self, slot: &Slot, gfn: Gfn) -> Option<(GmemId, PageIndex)> {
        let (view, index) = (slot.info().gmem?, slot.info().index_of(gfn)?);
        let served = view.serves == GmemServes::All || self.attribute(slot, gfn)?.is_private();
        served.then_some((view.gmem, index))
    }

    /// The leaves of guest_memfd that no invalidation reaches and whose slot and inode can be looked at.
    pub(super) fn settled_leaves(&self) -> impl Iterator<Item = Placed<'_>> {
        self.placed(self.leaves()).chain(self.placed(&self.history.shadow_leaves))
    }

    /// The same of `leaves`.
    pub(super) fn placed<'s>(&'s self, leaves: &'s [LeafView]) -> impl Iterator<Item = Placed<'s>> {
        let settled = leaves.iter().filter(|leaf| !self.is_covered(leaf.gfn, leaf.size.frames()));
        settled.filter_map(|&leaf| {
            let slot = self.slots.as_ref()?.lookup(leaf.gfn)?;
            let (id, index) = self.served_by_gmem(slot, leaf.gfn)?;
            let inode = self.inodes.as_ref()?.get(&id)?;
            inode.folios.as_ref()?;
            Some(Placed { leaf, slot, inode, index, folio: inode.folios_at(index) })
        })
    }

    /// Every inode whose page cache can be looked at; `None` unless all can.
    pub(super) fn caches(&self) -> Option<Vec<(GmemId, &[FolioRun])>> {
        let inodes = self.inodes.as_ref()?;
        inodes.iter().map(|(&id, inode)| Some((id, inode.folios.as_deref()?))).collect()
    }
}
