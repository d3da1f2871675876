//! Access to guest memory from the host's side: loaders, DMA, emulated accesses.
//!
//! It goes through memslots and guest_memfd, never through the nested tables, and populates what it touches.

use core::ops::Range;

use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, PageSize, Spa};
use gmem::GetError;
use thiserror::Error;

use crate::memslot::{SlotFlags, SlotState};
use crate::vm::Vm;

/// Why the host cannot access guest memory there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GuestAccessError {
    /// No memslot.
    #[error("no memslot holds {gpa}")]
    NoSlot {
        /// The first address without one.
        gpa: Gpa,
    },
    /// The slot does not take writes.
    #[error("{gpa} lies in read-only memslot {slot}")]
    ReadOnly {
        /// The first address in it.
        gpa: Gpa,
        /// Its number.
        slot: u16,
    },
    /// The page is private to the guest, or there is no memory for it.
    #[error(transparent)]
    Backing(#[from] GetError),
    /// A folio lies outside system memory.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intent {
    Read,
    Write,
    LoadRom,
}

/// Copies between a place in system memory and a part of the caller's buffer.
type Copy<'c> = dyn FnMut(Spa, Range<usize>) -> Result<(), BusError> + 'c;

impl Vm {
    /// Reads guest memory. On an error the buffer holds what came before it.
    pub fn guest_read(&self, gpa: Gpa, into: &mut [u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        self.each_run(gpa, into.len(), Intent::Read, &mut |spa, part| self.memory().read(spa, &mut into[part]), task)
    }

    /// Writes guest memory, as DMA does: read-only slots refuse. On an error what came before it is written.
    pub fn guest_write(&self, gpa: Gpa, from: &[u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        self.each_run(gpa, from.len(), Intent::Write, &mut |spa, part| self.memory().write(spa, &from[part]), task)
    }

    /// Writes guest memory, read-only slots included: for whoever puts a ROM there.
    pub fn load_rom(&self, gpa: Gpa, from: &[u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        self.each_run(gpa, from.len(), Intent::LoadRom, &mut |spa, part| self.memory().write(spa, &from[part]), task)
    }

    fn each_run(
        &self,
        gpa: Gpa,
        total: usize,
        intent: Intent,
        copy: &mut Copy<'_>,
        task: &Task<'_>,
    ) -> Result<(), GuestAccessError> {
        let mut done = 0;
        while done < total {
            done += self.one_run(gpa, done, total, intent, copy, task)?;
        }
        Ok(())
    }

    /// Copies from byte `done` of the `total` from `start` up to the end of the folio or slot; how many that were. The
    /// folio cannot leave the inode meanwhile.
    fn one_run(
        &self,
        start: Gpa,
        done: usize,
        total: usize,
        intent: Intent,
        copy: &mut Copy<'_>,
        task: &Task<'_>,
    ) -> Result<usize, GuestAccessError> {
        let gpa = start.checked_add(done as u64).ok_or(GuestAccessError::NoSlot { gpa: start })?;
        let slots = self.slots.read(task);
        let slot = slots.lookup(gpa.frame()).filter(|slot| slot.state() == SlotState::Active);
        let slot = slot.ok_or(GuestAccessError::NoSlot { gpa })?;
        let info = slot.info();
        if intent == Intent::Write && info.flags.contains(SlotFlags::READONLY) {
            return Err(GuestAccessError::ReadOnly { gpa, slot: info.id.0 });
        }
        let index = info.index_of(gpa.frame());
        let shared = slot.inode().shared(task);
        if !slot.inode().attribute(index, task).host_may_use() {
            return Err(GetError::Private { index }.into());
        }
        let backed = shared.get_folio(&self.host, index, task)?;
        // A folio may be private in part, so what is not one 4 KiB page is checked as a whole.
        let page = backed.size.frames();
        let uniform = slot.inode().attributes(task).is_uniform(index.0 & !(page - 1), page);
        let folio_left = if uniform { page - (index.0 & (page - 1)) } else { 1 };
        let slot_left = info.end().raw() - gpa.frame().raw();
        let len = folio_left.min(slot_left) * PageSize::Size4K.bytes() - gpa.page_offset() as u64;
        let len_bytes = usize::try_from(len).unwrap_or(PAGE_SIZE).min(total - done);
        copy(backed.sfn.base().wrapping_add(gpa.page_offset() as u64), done..done + len_bytes)?;
        if intent != Intent::Read && slot.log().is_some() {
            // Afterwards: who harvests the mark and then reads the page sees the bytes.
            let pages = (gpa.page_offset() + len_bytes).div_ceil(PAGE_SIZE) as u64;
            (0..pages).for_each(|n| self.mark_dirty(slot, Gfn::new(gpa.frame().raw() + n), None));
        }
        Ok(len_bytes)
    }
}
