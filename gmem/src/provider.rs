//! Where an inode's folios come from: one interface over the page allocator and the pools.
//!
//! [`FolioProvider`] is the interface; one object is one inode's reservation. [`FolioPolicy`] chooses. Contract: after
//! [`FolioProvider::reserve`] succeeded for a reserving provider, exactly that many folios can be allocated; what
//! [`FolioProvider::allocate`] gives is naturally aligned, entered in the folio table with the page cache's
//! references, reads as zero, and is not up to date. Splitting and reconstruction will be two more operations here.

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::folio::FolioKind;
use crate::host::{HostMemory, OutOfMemory};
use crate::pool::{HugeSize, PoolExhausted, Subpool};

/// Size and source of an inode's folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolioPolicy {
    /// The page allocator, with folios up to `largest` where they fit and can be had, smaller ones elsewhere. Nothing
    /// is reserved, as guest_memfd with transparent huge pages was proposed.
    Buddy {
        /// The largest folio to try for.
        largest: PageSize,
    },
    /// A pool, all of the inode reserved at creation, every folio of the pool's size.
    Pool {
        /// Which pool.
        size: HugeSize,
    },
}

impl FolioPolicy {
    /// The size of folio to expect.
    pub const fn folio_size(self) -> PageSize {
        match self {
            FolioPolicy::Buddy { largest } => largest,
            FolioPolicy::Pool { size } => size.page_size(),
        }
    }
}

/// No folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProviderError {
    /// From the page allocator.
    #[error(transparent)]
    Buddy(#[from] OutOfMemory),
    /// From a pool.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
}

/// A folio fresh from its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshFolio {
    /// First frame.
    pub head: Sfn,
    /// Size.
    pub size: PageSize,
}

/// See the module.
pub trait FolioProvider: Send + core::fmt::Debug {
    /// Promises folios for `nr_pages` 4K pages, all or nothing. Called once, before anything else.
    fn reserve(&mut self, host: &mut HostMemory, nr_pages: u64) -> Result<(), ProviderError>;
    /// A folio of at most `at_most`.
    fn allocate(&mut self, host: &mut HostMemory, at_most: PageSize) -> Result<FreshFolio, ProviderError>;
    /// Takes back a folio without references.
    fn free(&mut self, host: &mut HostMemory, head: Sfn);
    /// Ends the promise. Called once, after every folio came back.
    fn unreserve(&mut self, host: &mut HostMemory);
}

impl FolioPolicy {
    pub(crate) fn provider(self) -> Box<dyn FolioProvider> {
        match self {
            FolioPolicy::Buddy { largest } => Box::new(BuddyProvider { largest }),
            FolioPolicy::Pool { size } => Box::new(PoolProvider { size, subpool: None }),
        }
    }
}

fn page_cache_refs(size: PageSize) -> u32 {
    size.frames() as u32
}

#[derive(Debug)]
struct BuddyProvider {
    largest: PageSize,
}

impl FolioProvider for BuddyProvider {
    fn reserve(&mut self, _host: &mut HostMemory, _nr_pages: u64) -> Result<(), ProviderError> {
        Ok(())
    }

    fn allocate(&mut self, host: &mut HostMemory, at_most: PageSize) -> Result<FreshFolio, ProviderError> {
        let most = self.largest.min(at_most);
        for &size in PageSize::ALL[..=most.index()].iter().rev() {
            match host.alloc_pages(size) {
                Ok(head) => {
                    host.begin_use(head, size, FolioKind::Gmem, page_cache_refs(size));
                    return Ok(FreshFolio { head, size });
                }
                Err(error) if size == PageSize::Size4K => return Err(error.into()),
                Err(_) => {}
            }
        }
        unreachable!("the loop ends at 4K")
    }

    fn free(&mut self, host: &mut HostMemory, head: Sfn) {
        let folio = host.end_use(head);
        host.free_pages(folio.head, folio.size);
    }

    fn unreserve(&mut self, _host: &mut HostMemory) {}
}

#[derive(Debug)]
struct PoolProvider {
    size: HugeSize,
    subpool: Option<Subpool>,
}

impl PoolProvider {
    fn exhausted(&self, asked: u64) -> ProviderError {
        PoolExhausted { size: self.size.page_size(), asked, available: 0 }.into()
    }
}

impl FolioProvider for PoolProvider {
    fn reserve(&mut self, host: &mut HostMemory, nr_pages: u64) -> Result<(), ProviderError> {
        let (pool, buddy) = host.pool_mut(self.size);
        let nr_folios = nr_pages.div_ceil(pool.page_size().frames());
        self.subpool = Some(Subpool::new(pool, buddy, nr_folios)?);
        Ok(())
    }

    fn allocate(&mut self, host: &mut HostMemory, at_most: PageSize) -> Result<FreshFolio, ProviderError> {
        let size = self.size.page_size();
        let refused = self.exhausted(1);
        let subpool = self.subpool.as_mut().filter(|_| at_most >= size).ok_or(refused)?;
        let head = subpool.get(host.pool_mut(self.size).0)?;
        host.begin_use(head, size, FolioKind::Gmem, page_cache_refs(size));
        Ok(FreshFolio { head, size })
    }

    fn free(&mut self, host: &mut HostMemory, head: Sfn) {
        let folio = host.end_use(head);
        if let Some(subpool) = &mut self.subpool {
            subpool.put(host.pool_mut(self.size).0, folio.head);
        }
    }

    fn unreserve(&mut self, host: &mut HostMemory) {
        if let Some(subpool) = self.subpool.take() {
            let (pool, buddy) = host.pool_mut(self.size);
            subpool.close(pool, buddy);
        }
    }
}
