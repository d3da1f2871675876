//! Pools of huge pages and the reservations on them (Linux `mm/hugetlb.c`: `struct hstate`, `struct hugepage_subpool`).
//!
//! [`HugePool`] holds the pages of one size, by node; [`subpool::Subpool`] is what one inode may take of it. A page is
//! handed out by [`HugePool::alloc`] or, within a subpool, [`HugePool::take`], and comes back by [`HugePool::free`] or
//! [`HugePool::give`]. The size is changed in [`resize`](HugePool::set_max).
//!
//! Always true, with the kernel's names: `resv` is at most the free pages, of which only a memory failure can have made
//! some unfit; `resv` is the sum of the
//! subpools' `rsv` and of what was reserved without one; `free` plus what is handed out is `nr`; each counter is the sum
//! of its nodes'; of a subpool, `used <= max`, `rsv <= min`, and `rsv` plus what it handed out is `min` when it takes no
//! surplus. So an allocation within a reservation fails only for its node policy. Free pages are kept as runs: the cost
//! of a pool is its fragmentation.
//!
//! Left out: cgroups (one user of the host), `restore_reserve` as a flag of the page (what is handed out within a
//! promise gives the promise back by the way it returns), boot-time pages of a running kernel.

mod resize;
mod subpool;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use emu_core::{PageSize, Sfn};
use thiserror::Error;

use crate::extent::ExtentSet;
use crate::numa::{NodeId, NodeMask, NodeOrder};
use crate::vmemmap::SystemFrames;

pub use resize::Demotion;
pub use subpool::{Subpool, SubpoolFull, SubpoolId, SubpoolLimits};

/// The sizes a pool can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HugeSize {
    /// 2 MiB, order 9.
    Size2M,
    /// 1 GiB, order 18.
    Size1G,
}

impl HugeSize {
    /// Both.
    pub const ALL: [HugeSize; 2] = [HugeSize::Size2M, HugeSize::Size1G];

    /// The page size.
    pub const fn page_size(self) -> PageSize {
        match self {
            HugeSize::Size2M => PageSize::Size2M,
            HugeSize::Size1G => PageSize::Size1G,
        }
    }

    /// Its directory under `/sys/kernel/mm/hugepages`.
    pub const fn sysfs_name(self) -> &'static str {
        match self {
            HugeSize::Size2M => "hugepages-2048kB",
            HugeSize::Size1G => "hugepages-1048576kB",
        }
    }

    /// The pool size of a page size; there is none for 4K.
    pub const fn of(size: PageSize) -> Option<HugeSize> {
        match size {
            PageSize::Size4K => None,
            PageSize::Size2M => Some(HugeSize::Size2M),
            PageSize::Size1G => Some(HugeSize::Size1G),
        }
    }
}

/// What a reservation may lean on when the pool's own pages do not suffice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surplus {
    /// Nothing: guest_memfd must return every page to its reservation.
    Refused,
    /// Pages from the page allocator beyond the pool's persistent ones, up to the overcommit limit.
    Allowed,
}

/// What an allocation leans on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A promise made before, which it uses up.
    Reserved,
    /// Nothing: a page promised to nobody, or a surplus one.
    Unreserved,
}

/// What becomes of the promise when a page comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It is made again (`restore_reserve`).
    Restored,
    /// It stays used up.
    Dropped,
}

/// A pool cannot promise or hand out that many pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the {size} pool has {available} unreserved pages, {asked} were asked for")]
pub struct PoolExhausted {
    /// The pool.
    pub size: PageSize,
    /// Pages asked for.
    pub asked: u64,
    /// Pages free and not promised to others.
    pub available: u64,
}

/// Why a page of a subpool cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TakeError {
    /// The subpool is used up.
    #[error(transparent)]
    Full(#[from] SubpoolFull),
    /// The page is promised, but the nodes of the policy have none that is sound: promises are the pool's, not a
    /// node's, and a memory failure breaks them.
    #[error("no free {size} page without failures on the nodes that the policy allows")]
    Nodes {
        /// The pool.
        size: PageSize,
    },
}

/// The counters of a pool, under the names of `/sys/kernel/mm/hugepages/*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// `nr_hugepages`: pages that belong to the pool, surplus ones included.
    pub nr: u64,
    /// `free_hugepages`: of these, not handed out; poisoned ones included.
    pub free: u64,
    /// `resv_hugepages`: of the free ones, promised.
    pub resv: u64,
    /// `surplus_hugepages`: of `nr`, those beyond the persistent pool.
    pub surplus: u64,
    /// `nr_overcommit_hugepages`: the most surplus pages there may be.
    pub overcommit: u64,
}

impl PoolStats {
    /// The files of a pool's directory and what they show.
    pub const fn files(&self) -> [(&'static str, u64); 5] {
        [
            ("nr_hugepages", self.nr),
            ("free_hugepages", self.free),
            ("resv_hugepages", self.resv),
            ("surplus_hugepages", self.surplus),
            ("nr_overcommit_hugepages", self.overcommit),
        ]
    }
}

/// The counters of one node of a pool, under the names of `/sys/devices/system/node/node*/hugepages/*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NodeStats {
    /// `nr_hugepages`.
    pub nr: u64,
    /// `free_hugepages`.
    pub free: u64,
    /// `surplus_hugepages`.
    pub surplus: u64,
}

#[derive(Clone, Debug, Default)]
struct PoolNode {
    /// Free and sound pages, by frame number divided by the frames of a page (`hugepage_freelists`).
    free: ExtentSet,
    /// Free pages that no allocation may touch.
    poisoned: BTreeSet<u64>,
    nr: u64,
    surplus: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct HugePool {
    size: HugeSize,
    nodes: Vec<PoolNode>,
    resv: u64,
    /// `max_huge_pages`: the size the pool was last set to, as far as it could be.
    max: u64,
    overcommit: u64,
    next_nid_to_alloc: NodeId,
    next_nid_to_free: NodeId,
    /// Pages handed out that leave the pool when they come back.
    temporary: BTreeSet<u64>,
    subpools: subpool::Table,
}

impl HugePool {
    /// An empty pool over `nr_nodes` nodes.
    pub fn new(size: HugeSize, nr_nodes: usize) -> HugePool {
        HugePool {
            size,
            nodes: vec![PoolNode::default(); nr_nodes.clamp(1, crate::numa::MAX_NODES)],
            resv: 0,
            max: 0,
            overcommit: 0,
            next_nid_to_alloc: NodeId::ZERO,
            next_nid_to_free: NodeId::ZERO,
            temporary: BTreeSet::new(),
            subpools: subpool::Table::default(),
        }
    }

    /// The size of its pages.
    pub const fn page_size(&self) -> PageSize {
        self.size.page_size()
    }

    /// The counters.
    pub fn stats(&self) -> PoolStats {
        let sum = |of: fn(&NodeStats) -> u64| self.node_stats().map(|node| of(&node)).sum();
        PoolStats {
            nr: sum(|node| node.nr),
            free: sum(|node| node.free),
            resv: self.resv,
            surplus: sum(|node| node.surplus),
            overcommit: self.overcommit,
        }
    }

    /// The counters by node.
    pub fn node_stats(&self) -> impl Iterator<Item = NodeStats> + '_ {
        self.nodes.iter().map(|node| NodeStats {
            nr: node.nr,
            free: node.free.len() + node.poisoned.len() as u64,
            surplus: node.surplus,
        })
    }

    /// `max_huge_pages`: the persistent pages it was set to have.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Sound pages that are free and promised to nobody (`available_huge_pages`). Ours: the kernel counts poisoned
    /// pages in, and then cannot keep a promise that leans on one.
    pub fn available(&self) -> u64 {
        self.sound().saturating_sub(self.resv)
    }

    fn sound(&self) -> u64 {
        self.nodes.iter().map(|node| node.free.len()).sum()
    }

    fn surplus(&self) -> u64 {
        self.nodes.iter().map(|node| node.surplus).sum()
    }

    /// `persistent_huge_pages`.
    fn persistent(&self) -> u64 {
        self.nodes.iter().map(|node| node.nr - node.surplus).sum()
    }

    /// Sets how many surplus pages there may be (`nr_overcommit_hugepages`).
    pub fn set_overcommit(&mut self, nr_pages: u64) {
        self.overcommit = nr_pages;
    }

    fn unit(&self, sfn: Sfn) -> u64 {
        assert!(sfn.is_aligned(self.page_size()), "{sfn:?} is not the head of a {} page", self.page_size());
        sfn.raw() / self.page_size().frames()
    }

    fn sfn(&self, unit: u64) -> Sfn {
        Sfn::new(unit * self.page_size().frames())
    }

    fn online(&self) -> NodeMask {
        NodeMask::first(self.nodes.len())
    }

    /// The node of the pool that a page lies in.
    fn node_of(&self, frames: &SystemFrames, sfn: Sfn) -> usize {
        match frames.pages.node_of(sfn) {
            Some(node) if node.index() < self.nodes.len() => node.index(),
            other => panic!("{sfn:?} of {other:?} lies in no node of the pool"),
        }
    }

    fn refused(&self, asked: u64) -> PoolExhausted {
        PoolExhausted { size: self.page_size(), asked, available: self.available() }
    }

    /// Promises `nr_pages`, all or nothing (`hugetlb_acct_memory` with a positive argument).
    pub fn reserve(&mut self, frames: &mut SystemFrames, nr_pages: u64, surplus: Surplus) -> Result<(), PoolExhausted> {
        let needed = nr_pages.saturating_sub(self.available());
        if needed > 0 {
            let refused = self.refused(nr_pages);
            if surplus == Surplus::Refused || needed > self.overcommit.saturating_sub(self.surplus()) {
                return Err(refused);
            }
            let added = self.grow_surplus(frames, needed);
            if added < needed {
                self.release_surplus(frames, added);
                return Err(refused);
            }
        }
        self.resv += nr_pages;
        Ok(())
    }

    /// Takes a promise back (`hugetlb_acct_memory` with a negative argument); as many surplus pages leave the pool, as
    /// far as they are free.
    ///
    /// # Panics
    /// When more is taken back than was promised.
    pub fn unreserve(&mut self, frames: &mut SystemFrames, nr_pages: u64) {
        assert!(nr_pages <= self.resv, "{nr_pages} pages were never promised");
        self.resv -= nr_pages;
        self.release_surplus(frames, nr_pages);
    }

    /// A page from the first of `nodes` that has one (`hugetlb_alloc_folio`). Without a promise, and with none free
    /// that is not promised, a surplus page from the page allocator.
    pub fn alloc(&mut self, frames: &mut SystemFrames, nodes: NodeOrder, grant: Grant) -> Result<Sfn, PoolExhausted> {
        let may_dequeue = match grant {
            Grant::Reserved => {
                assert!(self.resv > 0, "nothing was promised");
                true
            }
            Grant::Unreserved => self.available() > 0,
        };
        let unit = if may_dequeue { self.dequeue(nodes) } else { None };
        match (unit, grant) {
            (Some(unit), Grant::Reserved) => {
                self.resv -= 1;
                Ok(self.sfn(unit))
            }
            (Some(unit), Grant::Unreserved) => Ok(self.sfn(unit)),
            (None, Grant::Reserved) => Err(self.refused(1)),
            (None, Grant::Unreserved) => self.alloc_surplus(frames, nodes).ok_or(self.refused(1)),
        }
    }

    fn dequeue(&mut self, nodes: NodeOrder) -> Option<u64> {
        let mut nodes = nodes;
        nodes.find_map(|node| self.nodes.get_mut(node.index())?.free.pop_first())
    }

    fn alloc_surplus(&mut self, frames: &mut SystemFrames, nodes: NodeOrder) -> Option<Sfn> {
        if self.surplus() >= self.overcommit {
            return None;
        }
        let sfn = self.alloc_fresh(frames, nodes)?;
        let node = self.node_of(frames, sfn);
        self.nodes[node].surplus += 1;
        Some(sfn)
    }

    fn alloc_fresh(&mut self, frames: &mut SystemFrames, nodes: NodeOrder) -> Option<Sfn> {
        let sfn = frames.pages.alloc(self.page_size().order(), nodes)?;
        frames.optimise(self.size, 1);
        let node = self.node_of(frames, sfn);
        self.nodes[node].nr += 1;
        Some(sfn)
    }

    /// A page beyond every limit that leaves the pool when it comes back (`alloc_migrate_hugetlb_folio`).
    pub fn alloc_temporary(&mut self, frames: &mut SystemFrames, nodes: NodeOrder) -> Result<Sfn, PoolExhausted> {
        let sfn = self.alloc_fresh(frames, nodes).ok_or(self.refused(1))?;
        self.temporary.insert(self.unit(sfn));
        Ok(sfn)
    }

    /// Takes a page back (`free_huge_folio`): a temporary page, or one of a node with surplus, goes on to the page
    /// allocator.
    ///
    /// # Panics
    /// When it is free already, or more come back than were handed out.
    pub fn free(&mut self, frames: &mut SystemFrames, sfn: Sfn, promise: Promise) {
        let unit = self.unit(sfn);
        let node = self.node_of(frames, sfn);
        if promise == Promise::Restored {
            self.resv += 1;
        }
        let spare = self.resv <= self.sound();
        let at = &mut self.nodes[node];
        assert!(at.free.len() + (at.poisoned.len() as u64) < at.nr, "more pages come back than were handed out");
        if self.temporary.remove(&unit) {
            if !self.release(frames, node, unit) {
                self.nodes[node].surplus += 1;
                self.nodes[node].free.insert(unit, 1);
            }
        } else if at.surplus > 0 && spare {
            if self.release(frames, node, unit) {
                self.nodes[node].surplus -= 1;
            } else {
                self.nodes[node].free.insert(unit, 1);
            }
        } else {
            at.free.insert(unit, 1);
        }
    }

    /// Undoes an allocation under a promise.
    fn undo_alloc(&mut self, frames: &SystemFrames, sfn: Sfn) {
        let (unit, node) = (self.unit(sfn), self.node_of(frames, sfn));
        self.nodes[node].free.insert(unit, 1);
        self.resv += 1;
    }

    /// Gives a page that is not on a free list to the page allocator (`update_and_free_hugetlb_folio`). Whether its
    /// vmemmap could be restored; if not, nothing was changed.
    fn release(&mut self, frames: &mut SystemFrames, node: usize, unit: u64) -> bool {
        let sfn = self.sfn(unit);
        if frames.restore(self.size, 1, sfn).is_err() {
            return false;
        }
        frames.pages.free(sfn, self.page_size().order());
        self.nodes[node].nr -= 1;
        true
    }

    /// Strikes a page off that is handed out and will not come back whole (`dissolve_free_hugetlb_folio` after a memory
    /// failure). Its vmemmap is restored already; the caller has its frames.
    pub(crate) fn strike_off(&mut self, frames: &SystemFrames, sfn: Sfn) {
        let unit = self.unit(sfn);
        let node = self.node_of(frames, sfn);
        self.temporary.remove(&unit);
        let at = &mut self.nodes[node];
        at.nr -= 1;
        at.surplus = at.surplus.min(at.nr);
        self.max = self.max.saturating_sub(1);
    }

    /// Puts a poisoned page that was handed out on the free list, where nobody gets it: its vmemmap cannot be restored,
    /// so it cannot be taken apart.
    pub(crate) fn shelve(&mut self, frames: &SystemFrames, sfn: Sfn) {
        let unit = self.unit(sfn);
        let node = self.node_of(frames, sfn);
        self.nodes[node].poisoned.insert(unit);
    }

    /// Whether the page at `sfn` is free in the pool.
    pub fn is_free(&self, sfn: Sfn) -> bool {
        let unit = sfn.raw() / self.page_size().frames();
        self.nodes.iter().any(|node| node.free.contains(unit) || node.poisoned.contains(&unit))
    }

    /// Takes the free page around `sfn` away from allocations because of a memory failure. `Some` is the head of a page
    /// that left the pool and is the caller's now. `None` when a promise leans on it, or it cannot be taken apart: it
    /// stays, and allocations skip it; such a promise cannot be kept to the last page.
    pub(crate) fn poison_free(&mut self, frames: &mut SystemFrames, sfn: Sfn) -> Option<Sfn> {
        let head = sfn.align_down(self.page_size());
        let unit = self.unit(head);
        let node = self.node_of(frames, head);
        let spare = self.available() > 0;
        if !self.nodes[node].free.remove(unit) {
            return None;
        }
        if !spare || frames.restore(self.size, 1, head).is_err() {
            self.nodes[node].poisoned.insert(unit);
            return None;
        }
        self.strike_off(frames, head);
        Some(head)
    }
}
