//! Changes of what stands behind guest memory: holes and conversions.
//!
//! Both run the same course under the inode's exclusive lock, which freezes its bindings: every guest frame that shows
//! the pages is announced and zapped, processors forget it, the change is made, and the end lets faults through again.

use emu_core::defect::Defect;
use emu_core::event::{Event, FailureResult};
use emu_core::page::PAGE_SIZE;
use emu_core::sync::{Point, Task};
use emu_core::{Gfn, PageSize};
use gmem::{Exclusive, Fallocate, Generation, GuestMemfd, PageIndex, PageRange, Shareability};

use crate::config::VmError;
use crate::flush::Owed;
use crate::vm::{GmemId, Vm};

const PAGE: u64 = PAGE_SIZE as u64;

fn whole_pages(offset_bytes: u64, len_bytes: u64) -> Result<PageRange, VmError> {
    if len_bytes == 0 || !offset_bytes.is_multiple_of(PAGE) || !len_bytes.is_multiple_of(PAGE) {
        return Err(VmError::BadRange { offset_bytes, len_bytes });
    }
    Ok(PageRange { first: PageIndex(offset_bytes / PAGE), nr_pages: len_bytes / PAGE })
}

/// Which faults must retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Those on the pages that change.
    Pages,
    /// Those on any page that a leaf could share with one that changes: a neighbour's fault must not put a huge leaf over
    /// attributes that are about to differ, or over what is about to be split (`kvm_arch_pre_set_memory_attributes` widens for the same reason).
    Leaves,
}

impl Vm {
    /// `fallocate(FALLOC_FL_PUNCH_HOLE)`: the pages read as zero from now on, their folios go back to their provider
    /// where they lie in the hole as a whole.
    pub fn punch_hole(&self, id: GmemId, offset_bytes: u64, len_bytes: u64, task: &Task<'_>) -> Result<(), VmError> {
        let range = whole_pages(offset_bytes, len_bytes)?;
        self.punch(&*self.inode(id, task)?, range, task)
    }

    fn punch(&self, inode: &GuestMemfd, range: PageRange, task: &Task<'_>) -> Result<(), VmError> {
        let mut exclusive = inode.exclusive(task);
        exclusive.check_hole(&self.host, range, task)?;
        // A hole in a part of a huge page splits its entry of the reverse map, and by policy the page itself.
        let reach = if task.has(Defect::NarrowHole) { Reach::Pages } else { Reach::Leaves };
        self.invalidate_begin(&exclusive, range, reach, task)?;
        if task.has(Defect::UnlockDuringInvalidation) {
            drop(exclusive);
            task.at(Point::I3);
            exclusive = inode.exclusive(task);
        }
        exclusive.unmap_users(range, &self.host, self, task);
        exclusive.remove(&self.host, range, task);
        task.at(Point::I4);
        self.invalidate_end(&exclusive, range, task);
        task.at(Point::I5);
        Ok(())
    }

    /// Changes who may use a range of an inode, all or nothing (`KVM_SET_MEMORY_ATTRIBUTES2` on guest_memfd), but for
    /// [`Generation::Wip`], which converts one huge page after the other up to the one that fails. Bytes stay.
    /// What is in the wanted state already is left alone: no zap, no flush, no retry.
    pub fn convert(
        &self,
        id: GmemId,
        offset_bytes: u64,
        len_bytes: u64,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let inode = self.inode(id, task)?;
        let exclusive = inode.exclusive(task);
        task.at(Point::C1);
        if len_bytes == 0 && self.gmem.generation == Generation::V2 {
            return Ok(());
        }
        let range = whole_pages(offset_bytes, len_bytes)?;
        exclusive.changes(range, to, task)?;
        for step in exclusive.steps(range) {
            self.convert_step(&exclusive, step, to, task)?;
        }
        Ok(())
    }

    /// Converts what is converted as one.
    fn convert_step(
        &self,
        exclusive: &Exclusive<'_>,
        range: PageRange,
        to: Shareability,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        if !exclusive.changes(range, to, task)? {
            return Ok(());
        }
        let unmap_users = || {
            if to.is_private() && exclusive.unmaps_users() {
                exclusive.unmap_users(exclusive.with_folios(range, task), &self.host, self, task);
                task.at(Point::C3);
            }
        };
        // Before references are counted: a mapping is one, and a new one must wait for the lock.
        let counts_first = task.has(Defect::CountBeforeUnmap);
        if !counts_first {
            unmap_users();
        }
        let Some(conversion) = exclusive.plan_conversion(&self.host, range, to, task)? else { return Ok(()) };
        task.at(Point::C4);
        if counts_first {
            unmap_users();
        }
        if task.has(Defect::SplitBeforeZap) {
            exclusive.split_for(&self.host, &conversion, task)?;
        }
        let reach = if task.has(Defect::NarrowConversion) { Reach::Pages } else { Reach::Leaves };
        if task.has(Defect::ReclaimBeforeZap) {
            exclusive.take_back(&self.host, &conversion, task)?;
            task.at(Point::C5);
        }
        let zap = conversion.zap();
        self.invalidate_begin(exclusive, zap, reach, task)?;
        if task.has(Defect::StoreAttributeAfterEnd) || exclusive.stores_after_end() {
            self.invalidate_end(exclusive, zap, task);
            task.at(Point::I5);
            return Ok(exclusive.convert(&self.host, &conversion, task)?);
        }
        let converted = exclusive.convert(&self.host, &conversion, task);
        task.at(Point::C6);
        self.invalidate_end(exclusive, zap, task);
        task.at(Point::I5);
        Ok(converted?)
    }

    /// `fallocate`: allocates, or punches a hole.
    pub fn fallocate(
        &self,
        id: GmemId,
        mode: u32,
        offset_bytes: i64,
        len_bytes: i64,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let inode = self.inode(id, task)?;
        match Fallocate::parse(&inode, mode, offset_bytes, len_bytes)? {
            Fallocate::Allocate(range) => Ok(inode.shared(task).allocate(&self.host, range, task)?),
            Fallocate::Punch(range) => self.punch(&inode, range, task),
        }
    }

    /// The memory behind a page of an inode failed (`kvm_gmem_error_folio`): nobody shows it any more, and its next use is
    /// `EHWPOISON`. `None` where there was no memory.
    pub fn memory_failure(
        &self,
        id: GmemId,
        index: PageIndex,
        task: &Task<'_>,
    ) -> Result<Option<gmem::Failure>, VmError> {
        let inode = self.inode(id, task)?;
        // The kernel holds the lock shared here; nobody unbinds meanwhile either way, and a split wants it to itself.
        let exclusive = inode.exclusive(task);
        let range = PageRange { first: index, nr_pages: 1 };
        let tells = !task.has(Defect::FailureTellsNobody);
        if tells {
            self.invalidate_begin(&exclusive, range, Reach::Leaves, task)?;
        }
        exclusive.unmap_users(exclusive.with_folios(range, task), &self.host, self, task);
        let failure = exclusive.error(&self.host, index, task);
        if tells {
            self.invalidate_end(&exclusive, range, task);
        }
        if let Ok(Some(gmem::Failure { sfn, known })) = failure {
            let result = if known { FailureResult::Failed } else { FailureResult::Delayed };
            task.report(Event::MemoryFailure { sfn, result });
        }
        Ok(failure?)
    }

    /// The last reference on a file is gone: it is taken from its memslots, and the inode ends (`kvm_gmem_release`).
    pub(crate) fn release_file(&self, id: GmemId, inode: &GuestMemfd, task: &Task<'_>) -> Result<(), VmError> {
        task.at(Point::L1);
        let changes = self.slots_lock.lock(task);
        let mut exclusive = inode.exclusive(task);
        let all = PageRange { first: PageIndex(0), nr_pages: inode.nr_pages() };
        let begun = self.invalidate_begin(&exclusive, all, Reach::Pages, task);
        if begun.is_ok() {
            self.invalidate_end(&exclusive, all, task);
        }
        exclusive.release();
        drop(exclusive);
        task.at(Point::I5);
        self.forget_gmem(id, task);
        inode.destroy(&self.host, task);
        drop(changes);
        begun.and(self.file_ends(id, task))
    }

    /// Announces, zaps and flushes every guest frame that shows pages of `range` (`kvm_gmem_invalidate_begin`).
    fn invalidate_begin(
        &self,
        exclusive: &Exclusive<'_>,
        range: PageRange,
        reach: Reach,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let bound = exclusive.bound(range);
        if bound.is_empty() {
            return Ok(());
        }
        let tables = self.mmu.write(task);
        let mut owed = Owed::default();
        let mut zapped = Ok(());
        self.invalidation.begin(task);
        task.at(Point::I1);
        for part in bound {
            let (first, end) = (part.first, Gfn::new(part.first.raw() + part.nr_pages));
            let unit = match reach {
                Reach::Pages => PageSize::Size4K,
                Reach::Leaves => self.pages.max_level,
            };
            let from = first.align_down(unit).raw();
            self.invalidation.add_range(Gfn::new(from), end.raw().next_multiple_of(unit.frames()) - from, task);
            zapped = zapped.and(tables.zap(part.first, part.nr_pages, &mut owed, task));
            self.reload_save_areas(part.first, part.nr_pages, task);
        }
        task.at(Point::I2);
        if !task.has(Defect::SkipFlush) {
            self.flush(&owed, task);
        }
        tables.bury(&self.host, task);
        drop(tables);
        task.at(Point::I3);
        match zapped {
            Ok(()) => Ok(()),
            Err(error) => {
                self.invalidate_end(exclusive, range, task);
                Err(error.into())
            }
        }
    }

    /// Lets faults through again (`kvm_gmem_invalidate_end`). Whether there was a begin follows from the bindings, which
    /// the lock has kept as they were.
    fn invalidate_end(&self, exclusive: &Exclusive<'_>, range: PageRange, task: &Task<'_>) {
        if exclusive.shows(range) {
            let _tables = self.mmu.write(task);
            self.invalidation.end(task);
        }
    }
}
