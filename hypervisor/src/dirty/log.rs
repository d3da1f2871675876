//! The VMM's calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::memory::BusError;
use emu_core::sync::{MutexGuard, Point, Task};
use emu_core::{Gfn, PageSize};
use gmem::{OutOfMemory, SlotId};
use thiserror::Error;

use super::RingWithBitmap;
use super::bitmap::{DirtyBitmap, Initially, WORD_PAGES};
use super::ring::{DirtyGfn, DirtyRing};
use crate::config::VmError;
use crate::fault::{back, level};
use crate::flush::Owed;
use crate::memslot::{MemSlot, Publication, Slot};
use crate::params::{EagerPageSplit, ManualProtect, NxHugePages, Pml};
use crate::tdp::{Arm, Split, TdpFormat, WholeExecute};
use crate::vcpu::{TableCache, VcpuId};
use crate::vm::Vm;

/// Whether writes to a memslot are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DirtyLogging {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// The log of one memslot.
#[derive(Debug)]
pub struct SlotLog {
    /// Absent where rings do without.
    bitmap: Option<DirtyBitmap>,
}

impl SlotLog {
    /// The marks.
    pub const fn bitmap(&self) -> Option<&DirtyBitmap> {
        self.bitmap.as_ref()
    }
}

/// Writes that no log could take: of nobody's processor, where slots have no bitmap.
#[derive(Debug, Default)]
pub(crate) struct Unlogged(AtomicU64);

impl Unlogged {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Why a call about the log was refused; nothing was changed unless it says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DirtyLogError {
    /// `ENXIO`.
    #[error("pages are pushed to rings: there is no bitmap to read")]
    RingOnly,
    /// `ENOENT`.
    #[error("memslot {} does not exist or is not logged", slot.0)]
    NotLogged {
        /// Its number.
        slot: SlotId,
    },
    /// `EINVAL`: clearing is a call of its own with manual protection alone.
    #[error("reading the log clears it: there is nothing to clear by hand")]
    NotManual,
    /// `EINVAL`.
    #[error("pages {first_page:#x} to {:#x} of memslot {}: not inside it, or not in whole words of 64 pages", first_page + nr_pages, slot.0)]
    BadRange {
        /// Its number.
        slot: SlotId,
        /// The first page.
        first_page: u64,
        /// How many.
        nr_pages: u64,
    },
    /// No frame for a table that a split needs. What was split stays split.
    #[error("no memory to split huge leaves: {0}")]
    Table(#[from] OutOfMemory),
    /// A table lies outside system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

impl Vm {
    /// Marks a page of a logged slot (`mark_page_dirty_in_slot`): in the ring of the processor that wrote, or in the bitmap.
    pub(crate) fn mark_dirty(&self, slot: &Slot, gfn: Gfn, ring: Option<&mut DirtyRing>, task: &Task<'_>) {
        let Some(log) = slot.log() else { return };
        let page = gfn.raw() - slot.info().first.raw();
        match (ring, &log.bitmap) {
            (Some(ring), _) if ring.is_one_below_soft_full() && task.has(Defect::RingForgetsLastEntry) => {}
            (Some(ring), _) => {
                let page = DirtyGfn { slot: slot.info().id, page };
                assert!(ring.push(page).is_ok(), "whoever pushes has made sure of room");
                task.report_with(|| ring.pushed(page));
            }
            (None, Some(bitmap)) => bitmap.mark(page),
            (None, None) => self.unlogged.count(),
        }
    }

    /// Writes of the VMM's that no log could take, because rings do without bitmaps.
    pub fn unlogged_writes(&self) -> u64 {
        self.unlogged.0.load(Ordering::Relaxed)
    }

    /// How the next write to a leaf is noticed.
    fn arm(&self) -> Arm {
        match (self.format(), self.params.pml) {
            (TdpFormat::Ept, Pml::On) => Arm::ClearDirty,
            _ => Arm::WriteProtect,
        }
    }

    /// Starts or stops logging writes to a memslot. When it returns, every later write is logged, or none has to be.
    pub fn set_dirty_logging(&self, id: SlotId, logging: DirtyLogging, task: &Task<'_>) -> Result<(), DirtyLogError> {
        let changes = self.slots_lock.lock(task);
        let slot = self.slots.read(task).by_id(id).cloned().ok_or(DirtyLogError::NotLogged { slot: id })?;
        self.log_writes(&slot, logging, &changes, task)
    }

    /// The same with `slots_lock` held.
    pub(crate) fn log_writes(
        &self,
        slot: &Slot,
        logging: DirtyLogging,
        changes: &MutexGuard<'_, ()>,
        task: &Task<'_>,
    ) -> Result<(), DirtyLogError> {
        match (logging, slot.log().is_some()) {
            (DirtyLogging::On, true) | (DirtyLogging::Off, false) => Ok(()),
            (DirtyLogging::On, false) => self.start_log(slot, changes, task),
            (DirtyLogging::Off, true) => {
                self.slots.publish(Publication::Put(slot.with_log(None)), changes, task);
                self.recover_huge_pages(slot.info().id, task)
            }
        }
    }

    fn start_log(&self, slot: &Slot, changes: &MutexGuard<'_, ()>, task: &Task<'_>) -> Result<(), DirtyLogError> {
        let info = slot.info();
        let initially = match self.params.manual_protect {
            ManualProtect::InitiallySet => Initially::Dirty,
            ManualProtect::Off | ManualProtect::On => Initially::Clean,
        };
        let has_bitmap = self.params.dirty_ring.is_none_or(|ring| ring.bitmap == RingWithBitmap::Yes);
        let bitmap = has_bitmap.then(|| DirtyBitmap::new(info.nr_pages, initially));
        // Whoever faults from here on logs, and puts no writable leaf above 4K; the others were waited for.
        let logged = slot.with_log(Some(Arc::new(SlotLog { bitmap })));
        self.slots.publish(Publication::Put(logged), changes, task);
        if has_bitmap && initially == Initially::Dirty {
            // Everything counts as written: leaves are armed when the VMM clears their marks.
            return Ok(());
        }
        if self.params.eager_page_split == EagerPageSplit::On {
            self.split_slot(info, info.first, info.nr_pages, task)?;
        }
        let mut owed = Owed::default();
        let armed =
            self.mmu.write(task).arm_range(info.first, info.nr_pages, PageSize::Size4K, self.arm(), &mut owed, task);
        // The whole slot, whatever was owed: somebody may have armed a leaf and not flushed yet.
        match self.is_shadowing() {
            // What leads to a frame is found there by its system frame, and those of a slot lie anywhere.
            true => owed.all(),
            false => owed.range(info.first, info.nr_pages),
        }
        self.flush(&owed, task);
        Ok(armed?)
    }

    /// Splits every huge leaf of a part of a slot, with `mmu_lock` for reading. Where it needs a table it lets go of the
    /// lock, gets some, and goes on from there.
    fn split_slot(&self, info: &MemSlot, first: Gfn, nr_pages: u64, task: &Task<'_>) -> Result<(), DirtyLogError> {
        let end = first.raw().saturating_add(nr_pages).min(info.end().raw());
        let (mut from, mut cache) = (first, TableCache::default());
        let split = loop {
            if let Err(error) = cache.top_up(&self.host, task) {
                break Err(error.into());
            }
            match self.mmu.read(task).split_range(from, end - from.raw(), PageSize::Size4K, &mut cache, task) {
                Ok(Split::Done) => break Ok(()),
                Ok(Split::NeedsTables { from: rest }) => from = rest,
                Err(error) => break Err(error.into()),
            }
        };
        cache.empty(&self.host, task);
        split
    }

    /// `kvm_mmu_recover_huge_pages`: maps by huge leaves again what logging made small, where nothing else keeps it so.
    fn recover_huge_pages(&self, id: SlotId, task: &Task<'_>) -> Result<(), DirtyLogError> {
        let slots = self.slots.read(task);
        let Some(slot) = slots.by_id(id) else { return Ok(()) };
        let info = slot.info();
        let may_be = |gfn: Gfn, sfn, size: PageSize| {
            // What is about to change is not put under a leaf that shows it.
            let changing =
                self.invalidation.range().is_some_and(|(from, to)| from.raw() < gfn.raw() + size.frames() && gfn < to);
            !changing
                && size <= self.pages.max_level
                && slot.lpage().largest(gfn, size, task) == size
                && back::present(self, slot, gfn, task).is_some_and(|(memory, origin)| {
                    memory.sfn == sfn && level::allowed(self, slot, gfn, memory, origin, task) >= size
                })
        };
        let execute = match self.nx_huge_pages() {
            NxHugePages::On => WholeExecute::Forbid,
            NxHugePages::Off => WholeExecute::Keep,
        };
        let mut owed = Owed::default();
        let recovered = {
            let tables = self.mmu.read(task);
            let recovered = tables.recover_range(info.first, info.nr_pages, execute, &may_be, &mut owed, task);
            self.flush(&owed, task);
            recovered
        };
        {
            let tables = self.mmu.write(task);
            if let Some(pages) = tables.shadow.lock(task).as_mut() {
                let mut owed = Owed::default();
                pages.drop_collapsible(info.first, info.nr_pages, &mut owed, task);
                self.flush(&owed, task);
            }
            tables.bury(&self.host, task);
        }
        recovered?;
        Ok(())
    }

    /// `KVM_GET_DIRTY_LOG`: tells every word of the slot's bitmap that is not zero. Without manual protection this clears it
    /// and arms the pages again.
    pub fn get_dirty_log(
        &self,
        id: SlotId,
        found: &mut dyn FnMut(u64, u64),
        task: &Task<'_>,
    ) -> Result<(), DirtyLogError> {
        let _changes = self.slots_lock.lock(task);
        let slots = self.slots.read(task);
        let (slot, bitmap) = self.logged(&slots, id)?;
        self.kick_all(task);
        if self.params.manual_protect != ManualProtect::Off {
            let mut nr_dirty = 0;
            bitmap.words().for_each(|(word, bits)| {
                nr_dirty += u64::from(bits.count_ones());
                found(word, bits);
            });
            task.report(Event::GetDirtyLog { slot: id.0, nr_dirty });
            return Ok(());
        }
        let mut owed = Owed::default();
        let mut harvested = Vec::new();
        let armed = {
            let tables = self.mmu.write(task);
            let late = task.has(Defect::ClearAfterArming);
            bitmap.words().try_for_each(|(word, marked)| {
                let bits = if late { marked } else { bitmap.clear(word, u64::MAX) };
                harvested.push((word, bits));
                let armed = self.arm_word(&tables, slot.info(), word, bits, &mut owed, task);
                if late {
                    bitmap.clear(word, bits);
                }
                armed
            })
        };
        task.at(Point::Z1);
        if !task.has(Defect::HarvestWithoutFlush) {
            self.flush(&owed, task);
        }
        // What is told is safe to copy only after the flush.
        let nr_dirty = harvested.iter().map(|(_, bits)| u64::from(bits.count_ones())).sum();
        task.report(Event::GetDirtyLog { slot: id.0, nr_dirty });
        harvested.into_iter().for_each(|(word, bits)| found(word, bits));
        armed
    }

    /// `KVM_CLEAR_DIRTY_LOG`: clears the marks that `words` names, from page `first_page` on, and arms those pages.
    pub fn clear_dirty_log(
        &self,
        id: SlotId,
        first_page: u64,
        nr_pages: u64,
        words: &[u64],
        task: &Task<'_>,
    ) -> Result<(), DirtyLogError> {
        if self.params.manual_protect == ManualProtect::Off {
            return Err(DirtyLogError::NotManual);
        }
        let _changes = self.slots_lock.lock(task);
        let slots = self.slots.read(task);
        let (slot, bitmap) = self.logged(&slots, id)?;
        let info = slot.info();
        let end = first_page.checked_add(nr_pages).filter(|end| *end <= info.nr_pages);
        let whole_words = first_page.is_multiple_of(WORD_PAGES)
            && end.is_some_and(|end| end == info.nr_pages || nr_pages.is_multiple_of(WORD_PAGES));
        if !whole_words || words.len() as u64 != nr_pages.div_ceil(WORD_PAGES) {
            return Err(DirtyLogError::BadRange { slot: id, first_page, nr_pages });
        }
        if self.params.manual_protect == ManualProtect::InitiallySet
            && self.params.eager_page_split == EagerPageSplit::On
        {
            self.split_slot(info, Gfn::new(info.first.raw() + first_page), nr_pages, task)?;
        }
        self.kick_all(task);
        let mut owed = Owed::default();
        let armed = {
            let tables = self.mmu.write(task);
            words.iter().zip(first_page / WORD_PAGES..).try_for_each(|(mask, word)| {
                let bits = bitmap.clear(word, *mask);
                self.arm_word(&tables, info, word, bits, &mut owed, task)
            })
        };
        self.flush(&owed, task);
        armed
    }

    fn logged<'s>(
        &self,
        slots: &'s crate::memslot::MemSlots,
        id: SlotId,
    ) -> Result<(&'s Slot, &'s DirtyBitmap), DirtyLogError> {
        if self.params.dirty_ring.is_some_and(|ring| ring.bitmap == RingWithBitmap::No) {
            return Err(DirtyLogError::RingOnly);
        }
        let slot = slots.by_id(id).ok_or(DirtyLogError::NotLogged { slot: id })?;
        let bitmap = slot.log().and_then(|log| log.bitmap()).ok_or(DirtyLogError::NotLogged { slot: id })?;
        Ok((slot, bitmap))
    }

    /// Processors write their logs down when they leave the guest (`kvm_arch_sync_dirty_log`).
    fn kick_all(&self, task: &Task<'_>) {
        if self.arm() == Arm::ClearDirty {
            self.vcpus.iter().for_each(|vcpu| vcpu.kick(task));
        }
    }

    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`.
    fn arm_word(
        &self,
        tables: &crate::tdp::Tables,
        info: &MemSlot,
        word: u64,
        bits: u64,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), DirtyLogError> {
        let mut rest = bits;
        while rest != 0 {
            let page = word * WORD_PAGES + u64::from(rest.trailing_zeros());
            rest &= rest - 1;
            self.arm_page(tables, Gfn::new(info.first.raw() + page), owed, task)?;
        }
        task.at(Point::D1);
        Ok(())
    }

    /// Arms the leaf of one page whose mark was taken. The flush is owed whatever was found: aging takes W, or the
    /// accessed flag, from a leaf and flushes nothing, so that a processor may still write where the leaf says it may not.
    fn arm_page(
        &self,
        tables: &crate::tdp::Tables,
        gfn: Gfn,
        owed: &mut Owed,
        task: &Task<'_>,
    ) -> Result<(), DirtyLogError> {
        tables.arm_range(gfn, 1, PageSize::Size4K, self.arm(), owed, task)?;
        if !task.has(Defect::FlushOnlyOwed) {
            owed.range(gfn, 1);
        }
        Ok(())
    }

    /// Whether `vcpu` must leave to the VMM before it enters the guest (`KVM_EXIT_DIRTY_RING_FULL`).
    pub fn is_dirty_ring_full(&self, vcpu: VcpuId, task: &Task<'_>) -> Result<bool, VmError> {
        let full = self.vcpu(vcpu)?.mmu.lock(task).ring.as_ref().is_some_and(DirtyRing::is_soft_full);
        if full {
            task.report(Event::DirtyRingExit { ring: vcpu.0 });
        }
        Ok(full)
    }

    /// What a VMM does with the ring of `vcpu` that it has mapped: reads up to `most` entries and marks them for reset.
    pub fn collect_dirty_ring(
        &self,
        vcpu: VcpuId,
        most: usize,
        into: &mut Vec<DirtyGfn>,
        task: &Task<'_>,
    ) -> Result<(), VmError> {
        let mut own = self.vcpu(vcpu)?.mmu.lock(task);
        if let Some(ring) = own.ring.as_mut() {
            ring.collect(most, into);
        }
        Ok(())
    }

    /// `KVM_RESET_DIRTY_RINGS`: takes back every entry that the VMM has read, arms its page, and tells how many there were.
    pub fn reset_dirty_rings(&self, task: &Task<'_>) -> Result<u64, VmError> {
        let _changes = self.slots_lock.lock(task);
        let slots = self.slots.read(task);
        let mut taken: Vec<DirtyGfn> = Vec::new();
        for vcpu in &self.vcpus {
            if let Some(ring) = &mut vcpu.mmu.lock(task).ring {
                let before = taken.len();
                taken.extend(ring.reset());
                if taken.len() > before {
                    task.report_with(|| ring.was_reset());
                }
            }
        }
        let reset = taken.len() as u64;
        taken.sort_unstable();
        taken.dedup();
        self.kick_all(task);
        let mut owed = Owed::default();
        let armed = {
            let tables = self.mmu.write(task);
            taken.iter().try_for_each(|page| {
                // A slot that is gone or not logged any more has nothing to arm.
                let slot =
                    slots.by_id(page.slot).filter(|slot| slot.log().is_some() && page.page < slot.info().nr_pages);
                slot.map_or(Ok(()), |slot| {
                    let gfn = Gfn::new(slot.info().first.raw() + page.page);
                    self.arm_page(&tables, gfn, &mut owed, task)
                })
            })
        };
        self.flush(&owed, task);
        armed?;
        Ok(reset)
    }
}
