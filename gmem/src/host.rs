//! The host kernel's memory: system frames and everything that says who uses them.
//!
//! [`HostMemory`] is the door. Blocks come from the page allocator, a pool or a contiguous area, are entered in the folio
//! table while in use, and are discarded on the way back, so that every free frame reads as zero and costs the real host
//! nothing. [`HostConfig`] describes a host with one node and pools; [`HostLayout`] also nodes, contiguous areas and what
//! becomes of the vmemmap.
//!
//! Always true: the frames of the layout are those free in the page allocator, held by the vmemmap, in the pools, in the
//! contiguous areas, in the folio table, waiting in split units, occupied by the rest of the host, or retired.

mod put;
mod shared;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use emu_core::event::{Event, Ino};
use emu_core::memory::{BusError, SystemMemory};
use emu_core::sync::Task;
use emu_core::{PageSize, Sfn, Spa};
use thiserror::Error;

use crate::cma::{CmaArea, CmaStats, Hold, Loan};
use crate::directmap::{DirectMap, DirectMapPolicy, Effect};
use crate::folio::{Folio, FolioFlags, FolioKind, FolioMeta, FolioTable, RefError, Source};
use crate::numa::{MemPolicy, NodeId};
use crate::owner::FrameOwner;
use crate::pool::{Demotion, HugePool, HugeSize, PoolStats, SubpoolId, TakeError};
use crate::provider::unit::UnitTable;
use crate::vmemmap::{SystemFrames, VmemmapMode, VmemmapStats};

pub use shared::Host;
pub(crate) use shared::Stocked;

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
    /// The layout has no node, or too many.
    #[error("a host has 1 to 64 nodes, not {nodes}")]
    Nodes {
        /// Nodes of the layout.
        nodes: usize,
    },
    /// Two ranges of nodes and areas have frames in common.
    #[error("two ranges of the host overlap at {at:?}")]
    Overlap {
        /// The first frame of the later range.
        at: Sfn,
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

/// Frames that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRange {
    /// The first.
    pub first: Sfn,
    /// How many.
    pub nr_frames: u64,
}

/// What a larger host owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLayout {
    /// The memory of each NUMA node, by node.
    pub nodes: Vec<FrameRange>,
    /// Contiguous-memory areas (`numa_cma=`) with the node they belong to, outside the page allocator's ranges.
    pub cma: Vec<(NodeId, FrameRange)>,
    /// Huge pages set aside at boot, spread over the nodes.
    pub pools: Vec<(HugeSize, u64)>,
    /// Whether the pools' pages give most of their vmemmap back.
    pub vmemmap: VmemmapMode,
}

impl From<&HostConfig> for HostLayout {
    fn from(config: &HostConfig) -> HostLayout {
        HostLayout {
            nodes: vec![FrameRange { first: config.first, nr_frames: config.nr_frames }],
            cma: Vec::new(),
            pools: config.pools.clone(),
            vmemmap: VmemmapMode::Off,
        }
    }
}

/// Counters of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HostStats {
    /// Frames in the page allocator's ranges.
    pub nr_frames: u64,
    /// Of these, free in the page allocator (pool pages are not).
    pub free_frames: u64,
    /// Blocks in use, page tables included, by [`PageSize::index`].
    pub folios: [u64; 3],
    /// The 2M and 1G pools, by position in [`HugeSize::ALL`].
    pub pools: [PoolStats; 2],
    /// The `struct page` array.
    pub vmemmap: VmemmapStats,
    /// All contiguous areas together.
    pub cma: CmaStats,
    /// Frames that the rest of the host uses.
    pub occupied_frames: u64,
    /// Units that are split.
    pub split_units: u64,
    /// Frames of split units that are back and wait for the rest.
    pub waiting_frames: u64,
    /// Frames lost to memory failures (`HardwareCorrupted`), as far as they are out of use, and leaked ones.
    pub retired_frames: u64,
    /// Frames that could not be taken back from their guest and are given up (`snp_nr_leaked_pages`).
    pub leaked_frames: u64,
    /// The host's own map of its memory; zero when it is not modelled.
    pub direct_map: DirectMapStats,
}

/// Counters of the direct map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DirectMapStats {
    /// Entries by [`PageSize::index`].
    pub entries: [u64; 3],
    /// Page-table pages below the level of 1G entries.
    pub table_pages: u64,
    /// All that was done to it.
    pub done: Effect,
    /// Bytes given away for the sake of fewer shared ones.
    pub wasted_bytes: u64,
}

/// See the module.
pub struct HostMemory {
    memory: Arc<SystemMemory>,
    pub(crate) frames: SystemFrames,
    pools: [HugePool; 2],
    pub(crate) cma: Vec<CmaArea>,
    /// Loans called back that their borrower does not know of yet.
    pub(crate) recalled: Vec<Loan>,
    pub(crate) folios: FolioTable,
    pub(crate) units: UnitTable,
    pub(crate) direct_map: Option<Box<DirectMap>>,
    /// Whether there is one, for who would lock the memory only to ask.
    pub(crate) models_direct_map: Arc<AtomicBool>,
    /// Frames that must not be used again: their memory failed, or they are leaked.
    pub(crate) poisoned: BTreeSet<u64>,
    pub(crate) retired: u64,
    pub(crate) owner: Option<Arc<dyn FrameOwner>>,
    /// Those that their owner kept.
    pub(crate) leaked: BTreeSet<u64>,
    /// What [`HostMemory::occupy`] took, as `(first, frames)`.
    occupied: Vec<(Sfn, u64)>,
    /// Inodes created so far.
    inodes: u64,
}

impl HostMemory {
    /// Takes ownership of a range of `memory` whose bytes are all zero, and fills the pools, largest first.
    pub fn new(memory: Arc<SystemMemory>, config: &HostConfig) -> Result<HostMemory, HostSetupError> {
        HostMemory::with_layout(memory, &HostLayout::from(config))
    }

    /// As [`HostMemory::new`], over several ranges.
    pub fn with_layout(memory: Arc<SystemMemory>, layout: &HostLayout) -> Result<HostMemory, HostSetupError> {
        let nr_nodes = layout.nodes.len();
        if !(1..=crate::numa::MAX_NODES).contains(&nr_nodes) {
            return Err(HostSetupError::Nodes { nodes: nr_nodes });
        }
        let mut ranges: Vec<FrameRange> =
            layout.nodes.iter().chain(layout.cma.iter().map(|(_, range)| range)).copied().collect();
        for &FrameRange { first, nr_frames } in &ranges {
            let len_bytes = nr_frames.saturating_mul(PageSize::Size4K.bytes());
            let last = first.raw().saturating_add(nr_frames.saturating_sub(1));
            for frame in [first, Sfn::new(last)] {
                if memory.page(frame).is_none() {
                    return Err(BusError { spa: first.base(), len_bytes: len_bytes as usize }.into());
                }
            }
        }
        ranges.sort_by_key(|range| range.first);
        if let Some(pair) = ranges.windows(2).find(|pair| pair[0].first.raw() + pair[0].nr_frames > pair[1].first.raw())
        {
            return Err(HostSetupError::Overlap { at: pair[1].first });
        }
        let nodes: Vec<(Sfn, u64)> = layout.nodes.iter().map(|range| (range.first, range.nr_frames)).collect();
        let mut host = HostMemory {
            memory,
            frames: SystemFrames::new(&nodes, layout.vmemmap),
            pools: HugeSize::ALL.map(|size| HugePool::new(size, nr_nodes)),
            cma: layout.cma.iter().map(|&(node, range)| CmaArea::new(node, range.first, range.nr_frames)).collect(),
            recalled: Vec::new(),
            direct_map: None,
            models_direct_map: Arc::default(),
            folios: FolioTable::default(),
            units: UnitTable::default(),
            poisoned: BTreeSet::new(),
            retired: 0,
            owner: None,
            leaked: BTreeSet::new(),
            occupied: Vec::new(),
            inodes: 0,
        };
        for (size, wanted, got) in host.resize_pools(&layout.pools) {
            if got < wanted {
                return Err(HostSetupError::PoolTooLarge { size: size.page_size(), wanted, got });
            }
        }
        Ok(host)
    }

    /// A number for a new inode (`get_next_ino`).
    pub(crate) fn next_ino(&mut self) -> Ino {
        self.inodes += 1;
        Ino(self.inodes)
    }

    /// Reports the counters of the pool of `size`, if there is one and anybody wants to know.
    pub(crate) fn report_pool(&self, size: PageSize, task: &Task<'_>) {
        self.report_pool_with(size, 0, task);
    }

    /// The same when `in_stock` pages are as good as free and promised.
    fn report_pool_with(&self, size: PageSize, in_stock: u64, task: &Task<'_>) {
        if let Some(size) = HugeSize::of(size).filter(|_| task.is_reporting()) {
            let PoolStats { nr, free, resv, surplus, .. } = self.pools[size as usize].stats();
            let (free, resv) = (free + in_stock, resv + in_stock);
            task.report(Event::PoolChanged { size: size.page_size(), nr, free, resv, surplus });
        }
    }

    /// Models the host's direct map from now on, as it is after boot. Inodes whose policy says so act on it.
    pub fn model_direct_map(&mut self, policy: DirectMapPolicy) {
        let nodes = (0..=u8::MAX).map_while(|node| self.frames.pages.node(NodeId::new(node)?));
        let ends = nodes.map(|node| (node.first().raw(), node.first().raw() + node.nr_frames()));
        let (first, end) = ends.fold((u64::MAX, 0), |all, node| (all.0.min(node.0), all.1.max(node.1)));
        let map = DirectMap::new(Sfn::new(first), end.saturating_sub(first), policy);
        self.direct_map = Some(Box::new(map));
        self.models_direct_map.store(true, Ordering::Release);
    }

    /// The host's direct map, if it is modelled.
    pub fn direct_map(&self) -> Option<&DirectMap> {
        self.direct_map.as_deref()
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

    /// The pool of `size` and what it draws on.
    pub fn pool_mut(&mut self, size: HugeSize) -> (&mut HugePool, &mut SystemFrames) {
        (&mut self.pools[size as usize], &mut self.frames)
    }

    /// A page of a subpool for page `index` of an inode, in use: known to be zero, or up to date for who has it already.
    pub(crate) fn take_pool_folio(
        &mut self,
        huge: HugeSize,
        subpool: SubpoolId,
        policy: MemPolicy,
        index: u64,
        state: FolioFlags,
    ) -> Result<Sfn, TakeError> {
        let size = huge.page_size();
        let (pool, frames) = self.pool_mut(huge);
        let head = pool.take(frames, subpool, policy.order(index / size.frames(), frames.online()))?;
        let optimised = match frames.vmemmap.mode() {
            VmemmapMode::Off => FolioFlags::empty(),
            VmemmapMode::Optimise => FolioFlags::VMEMMAP_OPTIMISED,
        };
        let source = Source::Pool { size: huge, subpool };
        let flags = FolioFlags::HUGETLB | optimised | state;
        let meta = FolioMeta { kind: FolioKind::Gmem, flags, refs: size.frames() as u32, maps: 0 };
        self.folios.insert(head, size, meta, source);
        Ok(head)
    }

    /// Adds persistent pages to a pool; the number added.
    pub fn grow_pool(&mut self, size: HugeSize, nr_pages: u64) -> u64 {
        let (pool, frames) = self.pool_mut(size);
        pool.grow(frames, nr_pages)
    }

    /// Sets the sizes of pools, the larger pages first, because they need the larger blocks; what each was to have and
    /// has.
    pub fn resize_pools(&mut self, sizes: &[(HugeSize, u64)]) -> Vec<(HugeSize, u64, u64)> {
        let mut sizes = sizes.to_vec();
        sizes.sort_by_key(|&(size, _)| std::cmp::Reverse(size));
        let set = sizes.into_iter().map(|(size, wanted)| {
            let (pool, frames) = self.pool_mut(size);
            (size, wanted, pool.set_max(frames, wanted))
        });
        set.collect()
    }

    /// Takes up to `nr_pages` free 1G pages apart into pages of the 2M pool.
    pub fn demote(&mut self, nr_pages: u64) -> Demotion {
        let [huge, giant] = &mut self.pools;
        giant.demote(&mut self.frames, huge, nr_pages)
    }

    /// The free frames and their descriptions.
    pub fn frames(&self) -> &SystemFrames {
        &self.frames
    }

    /// The contiguous areas.
    pub fn cma(&self) -> &[CmaArea] {
        &self.cma
    }

    /// Lends a block of the first contiguous area that has one to spare.
    pub fn lend(&mut self, order: emu_core::Order) -> Option<Loan> {
        self.cma.iter_mut().find_map(|area| area.lend(order))
    }

    /// Says whether a loan can be called back; whether it is still lent.
    pub fn hold_loan(&mut self, loan: Loan, hold: Hold) -> bool {
        self.cma.iter_mut().any(|area| area.hold(loan, hold))
    }

    /// Takes a loan back from its borrower, and what is in it away; whether it was still lent.
    pub fn take_loan_back(&mut self, loan: Loan) -> bool {
        let back = self.cma.iter_mut().any(|area| area.take_back(loan));
        if back {
            self.clear(loan.first, loan.order.frames());
        }
        back
    }

    /// Loans that reservations called back since this was last asked.
    pub fn take_recalled(&mut self) -> Vec<Loan> {
        std::mem::take(&mut self.recalled)
    }

    /// The rest of the host, which is not modelled, comes to use `nr_frames` frames of the page allocator, or all that
    /// are free: so memory can be made short on purpose. How many it got.
    pub fn occupy(&mut self, nr_frames: u64) -> u64 {
        let nodes = MemPolicy::Any.order(0, self.frames.online());
        let got = nr_frames.min(self.frames.pages.free_frames());
        let occupied = &mut self.occupied;
        self.frames.pages.alloc_frames(got, nodes, |first, nr| occupied.push((first, nr)));
        got
    }

    /// The rest of the host lets go of up to `nr_frames` frames; how many.
    pub fn vacate(&mut self, nr_frames: u64) -> u64 {
        let mut left = nr_frames;
        while left > 0
            && let Some((first, nr)) = self.occupied.last_mut()
        {
            let given = left.min(*nr);
            *nr -= given;
            self.frames.pages.free_frames_from(Sfn::new(first.raw() + *nr), given);
            left -= given;
            if *nr == 0 {
                self.occupied.pop();
            }
        }
        nr_frames - left
    }

    /// The units that are split.
    pub fn units(&self) -> &UnitTable {
        &self.units
    }

    /// The counters.
    pub fn stats(&self) -> HostStats {
        let mut cma = CmaStats::default();
        for area in self.cma.iter().map(CmaArea::stats) {
            cma.nr_frames += area.nr_frames;
            cma.free += area.free;
            cma.lent += area.lent;
            cma.claimed += area.claimed;
            cma.out += area.out;
        }
        HostStats {
            nr_frames: self.frames.pages.nr_frames(),
            free_frames: self.frames.pages.free_frames(),
            folios: PageSize::ALL.map(|size| self.folios.count(size)),
            pools: HugeSize::ALL.map(|size| self.pool(size).stats()),
            vmemmap: self.frames.vmemmap.stats(),
            cma,
            occupied_frames: self.occupied.iter().map(|run| run.1).sum(),
            split_units: self.units.len() as u64,
            waiting_frames: self.units.waiting_frames(),
            retired_frames: self.retired,
            leaked_frames: self.leaked.len() as u64,
            direct_map: self.direct_map.as_ref().map_or_else(DirectMapStats::default, |map| DirectMapStats {
                entries: map.entries(),
                table_pages: map.table_pages(),
                done: map.totals(),
                wasted_bytes: map.wasted_bytes(),
            }),
        }
    }

    /// A zeroed 4 KiB frame for a page table.
    pub fn alloc_table(&mut self) -> Result<Spa, OutOfMemory> {
        Ok(self.alloc_folio(PageSize::Size4K, FolioKind::PageTable)?.base())
    }

    /// A zeroed block of the page allocator's that is not an inode's, with the one reference of whoever asked.
    pub(crate) fn alloc_folio(&mut self, size: PageSize, kind: FolioKind) -> Result<Sfn, OutOfMemory> {
        let nodes = MemPolicy::Any.order(0, self.frames.online());
        let out_of_memory = OutOfMemory { size, free_frames: self.frames.pages.free_frames() };
        let sfn = self.frames.pages.alloc(size.order(), nodes).ok_or(out_of_memory)?;
        self.begin_use(sfn, size, kind, FolioFlags::empty(), Source::Pages);
        if kind == FolioKind::Anonymous {
            // Its user writes at once, and never tells.
            self.folios.meta_mut(sfn).flags.remove(FolioFlags::KNOWN_ZERO);
        }
        Ok(sfn)
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
        self.free_folio(sfn);
    }

    /// Takes a reference on the folio around `sfn` (`get_page`).
    pub fn get_page(&mut self, sfn: Sfn) -> Result<(), RefError> {
        self.folios.try_get(sfn, 1)
    }

    /// Drops `nr` references; the last one frees the folio (`folio_put_refs`).
    ///
    /// # Panics
    /// When there are fewer.
    pub fn put_page(&mut self, sfn: Sfn, nr: u32) {
        let left = self.folios.put(sfn, nr);
        self.free_without_refs(sfn, left);
    }

    /// A device may access the folio around `sfn` until [`HostMemory::unpin_page`].
    pub fn pin_page(&mut self, sfn: Sfn) -> Result<(), RefError> {
        self.folios.pin(sfn)
    }

    /// Takes a pin back.
    ///
    /// # Panics
    /// When there is none.
    pub fn unpin_page(&mut self, sfn: Sfn) {
        let left = self.folios.unpin(sfn);
        self.free_without_refs(sfn, left);
    }

    /// A user PTE comes to point at `sfn`.
    pub fn map_page(&mut self, sfn: Sfn) -> Result<(), RefError> {
        self.folios.map(sfn)
    }

    /// A user PTE that pointed at `sfn` is gone.
    ///
    /// # Panics
    /// When there was none.
    pub fn unmap_page(&mut self, sfn: Sfn) {
        let left = self.folios.unmap(sfn);
        self.free_without_refs(sfn, left);
    }

    fn free_without_refs(&mut self, sfn: Sfn, left: u32) {
        if left == 0
            && let Some(folio) = self.folios.get(sfn)
        {
            self.free_folio(folio.head);
        }
    }

    /// Enters a block that came zeroed from its source, with the references its user starts with.
    pub(crate) fn begin_use(&mut self, head: Sfn, size: PageSize, kind: FolioKind, flags: FolioFlags, source: Source) {
        let refs = match kind {
            FolioKind::Gmem => size.frames() as u32,
            FolioKind::PageTable | FolioKind::Anonymous | FolioKind::Device => 1,
        };
        let meta = FolioMeta { kind, flags: flags | FolioFlags::KNOWN_ZERO, refs, maps: 0 };
        self.folios.insert(head, size, meta, source);
    }

    /// Takes a block with no references out of the table and makes it read as zero again.
    pub(crate) fn end_use(&mut self, head: Sfn) -> Folio {
        let folio = self.take_out(head);
        if !folio.meta.flags.contains(FolioFlags::KNOWN_ZERO) {
            self.clear(folio.head, folio.size.frames());
        }
        folio
    }

    /// The same, but the bytes are left.
    fn take_out(&mut self, head: Sfn) -> Folio {
        let folio = self.folios.remove(head);
        assert_eq!(folio.meta.refs, 0, "{head:?} still has users");
        if let Some(map) = &mut self.direct_map {
            map.release(folio.head, folio.size.frames());
        }
        folio
    }

    /// Makes whole frames read as zero, at no cost in host memory.
    pub(crate) fn clear(&self, first: Sfn, nr_frames: u64) {
        if !self.leaked.is_empty() {
            return self.clear_around_leaked(first.raw(), first.raw() + nr_frames);
        }
        self.clear_all(first, nr_frames);
    }

    /// What its guest kept is not the host's to write.
    #[cold]
    fn clear_around_leaked(&self, mut at: u64, end: u64) {
        for &leaked in self.leaked.range(at..end) {
            self.clear_all(Sfn::new(at), leaked - at);
            at = leaked + 1;
        }
        self.clear_all(Sfn::new(at), end - at);
    }

    fn clear_all(&self, first: Sfn, nr_frames: u64) {
        let done = self.memory.discard(first.base(), nr_frames * PageSize::Size4K.bytes());
        assert!(done.is_ok(), "the host's range is system memory: {done:?}");
    }
}
