//! guest_memfd: the inode that is a piece of guest memory (`virt/kvm/guest_memfd.c`).
//!
//! [`GuestMemfd`] is the door. It maps page indices to folios, knows which memslots look at which of its ranges, and
//! which indices the host may use. A removal is typed: [`GuestMemfd::invalidate_begin`] gives an [`Invalidating`], which
//! freezes the bindings, tells which memslot ranges the caller must zap ([`GuestMemfd::bound`]), and is what
//! [`GuestMemfd::remove`] asks for; [`GuestMemfd::invalidate_end`] takes it back.
//!
//! Always true: size and flags never change; a folio lies at an index and a frame that are multiples of its size; every
//! folio in the cache carries one reference for each of its pages; bindings are disjoint and lie inside the inode; an
//! index that was removed reads as zero when it is next used, and bytes outside a removal are never touched.
//!
//! Left out: an inode has one view (one VM); a memory failure; the user's mmap, for which [`GuestMemfd::get_page`] and
//! [`GuestMemfd::put_page`] are the references it would take.

mod convert;

use std::collections::BTreeMap;

use bitflags::bitflags;
use emu_core::event::{Event, EventSink};
use emu_core::page::PAGE_SIZE;
use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::folio::FolioFlags;
use crate::host::HostMemory;
use crate::pagemap::PageMap;
use crate::provider::{FolioPolicy, FolioProvider, ProviderError, Want};
use crate::shareability::{Shareability, ShareabilityMap};

pub use convert::{Conversion, ConvertError};

const PAGE: u64 = PAGE_SIZE as u64;

/// Number of a 4 KiB page inside an inode (`pgoff`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PageIndex(pub u64);

/// Pages of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    /// The first.
    pub first: PageIndex,
    /// How many.
    pub nr_pages: u64,
}

impl PageRange {
    /// The first index behind the range.
    pub const fn end(self) -> PageIndex {
        PageIndex(self.first.0.saturating_add(self.nr_pages))
    }
}

/// A memslot's number, whose meaning is the hypervisor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u16);

bitflags! {
    /// Flags of creation, with the values of `GUEST_MEMFD_FLAG_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct GmemFlags: u64 {
        /// `GUEST_MEMFD_FLAG_MMAP`: the host may map what is shared.
        const MMAP = 1 << 0;
        /// `GUEST_MEMFD_FLAG_INIT_SHARED`: every index starts shared, otherwise private.
        const INIT_SHARED = 1 << 1;
    }
}

/// Why an inode could not be created; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CreateError {
    /// `EINVAL`.
    #[error("guest_memfd flags {unknown:#x} are unknown")]
    UnknownFlags {
        /// The bits nobody defined.
        unknown: u64,
    },
    /// `EINVAL`.
    #[error("guest_memfd size {size_bytes:#x} is not a positive multiple of 4 KiB below 2^63")]
    Size {
        /// The size asked for.
        size_bytes: u64,
    },
    /// `EINVAL`.
    #[error("guest_memfd size {size_bytes:#x} is not a multiple of the pool's {page} pages")]
    NotHugeMultiple {
        /// The size asked for.
        size_bytes: u64,
        /// The pool's page size.
        page: PageSize,
    },
    /// `ENOMEM`.
    #[error("guest_memfd cannot reserve its folios: {0}")]
    Reserve(#[from] ProviderError),
}

/// Why an index has no folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GetError {
    /// Behind the end of the inode.
    #[error("page {} lies behind the end of a guest_memfd of {nr_pages} pages", index.0)]
    BeyondEnd {
        /// The index.
        index: PageIndex,
        /// The inode's size.
        nr_pages: u64,
    },
    /// The host asked for a page that is the guest's alone.
    #[error("page {} of the guest_memfd is private to the guest", index.0)]
    Private {
        /// The index.
        index: PageIndex,
    },
    /// `ENOMEM`.
    #[error("page {} of the guest_memfd cannot be populated: {cause}", index.0)]
    NoFolio {
        /// The index.
        index: PageIndex,
        /// What the provider said.
        cause: ProviderError,
    },
}

/// Why a memslot could not be bound or unbound; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BindError {
    /// `EINVAL`.
    #[error("pages {:#x} to {:#x} do not lie inside a guest_memfd of {nr_pages:#x} pages", range.first.0, range.end().0)]
    OutOfBounds {
        /// The range.
        range: PageRange,
        /// The inode's size.
        nr_pages: u64,
    },
    /// `EEXIST`.
    #[error("page {} is bound to memslot {} already", at.0, slot.0)]
    Overlap {
        /// First page bound twice.
        at: PageIndex,
        /// To whom.
        slot: SlotId,
    },
    /// A removal is between its begin and its end; the kernel would wait for its lock.
    #[error("the guest_memfd is being invalidated")]
    Busy,
}

/// A page of an inode and the folio that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The frame of the page itself.
    pub sfn: Sfn,
    /// The folio's size; it covers the naturally aligned indices and frames around the page.
    pub size: PageSize,
}

/// A memslot's view of a part of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Whose.
    pub slot: SlotId,
    /// First page of the part, counted from the start of the memslot.
    pub first_in_slot: u64,
    /// Pages of the part.
    pub nr_pages: u64,
}

/// A removal between its begin and its end.
#[derive(Debug)]
#[must_use = "bindings stay frozen until invalidate_end"]
pub struct Invalidating {
    range: PageRange,
}

impl Invalidating {
    /// What is about to go.
    pub const fn range(&self) -> PageRange {
        self.range
    }
}

#[derive(Clone, Copy, Debug)]
struct Binding {
    end: u64,
    slot: SlotId,
}

/// What an inode is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateInfo {
    /// Size in bytes.
    pub size_bytes: u64,
    /// `GUEST_MEMFD_FLAG_*` as the caller gave them.
    pub flags: u64,
    /// Size and source of its folios.
    pub policy: FolioPolicy,
}

/// See the module.
pub struct GuestMemfd {
    nr_pages: u64,
    flags: GmemFlags,
    /// The page cache: index to the folio's first frame.
    cache: PageMap<Sfn>,
    bindings: BTreeMap<u64, Binding>,
    invalidating: u32,
    shareability: ShareabilityMap,
    provider: Box<dyn FolioProvider>,
}

impl GuestMemfd {
    /// `KVM_CREATE_GUEST_MEMFD`. Reserves when the policy reserves; allocates nothing.
    pub fn create(host: &mut HostMemory, info: CreateInfo) -> Result<GuestMemfd, CreateError> {
        let CreateInfo { size_bytes, flags, policy } = info;
        let unknown = flags & !GmemFlags::all().bits();
        if unknown != 0 {
            return Err(CreateError::UnknownFlags { unknown });
        }
        if size_bytes == 0 || size_bytes > i64::MAX as u64 || !size_bytes.is_multiple_of(PAGE) {
            return Err(CreateError::Size { size_bytes });
        }
        if let FolioPolicy::Pool { size } | FolioPolicy::Cma { size } = policy
            && !size_bytes.is_multiple_of(size.page_size().bytes())
        {
            return Err(CreateError::NotHugeMultiple { size_bytes, page: size.page_size() });
        }
        let nr_pages = size_bytes / PAGE;
        let flags = GmemFlags::from_bits_truncate(flags);
        let mut provider = policy.provider();
        provider.reserve(host, nr_pages)?;
        let initial = if flags.contains(GmemFlags::INIT_SHARED) { Shareability::SHARED } else { Shareability::PRIVATE };
        Ok(GuestMemfd {
            nr_pages,
            flags,
            cache: PageMap::new(),
            bindings: BTreeMap::new(),
            invalidating: 0,
            shareability: ShareabilityMap::new(nr_pages, initial),
            provider,
        })
    }

    /// Ends the inode: all folios and the reservation go back to where they came from.
    ///
    /// # Panics
    /// While a memslot is bound: the hypervisor unbinds first.
    pub fn destroy(mut self, host: &mut HostMemory) {
        assert!(self.bindings.is_empty(), "an inode outlives its bindings");
        self.remove_range(host, PageRange { first: PageIndex(0), nr_pages: self.nr_pages });
        self.provider.unreserve(host);
    }

    /// Size in 4 KiB pages.
    pub const fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Flags of creation.
    pub const fn flags(&self) -> GmemFlags {
        self.flags
    }

    /// Who may use which index.
    pub const fn shareability(&self) -> &ShareabilityMap {
        &self.shareability
    }

    /// Folios in the page cache, by [`PageSize::index`].
    pub fn folios(&self) -> [u64; 3] {
        PageSize::ALL.map(|size| self.cache.count(size))
    }

    /// Every folio of the page cache: first index, first frame, size; ascending.
    pub fn iter(&self) -> impl Iterator<Item = (PageIndex, Sfn, PageSize)> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let hit = self.cache.next_from(at)?;
            at = hit.end();
            Some((PageIndex(hit.base), hit.value, hit.size))
        })
    }

    /// The folio at `index` if there is one; populates nothing.
    pub fn peek(&self, index: PageIndex) -> Option<Backed> {
        let hit = self.cache.get(index.0)?;
        Some(Backed { sfn: Sfn::new(hit.value.raw() + (index.0 - hit.base)), size: hit.size })
    }

    /// The folio at `index`, populated if there is none, with defined contents (`kvm_gmem_get_pfn`).
    pub fn get_folio(
        &mut self,
        host: &mut HostMemory,
        index: PageIndex,
        events: &mut dyn EventSink,
    ) -> Result<Backed, GetError> {
        let backed = self.find_or_allocate(host, index, events)?;
        let head = backed.sfn.align_down(backed.size);
        let meta = host.folios.meta_mut(head);
        if !meta.flags.contains(FolioFlags::UPTODATE) {
            let known_zero = meta.flags.contains(FolioFlags::KNOWN_ZERO);
            meta.flags.remove(FolioFlags::KNOWN_ZERO);
            meta.flags.insert(FolioFlags::UPTODATE);
            if !known_zero {
                host.clear(head, backed.size.frames());
            }
        }
        Ok(backed)
    }

    fn find_or_allocate(
        &mut self,
        host: &mut HostMemory,
        index: PageIndex,
        events: &mut dyn EventSink,
    ) -> Result<Backed, GetError> {
        if let Some(backed) = self.peek(index) {
            return Ok(backed);
        }
        if index.0 >= self.nr_pages {
            return Err(GetError::BeyondEnd { index, nr_pages: self.nr_pages });
        }
        let vacancy = self.cache.vacancy(index.0).unwrap_or(PageSize::Size4K);
        let fits = |size: &PageSize| (index.0 & !(size.frames() - 1)) + size.frames() <= self.nr_pages;
        let at_most = PageSize::ALL[..=vacancy.index()].iter().copied().rfind(fits).unwrap_or(PageSize::Size4K);
        let want = Want::anywhere(at_most, index.0);
        let fresh = self.provider.allocate(host, want).map_err(|cause| GetError::NoFolio { index, cause })?;
        let base = index.0 & !(fresh.size.frames() - 1);
        let inserted = self.cache.insert(base, fresh.size, fresh.head);
        assert!(inserted.is_ok(), "the pages around index {} were vacant", index.0);
        events.report(Event::FolioAllocated { sfn: fresh.head, size: fresh.size });
        Ok(Backed { sfn: Sfn::new(fresh.head.raw() + (index.0 - base)), size: fresh.size })
    }

    /// `fallocate` without a hole: every index of the range gets a folio, whose contents stay undefined to users until
    /// [`GuestMemfd::get_folio`]. What was allocated before an error stays.
    pub fn allocate(
        &mut self,
        host: &mut HostMemory,
        range: PageRange,
        events: &mut dyn EventSink,
    ) -> Result<(), GetError> {
        if range.end().0 > self.nr_pages {
            return Err(GetError::BeyondEnd { index: range.end(), nr_pages: self.nr_pages });
        }
        let mut at = range.first.0;
        while at < range.end().0 {
            let backed = self.find_or_allocate(host, PageIndex(at), events)?;
            at = (at & !(backed.size.frames() - 1)) + backed.size.frames();
        }
        Ok(())
    }

    /// A page for the host, with a reference that keeps its frame even when the index is removed meanwhile.
    pub fn get_page(
        &mut self,
        host: &mut HostMemory,
        index: PageIndex,
        events: &mut dyn EventSink,
    ) -> Result<Sfn, GetError> {
        if index.0 < self.nr_pages && !self.shareability.get(index.0).host_may_use() {
            return Err(GetError::Private { index });
        }
        let backed = self.get_folio(host, index, events)?;
        host.folios.meta_mut(backed.sfn).refs += 1;
        Ok(backed.sfn)
    }

    /// Drops a reference taken by [`GuestMemfd::get_page`]; the last one frees a folio that was removed.
    pub fn put_page(&mut self, host: &mut HostMemory, sfn: Sfn) {
        if let Some(folio) = host.folios.get(sfn) {
            self.put_refs(host, folio.head, 1);
        }
    }

    fn put_refs(&mut self, host: &mut HostMemory, head: Sfn, nr: u32) {
        let meta = host.folios.meta_mut(head);
        assert!(meta.refs >= nr, "{head:?} has {} references, {nr} are dropped", meta.refs);
        meta.refs -= nr;
        if meta.refs == 0 {
            self.provider.free(host, head);
        }
    }

    /// Makes `slot` a view of `range` (`kvm_gmem_bind`).
    pub fn bind(&mut self, slot: SlotId, range: PageRange) -> Result<(), BindError> {
        self.check_bind(range)?;
        self.bindings.insert(range.first.0, Binding { end: range.end().0, slot });
        Ok(())
    }

    /// Whether [`GuestMemfd::bind`] would succeed.
    pub fn check_bind(&self, range: PageRange) -> Result<(), BindError> {
        if self.is_invalidating() {
            return Err(BindError::Busy);
        }
        let inside = range.first.0.checked_add(range.nr_pages).is_some_and(|end| end <= self.nr_pages);
        if !inside || range.nr_pages == 0 {
            return Err(BindError::OutOfBounds { range, nr_pages: self.nr_pages });
        }
        let below = self.bindings.range(..range.end().0).next_back();
        match below {
            Some((&at, binding)) if binding.end > range.first.0 => {
                Err(BindError::Overlap { at: PageIndex(at.max(range.first.0)), slot: binding.slot })
            }
            _ => Ok(()),
        }
    }

    /// Whether a removal is between its begin and its end, so that no binding may change or mean other guest frames.
    pub const fn is_invalidating(&self) -> bool {
        self.invalidating > 0
    }

    /// Whether any memslot looks at the inode.
    pub fn is_bound(&self) -> bool {
        !self.bindings.is_empty()
    }

    /// Ends the view that starts at `first`.
    pub fn unbind(&mut self, first: PageIndex) -> Result<(), BindError> {
        if self.is_invalidating() {
            return Err(BindError::Busy);
        }
        self.bindings.remove(&first.0);
        Ok(())
    }

    /// The memslot bound at `index`.
    pub fn slot_at(&self, index: PageIndex) -> Option<SlotId> {
        let (_, binding) = self.bindings.range(..=index.0).next_back()?;
        (index.0 < binding.end).then_some(binding.slot)
    }

    /// Starts a removal of `range`, clipped to the inode. Until its end the bindings cannot change.
    pub fn invalidate_begin(&mut self, range: PageRange) -> Invalidating {
        let first = range.first.0.min(self.nr_pages);
        let end = range.end().0.min(self.nr_pages);
        self.invalidating += 1;
        Invalidating { range: PageRange { first: PageIndex(first), nr_pages: end - first } }
    }

    /// What the hypervisor must zap before [`GuestMemfd::remove`].
    pub fn bound(&self, removal: &Invalidating) -> Vec<Bound> {
        let (first, end) = (removal.range.first.0, removal.range.end().0);
        let reaches_in = self.bindings.range(..end).filter(|(_, b)| b.end > first);
        reaches_in
            .map(|(&at, b)| {
                let from = at.max(first);
                Bound { slot: b.slot, first_in_slot: from - at, nr_pages: b.end.min(end) - from }
            })
            .filter(|bound| bound.nr_pages > 0)
            .collect()
    }

    /// Removes the folios that lie inside the range; of those that reach out of it, clears the part inside.
    pub fn remove(&mut self, host: &mut HostMemory, removal: &Invalidating) {
        self.remove_range(host, removal.range);
    }

    /// Ends a removal.
    pub fn invalidate_end(&mut self, removal: Invalidating) {
        let Invalidating { range: _ } = removal;
        assert!(self.invalidating > 0, "every end has its begin");
        self.invalidating -= 1;
    }

    fn remove_range(&mut self, host: &mut HostMemory, range: PageRange) {
        let (first, end) = (range.first.0, range.end().0);
        let mut at = first;
        while let Some(hit) = self.cache.next_from(at).filter(|hit| hit.base < end) {
            at = hit.end();
            if first <= hit.base && hit.end() <= end {
                self.cache.remove(hit.base);
                self.put_refs(host, hit.value, hit.size.frames() as u32);
            } else {
                let from = hit.base.max(first);
                let to = hit.end().min(end);
                host.clear(Sfn::new(hit.value.raw() + (from - hit.base)), to - from);
            }
        }
    }
}
