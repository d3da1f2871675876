//! The host's memory as tasks share it, with a stock of fresh folios for each lane of tasks (Linux's per-CPU page lists,
//! `mm/page_alloc.c`).
//!
//! [`Host`] is the door: one lock, where Linux has the zones', `hugetlb_lock` and the CMA areas'. Populating a page takes
//! it once for many pages: a lane draws a batch and serves its faults from that. What is in stock is entered in the folio
//! table as its user will have it, so that serving it touches nothing that lanes share.
//!
//! Always true: stocks are filled and emptied with the lock held, and who takes the lock by [`Host::lock`] finds them all
//! empty, their folios back where they were drawn from. So the books are exact for whoever can look at them, a stock
//! never keeps anybody from memory that there is, and what is drawn twice is drawn in the same order. A batch starts at
//! one folio and doubles as long as nobody empties the stocks.
//!
//! Left out: stocks of 1G folios, of contiguous areas, and under NUMA policies.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use emu_core::sync::{Mutex, MutexGuard, Sharded, Task};
use emu_core::{PageSize, Sfn, Spa};

use super::{HostMemory, OutOfMemory};
use crate::folio::{FolioFlags, FolioKind, FolioMeta, Source};
use crate::numa::MemPolicy;
use crate::pool::{HugeSize, SubpoolId};

/// Whose folios a stock holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stocked {
    /// Anybody's: folios of this size of the page allocator, 4K or 2M.
    Pages(PageSize),
    /// A subpool's, of the 2M pool.
    Pool(SubpoolId),
}

impl Stocked {
    /// Size of the folios.
    pub(crate) const fn size(self) -> PageSize {
        match self {
            Stocked::Pages(size) => size,
            Stocked::Pool(_) => PageSize::Size2M,
        }
    }

    /// The most that is drawn at once.
    const fn most(self) -> u64 {
        match self.size() {
            PageSize::Size4K => 64,
            PageSize::Size2M => 32,
            PageSize::Size1G => 0,
        }
    }
}

/// Fresh folios of one kind.
#[derive(Debug)]
struct Stock {
    kind: Option<Stocked>,
    /// The next to be served last.
    heads: Vec<Sfn>,
    /// What was drawn last time; zero when it was emptied since.
    drawn: u64,
}

impl Stock {
    const EMPTY: Stock = Stock { kind: None, heads: Vec::new(), drawn: 0 };
}

/// The stocks of a lane, by [`PageSize::index`].
#[derive(Debug)]
struct Lane {
    stocks: [Stock; 2],
}

impl Default for Lane {
    fn default() -> Lane {
        Lane { stocks: [Stock::EMPTY; 2] }
    }
}

/// See the module. A leaf among locks: nothing else is taken while it is held.
pub struct Host {
    memory: CachePadded<Mutex<HostMemory>>,
    lanes: Sharded<Mutex<Lane>>,
    /// Whether any stock may have something; written with `memory` held.
    stocked: CachePadded<AtomicBool>,
    /// Whether the memory has a [`crate::FrameOwner`], for who would lock it only to ask.
    has_frame_owner: bool,
    /// Whether the memory has a direct map.
    models_direct_map: Arc<AtomicBool>,
}

impl Host {
    /// `memory` for many tasks.
    pub fn new(memory: HostMemory) -> Host {
        Host {
            has_frame_owner: memory.owner.is_some(),
            models_direct_map: Arc::clone(&memory.models_direct_map),
            memory: CachePadded::new(Mutex::new(memory)),
            lanes: Sharded::default(),
            stocked: CachePadded::default(),
        }
    }

    /// Whether hardware keeps books of who owns the frames.
    pub const fn has_frame_owner(&self) -> bool {
        self.has_frame_owner
    }

    pub(crate) fn models_direct_map(&self) -> bool {
        self.models_direct_map.load(Ordering::Acquire)
    }

    /// Waits for the lock and takes it; all stocks are empty as long as it is held.
    pub fn lock<'a>(&'a self, task: &Task<'a>) -> MutexGuard<'a, HostMemory> {
        let mut memory = self.memory.lock(task);
        self.empty(&mut memory, task);
        memory
    }

    /// The same if nobody has the lock: for checks between the steps of a schedule.
    pub fn try_lock<'a>(&'a self, task: &Task<'a>) -> Option<MutexGuard<'a, HostMemory>> {
        let mut memory = self.memory.try_lock(task)?;
        self.empty(&mut memory, task);
        Some(memory)
    }

    /// The memory, without locking.
    pub fn into_inner(self) -> HostMemory {
        drop(self.lock(&Task::QUIET));
        CachePadded::into_inner(self.memory).into_inner()
    }

    #[inline]
    fn empty(&self, memory: &mut HostMemory, task: &Task<'_>) {
        if self.stocked.load(Ordering::Relaxed) {
            self.empty_stocks(memory, task);
        }
    }

    #[cold]
    fn empty_stocks(&self, memory: &mut HostMemory, task: &Task<'_>) {
        for lane in self.lanes.iter() {
            for stock in &mut lane.lock(task).stocks {
                if let Some(kind) = stock.kind {
                    stock.heads.drain(..).for_each(|head| memory.put_back(kind, head));
                }
                (stock.kind, stock.drawn) = (None, 0);
            }
        }
        self.stocked.store(false, Ordering::Relaxed);
    }

    /// A fresh folio, as its user will have it: with the page cache's references, up to date, and written by nobody.
    /// `None` when the lane cannot have it that way; then there may still be one.
    pub(crate) fn take_fresh(&self, kind: Stocked, task: &Task<'_>) -> Option<Sfn> {
        let lane = self.lanes.lane(task.lane());
        let at = kind.size().index();
        {
            let stock = &mut lane.lock(task).stocks[at];
            if stock.kind == Some(kind)
                && let Some(head) = stock.heads.pop()
            {
                return Some(head);
            }
            if !stock.heads.is_empty() {
                return None;
            }
        }
        let mut memory = self.memory.lock(task);
        let stock = &mut lane.lock(task).stocks[at];
        if !stock.heads.is_empty() {
            // Another task of the lane was faster; what it drew may not be ours.
            return stock.heads.pop_if(|_| stock.kind == Some(kind));
        }
        if stock.kind != Some(kind) {
            (stock.kind, stock.drawn) = (Some(kind), 0);
        }
        stock.drawn = (2 * stock.drawn).clamp(1, kind.most());
        memory.draw(kind, stock.drawn, &mut stock.heads);
        stock.heads.reverse();
        let head = stock.heads.pop();
        if !stock.heads.is_empty() {
            self.stocked.store(true, Ordering::Relaxed);
        }
        head
    }

    /// Takes back what [`Host::take_fresh`] gave and nobody had.
    #[cold]
    pub(crate) fn put_fresh(&self, kind: Stocked, head: Sfn, task: &Task<'_>) {
        self.memory.lock(task).put_back(kind, head);
    }

    /// Adds zeroed frames for page tables to `tables` until it has `enough`.
    pub fn alloc_tables(&self, tables: &mut Vec<Spa>, enough: usize, task: &Task<'_>) -> Result<(), OutOfMemory> {
        if tables.len() >= enough {
            return Ok(());
        }
        let mut memory = self.memory.lock(task);
        while tables.len() < enough {
            match memory.alloc_table() {
                Ok(table) => tables.push(table),
                Err(_) if self.stocked.load(Ordering::Relaxed) => self.empty_stocks(&mut memory, task),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reports the counters of the pool of `size`, if there is one and anybody wants to know.
    pub(crate) fn report_pool(&self, size: PageSize, task: &Task<'_>) {
        if HugeSize::of(size).is_none() || !task.is_reporting() {
            return;
        }
        let memory = self.memory.lock(task);
        let in_stock = |lane: &Mutex<Lane>| -> u64 {
            let lane = lane.lock(task);
            let pooled = lane.stocks.iter().filter(|stock| matches!(stock.kind, Some(Stocked::Pool(_))));
            pooled.filter(|_| size == PageSize::Size2M).map(|stock| stock.heads.len() as u64).sum()
        };
        memory.report_pool_with(size, self.lanes.iter().map(in_stock).sum(), task);
    }
}

/// The entry of a 4K page of an inode that somebody has: see [`HostMemory::hand_out`].
const HANDED_OUT: FolioMeta = FolioMeta { kind: FolioKind::Gmem, flags: FolioFlags::UPTODATE, refs: 1, maps: 0 };

impl HostMemory {
    /// Draws up to `nr` folios and enters them as their user will have them; ascending.
    fn draw(&mut self, kind: Stocked, nr: u64, heads: &mut Vec<Sfn>) {
        match kind {
            Stocked::Pages(size) => {
                let nodes = MemPolicy::Any.order(0, self.frames.online());
                if size == PageSize::Size4K {
                    let nr = nr.min(self.frames.pages.free_frames());
                    let folios = &mut self.folios;
                    self.frames.pages.alloc_frames(nr, nodes, |first, nr| {
                        heads.extend((first.raw()..first.raw() + nr).map(Sfn::new));
                        folios.insert_pages(first, nr, HANDED_OUT);
                    });
                } else {
                    heads.extend((0..nr).map_while(|_| self.frames.pages.alloc(size.order(), nodes)));
                    for &head in &*heads {
                        let refs = size.frames() as u32;
                        self.folios.insert(head, size, FolioMeta { refs, ..HANDED_OUT }, Source::Pages);
                    }
                }
            }
            Stocked::Pool(subpool) => {
                while (heads.len() as u64) < nr {
                    // What leans on no promise might need a surplus page, which could not be put back in its place.
                    let (pool, _) = self.pool_mut(HugeSize::Size2M);
                    if pool.subpool(subpool).is_none_or(|subpool| subpool.rsv() == 0) {
                        break;
                    }
                    let (huge, state) = (HugeSize::Size2M, FolioFlags::UPTODATE);
                    let Ok(head) = self.take_pool_folio(huge, subpool, MemPolicy::Any, 0, state) else { break };
                    heads.push(head);
                }
            }
        }
    }

    /// What a folio is like from the moment somebody has it.
    pub(crate) fn hand_out(&mut self, head: Sfn) {
        let flags = &mut self.folios.meta_mut(head).flags;
        flags.remove(FolioFlags::KNOWN_ZERO);
        flags.insert(FolioFlags::UPTODATE);
    }

    /// Undoes the drawing of one folio that nobody had.
    fn put_back(&mut self, kind: Stocked, head: Sfn) {
        let folio = self.folios.remove(head);
        debug_assert!(folio.is_cache_only(), "nobody had it: {folio:?}");
        match kind {
            Stocked::Pages(size) => self.frames.pages.free(head, size.order()),
            Stocked::Pool(subpool) => {
                let (pool, frames) = self.pool_mut(HugeSize::Size2M);
                pool.untake(frames, subpool, head);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HostConfig, HostStats};
    use super::*;
    use crate::{CreateInfo, FolioPolicy, GmemPolicy, GuestMemfd, PageIndex, PageRange};
    use emu_core::memory::SystemMemory;

    const M2: u64 = PageSize::Size2M.frames();
    const SMALL: FolioPolicy = FolioPolicy::Buddy { largest: PageSize::Size4K };
    const POOL: FolioPolicy = FolioPolicy::Pool { size: HugeSize::Size2M };

    /// A host of 8 MiB and an inode over all that there is of `policy`, of which `nr_pages` are there.
    fn host(policy: FolioPolicy) -> (Host, GuestMemfd, u64) {
        let nr_frames = 4 * M2;
        let memory = SystemMemory::flat((M2 + nr_frames) << 12).unwrap();
        let pools = if policy == POOL { vec![(HugeSize::Size2M, 4)] } else { vec![] };
        let config = HostConfig { first: Sfn::new(M2), nr_frames, pools };
        let host = Host::new(HostMemory::new(memory, &config).unwrap());
        let info = CreateInfo { size_bytes: nr_frames << 12, flags: 0, policy, gmem: GmemPolicy::DEFAULT };
        let inode = GuestMemfd::create(&host, info, &Task::QUIET).unwrap();
        (host, inode, nr_frames)
    }

    fn populate(host: &Host, inode: &GuestMemfd, first: u64, nr_pages: u64, task: &Task<'_>) -> bool {
        let range = PageRange { first: PageIndex(first), nr_pages };
        inode.shared(task).allocate(host, range, task).is_ok()
    }

    fn stats(host: &Host) -> HostStats {
        host.lock(&Task::QUIET).stats()
    }

    #[test]
    fn who_takes_the_lock_sees_what_is_used_and_nothing_in_stock() {
        let (host, inode, nr_frames) = host(SMALL);
        let fresh = stats(&host);
        for nr in 1..200 {
            assert!(populate(&host, &inode, nr - 1, 1, &Task::QUIET.on_lane((nr % 3) as u8)));
            if nr % 50 == 0 {
                let now = stats(&host);
                assert_eq!((now.free_frames, now.folios), (nr_frames - nr, [nr, 0, 0]));
            }
        }
        inode.destroy(&host, &Task::QUIET);
        assert_eq!(stats(&host), fresh);
        assert_eq!(stats(&Host::new(host.into_inner())), fresh);
    }

    #[test]
    fn what_other_lanes_have_in_stock_can_be_had() {
        for policy in [SMALL, POOL, FolioPolicy::Buddy { largest: PageSize::Size2M }] {
            let (host, inode, nr_frames) = host(policy);
            let step = policy.folio_size().frames();
            for (n, index) in (0..nr_frames).step_by(step as usize).enumerate() {
                // Two lanes fill their stocks; a third comes for the last quarter.
                let lane = if index < nr_frames / 4 * 3 { n % 2 } else { 2 };
                assert!(populate(&host, &inode, index, 1, &Task::QUIET.on_lane(lane as u8)), "{policy:?} at {index}");
            }
            assert_eq!(stats(&host).free_frames, 0);
            let mut tables = Vec::new();
            assert!(host.alloc_tables(&mut tables, 1, &Task::QUIET).is_err());
        }
    }

    #[test]
    fn page_tables_come_before_what_is_in_stock() {
        let (host, inode, nr_frames) = host(SMALL);
        for index in 0..10 {
            assert!(populate(&host, &inode, index, 1, &Task::QUIET));
        }
        let mut tables = Vec::new();
        let all = (nr_frames - 10) as usize;
        assert_eq!(host.alloc_tables(&mut tables, all, &Task::QUIET), Ok(()));
        assert!(!populate(&host, &inode, 10, 1, &Task::QUIET));
    }

    #[test]
    fn threads_that_populate_the_same_pages_need_no_more_than_there_is() {
        // No lock keeps small pages from being drawn twice: who comes second gives back what somebody else may be waiting
        // for, down to the last frame.
        for _ in 0..8 {
            let (host, inode, nr_frames) = host(SMALL);
            std::thread::scope(|scope| {
                for lane in 0..4_u8 {
                    let (host, inode) = (&host, &inode);
                    scope.spawn(move || {
                        let task = Task::QUIET.on_lane(lane);
                        assert!(populate(host, inode, 0, nr_frames, &task), "lane {lane}");
                    });
                }
            });
            assert_eq!((stats(&host).free_frames, inode.folios(&Task::QUIET)), (0, [nr_frames, 0, 0]));
        }
    }

    #[test]
    fn threads_that_populate_side_by_side_share_all_there_is() {
        for policy in [SMALL, POOL] {
            let (host, inode, nr_frames) = host(policy);
            std::thread::scope(|scope| {
                for lane in 0..4_u8 {
                    let (host, inode) = (&host, &inode);
                    let quarter = nr_frames / 4;
                    scope.spawn(move || {
                        let task = Task::QUIET.on_lane(lane);
                        assert!(populate(host, inode, u64::from(lane) * quarter, quarter, &task));
                    });
                }
            });
            let folios = inode.folios(&Task::QUIET);
            assert_eq!(folios[policy.folio_size().index()] * policy.folio_size().frames(), nr_frames);
            assert_eq!(stats(&host).folios, folios);
        }
    }
}
