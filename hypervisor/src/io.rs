//! Access to guest memory from the host's side: loaders, DMA, emulated accesses.
//!
//! It goes through memslots and guest_memfd, never through the nested tables, and populates what it touches.

use emu_core::event::EventSink;
use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::{Gpa, PageSize, Spa};
use gmem::GetError;
use thiserror::Error;

use crate::memslot::SlotFlags;
use crate::vm::{GmemId, Vm};

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
    /// The slot's inode does not exist.
    #[error("there is no guest_memfd {}", id.0)]
    NoSuchGmem {
        /// The number.
        id: GmemId,
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

/// Contiguous system memory behind guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    spa: Spa,
    len_bytes: usize,
}

impl Vm {
    /// Reads guest memory. On an error the buffer holds what came before it.
    pub fn guest_read(
        &mut self,
        gpa: Gpa,
        into: &mut [u8],
        events: &mut dyn EventSink,
    ) -> Result<(), GuestAccessError> {
        let mut done = 0;
        while done < into.len() {
            let run = self.run_at(gpa, done, into.len(), Intent::Read, events)?;
            self.memory().read(run.spa, &mut into[done..done + run.len_bytes])?;
            done += run.len_bytes;
        }
        Ok(())
    }

    /// Writes guest memory, as DMA does: read-only slots refuse. On an error what came before it is written.
    pub fn guest_write(&mut self, gpa: Gpa, from: &[u8], events: &mut dyn EventSink) -> Result<(), GuestAccessError> {
        self.write_as(gpa, from, Intent::Write, events)
    }

    /// Writes guest memory, read-only slots included: for whoever puts a ROM there.
    pub fn load_rom(&mut self, gpa: Gpa, from: &[u8], events: &mut dyn EventSink) -> Result<(), GuestAccessError> {
        self.write_as(gpa, from, Intent::LoadRom, events)
    }

    fn write_as(
        &mut self,
        gpa: Gpa,
        from: &[u8],
        intent: Intent,
        events: &mut dyn EventSink,
    ) -> Result<(), GuestAccessError> {
        let mut done = 0;
        while done < from.len() {
            let run = self.run_at(gpa, done, from.len(), intent, events)?;
            self.memory().write(run.spa, &from[done..done + run.len_bytes])?;
            done += run.len_bytes;
        }
        Ok(())
    }

    /// What stands behind the `total` bytes from `start`, of which `done` are done, up to the end of the folio or slot.
    fn run_at(
        &mut self,
        start: Gpa,
        done: usize,
        total: usize,
        intent: Intent,
        events: &mut dyn EventSink,
    ) -> Result<Run, GuestAccessError> {
        let gpa = start.checked_add(done as u64).ok_or(GuestAccessError::NoSlot { gpa: start })?;
        let slot = *self.memslots().lookup(gpa.frame()).ok_or(GuestAccessError::NoSlot { gpa })?;
        if intent == Intent::Write && slot.flags.contains(SlotFlags::READONLY) {
            return Err(GuestAccessError::ReadOnly { gpa, slot: slot.id.0 });
        }
        let index = slot.index_of(gpa.frame());
        let (host, inode) = self.host_and_gmem(slot.gmem).ok_or(GuestAccessError::NoSuchGmem { id: slot.gmem })?;
        // A folio may be private in part, so what is not one 4 KiB page is checked as a whole.
        let shareability = inode.shareability();
        if !shareability.get(index.0).host_may_use() {
            return Err(GetError::Private { index }.into());
        }
        let backed = inode.get_folio(host, index, events)?;
        let page = backed.size.frames();
        let uniform = inode.shareability().is_uniform(index.0 & !(page - 1), page);
        let folio_left = if uniform { page - (index.0 & (page - 1)) } else { 1 };
        let slot_left = slot.end().raw() - gpa.frame().raw();
        let len = folio_left.min(slot_left) * PageSize::Size4K.bytes() - gpa.page_offset() as u64;
        let len_bytes = usize::try_from(len).unwrap_or(PAGE_SIZE).min(total - done);
        Ok(Run { spa: backed.sfn.base().wrapping_add(gpa.page_offset() as u64), len_bytes })
    }
}
