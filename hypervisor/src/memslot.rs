//! Memslots: which guest frames exist and what stands behind them (`struct kvm_memory_slot`).
//!
//! [`MemSlots`] keeps them sorted by guest frame and disjoint; a lookup is a binary search. Every change steps the
//! generation. A slot that is being deleted is first published as [`SlotState::Invalid`], so that no fault can use it
//! while its entries go. The rules of `KVM_SET_USER_MEMORY_REGION2` hold, with two differences of our own: a guest_memfd slot may
//! be read-only, which is how this machine has ROM, and may be moved, which KVM asks to be done by delete and create.

use std::sync::Arc;

use bitflags::bitflags;
use emu_core::page::PAGE_SIZE;
use emu_core::{Gfn, Gpa};
use gmem::{BindError, GuestMemfd, PageIndex, PageRange, SlotId, SlotSpan};
use thiserror::Error;

use crate::dirty::SlotLog;
use crate::vm::GmemId;

const PAGE: u64 = PAGE_SIZE as u64;
/// `KVM_MEM_MAX_NR_PAGES`.
pub const MAX_PAGES: u64 = (1 << 31) - 1;
/// User memslots of an address space: `SHRT_MAX` less the three that KVM keeps for itself.
pub const MAX_SLOTS: u16 = 32764;

bitflags! {
    /// Flags of a memslot, with KVM's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SlotFlags: u32 {
        /// `KVM_MEM_READONLY`: guest writes are not memory accesses.
        const READONLY = 1 << 1;
    }
}

/// One memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemSlot {
    /// Its number.
    pub id: SlotId,
    /// First guest frame.
    pub first: Gfn,
    /// Guest frames.
    pub nr_pages: u64,
    /// Flags.
    pub flags: SlotFlags,
    /// The inode that backs it.
    pub gmem: GmemId,
    /// The inode's page behind the first guest frame.
    pub first_index: PageIndex,
}

impl MemSlot {
    /// The first guest frame behind the slot.
    pub const fn end(&self) -> Gfn {
        Gfn::new(self.first.raw() + self.nr_pages)
    }
    /// Whether `gfn` lies in the slot.
    pub const fn contains(&self, gfn: Gfn) -> bool {
        gfn.raw().wrapping_sub(self.first.raw()) < self.nr_pages
    }
    /// The inode's page behind a guest frame of the slot.
    pub const fn index_of(&self, gfn: Gfn) -> PageIndex {
        PageIndex(gfn.raw() - self.first.raw() + self.first_index.0)
    }
    /// The slot as its inode's view.
    pub const fn span(&self) -> SlotSpan {
        SlotSpan { first: self.first, range: self.range() }
    }
    /// The inode's pages behind the slot.
    pub const fn range(&self) -> PageRange {
        PageRange { first: self.first_index, nr_pages: self.nr_pages }
    }
}

/// Whether faults may use a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// They may.
    Active,
    /// It is being deleted or moved: they retry (`KVM_MEMSLOT_INVALID`).
    Invalid,
}

/// A published memslot with what stands behind it.
#[derive(Clone)]
pub struct Slot {
    info: MemSlot,
    state: SlotState,
    inode: Arc<GuestMemfd>,
    /// Present while writes are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
    log: Option<Arc<SlotLog>>,
}

impl Slot {
    pub(crate) fn new(info: MemSlot, inode: Arc<GuestMemfd>) -> Slot {
        Slot { info, state: SlotState::Active, inode, log: None }
    }
    /// What it is.
    pub const fn info(&self) -> &MemSlot {
        &self.info
    }
    /// Whether faults may use it.
    pub const fn state(&self) -> SlotState {
        self.state
    }
    /// Where its writes are logged, if they are.
    pub fn log(&self) -> Option<&Arc<SlotLog>> {
        self.log.as_ref()
    }
    /// The inode that backs it.
    pub fn inode(&self) -> &GuestMemfd {
        &self.inode
    }
}

/// What a memslot is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemSlotSpec {
    /// Its number, below [`MAX_SLOTS`].
    pub id: SlotId,
    /// First guest physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub len_bytes: u64,
    /// Flags.
    pub flags: SlotFlags,
    /// The inode that backs it.
    pub gmem: GmemId,
    /// Where in the inode it starts.
    pub offset_bytes: u64,
}

/// Why a memslot call was refused; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MemslotError {
    /// `EINVAL`.
    #[error("memslot {} is not below {MAX_SLOTS}", id.0)]
    IdTooLarge {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`: slots on guest_memfd cannot be changed, only deleted.
    #[error("memslot {} exists and cannot be changed", id.0)]
    Immutable {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`.
    #[error("there is no memslot {}", id.0)]
    NotFound {
        /// The number.
        id: SlotId,
    },
    /// `EINVAL`.
    #[error("memslot of {len_bytes:#x} bytes at {gpa}, offset {offset_bytes:#x}: each must be a multiple of 4 KiB")]
    Misaligned {
        /// First address.
        gpa: Gpa,
        /// Length.
        len_bytes: u64,
        /// Offset in the inode.
        offset_bytes: u64,
    },
    /// `EINVAL`: zero pages, or more than [`MAX_PAGES`].
    #[error("a memslot has 1 to {MAX_PAGES} pages, not {nr_pages}")]
    BadLength {
        /// Pages asked for.
        nr_pages: u64,
    },
    /// `EINVAL`: the slot wraps or ends above the last guest frame.
    #[error("memslot at {gpa} of {nr_pages:#x} pages ends above the last guest frame {last:?}")]
    BeyondMaxGfn {
        /// First address.
        gpa: Gpa,
        /// Pages.
        nr_pages: u64,
        /// The last guest frame there can be.
        last: Gfn,
    },
    /// `EEXIST`.
    #[error("memslot {} is at {at:?} already", slot.0)]
    Overlap {
        /// First frame claimed twice.
        at: Gfn,
        /// By whom.
        slot: SlotId,
    },
    /// The inode does not exist (`EBADF`).
    #[error("there is no guest_memfd {}", id.0)]
    NoSuchGmem {
        /// The number.
        id: GmemId,
    },
    /// The inode refused.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// See the module.
#[derive(Clone)]
pub struct MemSlots {
    by_gfn: Vec<Slot>,
    generation: u64,
    last_gfn: Gfn,
}

impl MemSlots {
    pub(crate) fn new(last_gfn: Gfn) -> MemSlots {
        MemSlots { by_gfn: Vec::new(), generation: 0, last_gfn }
    }

    /// Changes so far; whoever cached the absence of a slot compares it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All, ascending.
    pub fn iter(&self) -> impl Iterator<Item = &MemSlot> {
        self.by_gfn.iter().map(Slot::info)
    }

    /// The slot that holds `gfn`.
    #[inline]
    pub fn lookup(&self, gfn: Gfn) -> Option<&Slot> {
        let above = self.by_gfn.partition_point(|slot| slot.info.first <= gfn);
        self.by_gfn.get(above.checked_sub(1)?).filter(|slot| slot.info.contains(gfn))
    }

    /// The slot with this number.
    pub fn by_id(&self, id: SlotId) -> Option<&Slot> {
        self.by_gfn.iter().find(|slot| slot.info.id == id)
    }

    /// Checks `spec` against the rules and the other slots; `ignoring` names one that is about to move.
    pub(crate) fn check(&self, spec: &MemSlotSpec, ignoring: Option<SlotId>) -> Result<MemSlot, MemslotError> {
        let &MemSlotSpec { id, gpa, len_bytes, flags, gmem, offset_bytes } = spec;
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
        // Frame numbers are below 2^52 and the length below 2^31: no overflow.
        if gpa.frame().raw() + nr_pages - 1 > self.last_gfn.raw() {
            return Err(MemslotError::BeyondMaxGfn { gpa, nr_pages, last: self.last_gfn });
        }
        let first_index = PageIndex(offset_bytes / PAGE);
        let slot = MemSlot { id, first: gpa.frame(), nr_pages, flags, gmem, first_index };
        let others = || self.iter().filter(|other| Some(other.id) != ignoring);
        if others().any(|other| other.id == id) {
            return Err(MemslotError::Immutable { id });
        }
        match others().find(|other| other.first < slot.end() && slot.first < other.end()) {
            Some(other) => Err(MemslotError::Overlap { at: other.first.max(slot.first), slot: other.id }),
            None => Ok(slot),
        }
    }

    /// Publishes a checked slot.
    pub(crate) fn publish(&mut self, slot: Slot) {
        let at = self.by_gfn.partition_point(|other| other.info.first < slot.info.first);
        self.by_gfn.insert(at, slot);
        self.generation += 1;
    }

    /// Keeps faults out of a slot that is about to go.
    pub(crate) fn invalidate(&mut self, id: SlotId) {
        if let Some(slot) = self.by_gfn.iter_mut().find(|slot| slot.info.id == id) {
            slot.state = SlotState::Invalid;
        }
    }

    /// Publishes a slot with or without a log.
    pub(crate) fn set_log(&mut self, id: SlotId, log: Option<Arc<SlotLog>>) {
        if let Some(slot) = self.by_gfn.iter_mut().find(|slot| slot.info.id == id) {
            slot.log = log;
            self.generation += 1;
        }
    }

    /// Removes a slot.
    pub(crate) fn withdraw(&mut self, id: SlotId) {
        self.by_gfn.retain(|slot| slot.info.id != id);
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emu_core::memory::SystemMemory;
    use emu_core::sync::Task;
    use emu_core::{PageSize, Sfn};
    use gmem::{CreateInfo, FolioPolicy, GmemPolicy, Host, HostConfig, HostMemory};

    fn spec(id: u16, gpa: u64, len_bytes: u64) -> MemSlotSpec {
        MemSlotSpec {
            id: SlotId(id),
            gpa: Gpa::new(gpa),
            len_bytes,
            flags: SlotFlags::empty(),
            gmem: GmemId(0),
            offset_bytes: 0,
        }
    }

    fn inode() -> Arc<GuestMemfd> {
        let memory = SystemMemory::flat(1 << 20).unwrap();
        let host = HostMemory::new(memory, &HostConfig { first: Sfn::new(1), nr_frames: 255, pools: vec![] }).unwrap();
        let policy = FolioPolicy::Buddy { largest: PageSize::Size4K };
        let info = CreateInfo { size_bytes: 1 << 20, flags: 0, policy, gmem: GmemPolicy::DEFAULT };
        Arc::new(GuestMemfd::create(&Host::new(host), info, &Task::QUIET).unwrap())
    }

    fn with(specs: &[MemSlotSpec]) -> MemSlots {
        let inode = inode();
        let mut slots = MemSlots::new(Gfn::new((1 << 36) - 1));
        for spec in specs {
            let slot = slots.check(spec, None).unwrap();
            slots.publish(Slot::new(slot, Arc::clone(&inode)));
        }
        slots
    }

    #[test]
    fn lookup_finds_edges_and_holes() {
        let slots = with(&[spec(1, 0x10_0000, 0x2000), spec(0, 0, 0xa_0000)]);
        let id = |gfn| slots.lookup(Gfn::new(gfn)).map(|slot| slot.info.id.0);
        assert_eq!([id(0), id(0x9f), id(0xa0), id(0xff)], [Some(0), Some(0), None, None]);
        assert_eq!([id(0x100), id(0x101), id(0x102), id(u64::MAX)], [Some(1), Some(1), None, None]);
        assert_eq!(slots.generation(), 2);
    }

    #[test]
    fn every_rule_names_what_it_refused() {
        let slots = with(&[spec(0, 0x4000, 0x4000)]);
        let why = |spec: MemSlotSpec| slots.check(&spec, None).unwrap_err();
        assert_eq!(why(spec(MAX_SLOTS, 0, 0x1000)), MemslotError::IdTooLarge { id: SlotId(MAX_SLOTS) });
        assert_eq!(why(spec(0, 0x10_0000, 0x1000)), MemslotError::Immutable { id: SlotId(0) });
        assert!(matches!(why(spec(1, 1, 0x1000)), MemslotError::Misaligned { .. }));
        assert!(matches!(why(spec(1, 0, 0x1001)), MemslotError::Misaligned { .. }));
        assert!(matches!(
            why(MemSlotSpec { offset_bytes: 7, ..spec(1, 0, 0x1000) }),
            MemslotError::Misaligned { offset_bytes: 7, .. }
        ));
        assert_eq!(why(spec(1, 0, 0)), MemslotError::BadLength { nr_pages: 0 });
        assert_eq!(why(spec(1, 0, 1 << 43)), MemslotError::BadLength { nr_pages: 1 << 31 });
        assert!(matches!(why(spec(1, !0xfff, 0x2000)), MemslotError::BeyondMaxGfn { .. }));
        assert!(matches!(why(spec(1, (1 << 48) - 0x1000, 0x2000)), MemslotError::BeyondMaxGfn { .. }));
        for (gpa, len, at) in [(0x3000, 0x2000, 4), (0x7000, 0x1000, 7), (0, 0x10_0000, 4)] {
            assert_eq!(why(spec(1, gpa, len)), MemslotError::Overlap { at: Gfn::new(at), slot: SlotId(0) });
        }
        assert!(slots.check(&spec(1, 0x8000, 0x1000), None).is_ok(), "touching is not overlapping");
        assert!(slots.check(&spec(0, 0x5000, 0x4000), Some(SlotId(0))).is_ok(), "a slot may move over itself");
    }
}
