//! The page cache of an inode: finding, populating and removing folios, and the references on them.

use emu_core::defect::Defect;
use emu_core::event::Event;
use emu_core::sync::{Point, Task};
use emu_core::{PageSize, Sfn};
use thiserror::Error;

use super::lock::{Exclusive, Shared};
use super::{GuestMemfd, PageIndex, PageRange};
use crate::Host;
use crate::folio::{FolioFlags, RefError};
use crate::provider::{FreshFolio, ProviderError, Want};

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
}

/// A page of an inode and the folio that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backed {
    /// The frame of the page itself.
    pub sfn: Sfn,
    /// The folio's size; it covers the naturally aligned indices and frames around the page.
    pub size: PageSize,
}

/// A folio as the page cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cached {
    pub(super) head: Sfn,
    pub(super) contents: Contents,
}

/// What the bytes of a folio are: a copy of [`FolioFlags::UPTODATE`] that a lookup can read without the host's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Whatever its last user left.
    Stale,
    /// Zero, or what its users wrote since.
    Defined,
}

impl GuestMemfd {
    /// The folio at `index` if there is one; populates nothing. A moment later it may be gone.
    pub fn peek(&self, index: PageIndex, task: &Task<'_>) -> Option<Backed> {
        self.find_or_room(index, task).ok().map(|(backed, _)| backed)
    }

    /// The folio at `index`, or the largest that could be put around it.
    fn find_or_room(&self, index: PageIndex, task: &Task<'_>) -> Result<(Backed, Contents), PageSize> {
        let cache = self.cache.lock(task);
        if let Some(hit) = cache.get(index.0) {
            let sfn = Sfn::new(hit.value.head.raw() + (index.0 - hit.base));
            return Ok((Backed { sfn, size: hit.size }, hit.value.contents));
        }
        let vacancy = cache.vacancy(index.0).unwrap_or(PageSize::Size4K);
        let fits = |size: &PageSize| (index.0 & !(size.frames() - 1)) + size.frames() <= self.nr_pages;
        Err(PageSize::ALL[..=vacancy.index()].iter().copied().rfind(fits).unwrap_or(PageSize::Size4K))
    }

    /// Finds the folio at `index` or puts one there; its contents may be stale.
    fn find_or_allocate(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<(Backed, Contents), GetError> {
        if let Ok(found) = self.find_or_room(index, task) {
            return Ok(found);
        }
        if index.0 >= self.nr_pages {
            return Err(GetError::BeyondEnd { index, nr_pages: self.nr_pages });
        }
        // One allocation at a time for what one folio may cover: two would need more than was reserved, if only for a
        // moment, and take it from an index that was promised it.
        let lock = self.folio_locks.lane((index.0 / self.unit.frames()) as usize);
        let _alone = (!task.has(Defect::AllocateTwice)).then(|| lock.lock(task));
        loop {
            let at_most = match self.find_or_room(index, task) {
                Ok(found) => return Ok(found),
                Err(room) => room,
            };
            task.at(Point::A1);
            let (FreshFolio { head, size }, contents) = {
                let mut provider = self.provider.lock(task);
                let mut host = host.lock(task);
                let want = Want::anywhere(at_most, index.0);
                let fresh = provider.allocate(&mut host, want).map_err(|cause| GetError::NoFolio { index, cause })?;
                let flags = &mut host.folios.meta_mut(fresh.head).flags;
                let contents = if flags.contains(FolioFlags::KNOWN_ZERO) { Contents::Defined } else { Contents::Stale };
                flags.remove(FolioFlags::KNOWN_ZERO);
                flags.set(FolioFlags::UPTODATE, contents == Contents::Defined);
                host.report_pool(fresh.size, task);
                (fresh, contents)
            };
            task.at(Point::A2);
            let base = index.0 & !(size.frames() - 1);
            let inserted = self.cache.lock(task).insert(base, size, Cached { head, contents });
            if inserted.is_err() {
                // Another task was faster; its folio is the one. Only without the lock above.
                host.lock(task).put_page(head, size.frames() as u32);
                continue;
            }
            task.report(Event::FolioAllocated { ino: self.ino, index: base, sfn: head, size });
            task.at(Point::A3);
            return Ok((Backed { sfn: Sfn::new(head.raw() + (index.0 - base)), size }, contents));
        }
    }

    /// Clears a folio whose contents are stale, once.
    fn define(&self, host: &Host, index: PageIndex, backed: Backed, task: &Task<'_>) {
        let head = backed.sfn.align_down(backed.size);
        let _folio = self.folio_locks.lane((index.0 / self.unit.frames()) as usize).lock(task);
        if matches!(self.find_or_room(index, task), Ok((_, Contents::Stale))) {
            {
                let mut host = host.lock(task);
                host.clear(head, backed.size.frames());
                host.folios.meta_mut(head).flags.insert(FolioFlags::UPTODATE);
            }
            task.report(Event::FolioZeroed { sfn: head, nr_pages: backed.size.frames() });
            if let Some(cached) = self.cache.lock(task).get_mut(index.0) {
                cached.contents = Contents::Defined;
            }
        }
    }

    /// Drops a reference taken by [`Shared::get_page`]; the last one frees a folio that was removed.
    pub fn put_page(&self, host: &Host, sfn: Sfn, task: &Task<'_>) {
        host.lock(task).put_page(sfn, 1);
    }

    /// Removes the folios that lie inside `range`; of those that reach out of it, clears the part inside.
    pub(super) fn remove_range(&self, host: &Host, range: PageRange, task: &Task<'_>) {
        let (first, end) = (range.first.0, range.end().0);
        let mut at = first;
        loop {
            let mut cache = self.cache.lock(task);
            let Some(hit) = cache.next_from(at).filter(|hit| hit.base < end) else { break };
            at = hit.end();
            if first <= hit.base && hit.end() <= end {
                cache.remove(hit.base);
                drop(cache);
                let mut host = host.lock(task);
                host.put_page(hit.value.head, hit.size.frames() as u32);
                task.report(Event::FolioRemoved {
                    ino: self.ino,
                    index: hit.base,
                    sfn: hit.value.head,
                    size: hit.size,
                });
                host.report_pool(hit.size, task);
            } else {
                drop(cache);
                let from = hit.base.max(first);
                let to = hit.end().min(end);
                let sfn = Sfn::new(hit.value.head.raw() + (from - hit.base));
                host.lock(task).clear(sfn, to - from);
                task.report(Event::FolioZeroed { sfn, nr_pages: to - from });
            }
        }
    }
}

impl Shared<'_> {
    /// The folio at `index`, populated if there is none, with defined contents (`kvm_gmem_get_pfn`). It carries no
    /// reference: once the lock is released only the sequence of the invalidation protocol says whether it is still
    /// there.
    pub fn get_folio(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Backed, GetError> {
        task.at(Point::F3a);
        let (backed, contents) = self.inode.find_or_allocate(host, index, task)?;
        task.at(Point::F3b);
        if contents == Contents::Stale {
            self.inode.define(host, index, backed, task);
        }
        task.at(Point::F3c);
        Ok(backed)
    }

    /// `fallocate` without a hole: every index of the range gets a folio, whose contents stay undefined to users until
    /// [`Shared::get_folio`]. What was allocated before an error stays.
    pub fn allocate(&self, host: &Host, range: PageRange, task: &Task<'_>) -> Result<(), GetError> {
        let inode = self.inode;
        if range.end().0 > inode.nr_pages {
            return Err(GetError::BeyondEnd { index: range.end(), nr_pages: inode.nr_pages });
        }
        let mut at = range.first.0;
        while at < range.end().0 {
            let (backed, _) = inode.find_or_allocate(host, PageIndex(at), task)?;
            at = (at & !(backed.size.frames() - 1)) + backed.size.frames();
        }
        Ok(())
    }

    /// A page for the host, with a reference that keeps its frame even when the index is removed meanwhile.
    pub fn get_page(&self, host: &Host, index: PageIndex, task: &Task<'_>) -> Result<Sfn, GetError> {
        if index.0 < self.inode.nr_pages && !self.inode.attribute(index, task).host_may_use() {
            return Err(GetError::Private { index });
        }
        let backed = self.get_folio(host, index, task)?;
        host.lock(task).get_page(backed.sfn).map_err(|cause| GetError::Reference { index, cause })?;
        Ok(backed.sfn)
    }
}

impl Exclusive<'_> {
    /// Removes the folios of `range`, clipped to the inode, as far as they lie inside it; of those that reach out of it,
    /// clears the part inside. The caller zapped and flushed what [`Exclusive::bound`] told.
    pub fn remove(&self, host: &Host, range: PageRange, task: &Task<'_>) {
        let inode = self.inode;
        task.report(Event::Punched { ino: inode.ino, index: range.first.0, nr_pages: range.nr_pages });
        inode.remove_range(host, range.clipped(inode.nr_pages), task);
    }
}
