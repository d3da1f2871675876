//! `KVM_SET_USER_MEMORY_REGION2`: its argument, and the rules in the order in which KVM applies them
//! (`check_memory_region_flags`, `kvm_set_memory_region`).

use emu_core::page::PAGE_SIZE;
use emu_core::{Gpa, Hva};
use gmem::mm::TASK_SIZE;
use gmem::{PageIndex, SlotId};

use super::{AddressSpaceId, MAX_PAGES, MAX_SLOTS, MemSlot, MemSlotSpec, MemSlots, MemslotError, SlotFlags};
use crate::vm::GmemId;

const PAGE: u64 = PAGE_SIZE as u64;

/// What a file descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemFd {
    /// None.
    NotOpen,
    /// Something else, or a guest_memfd of another VM.
    Other,
    /// A guest_memfd of this VM.
    Gmem(GmemId),
}

/// `struct kvm_userspace_memory_region2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserMemoryRegion2 {
    /// Number of the slot, and of its address space in bits 31:16.
    pub slot: u32,
    /// [`SlotFlags`] as the caller gave them.
    pub flags: u32,
    /// First guest physical address.
    pub guest_phys_addr: u64,
    /// Length in bytes; 0 deletes.
    pub memory_size: u64,
    /// Where the VMM sees the memory.
    pub userspace_addr: u64,
    /// Where in the guest_memfd it starts.
    pub guest_memfd_offset: u64,
    /// The guest_memfd; looked at only with [`SlotFlags::GUEST_MEMFD`].
    pub guest_memfd: MemFd,
}

/// What a call did (`enum kvm_mr_change`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotChange {
    /// A slot came.
    Create,
    /// It went.
    Delete,
    /// It is at another guest physical address.
    Move,
    /// Its flags are others.
    FlagsOnly,
    /// All was as wanted already.
    Nothing,
}

/// A call that is sound in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) id: SlotId,
    pub(crate) space: AddressSpaceId,
    pub(crate) gpa: Gpa,
    pub(crate) nr_pages: u64,
    pub(crate) flags: SlotFlags,
    pub(crate) hva: Hva,
    pub(crate) gmem: Option<(MemFd, PageIndex)>,
}

/// What a sound call wants of the slots there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Create,
    Delete,
    Move,
    FlagsOnly,
    Nothing,
}

impl UserMemoryRegion2 {
    /// Checks what can be checked without looking at any slot.
    pub(crate) fn check(&self, nr_spaces: u32) -> Result<Request, MemslotError> {
        let flags = SlotFlags::from_bits_retain(self.flags);
        let unknown = (flags - SlotFlags::all()).bits();
        if unknown != 0 {
            return Err(MemslotError::UnknownFlags { unknown });
        }
        let with_gmem = flags.contains(SlotFlags::GUEST_MEMFD);
        let refused = flags & (SlotFlags::LOG_DIRTY_PAGES | SlotFlags::READONLY);
        if with_gmem && !refused.is_empty() {
            return Err(MemslotError::NotWithGmem { refused });
        }
        let (gpa, len_bytes) = (Gpa::new(self.guest_phys_addr), self.memory_size);
        let offset_bytes = if with_gmem { self.guest_memfd_offset } else { 0 };
        if [gpa.raw(), len_bytes, offset_bytes].iter().any(|v| !v.is_multiple_of(PAGE)) {
            return Err(MemslotError::Misaligned { gpa, len_bytes, offset_bytes });
        }
        let hva = Hva::new(self.userspace_addr);
        let in_user_space = hva.raw().checked_add(len_bytes).is_some_and(|end| end <= TASK_SIZE);
        if !hva.raw().is_multiple_of(PAGE) || !in_user_space {
            return Err(MemslotError::BadUserAddress { hva, len_bytes });
        }
        if offset_bytes.checked_add(len_bytes).is_none() {
            return Err(MemslotError::OffsetWraps { offset_bytes, len_bytes });
        }
        let (space, id) = (self.slot >> 16, SlotId(self.slot as u16));
        let space = AddressSpaceId::ALL
            .into_iter()
            .find(|known| known.number() as u32 == space && space < nr_spaces)
            .ok_or(MemslotError::NoSuchSpace { space, nr_spaces })?;
        if id.0 >= MAX_SLOTS {
            return Err(MemslotError::IdTooLarge { id });
        }
        let nr_pages = len_bytes / PAGE;
        if nr_pages > MAX_PAGES {
            return Err(MemslotError::BadLength { nr_pages });
        }
        let gmem = with_gmem.then_some((self.guest_memfd, PageIndex(offset_bytes / PAGE)));
        Ok(Request { id, space, gpa, nr_pages, flags, hva, gmem })
    }
}

impl Request {
    /// What the call wants of a slot that is there, or not.
    pub(crate) fn wants(&self, old: Option<&MemSlot>) -> Result<Wanted, MemslotError> {
        let id = self.id;
        match old {
            None if self.nr_pages == 0 => Err(MemslotError::NotFound { id }),
            Some(_) if self.nr_pages == 0 => Ok(Wanted::Delete),
            None => Ok(Wanted::Create),
            Some(old) => {
                let fixed = SlotFlags::READONLY | SlotFlags::GUEST_MEMFD;
                let toggles = (self.flags ^ old.flags).intersects(fixed);
                if self.gmem.is_some() || toggles || self.hva != old.hva || self.nr_pages != old.nr_pages {
                    return Err(MemslotError::Immutable { id });
                }
                Ok(if self.gpa.frame() != old.first {
                    Wanted::Move
                } else if self.flags != old.flags {
                    Wanted::FlagsOnly
                } else {
                    Wanted::Nothing
                })
            }
        }
    }
}

impl MemSlotSpec {
    /// Checks what can be checked without looking at any slot.
    pub(crate) fn check(&self) -> Result<Request, MemslotError> {
        let &MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes } = self;
        if id.0 >= MAX_SLOTS {
            return Err(MemslotError::IdTooLarge { id });
        }
        if [gpa.raw(), len_bytes, offset_bytes].iter().any(|v| !v.is_multiple_of(PAGE)) {
            return Err(MemslotError::Misaligned { gpa, len_bytes, offset_bytes });
        }
        let nr_pages = len_bytes / PAGE;
        if nr_pages == 0 || nr_pages > MAX_PAGES {
            return Err(MemslotError::BadLength { nr_pages });
        }
        let gmem = Some((MemFd::Gmem(gmem), PageIndex(offset_bytes / PAGE)));
        let flags = flags | SlotFlags::GUEST_MEMFD;
        Ok(Request { id, space: AddressSpaceId::Normal, gpa, nr_pages, flags, hva: Hva::new(0), gmem })
    }
}

impl MemSlots {
    /// Whether the frames of `request` are guest frames that no other slot has (`kvm_check_memslot_overlap`, and the limit
    /// of `kvm_arch_prepare_memory_region`).
    pub(crate) fn check_place(&self, request: &Request) -> Result<(), MemslotError> {
        let &Request { id, space, gpa, nr_pages, .. } = request;
        let last = self.last_gfn();
        // Frame numbers are below 2^52 and the length below 2^31: no overflow.
        let (first, end) = (gpa.frame().raw(), gpa.frame().raw() + nr_pages);
        if end - 1 > last.raw() {
            return Err(MemslotError::BeyondMaxGfn { gpa, nr_pages, last });
        }
        let mut others = self.in_range(space, gpa.frame(), nr_pages).filter(|other| other.info().id != id);
        match others.next() {
            Some(other) => {
                let at = other.info().first.max(gpa.frame());
                debug_assert!(first <= at.raw() && at.raw() < end);
                Err(MemslotError::Overlap { at, slot: other.info().id })
            }
            None => Ok(()),
        }
    }
}
