//! Where an inode's folios come from: one interface over the page allocator, the huge-page pools and contiguous areas.
//!
//! [`FolioProvider`] is the interface, with the seven operations proposed for guest_memfd's allocators; one object is one
//! inode's reservation. [`FolioPolicy`] chooses. Contract:
//! - [`reserve`](FolioProvider::reserve) is all or nothing. After it, a reserving provider can give exactly that many
//!   folios; only a node policy may still refuse one.
//! - What [`allocate`](FolioProvider::allocate) gives is naturally aligned, entered in the folio table with the page
//!   cache's references, reads as zero, and is not up to date.
//! - [`split`](FolioProvider::split) and [`reconstruct`](FolioProvider::reconstruct) change the folio table's shape, never
//!   frames or bytes; when they fail nothing has changed. The caller has taken away what maps the range.
//! - What was allocated as one is a *unit*, and goes back to its source as one, once all of it is back: see [`mod@unit`].
//!   Pieces may outlive the inode and [`unreserve`](FolioProvider::unreserve), because the record of a unit is the host's.
//! - [`error`](FolioProvider::error) takes 4 KiB away and nothing else; that piece never returns to any source.
//!
//! Left out: cgroup charges; a policy for each range of an inode (the caller passes one with each allocation).

mod contiguous;
mod hugetlb;
mod pages;
pub mod poison;
#[cfg(test)]
mod tests;
pub mod unit;

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::cma::CmaError;
use crate::host::{HostMemory, OutOfMemory, Stocked};
use crate::numa::{MemPolicy, NodeId};
use crate::pool::{HugeSize, PoolExhausted, TakeError};

pub use poison::{PoisonError, Poisoned};
pub use unit::{ReconstructError, Reconstructed, ReuseError, Split, SplitError};

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
    /// A contiguous-memory area, all of the inode claimed at creation, every folio of one size.
    Cma {
        /// The size.
        size: HugeSize,
    },
}

impl FolioPolicy {
    /// The size of folio to expect.
    pub const fn folio_size(self) -> PageSize {
        match self {
            FolioPolicy::Buddy { largest } => largest,
            FolioPolicy::Pool { size } | FolioPolicy::Cma { size } => size.page_size(),
        }
    }
}

/// No folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProviderError {
    /// From the page allocator.
    #[error(transparent)]
    Buddy(#[from] OutOfMemory),
    /// A pool cannot promise.
    #[error(transparent)]
    Pool(#[from] PoolExhausted),
    /// A pool's promise does not give a page.
    #[error(transparent)]
    Take(#[from] TakeError),
    /// From a contiguous area.
    #[error(transparent)]
    Cma(#[from] CmaError),
    /// The contiguous area that was claimed lies on a node that the policy does not allow.
    #[error("the claimed contiguous area lies on {node}, which the policy does not allow")]
    Node {
        /// The area's node.
        node: NodeId,
    },
    /// The host has no contiguous area, or nothing was reserved.
    #[error("nothing is reserved for folios of {size}")]
    NotReserved {
        /// The size of the provider's folios.
        size: PageSize,
    },
    /// Only folios of one size are given, and the place is smaller: the end of an inode, or beside another folio.
    #[error("a folio of at most {at_most} is wanted, every one of the reservation has {size}")]
    TooLarge {
        /// The size of the provider's folios.
        size: PageSize,
        /// The most that fits.
        at_most: PageSize,
    },
}

/// A folio fresh from its provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshFolio {
    /// First frame.
    pub head: Sfn,
    /// Size.
    pub size: PageSize,
}

/// What an allocation asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// The largest folio that fits.
    pub at_most: PageSize,
    /// Page of the inode it is for, by which interleaving chooses its node.
    pub index: u64,
    /// The nodes it may come from.
    pub policy: MemPolicy,
}

impl Want {
    /// A folio of at most `at_most` for page `index`, from wherever the task's policy says.
    pub const fn anywhere(at_most: PageSize, index: u64) -> Want {
        Want { at_most, index, policy: MemPolicy::Any }
    }
}

/// See the module.
pub trait FolioProvider: Send + core::fmt::Debug {
    /// Promises folios for `nr_pages` 4K pages, all or nothing. Called once, before anything else.
    fn reserve(&mut self, host: &mut HostMemory, nr_pages: u64) -> Result<(), ProviderError>;

    /// A folio, of the largest size that is wanted and can be had.
    fn allocate(&mut self, host: &mut HostMemory, want: Want) -> Result<FreshFolio, ProviderError>;

    /// The stock of a lane from which folios as [`allocate`](FolioProvider::allocate) gives them may come instead, where the
    /// whole of one fits and no policy chooses nodes. Asked once, after the reservation.
    #[expect(private_interfaces, reason = "the stocks are the host's own")]
    fn stock(&self) -> Option<Stocked> {
        None
    }

    /// Makes the folio at `head` folios of `target`.
    fn split(&mut self, host: &mut HostMemory, head: Sfn, target: PageSize) -> Result<Split, SplitError> {
        host.split_folio(head, target)
    }

    /// Makes the pieces of one unit from `head` on a folio of `size` again.
    fn reconstruct(
        &mut self,
        host: &mut HostMemory,
        head: Sfn,
        size: PageSize,
    ) -> Result<Reconstructed, ReconstructError> {
        host.reconstruct_folio(head, size)
    }

    /// Takes back a folio without references, or a piece of one.
    fn free(&mut self, host: &mut HostMemory, head: Sfn) {
        host.free_folio(head);
    }

    /// The 4 KiB at `sfn` failed.
    fn error(&mut self, host: &mut HostMemory, sfn: Sfn) -> Result<Poisoned, PoisonError> {
        host.poison(sfn)
    }

    /// Ends the promise. Called once; what is out returns later, by references that others hold.
    fn unreserve(&mut self, host: &mut HostMemory);
}

impl FolioPolicy {
    /// A provider with nothing reserved.
    pub fn provider(self) -> Box<dyn FolioProvider> {
        match self {
            FolioPolicy::Buddy { largest } => Box::new(pages::PageProvider { largest }),
            FolioPolicy::Pool { size } => Box::new(hugetlb::HugetlbProvider { size, subpool: None }),
            FolioPolicy::Cma { size } => Box::new(contiguous::CmaProvider { size, claim: None }),
        }
    }
}
