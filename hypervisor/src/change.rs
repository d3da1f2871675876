//! Changes of what stands behind guest memory: holes and conversions.
//!
//! Both run the same course. The inode begins an invalidation, which freezes its bindings; every memslot range that shows
//! the pages is announced and zapped; the change is made; the end lets faults through again.

use emu_core::Gfn;
use emu_core::event::EventSink;
use emu_core::page::PAGE_SIZE;
use gmem::{Invalidating, PageIndex, PageRange, Shareability};

use crate::config::VmError;
use crate::vm::{GmemId, Vm};

const PAGE: u64 = PAGE_SIZE as u64;

/// A hole whose pages are unmapped and not yet removed. Bindings of the inode are frozen and faults on the range retry
/// until [`Vm::punch_finish`].
#[derive(Debug)]
#[must_use = "faults on the range retry until punch_finish"]
pub struct PunchInFlight {
    id: GmemId,
    removal: Invalidating,
}

fn whole_pages(offset_bytes: u64, len_bytes: u64) -> Result<PageRange, VmError> {
    if len_bytes == 0 || !offset_bytes.is_multiple_of(PAGE) || !len_bytes.is_multiple_of(PAGE) {
        return Err(VmError::BadRange { offset_bytes, len_bytes });
    }
    Ok(PageRange { first: PageIndex(offset_bytes / PAGE), nr_pages: len_bytes / PAGE })
}

impl Vm {
    /// `fallocate(FALLOC_FL_PUNCH_HOLE)`: the pages read as zero from now on, their folios go back to their provider
    /// where they lie in the hole as a whole.
    pub fn punch_hole(
        &mut self,
        id: GmemId,
        offset_bytes: u64,
        len_bytes: u64,
        events: &mut dyn EventSink,
    ) -> Result<(), VmError> {
        let punch = self.punch_begin(id, offset_bytes, len_bytes, events)?;
        self.punch_finish(punch);
        Ok(())
    }

    /// The first half of [`Vm::punch_hole`]: zaps. The flush must be taken before the second half.
    pub fn punch_begin(
        &mut self,
        id: GmemId,
        offset_bytes: u64,
        len_bytes: u64,
        events: &mut dyn EventSink,
    ) -> Result<PunchInFlight, VmError> {
        let range = whole_pages(offset_bytes, len_bytes)?;
        Ok(PunchInFlight { id, removal: self.unmap_begin(id, range, events)? })
    }

    /// The second half of [`Vm::punch_hole`]: removes, then lets faults through again.
    pub fn punch_finish(&mut self, punch: PunchInFlight) {
        let PunchInFlight { id, removal } = punch;
        if let Some((host, inode)) = self.host_and_gmem(id) {
            inode.remove(host, &removal);
        }
        self.unmap_end(id, removal);
    }

    /// Changes who may use a range of an inode, all or nothing (`KVM_SET_MEMORY_ATTRIBUTES2` on guest_memfd). Bytes stay.
    /// What is in the wanted state already is left alone: no zap, no flush, no retry.
    pub fn convert(
        &mut self,
        id: GmemId,
        offset_bytes: u64,
        len_bytes: u64,
        to: Shareability,
        events: &mut dyn EventSink,
    ) -> Result<(), VmError> {
        let range = whole_pages(offset_bytes, len_bytes)?;
        let inode = self.gmem(id).ok_or(VmError::NoSuchGmem { id })?;
        let Some(conversion) = inode.plan_conversion(&self.host, range, to)? else { return Ok(()) };
        let unmapped = self.unmap_begin(id, range, events)?;
        if let Some((_, inode)) = self.host_and_gmem(id) {
            inode.convert(&unmapped, conversion);
        }
        self.unmap_end(id, unmapped);
        Ok(())
    }

    fn unmap_begin(
        &mut self,
        id: GmemId,
        range: PageRange,
        events: &mut dyn EventSink,
    ) -> Result<Invalidating, VmError> {
        let inode = self.gmems.get_mut(id.0 as usize).and_then(Option::as_mut).ok_or(VmError::NoSuchGmem { id })?;
        let removal = inode.invalidate_begin(range);
        self.invalidation.begin();
        let mut zapped = Ok(());
        for bound in inode.bound(&removal) {
            let Some(slot) = self.slots.by_id(bound.slot) else { continue };
            let first = Gfn::new(slot.first.raw() + bound.first_in_slot);
            self.invalidation.add_range(first, bound.nr_pages);
            zapped = zapped.and(self.tables.zap(first, bound.nr_pages, events));
        }
        match zapped {
            Ok(()) => Ok(removal),
            Err(error) => {
                self.unmap_end(id, removal);
                Err(error.into())
            }
        }
    }

    fn unmap_end(&mut self, id: GmemId, removal: Invalidating) {
        if let Some((_, inode)) = self.host_and_gmem(id) {
            inode.invalidate_end(removal);
        }
        self.invalidation.end();
    }
}
