//! Finding and populating folios, and the references on them.

use core::sync::atomic::Ordering;

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::{Point, ReadGuard, Task};
use emu_core::{Errno, PageSize, Sfn};
use thiserror::Error;

use super::lock::Shared;
use super::reshape::{CutFailed, Outlook};
use super::tree::{PageCache, Place};
use super::{GuestMemfd, PageIndex, PageRange};
use crate::Host;
use crate::folio::RefError;
use crate::host::Stocked;
use crate::numa::MemPolicy;
use crate::policy::{HostMapping, Quirks};
use crate::provider::{FreshFolio, ProviderError, ReuseError, SplitError, Want};

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
    /// `EFAULT`: nobody has the file open any more.
    #[error("page {} is wanted of a guest_memfd that was closed", index.0)]
    Closed {
        /// The index.
        index: PageIndex,
    },
    /// The host asked for a page that is the guest's alone.
    #[error("page {} of the guest_memfd is private to the guest", index.0)]
    Private {
        /// The index.
        index: PageIndex,
    },
    /// No more references can be counted.
    #[error("page {} of the guest_memfd cannot be referenced: {cause}", index.0)]
    Reference {
        /// The index.
        index: PageIndex,
        /// What the folio table said.
        cause: RefError,
    },
    /// `ENOMEM`.
    #[error("page {} of the guest_memfd cannot be populated: {cause}", index.0)]
    NoFolio {
        /// The index.
        index: PageIndex,
        /// What the provider said.
        cause: ProviderError,
    },
    /// The folio must be split before the page can be used.
    #[error("the folio at page {} of the guest_memfd cannot be split: {cause}", index.0)]
    Split {
        /// First index of the folio.
        index: PageIndex,
        /// What the provider said.
        cause: SplitError,
    },
    /// The page was punched out of a huge page, and its memory cannot come back yet.
    #[error("page {} of the guest_memfd is a hole in a huge page: {cause}", index.0)]
    Hole {
        /// The index.
        index: PageIndex,
        /// Why.
        cause: ReuseError,
    },
    /// `EHWPOISON`.
    #[error("the memory of page {} of the guest_memfd at {sfn:?} failed", index.0)]
    Poisoned {
        /// The index.
        index: PageIndex,
        /// The frame.
        sfn: Sfn,
    },
}

impl GetError {
    /// What a system call returns that ran into it.
    pub const fn errno(&self) -> Errno {
        match self {
            GetError::BeyondEnd { .. } => Errno::Inval,
            GetError::Closed { .. } => Errno::Fault,
            GetError::Private { .. } => Errno::Acces,
            GetError::Split { cause: SplitError::Busy { .. }, .. } => Errno::Again,
            GetError::Poisoned { .. } | GetError::Hole { cause: ReuseError::Poisoned { .. }, .. } => Errno::HwPoison,
            GetError::Reference { .. }
            | GetError::NoFolio { .. }
            | GetError::Split { .. }
            | GetError::Hole { cause: ReuseError::Held { .. }, .. } => Errno::NoMem,
        }
    }
}

impl From<CutFailed> for GetError {
    fn from(failed: CutFailed) -> GetError {
        GetError::Split { index: failed.index, cause: failed.cause }
    }
}

/// A page of an inode and the folio that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The frame of the page itself.
    pub sfn: Sfn,
    /// The folio's size; it covers the naturally aligned indices and frames around the page.
    pub size: PageSize,
}

impl GuestMemfd {
    /// The folio at `index` if there is one; populates nothing. A moment later it may be gone.
    pub fn peek(&self, index: PageIndex, task: &Task<'_>) -> Option<Backed> {
        match self.cache.read(task).at(index.0) {
            Place::Folio(backed) => Some(backed),
            Place::Gone(_) | Place::Vacant(_) => None,
        }
    }

    /// Finds the folio at `index` or puts one there.
    #[inline]
    pub(super) fn find_or_allocate(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        if let Some(backed) = self.find_or_populate(host, index, task) {
            return Ok(backed);
        }
        self.allocate_at(host, index, task)
    }

    /// Finds the folio at `index`, or puts one there where that takes no more than a 4K page of the lane's stock and a word
    /// of a node that is there. Such pages need no folio lock: nobody was promised them, and of two tasks that come with
    /// one each, the word takes one. Both keep the cache from the look to the entry, so who waits for it to be free waits
    /// for them too.
    #[inline]
    fn find_or_populate(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Option<Backed> {
        let backed = {
            let cache = self.cache.read(task);
            let vacancy = match cache.look(index.0) {
                Ok(Place::Folio(found)) => return Some(found),
                Ok(_) => return None,
                Err(vacancy) => vacancy,
            };
            let kind = self.stock.filter(|kind| *kind == Stocked::Pages(PageSize::Size4K))?;
            if vacancy.size() > PageSize::Size4K || !self.is_plain(index) {
                return None;
            }
            task.at(Point::A1);
            let head = host.take_fresh(kind, task)?;
            task.at(Point::A2);
            if !cache.insert_at(vacancy, index.0, head, PageSize::Size4K, task) {
                host.put_fresh(kind, head, task);
                return None;
            }
            task.report(Event::FolioAllocated { ino: self.ino, index: index.0, sfn: head, size: PageSize::Size4K });
            Backed { sfn: head, size: PageSize::Size4K }
        };
        task.at(Point::A3);
        Some(backed)
    }

    /// Whether `index` can be populated, and nothing but populating it is to be done.
    fn is_plain(&self, index: PageIndex) -> bool {
        index.0 < self.nr_pages
            && !self.is_released()
            && !self.has_mem_policies.load(Ordering::Acquire)
            && self.policy.host_mapping != HostMapping::FollowsPrivacy
    }

    fn allocate_at(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        if index.0 >= self.nr_pages {
            return Err(GetError::BeyondEnd { index, nr_pages: self.nr_pages });
        }
        if self.is_released() {
            return Err(GetError::Closed { index });
        }
        // One allocation at a time for what one folio may cover: two would need more than was reserved, if only for a
        // moment, and take it from an index that was promised it. Small pages side by side share a lock too, since it is
        // mostly one task that populates them.
        let lock = self.folio_locks.lane((index.0 / self.unit.frames().max(PageSize::Size2M.frames())) as usize);
        let _alone = (!task.has(Defect::AllocateTwice)).then(|| lock.lock(task));
        loop {
            let cache = self.cache.read(task);
            let vacancy = match cache.at(index.0) {
                Place::Vacant(vacancy) => vacancy,
                Place::Folio(found) => return Ok(found),
                Place::Gone(sfn) => {
                    drop(cache);
                    return self.refill(host, index, sfn, task);
                }
            };
            let fits = |size: &PageSize| (index.0 & !(size.frames() - 1)) + size.frames() <= self.nr_pages;
            let at_most = PageSize::ALL[..=vacancy.index()].iter().copied().rfind(fits).unwrap_or(PageSize::Size4K);
            task.at(Point::A1);
            let policy = match task.has(Defect::ReservationOverridesPolicy) {
                true => MemPolicy::Any,
                false => self.mem_policy(index, task),
            };
            let kind = self.stock.filter(|kind| kind.size() <= at_most && policy == MemPolicy::Any);
            let (fresh, cache) = match kind.and_then(|kind| host.take_fresh(kind, task)) {
                Some(head) => (FreshFolio { head, size: self.unit }, Some(cache)),
                None => {
                    drop(cache);
                    let want = Want { policy, ..Want::anywhere(at_most, index.0) };
                    match self.provide(host, want, task) {
                        Ok(fresh) => (fresh, None),
                        Err(_) if self.unit == PageSize::Size4K => return self.allocate_alone(host, want, task),
                        Err(cause) => return Err(GetError::NoFolio { index, cause }),
                    }
                }
            };
            host.report_pool(fresh.size, task);
            task.at(Point::A2);
            let Some(backed) = self.publish(host, index, fresh, cache, task)? else { continue };
            if self.policy.host_mapping == HostMapping::FollowsPrivacy {
                self.map_fresh(host, index, fresh.size, task);
            }
            task.at(Point::A3);
            return Ok(backed);
        }
    }

    fn provide(&self, host: &Host, want: Want, task: &Task<'_>) -> Result<FreshFolio, ProviderError> {
        let mut provider = self.provider.lock(task);
        let mut host = host.lock(task);
        let fresh = provider.allocate(&mut host, want)?;
        host.hand_out(fresh.head);
        Ok(fresh)
    }

    /// The page allocator had nothing. But who populates without the folio lock may have had a page in hand that goes back,
    /// or that has come to this very index: with the cache alone there is nobody like that.
    #[cold]
    fn allocate_alone(&self, host: &Host, want: Want, task: &Task<'_>) -> Result<Backed, GetError> {
        let index = PageIndex(want.index);
        let mut books = self.books(host, task);
        if let Place::Folio(found) = books.cache.at(index.0) {
            return Ok(found);
        }
        let fresh = books.provider.allocate(&mut books.host, want);
        let FreshFolio { head, size } = fresh.map_err(|cause| GetError::NoFolio { index, cause })?;
        books.host.hand_out(head);
        let inserted = books.cache.insert(index.0, head, size);
        assert!(inserted, "page {} was vacant", index.0);
        task.report(Event::FolioAllocated { ino: self.ino, index: index.0, sfn: head, size });
        Ok(Backed { sfn: head, size })
    }

    /// Enters a fresh folio in the page cache, split as its attributes want it: nobody sees it before. `None` when
    /// another task was faster, which for a huge folio cannot be under the folio lock. `held` is the cache, if it was kept
    /// since the place was found vacant.
    fn publish(
        &self,
        host: &Host,
        index: PageIndex,
        FreshFolio { head, size }: FreshFolio,
        held: Option<ReadGuard<'_, PageCache>>,
        task: &Task<'_>,
    ) -> Result<Option<Backed>, GetError> {
        let base = index.0 & !(size.frames() - 1);
        let granule = self.granule();
        let may_need = size > PageSize::Size4K && granule.is_eager();
        let uniform = self.uniform.get();
        // Nobody writes attributes without the exclusive `invalidate_lock`, so this never waits.
        let attributes = (may_need && uniform.is_none()).then(|| self.attributes(task));
        let outlook = match (uniform, &attributes) {
            (_, Some(map)) => Some(Outlook::now(map)),
            (Some(state), None) if may_need => Some(Outlook::throughout(state)),
            _ => None,
        };
        let needs = |base, size| outlook.as_ref().is_some_and(|outlook| granule.needs_split(outlook, base, size));
        if self.policy.has(Quirks::CLEAR_FIRST_4K) {
            leave_stale_bytes(host, head, size, task);
        }
        if !needs(base, size) {
            let inserted = self.enter(base, head, size, held, task);
            match inserted {
                true => task.report(Event::FolioAllocated { ino: self.ino, index: base, sfn: head, size }),
                false => host.lock(task).put_page(head, size.frames() as u32),
            }
            let sfn = Sfn::new(head.raw() + (index.0 - base));
            return Ok(inserted.then_some(Backed { sfn, size }));
        }
        drop(held);
        let mut books = self.books(host, task);
        if !books.cache.insert(base, head, size) {
            books.host.put_page(head, size.frames() as u32);
            return Ok(None);
        }
        task.report(Event::FolioAllocated { ino: self.ino, index: base, sfn: head, size });
        if task.has(Defect::PublishBeforeSplit) {
            drop(books);
            task.at(Point::A3);
            books = self.books(host, task);
        }
        let mut cuts = Vec::new();
        if let Err(failed) = books.split((base, base + size.frames()), granule, &needs, &mut cuts) {
            books.undo(&cuts);
            if let Some(unit) = books.cache.unit_at(base) {
                books.remove_unit(unit);
            }
            return Err(failed.into());
        }
        match books.cache.at(index.0) {
            Place::Folio(backed) => Ok(Some(backed)),
            Place::Gone(_) | Place::Vacant(_) => Ok(None),
        }
    }

    /// Puts a folio at `base` if nothing is there.
    fn enter(
        &self,
        base: u64,
        head: Sfn,
        size: PageSize,
        held: Option<ReadGuard<'_, PageCache>>,
        task: &Task<'_>,
    ) -> bool {
        let entered = held.unwrap_or_else(|| self.cache.read(task)).try_insert(base, head, size, task);
        entered.unwrap_or_else(|| self.cache.write(task).insert(base, head, size))
    }

    /// The private pages of a fresh folio are none of the host's.
    fn map_fresh(&self, host: &Host, index: PageIndex, size: PageSize, task: &Task<'_>) {
        let base = index.0 & !(size.frames() - 1);
        let attributes = self.attributes(task);
        let mut books = self.books(host, task);
        for (first, nr_pages, state) in attributes.runs_in(base, base + size.frames()).filter(|run| run.2.is_private())
        {
            self.host_map_changes(&mut books, (first, first + nr_pages), state);
        }
    }

    /// Puts the frame back into a hole in a unit: no other may come there.
    fn refill(&self, host: &Host, index: PageIndex, sfn: Sfn, task: &Task<'_>) -> Result<Backed, GetError> {
        let mut books = self.books(host, task);
        books.host.reuse(sfn).map_err(|cause| GetError::Hole { index, cause })?;
        books.cache.restore_piece(index.0);
        task.report(Event::FolioAllocated { ino: self.ino, index: index.0, sfn, size: PageSize::Size4K });
        Ok(Backed { sfn, size: PageSize::Size4K })
    }

    /// Drops a reference taken by [`Shared::get_page`]; the last one frees a folio that was removed.
    pub fn put_page(&self, host: &Host, sfn: Sfn, task: &Task<'_>) {
        host.lock(task).put_page(sfn, 1);
    }

    /// Takes back a pin of [`Shared::pin_page`].
    pub fn unpin_page(&self, host: &Host, sfn: Sfn, task: &Task<'_>) {
        host.lock(task).unpin_page(sfn);
    }
}

/// What a page holds that nobody cleared, under [`Quirks::CLEAR_FIRST_4K`]: free frames of the model read as zero.
const STALE: u64 = 0x5354_414c_4553_544c;

fn leave_stale_bytes(host: &Host, head: Sfn, size: PageSize, task: &Task<'_>) {
    let host = host.lock(task);
    for sfn in head.raw() + 1..head.raw() + size.frames() {
        let stored = host.memory().store(Sfn::new(sfn).base(), STALE);
        assert!(stored.is_ok(), "the host's range is system memory: {stored:?}");
    }
}

impl Shared<'_> {
    /// The folio at `index`, populated if there is none (`kvm_gmem_get_pfn`). It carries no reference: once the lock is
    /// released only the sequence of the invalidation protocol says whether it is still there.
    #[inline]
    pub fn get_folio(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        task.at(Point::F3a);
        let backed = self.inode.find_or_allocate(host, index, task)?;
        task.at(Point::F3b);
        let backed = self.inode.around_poison(host, index, backed, task)?;
        task.at(Point::F3c);
        Ok(backed)
    }

    /// `fallocate` without a hole: every index of the range gets a folio. What was allocated before an error stays.
    pub fn allocate(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Result<(), GetError> {
        let inode = self.inode;
        let (mut at, mut end) = (range.first.0, range.end().0);
        if end > inode.nr_pages {
            return Err(GetError::BeyondEnd { index: range.end(), nr_pages: inode.nr_pages });
        }
        if inode.policy.has(Quirks::ALLOCATION_ROUNDS_DOWN) {
            (at, end) = (at & !(inode.unit.frames() - 1), end & !(inode.unit.frames() - 1));
        }
        while at < end {
            let backed = inode.find_or_allocate(host, PageIndex(at), task)?;
            at = (at & !(backed.size.frames() - 1)) + backed.size.frames();
        }
        Ok(())
    }

    /// A page for the host, with a reference that keeps its frame even when the index is removed meanwhile
    /// (`get_user_pages`).
    pub fn get_page(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Sfn, GetError> {
        let backed = self.for_host(host, index, task)?;
        host.lock(task).get_page(backed.sfn).map_err(|cause| GetError::Reference { index, cause })?;
        Ok(backed.sfn)
    }

    /// A page for a device of the host (`pin_user_pages`), until [`GuestMemfd::unpin_page`].
    pub fn pin_page(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Sfn, GetError> {
        let backed = self.for_host(host, index, task)?;
        host.lock(task).pin_page(backed.sfn).map_err(|cause| GetError::Reference { index, cause })?;
        Ok(backed.sfn)
    }

    /// The folio for a user of the host, split as far as its attributes want it (`kvm_gmem_fault_user_mapping`). The
    /// caller takes the reference while it holds the lock.
    pub fn for_host(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        if index.0 < self.inode.nr_pages && !self.inode.attribute(index, task).host_may_use() {
            return Err(GetError::Private { index });
        }
        let backed = self.get_folio(host, index, task)?;
        if backed.size == PageSize::Size4K {
            return Ok(backed);
        }
        self.inode.split_late(host, index, task)?;
        self.get_folio(host, index, task)
    }
}
