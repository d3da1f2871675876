//! Memslots: which guest frames exist and what stands behind them (`struct kvm_memory_slot`).
//!
//! - [`MemSlot`] is what a slot is, [`Slot`] a published one. A slot shows user memory at its `userspace_addr`, pages of
//!   a guest_memfd, or both: private pages from the inode and shared ones from user memory ([`GmemServes`]).
//! - [`MemSlots`] is one set of them by guest frame, by number and by user address, for each [`AddressSpaceId`].
//! - [`SlotSets`] publishes changes: two sets of which one is active, as `kvm_swap_active_memslots` has them.
//! - [`UserMemoryRegion2`] is the argument of `KVM_SET_USER_MEMORY_REGION2`; [`MemslotError`] says what was wrong with it.
//!
//! Always true: the slots of an address space are disjoint in guest frames (not in user addresses); a slot that is being
//! deleted or moved is first published as [`SlotState::Invalid`], so that no fault can use it while its entries go; every
//! publication steps the generation by an even number, and [`UPDATE_IN_PROGRESS`] is set in it until nobody uses the
//! set before.
//!
//! Beside the rules of `KVM_SET_USER_MEMORY_REGION2` there is a second door of our own, [`MemSlotSpec`]: a slot on
//! guest_memfd that may be read-only, which is how this machine has ROM, and may be moved, which KVM asks to be done by
//! delete and create.

mod error;
mod region;
mod set;
mod sets;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use bitflags::bitflags;
use emu_core::page::PAGE_SIZE;
use emu_core::{Gfn, Gpa, Hva, Hvn};
use gmem::mm::HvaRange;
use gmem::{GuestMemfd, PageIndex, PageRange, SlotId, SlotSpan};

use crate::attributes::LpageInfo;
use crate::dirty::SlotLog;
use crate::vm::GmemId;

pub use error::MemslotError;
pub use region::{MemFd, SlotChange, UserMemoryRegion2};
pub(crate) use region::{Request, Wanted};
pub use set::MemSlots;
pub(crate) use set::SlotHint;
pub(crate) use sets::Publication;
pub use sets::SlotSets;

/// `KVM_MEM_MAX_NR_PAGES`.
pub const MAX_PAGES: u64 = (1 << 31) - 1;
/// User memslots of an address space: `SHRT_MAX` less the three that KVM keeps for itself.
pub const MAX_SLOTS: u16 = 32764;
/// `KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`: set in a generation while the set before it may still be in use. What was cached
/// under such a generation is never valid.
pub const UPDATE_IN_PROGRESS: u64 = 1 << 63;

bitflags! {
    /// Flags of a memslot, with KVM's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct SlotFlags: u32 {
        /// `KVM_MEM_LOG_DIRTY_PAGES`: writes are recorded.
        const LOG_DIRTY_PAGES = 1 << 0;
        /// `KVM_MEM_READONLY`: guest writes are not memory accesses.
        const READONLY = 1 << 1;
        /// `KVM_MEM_GUEST_MEMFD`: pages of a guest_memfd stand behind the slot.
        const GUEST_MEMFD = 1 << 2;
    }
}

/// Which address space of the guest a slot is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum AddressSpaceId {
    /// What the processor sees outside of system management mode.
    #[default]
    Normal,
    /// What it sees in system management mode.
    Smm,
}

impl AddressSpaceId {
    /// Every one, by number.
    pub const ALL: [AddressSpaceId; 2] = [AddressSpaceId::Normal, AddressSpaceId::Smm];

    /// Its number, bits 31:16 of a slot number in the ABI.
    pub const fn number(self) -> usize {
        self as usize
    }
}

/// Which accesses a slot's guest_memfd serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GmemServes {
    /// Those to private memory; shared memory is what `userspace_addr` shows.
    Private,
    /// All (`KVM_MEMSLOT_GMEM_ONLY`); `userspace_addr` is for KVM's own accesses at most.
    All,
}

/// A slot's part of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GmemView {
    /// The inode.
    pub gmem: GmemId,
    /// The inode's page behind the first guest frame.
    pub first_index: PageIndex,
    /// Which accesses go there.
    pub serves: GmemServes,
}

/// One memslot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemSlot {
    /// Its number.
    pub id: SlotId,
    /// Its address space.
    pub space: AddressSpaceId,
    /// First guest frame.
    pub first: Gfn,
    /// Guest frames.
    pub nr_pages: u64,
    /// Flags.
    pub flags: SlotFlags,
    /// `userspace_addr`.
    pub hva: Hva,
    /// Its guest_memfd.
    pub gmem: Option<GmemView>,
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
    /// The inode's page behind a guest frame of the slot, if it has an inode.
    pub fn index_of(&self, gfn: Gfn) -> Option<PageIndex> {
        Some(PageIndex(gfn.raw() - self.first.raw() + self.gmem?.first_index.0))
    }
    /// The slot as its inode's view.
    pub fn span(&self) -> Option<SlotSpan> {
        Some(SlotSpan { first: self.first, range: self.range()? })
    }
    /// The inode's pages behind the slot.
    pub fn range(&self) -> Option<PageRange> {
        Some(PageRange { first: self.gmem?.first_index, nr_pages: self.nr_pages })
    }
    /// Whether every access is served from the inode.
    pub fn is_gmem_only(&self) -> bool {
        self.gmem.is_some_and(|view| view.serves == GmemServes::All)
    }
    /// What would make a slot like this one, if it is on guest_memfd.
    pub fn spec(&self) -> Option<MemSlotSpec> {
        let page = PAGE_SIZE as u64;
        let view = self.gmem?;
        Some(MemSlotSpec {
            id: self.id,
            gpa: self.first.base(),
            len_bytes: self.nr_pages * page,
            flags: self.flags,
            gmem: view.gmem,
            offset_bytes: view.first_index.0 * page,
        })
    }
    /// The user address behind a guest frame of the slot.
    pub const fn hva_of(&self, gfn: Gfn) -> Hva {
        Hva::new(self.hva.raw() + (gfn.raw() - self.first.raw()) * PAGE_SIZE as u64)
    }
    /// The user pages that the slot claims to show.
    pub const fn hva_range(&self) -> HvaRange {
        HvaRange { first: self.hva.frame(), nr_pages: self.nr_pages }
    }
    /// The guest frame that shows a user page of the slot.
    pub const fn gfn_of(&self, page: Hvn) -> Gfn {
        Gfn::new(self.first.raw() + (page.raw() - self.hva.frame().raw()))
    }
    /// What bindings of an inode know the slot by: slots of different address spaces may have one number.
    pub(crate) const fn binding_id(&self) -> SlotId {
        SlotId(self.id.0 | (self.space as u16) << 15)
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
    inode: Option<Arc<GuestMemfd>>,
    lpage: Arc<LpageInfo>,
    /// Present while writes are logged (`KVM_MEM_LOG_DIRTY_PAGES`).
    log: Option<Arc<SlotLog>>,
}

impl Slot {
    pub(crate) fn new(info: MemSlot, inode: Option<Arc<GuestMemfd>>) -> Slot {
        let lpage = Arc::new(LpageInfo::new(&info));
        Slot { info, state: SlotState::Active, inode, lpage, log: None }
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
    /// The inode behind it, if there is one.
    pub fn inode(&self) -> Option<&GuestMemfd> {
        self.inode.as_deref()
    }
    /// The inode and its page behind a guest frame of the slot.
    pub fn gmem_page(&self, gfn: Gfn) -> Option<(&GuestMemfd, PageIndex)> {
        Some((self.inode.as_deref()?, self.info.index_of(gfn)?))
    }
    /// Where it may have huge leaves.
    pub fn lpage(&self) -> &LpageInfo {
        &self.lpage
    }
    /// The same slot in another state.
    pub(crate) fn in_state(&self, state: SlotState) -> Slot {
        Slot { state, ..self.clone() }
    }
    /// What stands behind this slot, taken for what stands behind another that was where this one is.
    pub(crate) fn instead_of(&self, before: MemSlot) -> Slot {
        let view = before.gmem.zip(self.info.gmem);
        let gmem = view.map(|(before, now)| GmemView { gmem: now.gmem, ..before });
        Slot::new(MemSlot { gmem, ..before }, self.inode.clone())
    }
    /// The same slot, logged or not.
    pub(crate) fn with_log(&self, log: Option<Arc<SlotLog>>) -> Slot {
        let mut info = self.info;
        info.flags.set(SlotFlags::LOG_DIRTY_PAGES, log.is_some());
        Slot { info, log, ..self.clone() }
    }
}

/// What a memslot on guest_memfd is to be.
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
