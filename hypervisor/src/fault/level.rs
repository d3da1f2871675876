//! Stage 4: how large the entry may be (`kvm_mmu_hugepage_adjust`).

use emu_core::defect::Defect;
use emu_core::sync::Task;
use emu_core::{AccessKind, Gfn, PageSize, Sfn};

use super::back::{Backed, Origin};
use crate::memslot::{MemSlot, Slot};
use crate::tdp::Rights;
use crate::vm::Vm;

/// A fault that knows the entry it wants.
#[derive(Clone, Copy)]
pub struct Sized<'s> {
    backed: &'s Backed<'s>,
    size: PageSize,
    requested: PageSize,
}

impl Sized<'_> {
    /// The faulting guest frame.
    pub const fn gfn(&self) -> Gfn {
        self.backed.fault().fault().fault().gfn()
    }
    /// The frame behind it.
    pub const fn sfn(&self) -> Sfn {
        self.backed.folio().sfn
    }
    /// The memory behind it.
    pub(crate) const fn memory(&self) -> (gmem::Backed, Origin) {
        (self.backed.folio(), self.backed.origin())
    }
    /// Level of the leaf.
    pub const fn size(&self) -> PageSize {
        self.size
    }
    /// Size of the folio, or of the host's mapping, behind it.
    pub const fn folio_size(&self) -> PageSize {
        self.backed.folio().size
    }
    /// What it could be but for [`Sized::at_most`].
    pub const fn requested(&self) -> PageSize {
        self.requested
    }
    /// The same fault with a smaller leaf, which fits wherever a larger one does.
    #[must_use]
    pub fn at_most(self, size: PageSize) -> Self {
        Sized { size: self.size.min(size), ..self }
    }
    /// The same fault where nothing larger than `size` could be.
    #[must_use]
    pub fn capped(self, size: PageSize) -> Self {
        Sized { size: self.size.min(size), requested: self.requested.min(size), ..self }
    }
    /// What the leaf allows.
    pub fn rights(&self) -> Rights {
        self.backed.rights()
    }
    /// What the guest wants to do.
    pub const fn kind(&self) -> AccessKind {
        self.backed.fault().fault().fault().input().kind
    }
}

/// The largest size that the memory, the slot, the attributes and the policy allow. `mmu_lock` is held and the fault was
/// found not to be stale under it.
#[inline(always)]
pub fn choose<'s>(backed: &'s Backed<'_>, vm: &Vm, task: &Task<'_>) -> Sized<'s> {
    let fault = backed.fault().fault();
    let size = allowed(vm, fault.slot(), fault.fault().gfn(), backed.folio(), backed.origin(), task);
    backed.page().use_it();
    Sized { backed, size, requested: size }
}

/// The largest leaf that may be around `gfn` of `slot` over `memory` (`kvm_mmu_max_mapping_level`).
#[inline(always)]
pub(crate) fn allowed(
    vm: &Vm,
    slot: &Slot,
    gfn: Gfn,
    memory: gmem::Backed,
    origin: Origin,
    task: &Task<'_>,
) -> PageSize {
    let size = allowed_by_memory(vm, slot, gfn, memory, origin, task);
    match vm.snp.as_deref() {
        // The page was assigned before; how large its entry is now is what counts.
        Some(snp) if size > PageSize::Size4K && vm.slot_attribute(slot, gfn, task).is_private() => {
            size.min(snp.max_mapping_size(memory.sfn))
        }
        _ => size,
    }
}

/// The same as far as a reverse map has no say: how large an entry of that may be.
pub(crate) fn allowed_by_memory(
    vm: &Vm,
    slot: &Slot,
    gfn: Gfn,
    memory: gmem::Backed,
    origin: Origin,
    task: &Task<'_>,
) -> PageSize {
    let gmem::Backed { sfn, size } = memory;
    if size == PageSize::Size4K {
        // Nothing makes a leaf larger than the memory.
        return size;
    }
    if task.has(Defect::OrderWithoutCongruence) {
        return size.min(vm.pages.max_level);
    }
    let memory_allows = match (origin, slot.gmem_page(gfn), slot.info().span()) {
        (Origin::Gmem, Some((inode, index)), Some(span)) if inode.policy().generation.has_inode_attributes() => {
            inode.mapping_size(&span, index, size, task)
        }
        (Origin::Gmem, Some((inode, index)), Some(span)) => inode.policy().order.largest(&span, index, size),
        // The host's entry is looked at again: only now nothing can take it away.
        _ => vm.mm.mapping_level(slot.info().hva_of(gfn), task).min(size),
    };
    let limit = slot.lpage().largest(gfn, memory_allows.min(vm.pages.max_level), task);
    // Whatever the order rule of guest_memfd, a leaf lies in its slot and is congruent with its frames.
    largest(slot.info(), gfn, sfn, limit)
}

/// The largest size up to `limit` whose guest frames around `gfn` lie in `slot` and are congruent with the system frames
/// around `sfn`. Between the sizes that fit the whole folio and 4K it settles for a part of the folio.
pub fn largest(slot: &MemSlot, gfn: Gfn, sfn: Sfn, limit: PageSize) -> PageSize {
    let fits = |size: &PageSize| {
        let base = gfn.align_down(*size);
        let contained = base >= slot.first && base.raw() + size.frames() <= slot.end().raw();
        contained && (gfn.raw() ^ sfn.raw()) & (size.frames() - 1) == 0
    };
    PageSize::ALL[..=limit.index()].iter().copied().rfind(fits).unwrap_or(PageSize::Size4K)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memslot::{AddressSpaceId, SlotFlags};
    use emu_core::Hva;
    use gmem::SlotId;

    const G1: u64 = PageSize::Size1G.frames();
    const M2: u64 = PageSize::Size2M.frames();

    fn slot(first: u64, nr_pages: u64) -> MemSlot {
        MemSlot {
            id: SlotId(0),
            space: AddressSpaceId::Normal,
            first: Gfn::new(first),
            nr_pages,
            flags: SlotFlags::empty(),
            hva: Hva::new(0),
            gmem: None,
        }
    }

    #[test]
    fn a_slot_above_the_legacy_hole_has_all_2m_blocks_but_its_first() {
        let slot = slot(0x100, 8 * M2);
        let huge = (0x100..0x100 + 8 * M2)
            .filter(|&g| largest(&slot, Gfn::new(g), Sfn::new(4 * G1 + g), PageSize::Size2M) == PageSize::Size2M)
            .count() as u64;
        assert_eq!(huge, 7 * M2);
    }

    #[test]
    fn containment_congruence_and_limit_each_bind() {
        let all = slot(0, 2 * G1);
        let at = |slot: &MemSlot, gfn: u64, sfn: u64, limit| largest(slot, Gfn::new(gfn), Sfn::new(sfn), limit);
        assert_eq!(at(&all, 5, 3 * G1 + 5, PageSize::Size1G), PageSize::Size1G);
        assert_eq!(at(&all, 5, 3 * G1 + 5, PageSize::Size2M), PageSize::Size2M);
        assert_eq!(at(&all, 5, 3 * G1 + M2 + 5, PageSize::Size1G), PageSize::Size2M, "congruent in 2M only");
        assert_eq!(at(&all, 5, 3 * G1 + 6, PageSize::Size1G), PageSize::Size4K);
        assert_eq!(at(&slot(0, G1 - 1), 5, 5, PageSize::Size1G), PageSize::Size2M, "a part of the 1G folio");
        assert_eq!(at(&slot(0, G1 - 1), G1 - 2, G1 - 2, PageSize::Size1G), PageSize::Size4K);
    }
}
