//! A page state change: the guest asks that a range of its memory become private or shared (`KVM_HC_MAP_GPA_RANGE`).
//!
//! KVM leaves it to the VMM, which sets the attribute and, where private and shared memory are two, punches the private page
//! out. [`Vm::page_state_change`] does both: the conversion in place, or attribute and hole for a guest_memfd without
//! attributes of its own. A page that becomes private is assigned by policy, at once if it has memory or at the guest's next
//! use of it; the guest must accept it either way.

use emu_core::defect::Defect;
use emu_core::event::{Event, Sharing};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Errno, Gfn, PageSize};
use gmem::Shareability;
use mmu::rmp::{FirmwareCommand, FirmwareRefused, RmpPageSize, RmpUpdate};
use thiserror::Error;

use super::{Assign, RmpSizes, SnpMemory, count};
use crate::attributes::{AttributeError, MEMORY_ATTRIBUTE_PRIVATE, MemoryAttributes};
use crate::config::VmError;
use crate::fault::back::Origin;
use crate::fault::level;
use crate::memslot::AddressSpaceId;
use crate::vm::{GmemId, Vm};

const PAGE: u64 = PAGE_SIZE as u64;
const M2: u64 = PageSize::Size2M.frames();

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageStateChange {
    /// First guest frame.
    pub first: Gfn,
    /// How many 4 KiB pages.
    pub nr_pages: u64,
    /// What they are to be.
    pub to: Shareability,
    /// The size of page that the guest speaks of: a hint.
    pub size: PageSize,
}

/// What a guest says about the size of entries of the RMP; the hypervisor need not care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SizeHint {
    /// PSMASH: it will use the 2M page in parts.
    Psmash,
    /// UNSMASH: it will use it as a whole.
    Unsmash,
}

/// Why the state did not change. Memslots before the one that failed may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PageStateError {
    /// Nothing, or more than there are addresses.
    #[error("{nr_pages} pages from guest frame {:#x} are no range of guest memory", first.raw())]
    BadRange {
        /// The first.
        first: Gfn,
        /// How many.
        nr_pages: u64,
    },
    /// There is no memory that could be private.
    #[error("no memslot on guest_memfd holds guest frame {:#x}", gfn.raw())]
    NoGmem {
        /// The first frame without.
        gfn: Gfn,
    },
    /// The VM has no private memory.
    #[error("the VM has no reverse map")]
    NotSnp,
    /// The conversion failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The attribute could not be set.
    #[error(transparent)]
    Attributes(#[from] AttributeError),
}

impl PageStateError {
    /// What the hypercall returns, negated; whatever it is, the guest is told of a failure by the GHCB's generic code.
    pub const fn errno(&self) -> Errno {
        match self {
            PageStateError::BadRange { .. } | PageStateError::NotSnp => Errno::Inval,
            PageStateError::NoGmem { .. } => Errno::NoEnt,
            PageStateError::Vm(VmError::Convert(error)) => error.errno(),
            PageStateError::Vm(_) => Errno::Fault,
            PageStateError::Attributes(error) => error.errno(),
        }
    }
}

/// A part of a range that one inode stands behind.
struct Part {
    gmem: GmemId,
    nr_pages: u64,
    offset_bytes: u64,
}

impl Vm {
    /// Makes a range of guest memory private or shared, as the guest asks. All of it must be memory with a guest_memfd, or
    /// nothing changes.
    pub fn page_state_change(&self, change: PageStateChange, task: &Task<'_>) -> Result<(), PageStateError> {
        let done = self.change_page_state(change, task);
        task.report_with(|| Event::PageStateChange {
            gfn: change.first,
            nr_pages: change.nr_pages,
            to: Sharing::from(change.to),
            size: change.size,
            errno: done.as_ref().err().map_or(0, |error| -error.errno().value()),
        });
        done
    }

    fn change_page_state(&self, change: PageStateChange, task: &Task<'_>) -> Result<(), PageStateError> {
        let snp = self.snp.as_deref().ok_or(PageStateError::NotSnp)?;
        let PageStateChange { first, nr_pages, to, .. } = change;
        let bad_range = PageStateError::BadRange { first, nr_pages };
        let end = first.raw().checked_add(nr_pages).filter(|_| nr_pages > 0).ok_or(bad_range)?;
        let parts = self.gmem_parts(first, end, task)?;
        if to.is_private() && task.has(Defect::AssignBeforeZap) {
            self.assign_eagerly(snp, first, end, task)?;
        }
        if self.gmem.generation.has_inode_attributes() {
            for part in &parts {
                self.convert(part.gmem, part.offset_bytes, part.nr_pages * PAGE, to, task)?;
            }
        } else {
            let attributes = if to.is_private() { MEMORY_ATTRIBUTE_PRIVATE } else { 0 };
            let (address, size) = (first.base().raw(), nr_pages * PAGE);
            self.set_memory_attributes(&MemoryAttributes { address, size, attributes, flags: 0 }, task)?;
            for part in parts.iter().filter(|_| to.host_may_use()) {
                self.punch_hole(part.gmem, part.offset_bytes, part.nr_pages * PAGE, task)?;
            }
        }
        if to.is_private() {
            self.assign_eagerly(snp, first, end, task)?;
        }
        Ok(())
    }

    /// The inodes behind `[first, end)`, without a gap.
    fn gmem_parts(&self, first: Gfn, end: u64, task: &Task<'_>) -> Result<Vec<Part>, PageStateError> {
        let slots = self.slots.read(task);
        let mut at = first.raw();
        let mut parts = Vec::new();
        for slot in slots.in_range(AddressSpaceId::Normal, first, end - at) {
            let info = slot.info();
            let (from, to) = (info.first.raw().max(first.raw()), info.end().raw().min(end));
            let index = info.index_of(Gfn::new(from)).filter(|_| from == at);
            let (Some(view), Some(index)) = (info.gmem, index) else { break };
            let (nr_pages, offset_bytes) = (to - from, index.0 * PAGE);
            parts.push(Part { gmem: view.gmem, nr_pages, offset_bytes });
            at = to;
        }
        if at == end { Ok(parts) } else { Err(PageStateError::NoGmem { gfn: Gfn::new(at) }) }
    }

    /// Assigns what of `[first, end)` has memory, if the policy says so, and makes large entries of small ones.
    fn assign_eagerly(&self, snp: &SnpMemory, first: Gfn, end: u64, task: &Task<'_>) -> Result<(), VmError> {
        if snp.assign == Assign::Eager {
            let mut at = first.raw();
            while at < end {
                at = self.assign_folio(snp, Gfn::new(at), task)?;
            }
        }
        if snp.sizes == RmpSizes::MergeBack {
            for block in first.raw().div_ceil(M2)..end / M2 {
                self.unsmash(snp, Gfn::new(block * M2), task)?;
            }
        }
        Ok(())
    }

    /// Assigns the page at `gfn`, or the 2M around it, if it is private and has memory; the next frame to look at.
    fn assign_folio(&self, snp: &SnpMemory, gfn: Gfn, task: &Task<'_>) -> Result<u64, VmError> {
        let slots = self.slots.read(task);
        let Some((slot, (inode, index))) = slots.lookup(gfn).and_then(|slot| Some((slot, slot.gmem_page(gfn)?))) else {
            return Ok(gfn.raw() + 1);
        };
        let _stays = inode.shared(task);
        let is_private = self.slot_attribute(slot, gfn, task).is_private() || task.has(Defect::AssignBeforeZap);
        let Some(folio) = inode.peek(index, task).filter(|_| is_private) else { return Ok(gfn.raw() + 1) };
        let largest = level::allowed_by_memory(self, slot, gfn, folio, Origin::Gmem, task);
        self.assign(snp, (gfn, folio.sfn), largest, task)?;
        let done = snp.max_mapping_size(folio.sfn);
        Ok(gfn.align_down(done).raw() + done.frames())
    }

    /// What the guest says about sizes. A hint that cannot be followed is none.
    pub fn size_hint(&self, gfn: Gfn, hint: SizeHint, task: &Task<'_>) -> Result<(), PageStateError> {
        let snp = self.snp.as_deref().ok_or(PageStateError::NotSnp)?;
        match hint {
            SizeHint::Unsmash if snp.sizes == RmpSizes::MergeBack => {
                Ok(self.unsmash(snp, gfn.align_down(PageSize::Size2M), task)?)
            }
            SizeHint::Unsmash => Ok(()),
            SizeHint::Psmash => {
                let slots = self.slots.read(task);
                let Some((inode, index)) = slots.lookup(gfn).and_then(|slot| slot.gmem_page(gfn)) else {
                    return Ok(());
                };
                let _stays = inode.shared(task);
                let Some(folio) = inode.peek(index, task) else { return Ok(()) };
                let large =
                    |entry: &mmu::rmp::RmpEntry| snp.is_at(*entry, gfn) && entry.page_size() == RmpPageSize::Size2M;
                if snp.rmp.entry(folio.sfn).as_ref().is_some_and(large) {
                    // What the instruction says is in the trace.
                    let _ = self.smash(snp, gfn, folio.sfn, task)?;
                }
                Ok(())
            }
        }
    }

    /// Makes one entry of the 512 behind the 2M at `first`, if they are alike and the memory is one folio
    /// (`SNP_PAGE_UNSMASH`).
    fn unsmash(&self, snp: &SnpMemory, first: Gfn, task: &Task<'_>) -> Result<(), VmError> {
        let slots = self.slots.read(task);
        let Some((slot, (inode, index))) = slots.lookup(first).and_then(|slot| Some((slot, slot.gmem_page(first)?)))
        else {
            return Ok(());
        };
        let _stays = inode.shared(task);
        let Some(folio) = inode.peek(index, task) else { return Ok(()) };
        let small = snp.rmp.entry(folio.sfn);
        let small = small.is_some_and(|entry| snp.is_at(entry, first) && entry.page_size() == RmpPageSize::Size4K);
        let whole = level::allowed_by_memory(self, slot, first, folio, Origin::Gmem, task) >= PageSize::Size2M;
        if !small || !whole || !snp.are_alike(folio.sfn) {
            return Ok(());
        }
        self.resize(first, task, || {
            let _alone = snp.block(folio.sfn, task);
            if task.has(Defect::MergeAnew) {
                return snp.assign_anew(folio.sfn, first, task);
            }
            let merged = snp.rmp.firmware(folio.sfn.base(), FirmwareCommand::Unsmash);
            let status = merged.err().map_or(0, FirmwareRefused::code);
            task.report(Event::Unsmash { sfn: folio.sfn, status });
            if merged.is_ok() {
                count(&snp.counters.unsmashed, 1);
            }
        })
    }
}

impl SnpMemory {
    /// The mistake of a host that has no `SNP_PAGE_UNSMASH`.
    fn assign_anew(&self, head: emu_core::Sfn, first: Gfn, task: &Task<'_>) {
        let small = RmpUpdate::hypervisor(RmpPageSize::Size4K);
        let gone = (0..M2).try_for_each(|n| self.rmpupdate(emu_core::Sfn::new(head.raw() + n), small, task));
        let whole = RmpUpdate::guest(self.asid, first.base(), RmpPageSize::Size2M);
        let _ = gone.and_then(|()| self.rmpupdate(head, whole, task));
    }

    /// Whether 512 entries from `head` on could be one: so that nothing is zapped in vain.
    fn are_alike(&self, head: emu_core::Sfn) -> bool {
        let Some(first) = self.rmp.entry(head) else { return false };
        (0..M2).all(|n| {
            let entry = self.rmp.entry(emu_core::Sfn::new(head.raw() + n));
            entry.is_some_and(|entry| {
                self.is_at(entry, Gfn::new(first.gpa().frame().raw() + n)) && entry.validated() == first.validated()
            })
        })
    }
}
