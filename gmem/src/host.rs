//! The host kernel's memory: system frames and everything that says who uses them.
//!
//! [`HostMemory`] is the door. Blocks come from the page allocator or a pool, are entered in the folio table while in
//! use, and are discarded on the way back, so that every free frame reads as zero and costs the real host nothing.

use std::sync::Arc;

use emu_core::memory::{BusError, SystemMemory};
use emu_core::{PageSize, Sfn, Spa};
use thiserror::Error;

use crate::buddy::Buddy;
use crate::folio::{Folio, FolioFlags, FolioKind, FolioMeta, FolioTable};
use crate::pool::{HugePool, HugeSize, PoolStats};

/// The page allocator has no block of that size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no free block of {size}; {free_frames} frames are free")]
pub struct OutOfMemory {
    /// The size asked for.
    pub size: PageSize,
    /// Free 4 KiB frames, too scattered or too few.
    pub free_frames: u64,
}

/// Why the host's memory could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HostSetupError {
    /// The range is not backed by system memory.
    #[error("the host's range must be system memory: {0}")]
    NotMemory(#[from] BusError),
    /// A pool cannot be filled.
    #[error("the range holds only {got} of the {wanted} pages the {size} pool was to have")]
    PoolTooLarge {
        /// The pool.
        size: PageSize,
        /// Pages wanted.
        wanted: u64,
        /// Pages found.
        got: u64,
    },
}

/// What the host owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// First frame of its range, which lies in one bank of system memory.
    pub first: Sfn,
    /// Frames in the range.
    pub nr_frames: u64,
    /// Huge pages set aside at boot, as `hugepagesz=` and `hugepages=` do.
    pub pools: Vec<(HugeSize, u64)>,
}

/// Counters of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostStats {
    /// Frames in the page allocator's range.
    pub nr_frames: u64,
    /// Of these, free in the page allocator (pool pages are not).
    pub free_frames: u64,
    /// Blocks in use, page tables included, by [`PageSize::index`].
    pub folios: [u64; 3],
    /// The 2M and 1G pools, by position in [`HugeSize::ALL`].
    pub pools: [PoolStats; 2],
}

/// See the module.
pub struct HostMemory {
    memory: Arc<SystemMemory>,
    pub(crate) buddy: Buddy,
    pools: [HugePool; 2],
    pub(crate) folios: FolioTable,
}

impl HostMemory {
    /// Takes ownership of a range of `memory` whose bytes are all zero, and fills the pools, largest first.
    pub fn new(memory: Arc<SystemMemory>, config: &HostConfig) -> Result<HostMemory, HostSetupError> {
        let len_bytes = config.nr_frames.saturating_mul(PageSize::Size4K.bytes());
        let last = config.first.raw().saturating_add(config.nr_frames.saturating_sub(1));
        for frame in [config.first, Sfn::new(last)] {
            if memory.page(frame).is_none() {
                return Err(BusError { spa: config.first.base(), len_bytes: len_bytes as usize }.into());
            }
        }
        let mut host = HostMemory {
            memory,
            buddy: Buddy::new(config.first, config.nr_frames),
            pools: HugeSize::ALL.map(HugePool::new),
            folios: FolioTable::default(),
        };
        let mut pools = config.pools.clone();
        pools.sort_by_key(|&(size, _)| std::cmp::Reverse(size));
        for (size, wanted) in pools {
            let got = host.grow_pool(size, wanted);
            if got < wanted {
                return Err(HostSetupError::PoolTooLarge { size: size.page_size(), wanted, got });
            }
        }
        Ok(host)
    }

    /// The bytes.
    pub fn memory(&self) -> &Arc<SystemMemory> {
        &self.memory
    }

    /// The folios in use.
    pub fn folios(&self) -> &FolioTable {
        &self.folios
    }

    /// The pool of `size`.
    pub fn pool(&self, size: HugeSize) -> &HugePool {
        &self.pools[size as usize]
    }

    /// The pool of `size` and the allocator it draws on.
    pub fn pool_mut(&mut self, size: HugeSize) -> (&mut HugePool, &mut Buddy) {
        (&mut self.pools[size as usize], &mut self.buddy)
    }

    /// Adds persistent pages to a pool; the number added.
    pub fn grow_pool(&mut self, size: HugeSize, nr_pages: u64) -> u64 {
        let (pool, buddy) = self.pool_mut(size);
        pool.grow(buddy, nr_pages)
    }

    /// The counters.
    pub fn stats(&self) -> HostStats {
        HostStats {
            nr_frames: self.buddy.nr_frames(),
            free_frames: self.buddy.free_frames(),
            folios: PageSize::ALL.map(|size| self.folios.count(size)),
            pools: HugeSize::ALL.map(|size| self.pool(size).stats()),
        }
    }

    /// A zeroed 4 KiB frame for a page table.
    pub fn alloc_table(&mut self) -> Result<Spa, OutOfMemory> {
        let sfn = self.alloc_pages(PageSize::Size4K)?;
        self.begin_use(sfn, PageSize::Size4K, FolioKind::PageTable, 1);
        Ok(sfn.base())
    }

    /// Gives a page table's frame back.
    ///
    /// # Panics
    /// When it is not a page table in use.
    pub fn free_table(&mut self, table: Spa) {
        let sfn = table.frame();
        let meta = self.folios.meta_mut(sfn);
        assert_eq!(meta.kind, FolioKind::PageTable, "{sfn:?} is not a page table");
        // The table was written through system memory, not through a folio's owner.
        meta.flags.remove(FolioFlags::KNOWN_ZERO);
        meta.refs = 0;
        let folio = self.end_use(sfn);
        self.free_pages(folio.head, folio.size);
    }

    pub(crate) fn alloc_pages(&mut self, size: PageSize) -> Result<Sfn, OutOfMemory> {
        self.buddy.alloc(size.order()).ok_or(OutOfMemory { size, free_frames: self.buddy.free_frames() })
    }

    pub(crate) fn free_pages(&mut self, sfn: Sfn, size: PageSize) {
        self.buddy.free(sfn, size.order());
    }

    /// Enters a block that came zeroed from an allocator.
    pub(crate) fn begin_use(&mut self, head: Sfn, size: PageSize, kind: FolioKind, refs: u32) {
        self.folios.insert(head, size, FolioMeta { kind, flags: FolioFlags::KNOWN_ZERO, refs });
    }

    /// Takes a block with no references out of the table and makes it read as zero again.
    pub(crate) fn end_use(&mut self, head: Sfn) -> Folio {
        let folio = self.folios.remove(head);
        assert_eq!(folio.meta.refs, 0, "{head:?} still has users");
        if !folio.meta.flags.contains(FolioFlags::KNOWN_ZERO) {
            self.clear(folio.head, folio.size.frames());
        }
        folio
    }

    /// Makes whole frames read as zero, at no cost in host memory.
    pub(crate) fn clear(&self, first: Sfn, nr_frames: u64) {
        let done = self.memory.discard(first.base(), nr_frames * PageSize::Size4K.bytes());
        assert!(done.is_ok(), "the host's range is system memory: {done:?}");
    }
}
