//! A migration as far as memory goes: an image of the guest's RAM that rounds of the dirty log keep up to date, compared
//! with RAM itself at the end.
//!
//! The image holds a fingerprint of each page and not its bytes: what counts is whether a page that changed was told.
//! Private pages are read through their inode, as the firmware that migrates a confidential VM would.
//!
//! Always true: between rounds a page differs from its image only if its dirty mark is set, or if the VMM itself wrote it
//! and noted so. What breaks this is a write that the log lost, which is what the comparison finds.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;

use emu_core::PageSize;
use emu_core::sync::Task;
use gmem::PageIndex;
use hypervisor::dirty::{DirtyGfn, DirtyLogging, WORD_PAGES};
use hypervisor::{GmemId, MemSlotSpec, SlotId, Vm, VmError};

use super::act;
use super::memory::MemoryError;

const PAGE: u64 = PageSize::Size4K.bytes();

/// A page of an inode.
type Place = (GmemId, u64);

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Migration {
    /// Fingerprints of pages that are not all zero.
    image: BTreeMap<Place, u64>,
    /// Pages that the VMM itself changed since the last round, or took from a ring.
    own: BTreeSet<Place>,
}

impl Migration {
    /// Starts logging RAM and takes the image; how many bytes that copied. After an error nothing is logged.
    pub fn start(vm: &Vm, task: &Task<'_>) -> Result<(Migration, u64), MemoryError> {
        let started = Migration::begin(vm, task);
        if started.is_err() {
            for slot in act::ram(vm, task) {
                // The error that counts is the first.
                let _ = vm.set_dirty_logging(slot.id, DirtyLogging::Off, task);
            }
        }
        started
    }

    fn begin(vm: &Vm, task: &Task<'_>) -> Result<(Migration, u64), MemoryError> {
        let mut migration = Migration::default();
        let mut bytes = 0;
        for slot in act::ram(vm, task) {
            vm.set_dirty_logging(slot.id, DirtyLogging::On, task)?;
            for index in populated(vm, &slot, task)? {
                migration.copy(vm, (slot.gmem, index), task)?;
                bytes += PAGE;
            }
        }
        Ok((migration, bytes))
    }

    /// Copies what was written since the last round; how many bytes.
    pub fn round(&mut self, vm: &Vm, task: &Task<'_>) -> Result<u64, MemoryError> {
        self.empty_rings(vm, task)?;
        let slots = act::ram(vm, task);
        let mut bytes =
            slots.iter().try_fold(0, |sum, slot| Ok::<u64, MemoryError>(sum + self.collect(vm, slot, task)?))?;
        for place in core::mem::take(&mut self.own) {
            self.copy(vm, place, task)?;
            bytes += PAGE;
        }
        Ok(bytes)
    }

    /// The last round, then the comparison; logging ends. How many bytes the last round copied.
    pub fn stop(mut self, vm: &Vm, task: &Task<'_>) -> Result<u64, MemoryError> {
        let last = self.round(vm, task);
        let slots = act::ram(vm, task);
        let compared = slots.iter().try_for_each(|slot| self.compare(vm, slot, task));
        for slot in &slots {
            vm.set_dirty_logging(slot.id, DirtyLogging::Off, task)?;
        }
        compared?;
        last
    }

    /// Takes what processors pushed to their rings, and lets them push again. It is copied in the next round: what is
    /// written until then is pushed anew.
    pub fn empty_rings(&mut self, vm: &Vm, task: &Task<'_>) -> Result<(), VmError> {
        for page in take_rings(vm, task)? {
            let slots = vm.memslots(task);
            let view = slots.by_id(page.slot).and_then(|slot| slot.info().gmem);
            self.own.extend(view.map(|view| (view.gmem, view.first_index.0 + page.page)));
        }
        Ok(())
    }

    /// Notes that the VMM itself changed pages, which no log tells.
    pub fn note_own(&mut self, gmem: GmemId, pages: impl Iterator<Item = PageIndex>) {
        self.own.extend(pages.map(|index| (gmem, index.0)));
    }

    /// Before a memslot is deleted: its log goes with it.
    pub fn before_delete(&mut self, vm: &Vm, slot: &MemSlotSpec, task: &Task<'_>) -> Result<(), MemoryError> {
        self.empty_rings(vm, task)?;
        self.collect(vm, slot, task).map(|_| ())
    }

    /// After a memslot came.
    pub fn after_add(&self, vm: &Vm, slot: SlotId, task: &Task<'_>) -> Result<(), MemoryError> {
        Ok(vm.set_dirty_logging(slot, DirtyLogging::On, task)?)
    }

    fn collect(&mut self, vm: &Vm, slot: &MemSlotSpec, task: &Task<'_>) -> Result<u64, MemoryError> {
        let mut words = Vec::new();
        vm.get_dirty_log(slot.id, &mut |word, bits| words.push((word, bits)), task)?;
        let mut bytes = 0;
        let pages = words.into_iter().flat_map(|(word, bits)| {
            (0..WORD_PAGES).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| word * WORD_PAGES + bit)
        });
        for page in pages {
            self.copy(vm, (slot.gmem, slot.offset_bytes / PAGE + page), task)?;
            bytes += PAGE;
        }
        Ok(bytes)
    }

    fn copy(&mut self, vm: &Vm, place: Place, task: &Task<'_>) -> Result<(), MemoryError> {
        match fingerprint(vm, place, task)? {
            Some(value) => self.image.insert(place, value),
            None => self.image.remove(&place),
        };
        Ok(())
    }

    fn compare(&self, vm: &Vm, slot: &MemSlotSpec, task: &Task<'_>) -> Result<(), MemoryError> {
        let first = slot.offset_bytes / PAGE;
        let copied = self.image.range((slot.gmem, first)..(slot.gmem, first + slot.len_bytes / PAGE));
        let pages: BTreeSet<u64> = copied.map(|((_, index), _)| *index).chain(populated(vm, slot, task)?).collect();
        for index in pages {
            let place = (slot.gmem, index);
            if fingerprint(vm, place, task)?.as_ref() != self.image.get(&place) {
                return Err(MemoryError::NotLogged { gmem: slot.gmem, index: PageIndex(index) });
            }
        }
        Ok(())
    }
}

/// What is in the rings of all processors, if they have any (`KVM_RESET_DIRTY_RINGS` after reading them).
pub(super) fn take_rings(vm: &Vm, task: &Task<'_>) -> Result<Vec<DirtyGfn>, VmError> {
    let mut told = Vec::new();
    for vcpu in vm.vcpu_ids() {
        vm.collect_dirty_ring(vcpu, usize::MAX, &mut told, task)?;
    }
    if !told.is_empty() {
        vm.reset_dirty_rings(task)?;
    }
    Ok(told)
}

/// The pages of a slot that have a folio.
fn populated(vm: &Vm, slot: &MemSlotSpec, task: &Task<'_>) -> Result<Vec<u64>, MemoryError> {
    let inode = vm.gmem(slot.gmem, task).ok_or(VmError::NoSuchGmem { id: slot.gmem })?;
    let (first, end) = (slot.offset_bytes / PAGE, (slot.offset_bytes + slot.len_bytes) / PAGE);
    let folios = inode.list(task).into_iter();
    let inside = folios.flat_map(|(index, _, size)| index.0.max(first)..(index.0 + size.frames()).min(end));
    Ok(inside.collect())
}

/// What the bytes of a page are; `None` for zeroes, and where no folio is.
fn fingerprint(vm: &Vm, (gmem, index): Place, task: &Task<'_>) -> Result<Option<u64>, MemoryError> {
    let Some(bytes) = act::page_bytes(vm, gmem, PageIndex(index), task)? else { return Ok(None) };
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let mut hasher = rustc_hash::FxHasher::default();
    hasher.write(&bytes);
    Ok(Some(hasher.finish()))
}
