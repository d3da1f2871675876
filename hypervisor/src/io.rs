//! Access to guest memory from the host's side: loaders, DMA, emulated accesses.
//!
//! It goes through memslots, never through the nested tables, and populates what it touches. KVM does all of it at
//! `userspace_addr`; here what guest_memfd serves alone is accessed there too, so that emulated and native accesses see
//! the same bytes, unless [`crate::OwnAccess::UserMemory`] asks for KVM's way.

use core::ops::Range;

use emu_core::defect::Defect;
use emu_core::memory::BusError;
use emu_core::page::PAGE_SIZE;
use emu_core::sync::Task;
use emu_core::{Gfn, Gpa, PageSize, Sfn, Spa};
use gmem::directmap::{HostAccess, HostOp, Protection};
use gmem::mm::{UserAccess, UserFault};
use gmem::{DirectMap, DirectMapPolicy, GetError};
use mmu::rmp::{RmpPageSize, RmpUpdate};
use thiserror::Error;

use crate::dirty::DirtyRing;
use crate::follow::PfnError;
use crate::memslot::{MemSlots, Slot, SlotFlags, SlotState};
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
    /// The user memory behind a slot cannot be accessed (`EFAULT`).
    #[error(transparent)]
    UserMemory(#[from] UserFault),
    /// User memory cannot be mapped.
    #[error(transparent)]
    Follow(#[from] PfnError),
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

/// What is left of a copy.
struct Run {
    start: Gpa,
    /// Bytes from there that are done, of `total`.
    done: usize,
    total: usize,
    intent: Intent,
}

/// Copies between a place in system memory and a part of the caller's buffer.
type Copy<'c> = dyn FnMut(Spa, Range<usize>) -> Result<(), BusError> + 'c;

impl Vm {
    /// Reads guest memory. On an error the buffer holds what came before it.
    pub fn guest_read(&self, gpa: Gpa, into: &mut [u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        let total = into.len();
        let copy = &mut |spa, part| self.memory().read(spa, &mut into[part]);
        self.each_run(gpa, total, Intent::Read, copy, None, task)
    }

    /// Writes guest memory, as DMA does: read-only slots refuse. On an error what came before it is written.
    pub fn guest_write(&self, gpa: Gpa, from: &[u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        self.write_for(gpa, from, None, task)
    }

    /// The same on behalf of a processor: what it writes is marked in its ring, if it has one.
    pub(crate) fn write_for(
        &self,
        gpa: Gpa,
        from: &[u8],
        ring: Option<&mut DirtyRing>,
        task: &Task<'_>,
    ) -> Result<(), GuestAccessError> {
        let copy = &mut |spa, part| self.memory().write(spa, &from[part]);
        self.each_run(gpa, from.len(), Intent::Write, copy, ring, task)
    }

    /// Writes guest memory, read-only slots included: for whoever puts a ROM there.
    pub fn load_rom(&self, gpa: Gpa, from: &[u8], task: &Task<'_>) -> Result<(), GuestAccessError> {
        let copy = &mut |spa, part| self.memory().write(spa, &from[part]);
        self.each_run(gpa, from.len(), Intent::LoadRom, copy, None, task)
    }

    fn each_run(
        &self,
        gpa: Gpa,
        total: usize,
        intent: Intent,
        copy: &mut Copy<'_>,
        mut ring: Option<&mut DirtyRing>,
        task: &Task<'_>,
    ) -> Result<(), GuestAccessError> {
        let mut done = 0;
        while done < total {
            let (slots, run) = (self.slots.read(task), Run { start: gpa, done, total, intent });
            let (slot, len_bytes) = self.one_run(&slots, &run, copy, task)?;
            if intent != Intent::Read && slot.log().is_some() {
                // Afterwards: who harvests the mark and then reads the page sees the bytes.
                let first = gpa.wrapping_add(done as u64);
                let pages = (first.page_offset() + len_bytes).div_ceil(PAGE_SIZE) as u64;
                for n in 0..pages {
                    self.mark_dirty(slot, Gfn::new(first.frame().raw() + n), ring.as_deref_mut(), task);
                }
            }
            done += len_bytes;
        }
        Ok(())
    }

    /// Copies up to the end of the folio or slot: into which slot, and how many bytes. The folio cannot leave the inode
    /// meanwhile.
    fn one_run<'s>(
        &self,
        slots: &'s MemSlots,
        run: &Run,
        copy: &mut Copy<'_>,
        task: &Task<'_>,
    ) -> Result<(&'s Slot, usize), GuestAccessError> {
        let Run { start, done, total, intent } = *run;
        let gpa = start.checked_add(done as u64).ok_or(GuestAccessError::NoSlot { gpa: start })?;
        let slot = slots.lookup(gpa.frame()).filter(|slot| slot.state() == SlotState::Active);
        let slot = slot.ok_or(GuestAccessError::NoSlot { gpa })?;
        let info = slot.info();
        if intent == Intent::Write && info.flags.contains(SlotFlags::READONLY) {
            return Err(GuestAccessError::ReadOnly { gpa, slot: info.id.0 });
        }
        let Some((inode, index)) = self.own_access_through_gmem(slot, gpa.frame(), task) else {
            return Ok((slot, self.one_user_page(slot, gpa, done..total, intent, copy, task)?));
        };
        let shared = inode.shared(task);
        if !self.slot_attribute(slot, gpa.frame(), task).host_may_use() {
            return Err(GetError::Private { index }.into());
        }
        let backed = shared.get_folio(&self.host, index, task)?;
        // A folio may be private in part, so what is not one 4 KiB page is checked as a whole.
        let page = backed.size.frames();
        let uniform = inode.attributes(task).is_uniform(index.0 & !(page - 1), page)
            && inode.policy().generation.has_inode_attributes();
        let folio_left = if uniform { page - (index.0 & (page - 1)) } else { 1 };
        let slot_left = info.end().raw() - gpa.frame().raw();
        let len = folio_left.min(slot_left) * PageSize::Size4K.bytes() - gpa.page_offset() as u64;
        let len_bytes = usize::try_from(len).unwrap_or(PAGE_SIZE).min(total - done);
        let spa = backed.sfn.base().wrapping_add(gpa.page_offset() as u64);
        debug_assert!(
            intent == Intent::Read || self.may_host_write(spa, len_bytes),
            "the page at {gpa} is shared, and its frame at {spa} is assigned"
        );
        copy(spa, done..done + len_bytes)?;
        Ok((slot, len_bytes))
    }

    /// Whether no page of these bytes is a guest's by the reverse map.
    pub(crate) fn may_host_write(&self, spa: Spa, len_bytes: usize) -> bool {
        let pages = (spa.page_offset() + len_bytes).div_ceil(PAGE_SIZE) as u64;
        let each = |n: u64| spa.align_down(PageSize::Size4K).wrapping_add(n * PageSize::Size4K.bytes());
        self.rmp().is_none_or(|(rmp, _)| (0..pages).all(|n| rmp.check_host_write(each(n), PageSize::Size4K).is_ok()))
    }

    /// What the kernel meets when it accesses a frame through its own map, as it is modelled or else in pieces of 4K.
    pub fn host_access(&self, sfn: Sfn, op: HostOp, task: &Task<'_>) -> HostAccess {
        let assigned = |first: Sfn, nr_frames: u64| {
            let (rmp, _) = self.rmp()?;
            (first.raw()..first.raw() + nr_frames)
                .map(Sfn::new)
                .find(|&sfn| rmp.entry(sfn).is_some_and(|e| e.assigned()))
        };
        let protection = if self.rmp().is_some() { Protection::Hardware } else { Protection::Software };
        let host = self.host.lock(task);
        let access = match host.direct_map() {
            Some(map) => map.check(sfn, op, protection, assigned),
            None => {
                let mut small = DirectMap::new(sfn, 1, DirectMapPolicy::Linux);
                small.split(sfn, PageSize::Size4K);
                small.check(sfn, op, protection, assigned)
            }
        };
        drop(host);
        if let HostAccess::RmpFault { assigned, .. } = access
            && task.has(Defect::TakeBackOnHostFault)
            && let Some((rmp, _)) = self.rmp()
        {
            let _ = rmp.rmpupdate(assigned.base(), RmpUpdate::hypervisor(RmpPageSize::Size4K));
        }
        access
    }

    /// Copies up to the end of one page of user memory, which is held meanwhile (`__kvm_read_guest_page`).
    fn one_user_page(
        &self,
        slot: &Slot,
        gpa: Gpa,
        left: Range<usize>,
        intent: Intent,
        copy: &mut Copy<'_>,
        task: &Task<'_>,
    ) -> Result<usize, GuestAccessError> {
        let hva = slot.info().hva_of(gpa.frame());
        let access = match intent {
            Intent::Read => UserAccess::Read,
            Intent::Write | Intent::LoadRom => UserAccess::Write,
        };
        let len_bytes = (PAGE_SIZE - gpa.page_offset()).min(left.len());
        let part = left.start..left.start + len_bytes;
        let offset = gpa.page_offset() as u64;
        self.mm.with_page(hva, access, self.kernel(task), &mut |sfn| {
            copy(sfn.base().wrapping_add(offset), part.clone())
        })?;
        Ok(len_bytes)
    }
}
